"""Metrics of audio features: the same prompt across languages, voice, and classes; and a log-mel baseline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mmcon.batch import Index, ViewBatch
from mmcon.evaluation.features import Features
from mmcon.evaluation.knn import knn
from mmcon.evaluation.probe import linear_probe
from mmcon.evaluation.retrieval import RetrievalMetrics, retrieve
from mmcon.evaluation.second_stage import evaluate_features


def log_mel_statistics(batch: ViewBatch) -> Float[Tensor, "b d"]:
    """Mean and standard deviation of each mel band over the frames without padding."""
    views = batch.views["audio"][0]
    x, length = views["log_mel"].mean(1), views["length"]
    real = (torch.arange(x.shape[-1]) < length[:, None].cpu())[:, None].to(x)
    mean = (x * real).sum(-1) / real.sum(-1)
    return torch.cat([mean, ((x - mean[..., None]).square() * real).sum(-1).div(real.sum(-1)).sqrt()], 1)


def evaluate_audio(
    train: Features, test: Features, *, model_folder: Path | None = None, classes: Sequence[str] = ()
) -> dict[str, Any]:
    """The metrics that the columns of the test split allow.

    With prompts in several languages: retrieval of the same prompt in another language, and a probe and k-NN of the
    language (the voice, if each language has one). With labels that are also in the training split: a probe, k-NN and
    retrieval from the training split. With other labels: retrieval within the test split.

    Args:
        train: features of the training split.
        test: features of the held-out split.
        model_folder: a saved model beside which the probe of the class is saved, with the names of its classes.
        classes: their names, by label.
    """
    if "prompt" in test.index and "language" in test.index:
        voice = [Features(f.values, f.index.with_columns(label=f.index["language"])) for f in (train, test)]
        found = retrieve(test, test, relevance=across_languages, exclude_same="language")
        probe, near = linear_probe(*voice), knn(*voice, k=min(20, len(train)))
        return {"voice_probe": probe.top1, "voice_knn": near.top1, **_retrieval_json(found)}
    if "label" not in test.index:
        return {}
    if not bool(torch.isin(test.index["label"], train.index["label"]).all()):
        return _retrieval_json(retrieve(test, test, relevance="label", exclude_same="sample"))
    saved: dict[str, Any] = {"model_folder": model_folder, "classes": classes, "modality": "audio"}
    found = {name: own.top1 for name, own in evaluate_features(train, test, neighbors=20, **saved).items()}
    return {**found, **_retrieval_json(retrieve(test, train, relevance="label"))}


def across_languages(queries: Index, candidates: Index) -> Float[Tensor, "q c"]:
    """Relevance 1 for the same prompt in another language, 0 otherwise."""
    same_prompt = queries["prompt"][:, None] == candidates["prompt"]
    return (same_prompt & (queries["language"][:, None] != candidates["language"])).double()


def audio_metrics_table(metrics: dict[str, dict[str, Any]], n: int, *, unreadable: int) -> str:
    """The metrics of several encoders on n recordings as text."""
    lines = [f"on {n} held-out recordings" + (f"; {unreadable} of all could not be read" if unreadable else "")]
    for name, of_encoder in metrics.items():
        cells = [f"{key} {value:.3f}" for key, value in of_encoder.items() if isinstance(value, float)]
        if "recall" in of_encoder:
            cells.append("recall at 1, 5, 10: " + " ".join(f"{value:.3f}" for value in of_encoder["recall"].values()))
            cells.append("(chance " + " ".join(f"{value:.3f}" for value in of_encoder["recall_chance"].values()) + ")")
        lines.append(f"  {name:<20} " + "  ".join(cells))
    return "\n".join(lines)


def _retrieval_json(found: RetrievalMetrics) -> dict[str, Any]:
    """Recall, its chance level, and mean average precision."""
    return {
        "recall": {f"at_{k}": value for k, value in found.recall.items()},
        "recall_chance": {f"at_{k}": value for k, value in found.chance.items()},
        "mean_average_precision": found.mean_average_precision,
    }
