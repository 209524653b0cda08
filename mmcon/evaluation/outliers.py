"""Detection of outliers from features: scores that are higher on other data, and how well they tell the two apart.

Two scores read a linear probe (maximum softmax, energy), one the classes of training features (Mahalanobis distance to
the nearest class), and two are free of classes (cosine to a neighbor, density of unit features). Outliers are the
positive class of AUROC and AUPR. FPR at 95 % TPR follows the usual convention of this field: the share of outliers that
are taken for ordinary samples when 95 % of ordinary samples are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mmcon.errors import ConfigError, InputError
from mmcon.evaluation.evaluation_list import EvaluationInput, number_option
from mmcon.evaluation.features import Features
from mmcon.evaluation.probe import LinearProbe
from mmcon.evaluation.similarity_blocks import check_same_width, similarity_blocks
from mmcon.sources.base import channels_of

NEIGHBORS = 10
#: Added to variances, as a share of their mean, so that a covariance of few samples can be inverted.
SHRINKAGE = 1e-3

Score = Callable[[Features], Float[Tensor, " n"]]


@dataclass(frozen=True)
class Separation:
    """How well a score tells outliers from ordinary samples.

    Attributes:
        auroc: the probability that an outlier has a higher score than an ordinary sample, ties counted half.
        aupr: average precision, with outliers as positives; by chance their share.
        fpr95: the share of outliers below the threshold under which 95 % of ordinary samples are.
    """

    auroc: float
    aupr: float
    fpr95: float


@dataclass(frozen=True)
class OutlierResult:
    """The separation of each score from each set of outliers.

    Attributes:
        separations: by set of outliers, by score.
        kinds: by set, "near" or "far".
        sizes: by set, the number of samples.
        n: the number of ordinary test samples.
        scores: by score, those of the test samples ("test") and of each set.
    """

    separations: Mapping[str, Mapping[str, Separation]]
    kinds: Mapping[str, str]
    sizes: Mapping[str, int]
    n: int
    scores: Mapping[str, Mapping[str, Float[Tensor, " _"]]]

    def table(self) -> str:
        """AUROC, AUPR and FPR at 95 % TPR by set and score, as text."""
        lines = [f"outliers among {self.n:,} ordinary test samples"]
        for name, found in self.separations.items():
            share = self.sizes[name] / (self.sizes[name] + self.n)
            lines += ["", f"{self.kinds[name]}: {name}, {self.sizes[name]:,} samples (AUPR by chance {share:.3f})"]
            lines.append(f"  {'':18}AUROC    AUPR   FPR at 95 % TPR")
            lines += [f"  {score:18}{s.auroc:5.3f}   {s.aupr:5.3f}   {s.fpr95:5.3f}" for score, s in found.items()]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        sets = {
            name: {
                "kind": self.kinds[name],
                "samples": self.sizes[name],
                **{score: {"auroc": s.auroc, "aupr": s.aupr, "fpr95": s.fpr95} for score, s in found.items()},
            }
            for name, found in self.separations.items()
        }
        return {"samples": self.n, "sets": sets}

    def plot(self) -> Any:
        """A figure: histograms of each score on ordinary samples and on each set."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(3.2 * len(self.scores), 3.4), layout="constrained")
        panels = figure.subplots(1, len(self.scores), squeeze=False)[0]
        for axes, (score, values) in zip(panels, self.scores.items(), strict=True):
            low, high = np.quantile(torch.cat(list(values.values())).numpy(), [0.005, 0.995])
            for number, (name, of) in enumerate(values.items()):
                axes.hist(
                    of.numpy(), bins=40, range=(low, high), density=True, alpha=0.5, color=f"C{number}", label=name
                )
            axes.set(title=score, yticks=[])
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small")
        return figure


def evaluate_outliers(given: EvaluationInput) -> OutlierResult:
    """Every score on the test samples and on the sets of outliers that are near or far.

    Without labels, only the scores that need none. Option: `outlier_neighbors`, the k of the k-th nearest neighbor.

    Raises:
        ConfigError: no set of outliers, one of the same name twice, or images in color for a model of gray ones.
    """
    kinds = dict.fromkeys(given.near, "near") | dict.fromkeys(given.far, "far")
    if not kinds or len(kinds) < len(given.near) + len(given.far):
        got = "none" if not kinds else f"{sorted(set(given.near) & set(given.far))} as near and as far"
        raise ConfigError("outliers", expected="other data sets, each near or far", got=got, fix="--near or --far DATA")
    sources = {**given.near, **given.far}
    if given.modality == "image" and channels_of(given.train_source) == 1:
        colored = [name for name, source in sources.items() if channels_of(source) != 1]
        if colored:
            fix = "choose gray data, or a model of images in color"
            raise ConfigError(
                "outliers", expected="gray images, as the training data", got=f"color: {colored}", fix=fix
            )
    neighbors = number_option(given.options, "outlier_neighbors", NEIGHBORS, lowest=1, highest=len(given.train))
    sets = {name: given.features(source, title=f"features of {name}") for name, source in sources.items()}
    labeled = "label" in given.train.index
    probe = given.probe if labeled else None
    return compare_scores(outlier_scores(given.train, probe, neighbors=neighbors), given.test, sets, kinds)


