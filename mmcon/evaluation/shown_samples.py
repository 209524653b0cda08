"""Test samples for the run page: previews, neighbors and a map under an encoder before and after training.

Also the samples that the trained encoder finds most out of place: those whose neighbors mostly have another label.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from safetensors.torch import save_file
from torch import Tensor, nn

from mmcon.errors import DataError
from mmcon.evaluation.cross_modal import SpaceEmbeddings
from mmcon.evaluation.features import Features, extract_features
from mmcon.files import replace_by, replace_file
from mmcon.loading.loader import Views, one_pass
from mmcon.media.preview import Preview, preview_of
from mmcon.sources.base import Source, Subset
from mmcon.training.run import Run

#: The files in a run folder.
SAMPLES_FILE, VECTORS_FILE = "report/samples.json", "report/samples.safetensors"
#: The most samples of all modalities together, and the training samples that vote on labels.
SHOWN, VOTERS = 2_000, 50_000
#: Neighbors of a sample that are shown, and that vote on its label.
NEIGHBORS, VOTES = 6, 20
#: With fewer labeled samples per class, neighbors say nothing about labels.
FEWEST_OF_CLASS = 2
#: Queries whose neighbors are shown at once, and samples that are listed as out of place.
EXAMPLES, OUT_OF_PLACE = 6, 24
#: The dimensions that are kept for other maps than PCA.
DIMENSIONS = 64
#: The characters of all pictures, and of all sounds and clips, as data URIs.
PICTURES_BUDGET, PLAYABLE_BUDGET = 4_500_000, 2_000_000

_log = logging.getLogger(__name__)


def show_samples(run: Run, test: Source, views: Views, encoders: Mapping[str, nn.Module]) -> None:
    """Encode test samples and save them for the run page; an error is logged, and does not end the run.

    Features are compared; of several modalities, embeddings in the first space.

    Args:
        run: gives the folder and the device.
        test: held-out samples of one or several modalities.
        views: the evaluation view of each modality.
        encoders: ContrastiveModels by name, the trained one first.
    """
    per_modality = SHOWN // len(test.members)
    chosen = Subset(test, _evenly(len(test), per_modality)) if len(test) > per_modality else test

    def features_of(model: Any) -> dict[str, Features]:
        several = len(chosen.members) > 1 and model.spaces
        encode = SpaceEmbeddings(model, next(iter(model.spaces))) if several else model
        return {
            name: extract_features(encode, one_pass(member, {name: views[name]}, device=run.device), modality=name)
            for name, member in chosen.members.items()
        }

    try:
        save_samples(run.folder, test, {name: features_of(model) for name, model in encoders.items()})
    except Exception as error:
        _log.warning("the run page has no samples: %s", error)


def show_features(folder: Path, test: Source, features: Mapping[str, tuple[Features, Features]]) -> None:
    """`save_samples` of training and test features of one modality; an error is logged, and does not end the run."""
    try:
        trained, *_ = features.values()
        tests = {name: {test.modality: of[1]} for name, of in features.items()}
        save_samples(folder, test, tests, train=trained[0])
    except Exception as error:
        _log.warning("the run page has no samples: %s", error)


def save_samples(
    folder: Path, test: Source, features: Mapping[str, Mapping[str, Features]], *, train: Features | None = None
) -> Path:
    """Write what the run page shows of test samples.

    Args:
        folder: the run folder.
        test: has the media, the labels and the names of classes.
        features: by encoder, the trained one first, and by modality; a sample may have several rows (views).
        train: labeled training features of the trained encoder, which vote on labels. Default: the other test samples.
    """
    after, *others = features
    before = next((name for name in others if "random" in name or "untrained" in name), None)
    names = [after] if before is None else [after, before]
    of_modality = {m: _chosen_rows(table, SHOWN // len(features[after])) for m, table in features[after].items()}
    table = _Table.of(test, {m: (features[after][m], rows) for m, rows in of_modality.items()})
    units = {name: [_unit_rows(features[name][m], rows) for m, rows in of_modality.items()] for name in names}
    near = {name: _neighbors(parts, table.modality) for name, parts in units.items()}
    about: dict[str, Any] = {"after": after, "before": before, "modalities": list(of_modality)}
    about["total"] = sum(len(member) for member in test.members.values())
    about |= {"classes": list(test.classes), "maps": {}, "neighbors": {}}
    vectors = {}
    for name, parts in units.items():
        points, explained = _principal(torch.cat(parts) if len({p.shape[1:] for p in parts}) == 1 else parts[0])
        vectors[name] = points[:, :DIMENSIONS].half().contiguous()
        about["maps"][name] = {"PCA": {"explained": explained, "points": _rounded(points[:, :2])}}
        about["neighbors"][name] = {"rows": near[name].indices.tolist(), "cosines": _rounded(near[name].cosines, 3)}
    votes = _votes(units[after], table, train) if len(of_modality) == 1 and bool((table.labels >= 0).all()) else None
    about |= _judged(votes, table, len(test.classes))
    about["examples"] = _examples(table)
    about["samples"] = table.described(test, votes, [*about["examples"], *about["out_of_place"]])
    path = folder / SAMPLES_FILE
    path.parent.mkdir(exist_ok=True)
    replace_by(folder / VECTORS_FILE, lambda file: save_file(vectors, file))
    return replace_file(path, json.dumps(about, separators=(",", ":")))


class _Table(NamedTuple):
    """The chosen samples of all modalities, one after another.

    Attributes:
        modality: the number of the modality.
        rows: the index in the modality's source.
        labels: the label, or -1.
        names: of the modalities.
    """

    modality: Int[Tensor, " n"]
    rows: Int[Tensor, " n"]
    labels: Int[Tensor, " n"]
    names: list[str]

    @staticmethod
    def of(test: Source, chosen: Mapping[str, tuple[Features, Int[Tensor, "n v"]]]) -> _Table:
        modality, rows, labels = [], [], []
        for number, (name, (features, of_sample)) in enumerate(chosen.items()):
            first = of_sample[:, 0]
            at = {sample: row for row, sample in enumerate(test.members[name].ids.tolist())}
            rows.append(torch.tensor([at[sample] for sample in features.index["sample"][first].tolist()]))
            known = features.index.get("label")
            labels.append(torch.full_like(first, -1) if known is None else known[first])
            modality.append(torch.full_like(first, number))
        return _Table(torch.cat(modality), torch.cat(rows), torch.cat(labels), list(chosen))

    def described(self, test: Source, votes: _Votes | None, first: Sequence[int]) -> list[dict[str, Any]]:
        """Each sample's name, label, votes and preview; the budget for sounds and clips goes to `first`."""
        pictures, playable = PICTURES_BUDGET, PLAYABLE_BUDGET
        side = 96 if len(self.rows) <= 600 else 64
        samples: list[dict[str, Any]] = [{} for _ in self.rows]
        for i in dict.fromkeys([*first, *range(len(self.rows))]):
            name, row = self.names[int(self.modality[i])], int(self.rows[i])
            source = test.members[name]
            try:
                shown = preview_of(source.open([row])[0], name, side=side, playable=playable > 0)
            except DataError as error:
                shown = Preview(text=str(error).partition("\n")[0])
            playable -= len(shown.sound) + len(shown.clip)
            pictures -= len(shown.picture)
            known = {"preview": shown.to_json() if pictures > 0 else {"text": shown.text}, "name": source.name_of(row)}
            known |= {"modality": int(self.modality[i]), "label": int(self.labels[i]), "id": str(int(source.ids[row]))}
            if votes is not None:
                known |= {"guess": int(votes.guess[i]), "share": round(float(votes.share[i]), 3)}
                known |= {"own_share": round(float(votes.own_share[i]), 3)}
            samples[i] = known
        return samples


