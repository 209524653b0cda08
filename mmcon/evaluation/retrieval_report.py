"""The report of retrieval by class: held-out samples look for training samples of their class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mmcon.evaluation.evaluation_list import EvaluationInput
from mmcon.evaluation.retrieval import RetrievalMetrics, retrieve


@dataclass(frozen=True)
class RetrievalResult:
    """Retrieval of samples of the same class.

    Attributes:
        metrics: see `RetrievalMetrics`.
        queries: the number of queries.
        candidates: the number of candidates.
    """

    metrics: RetrievalMetrics
    queries: int
    candidates: int

    def table(self) -> str:
        """The metrics as text."""
        found = self.metrics
        recalls = [f"recall at {k} {found.recall[k]:.3f} (chance {found.chance[k]:.3f})" for k in found.recall]
        lines = [f"retrieval of the same class: {self.queries:,} queries among {self.candidates:,} samples", *recalls]
        lines.append(f"mean average precision {found.mean_average_precision:.3f}, nDCG {found.ndcg:.3f}")
        if found.queries_without_relevant:
            lines.append(f"{found.queries_without_relevant:,} queries have no sample of their class, and do not count")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The metrics as plain values."""
        found = self.metrics
        return {
            "queries": self.queries,
            "candidates": self.candidates,
            "recall": {f"at_{k}": value for k, value in found.recall.items()},
            "recall_chance": {f"at_{k}": value for k, value in found.chance.items()},
            "mean_average_precision": found.mean_average_precision,
            "ndcg": found.ndcg,
            "median_rank": found.median_rank,
            "queries_without_relevant": found.queries_without_relevant,
        }

    def plot(self) -> Any:
        """A figure: recall beside chance, and the average precision of the queries."""
        from matplotlib.figure import Figure

        found = self.metrics
        figure = Figure(figsize=(9, 3.5), layout="constrained")
        left, right = figure.subplots(1, 2)
        places = range(len(found.recall))
        left.bar(places, list(found.recall.values()), width=0.4, align="edge", label="retrieval")
        left.bar(places, list(found.chance.values()), width=-0.4, align="edge", color="lightgray", label="chance")
        left.set_xticks(places, [f"recall at {k}" for k in found.recall])
        left.set(ylim=(0, 1))
        left.legend()
        precision = found.average_precision
        right.hist(precision[precision.isfinite()].numpy(), bins=20, range=(0, 1))
        right.set(xlabel="average precision", ylabel="queries", title=f"mean {found.mean_average_precision:.3f}")
        return figure


def evaluate_retrieval(given: EvaluationInput) -> RetrievalResult:
    """Retrieval from the held-out split in the training split, by class."""
    found = retrieve(given.test, given.train, relevance="label")
    return RetrievalResult(found, len(given.test), len(given.train))