def compare_scores(
    scores: Mapping[str, Score], test: Features, sets: Mapping[str, Features], kinds: Mapping[str, str]
) -> OutlierResult:
    """The separation of each score from each set of outliers.

    Args:
        scores: by name.
        test: ordinary samples, which no score was fitted to.
        sets: outliers by name.
        kinds: by set, "near" or "far".
    """
    values = {s: {"test": score(test)} | {name: score(of) for name, of in sets.items()} for s, score in scores.items()}
    found = {name: {s: separation(of["test"], of[name]) for s, of in values.items()} for name in sets}
    return OutlierResult(found, kinds, {name: len(of) for name, of in sets.items()}, len(test), values)


def separation(ordinary: Float[Tensor, " n"], outliers: Float[Tensor, " m"]) -> Separation:
    """AUROC, average precision and FPR at 95 % TPR of a score that is higher for outliers.

    Raises:
        InputError: a side is empty, or a score is NaN.
    """
    n, m = len(ordinary), len(outliers)
    scores = torch.cat([ordinary, outliers]).double().numpy()
    if not n or not m or np.isnan(scores).any():
        got = f"{n} and {m} scores, {int(np.isnan(scores).sum())} of them NaN"
        raise InputError("separation", expected="scores of both kinds of samples", got=got)
    from scipy import stats

    rank_sum = stats.rankdata(scores)[n:].sum()
    auroc = (rank_sum - m * (m + 1) / 2) / (n * m)
    # Precision and recall at each distinct threshold, from the highest score down; equal scores are one threshold.
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.nonzero(np.diff(scores[order]))[0], n + m - 1)
    hits = np.cumsum(order >= n)[ends]
    aupr = float(np.sum(np.diff(hits, prepend=0) / m * hits / (ends + 1)))
    # The lowest threshold at or below which at least 95 % of ordinary samples are.
    threshold = np.sort(scores[:n])[int(np.ceil(0.95 * n)) - 1]
    return Separation(float(auroc), aupr, float((scores[n:] <= threshold).mean()))


def outlier_scores(train: Features, probe: LinearProbe | None, *, neighbors: int = NEIGHBORS) -> dict[str, Score]:
    """Scores by name, each higher for features unlike those of the training samples.

    - max-softmax: minus the largest probability of the probe (Hendrycks and Gimpel 2017).
    - energy: minus the log-sum-exp of its logits (Liu et al. 2020, temperature 1).
    - mahalanobis: the smallest distance to a class mean, with one covariance for all classes (Lee et al. 2018).
    - neighbors: minus the cosine to the k-th nearest training sample (Sun et al. 2022).
    - density: the distance to the mean of unit features with their covariance, without classes (Sehwag et al. 2021 with
      one cluster).

    Args:
        train: training features; with labels, mahalanobis is included.
        probe: for the first two scores.
        neighbors: the k of neighbors, at most the number of training samples.
    """
    if not 1 <= neighbors <= len(train):
        raise InputError("outlier_scores", expected=f"1 to {len(train)} neighbors", got=str(neighbors))
    scores: dict[str, Score] = {}
    if probe is not None:
        scores["max-softmax"] = lambda of: -_logits(probe, of).softmax(1).amax(1)
        scores["energy"] = lambda of: -_logits(probe, of).logsumexp(1)
    if "label" in train.index:
        scores["mahalanobis"] = _mahalanobis(train.values.double(), train.labels)
    scores["neighbors"] = lambda of: -_kth_cosine(of, train, neighbors)
    density = _mahalanobis(train.normalized().double(), torch.zeros(len(train), dtype=torch.int64))
    scores["density"] = lambda of: density(Features(of.normalized(), of.index))
    return scores


def _logits(probe: LinearProbe, of: Features) -> Float[Tensor, "n k"]:
    return probe.logits(of.values.to(probe.weight)).cpu().double()


def _mahalanobis(values: Float[Tensor, "n d"], labels: Tensor) -> Score:
    """The squared distance to the nearest class mean under the pooled covariance."""
    classes, member = labels.unique(return_inverse=True)
    counts = torch.bincount(member).to(values)[:, None]
    means = torch.zeros(len(classes), values.shape[1], dtype=values.dtype).index_add_(0, member, values) / counts
    centered = values - means[member]
    covariance = centered.T @ centered / len(values)
    ridge = SHRINKAGE * covariance.diagonal().mean().clamp_min(torch.finfo(values.dtype).tiny)
    factor = torch.linalg.cholesky(covariance + ridge * torch.eye(len(covariance), dtype=values.dtype))

    def distance(of: Features) -> Float[Tensor, " n"]:
        # Whitened, the distance is Euclidean: solve L y = x for the Cholesky factor L.
        white = [torch.linalg.solve_triangular(factor, x.double().T, upper=False).T for x in (of.values, means)]
        return torch.cdist(white[0], white[1]).amin(1).square()

    return distance


def _kth_cosine(of: Features, train: Features, k: int) -> Float[Tensor, " n"]:
    check_same_width("outliers", of, train)
    return torch.cat([cosines.topk(k, dim=1).values[:, -1] for _, cosines in similarity_blocks(of, train)]).double()