class _Near(NamedTuple):
    """The nearest rows of each row, nearest first, and their cosines."""

    indices: Int[Tensor, "n k"]
    cosines: Float[Tensor, "n k"]


class _Votes(NamedTuple):
    """By sample, the label of most neighbors, its share of the votes, and the share of the sample's own label."""

    guess: Int[Tensor, " n"]
    share: Float[Tensor, " n"]
    own_share: Float[Tensor, " n"]
    voters: str


def _evenly(n: int, count: int) -> Int[Tensor, " m"]:
    """Up to `count` indices below `n`, evenly spaced: sources are often sorted by class."""
    return torch.linspace(0, n - 1, min(n, count)).round().long()


def _chosen_rows(features: Features, count: int) -> Int[Tensor, "n v"]:
    """The rows of evenly chosen samples, one line each; of samples with several rows, as many as the least has."""
    samples = features.index["sample"].tolist()
    rows: dict[int, list[int]] = {}
    for row, sample in enumerate(samples):
        rows.setdefault(sample, []).append(row)
    views, listed = min(map(len, rows.values())), list(rows.values())
    return torch.tensor([listed[i][:views] for i in _evenly(len(listed), count).tolist()])


def _unit_rows(features: Features, rows: Int[Tensor, "n v"]) -> Float[Tensor, "n v d"]:
    return nn.functional.normalize(features.values[rows], dim=2)


