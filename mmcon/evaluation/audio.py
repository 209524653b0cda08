"""Figures of sounds: the same prompt in another language, the voice, classes; and what the mel bands alone would give.

figures = judge(extract(model, one_pass(train, plain)), extract(model, one_pass(test, plain)))
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmcon.batch import Index, ViewBatch
from mmcon.evaluation.features import Features
from mmcon.evaluation.knn import knn
from mmcon.evaluation.probe import linear_probe
from mmcon.evaluation.retrieval import RetrievalMetrics, retrieve


def log_mel_statistics(batch: ViewBatch) -> Tensor:
    """Mean and standard deviation of each mel band over the real frames."""
    part = batch.views["audio"][0]
    x, length = part["log_mel"].mean(1), part["length"]
    real = (torch.arange(x.shape[-1]) < length[:, None].cpu())[:, None].to(x)
    mean = (x * real).sum(-1) / real.sum(-1)
    return torch.cat([mean, ((x - mean[..., None]).square() * real).sum(-1).div(real.sum(-1)).sqrt()], 1)


def evaluate_audio(train: Features, test: Features) -> dict[str, Any]:
    """The figures that the columns of the held-out recordings allow.

    With prompts in several languages: the same prompt in another language, and the probe and k-NN of the language,
    which is a voice where each language has one. With labels: classes that training has by probe, k-NN and retrieval
    from it; other classes by retrieval among the held-out recordings.
    """
    if "prompt" in test.index and "language" in test.index:
        voice = [Features(f.values, f.index.with_columns(label=f.index["language"])) for f in (train, test)]
        found = retrieve(test, test, relevance=across_languages, exclude_same="language")
        probe, near = linear_probe(*voice), knn(*voice, k=min(20, len(train)))
        return {"voice_probe": probe.top1, "voice_knn": near.top1, **retrieved(found)}
    if "label" not in test.index:
        return {}
    if not bool(torch.isin(test.index["label"], train.index["label"]).all()):
        return retrieved(retrieve(test, test, relevance="label", exclude_same="sample"))
    probe, near = linear_probe(train, test), knn(train, test, k=min(20, len(train)))
    return {"linear_probe": probe.top1, "knn": near.top1, **retrieved(retrieve(test, train, relevance="label"))}


def retrieved(found: RetrievalMetrics) -> dict[str, Any]:
    """Recall, what chance would give, and mean average precision."""
    return {
        "recall": {f"at_{k}": value for k, value in found.recall.items()},
        "recall_chance": {f"at_{k}": value for k, value in found.chance.items()},
        "mean_average_precision": found.mean_average_precision,
    }


def across_languages(queries: Index, candidates: Index) -> Tensor:
    """The same prompt in another language is relevant."""
    same = queries["prompt"][:, None] == candidates["prompt"]
    return (same & (queries["language"][:, None] != candidates["language"])).double()


def audio_metrics_table(figures: dict[str, dict[str, Any]], n: int, *, unreadable: int) -> str:
    """The figures for a person to read."""
    lines = [f"on {n} held-out recordings" + (f"; {unreadable} of all could not be read" if unreadable else "")]
    for name, of in figures.items():
        shown = [f"{key} {value:.3f}" for key, value in of.items() if isinstance(value, float)]
        if "recall" in of:
            shown.append("recall at 1, 5, 10: " + " ".join(f"{value:.3f}" for value in of["recall"].values()))
            shown.append("(chance " + " ".join(f"{value:.3f}" for value in of["recall_chance"].values()) + ")")
        lines.append(f"  {name:<20} " + "  ".join(shown))
    return "\n".join(lines)
