"""Evaluation in a shared space: retrieval between modalities, zero-shot classification, and probes, as a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmcon.evaluation.calibrated_probe import probe_and_save
from mmcon.evaluation.cross_modal import (
    SpaceEmbeddings,
    cross_modal_metrics,
    cross_modal_table,
    metrics_by_modality_pair,
    prompt_texts,
    uniformity_by_modality,
    zero_shot_classification,
)
from mmcon.evaluation.features import Features, extract_features
from mmcon.loading.loader import Views, one_pass
from mmcon.sources.base import Source
from mmcon.sources.text import TextSource


def evaluate_modalities(
    model: nn.Module,
    train: Source,
    test: Source,
    *,
    views: Views,
    trained_pairs: Sequence[str],
    device: torch.device,
    model_folder: Path | None = None,
) -> tuple[dict[str, Any], str]:
    """Retrieval between every two modalities on both splits, uniformity, and a linear probe of labeled modalities.

    Args:
        model: a ContrastiveModel on the device; retrieval compares embeddings, the probe reads features.
        train: the training split, of several modalities or of one.
        test: the held-out split.
        views: the evaluation view of each modality.
        trained_pairs: the pairs, such as "image-text", that were trained; the text marks the others.
        device: the device of the model.
        model_folder: a saved model beside which the probes are saved.

    Returns:
        The metrics for results.json, and the same as text.
    """
    results: dict[str, Any] = {}
    lines = []
    for split, source in (("training_samples", train), ("held_out", test)):
        embeddings = _by_modality(SpaceEmbeddings(model), source, views, device)
        metrics = metrics_by_modality_pair(embeddings)
        results[split] = {name: of_pair.results() for name, of_pair in metrics.items()}
        results[split]["uniformity"] = uniformity_by_modality(embeddings)
        if metrics:
            lines.append(f"{split.replace('_', ' ')}: {cross_modal_table(metrics, trained_pairs=trained_pairs)}")
    known, queried = (_by_modality(model, source, views, device) for source in (train, test))
    labeled = [modality for modality, features in known.items() if "label" in features.index]
    if labeled:
        probes = {
            modality: probe_and_save(
                known[modality],
                queried[modality],
                model_folder=model_folder,
                classes=train.members[modality].classes,
                modality=modality,
            ).top1
            for modality in labeled
        }
        results["linear_probe"] = probes
        lines.append("linear probe  " + "   ".join(f"{m} {top1:.3f}" for m, top1 in probes.items()))
    return results, "\n".join(lines)


def evaluate_image_text(
    model: nn.Module,
    test_sets: Mapping[str, Source],
    *,
    views: Views,
    prompts: TextSource | None,
    device: torch.device,
) -> tuple[dict[str, Any], str]:
    """Retrieval in both directions on every test set, uniformity, and zero-shot classification by prompts.

    Args:
        model: a ContrastiveModel of images and texts, on the device.
        test_sets: pairs of images and texts by name; uniformity is that of "held out".
        views: the evaluation view of each modality.
        prompts: texts of every class, from `class_prompts`; None: no classification.
        device: the device of the model.

    Returns:
        The metrics for results.json, and the same as text.
    """
    encode = SpaceEmbeddings(model)
    embeddings = {
        name.replace(" ", "_").replace(",", ""): _by_modality(encode, source, views, device)
        for name, source in test_sets.items()
    }
    metrics = {name: cross_modal_metrics(of["image"], of["text"]) for name, of in embeddings.items()}
    results: dict[str, Any] = {name: of.results() for name, of in metrics.items()}
    results["uniformity"] = uniformity_by_modality(embeddings["held_out"])
    text = cross_modal_table(dict(zip(test_sets, metrics.values(), strict=True)))
    if prompts is not None:
        embedded = _by_modality(encode, prompts, views, device)["text"]
        top1 = {name: zero_shot_classification(of["image"], embedded).top1 for name, of in embeddings.items()}
        results["zero_shot"] = top1
        line = "   ".join(f"{name} {value:.3f}" for name, value in top1.items())
        text += f"\nzero-shot classification among {len(prompts.classes)} classes by their names: {line}"
    return results, text


def class_prompts(source: Source, templates: Sequence[str], *, column: str = "text") -> TextSource | None:
    """The name of every class in every template, labeled by class; None if the source has no labels.

    Args:
        source: has the names of the classes; hyphens in them become spaces.
        templates: texts with {} for the name, such as "a picture of {}".
        column: the name of the text column, for views that choose a column.
    """
    if source.labels is None:
        return None
    names = {label: [name.replace("-", " ")] for label, name in enumerate(source.classes)}
    texts, labels = prompt_texts(names, templates)
    return TextSource({column: texts}, ids=texts, labels=labels, classes=source.classes)


def _by_modality(encode: nn.Module, source: Source, views: Views, device: torch.device) -> dict[str, Features]:
    """The output of an encoder for each modality of a source."""
    return {
        name: extract_features(encode, one_pass(member, {name: views[name]}, device=device), modality=name)
        for name, member in source.members.items()
    }