def _neighbors(parts: Sequence[Float[Tensor, "_n _v _d"]], modality: Int[Tensor, " n"]) -> _Near:
    """The nearest other samples by the mean cosine over views; of several modalities, those of the others."""
    if len({part.shape[1:] for part in parts}) == 1:
        rows = torch.cat(list(parts))
        cosines = torch.einsum("a v d, c v d -> a c", rows, rows) / rows.shape[1]
    else:  # widths differ, as of features before the heads: within a modality
        cosines = torch.block_diag(*(torch.einsum("a v d, c v d -> a c", p, p) / p.shape[1] for p in parts))
    own = torch.eye(len(cosines), dtype=torch.bool) if len(parts) == 1 else modality[:, None] == modality
    found = cosines.masked_fill(own, -2).topk(min(NEIGHBORS, len(cosines) - 1), dim=1)
    if len(parts) < 3:
        return _Near(found.indices, found.values)
    # Some of each other modality: the gap between modalities would let one of them fill all places.
    count = min(NEIGHBORS // (len(parts) - 1), *(len(part) for part in parts))
    indices = []
    for number in range(len(parts)):
        nearest = cosines.masked_fill(modality != number, -2).topk(count, dim=1).indices
        indices.append(torch.where(modality[:, None] == number, -1, nearest))  # -1: its own modality
    others = torch.stack([row[row[:, 0] >= 0].flatten() for row in torch.stack(indices, 1)])
    return _Near(others, cosines.gather(1, others))


def _principal(rows: Float[Tensor, "n v d"]) -> tuple[Float[Tensor, "n k"], list[float]]:
    """Coordinates on the principal axes, the longest first, and the share of the variance of the first two."""
    x = rows.flatten(1).double()
    x = x - x.mean(0)
    wide = x.shape[1] > x.shape[0]  # then the Gram matrix is the smaller one
    values, axes = torch.linalg.eigh(x @ x.T if wide else x.T @ x)
    values, axes = values.flip(0).clamp(min=0), axes.flip(1)
    points = axes * values.sqrt() if wide else x @ axes
    # The sign of an axis is free: the largest coordinate is positive, so that the map does not depend on the library.
    largest = points.gather(0, points.abs().argmax(0, keepdim=True))
    points = points * torch.where(largest < 0, -1.0, 1.0)
    points = nn.functional.pad(points, (0, max(0, 2 - points.shape[1])))
    return points.float(), [round(float(v / values.sum().clamp(min=1e-12)), 4) for v in values[:2]]


def _votes(parts: Sequence[Float[Tensor, "_n _v _d"]], table: _Table, train: Features | None) -> _Votes | None:
    """The labels of each sample's nearest neighbors, each with one vote."""
    queries, known = parts[0], table.labels
    if train is not None and "label" in train.index and queries.shape[1] == 1:
        rows = _evenly(len(train), VOTERS)
        voters, known = _unit_rows(train, rows[:, None])[:, 0], train.labels[rows]
        cosines, title = queries[:, 0] @ voters.T, f"{len(rows):,} training samples"
    else:
        cosines = torch.einsum("a v d, c v d -> a c", queries, queries).fill_diagonal_(-torch.inf)
        title = f"the other {len(known) - 1:,} samples"
    count = int(max(known.max(), table.labels.max())) + 1
    if len(known) < FEWEST_OF_CLASS * count:
        return None
    # No more votes than half of a class has, so that a small class can be the majority.
    votes = min(VOTES, max(3, len(known) // count // 2), cosines.shape[1] - 1)
    labels = known[cosines.topk(votes, dim=1).indices]
    shares = nn.functional.one_hot(labels, count).float().mean(1)
    share, guess = shares.max(1)
    return _Votes(guess, share, shares.gather(1, table.labels[:, None])[:, 0], title)


def _judged(votes: _Votes | None, table: _Table, classes: int) -> dict[str, Any]:
    """The samples out of place, worst first, and the counts of (label, guess) where they are not 0."""
    if votes is None or classes < 2:
        return {"out_of_place": [], "confusion": [], "voters": ""}
    wrong = votes.guess != table.labels
    order = (votes.share - votes.own_share).masked_fill(~wrong, -1).argsort(descending=True, stable=True)
    pairs, counts = torch.stack([table.labels, votes.guess], 1).unique(dim=0, return_counts=True)
    confusion = [[*pair, count] for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True)]
    listed = order[: min(OUT_OF_PLACE, int(wrong.sum()))].tolist()
    return {"out_of_place": listed, "confusion": confusion, "voters": votes.voters}


def _examples(table: _Table) -> list[int]:
    """Some samples, of different classes where there are labels."""
    n, seen = len(table.rows), {}
    for row in _evenly(n, n).tolist():
        seen.setdefault(int(table.labels[row]) if int(table.labels[row]) >= 0 else row, row)
    listed = list(seen.values())
    return [listed[i] for i in _evenly(len(listed), EXAMPLES).tolist()]


def _rounded(values: Float[Tensor, "n k"], digits: int = 4) -> list[list[float]]:
    return [[round(value, digits) for value in row] for row in values.tolist()]
