"""Mining of hard negatives: for each anchor, the nearest candidates of a corpus that are not its positives.

    queries, corpus = EmbeddingTable.read("queries.parquet"), EmbeddingTable.read("corpus.parquet")
    mined = mine_hard_negatives(queries, corpus, num_negatives=2, range_min=5, absolute_margin=0.05)
    mined.write("triplets.parquet")                       # columns: anchor, positive, negative_1, negative_2
    create_source("triplets.parquet", modality="text", text_columns=("anchor", "positive", "negative_1", "negative_2"))

The nearest candidates are often positives that nobody has labeled. So the nearest ranks may be skipped, and candidates
left out that are too similar: more similar than a number, or than the positive minus a margin.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from mmcon.batch import Index
from mmcon.errors import DataError, InputError, check_choice, check_whole
from mmcon.evaluation.features import Features
from mmcon.evaluation.similarity_blocks import check_same_width, similarity_blocks
from mmcon.files import create_folder, replace_file
from mmcon.inference.embedding_table import EmbeddingTable

WHERE = "mine_hard_negatives"
#: The group of a row without a class: the least integer, which no hash of an id is.
NO_CLASS = torch.iinfo(torch.int64).min
_SUFFIXES = (".parquet", ".csv", ".jsonl")


@dataclass(frozen=True)
class MinedNegatives:
    """Anchors with a positive and negatives, the nearest first.

    Attributes:
        anchors, candidates: the tables that rows are of.
        anchor_rows: the anchors that have a positive and a negative.
        positive_rows: their most similar positive.
        negative_rows: their negatives; -1 where there are fewer.
        scores: the cosine of each negative with its anchor; NaN where there is none.
        without_positive: the number of anchors that are left out since they have no positive.
        without_negative: the number of anchors that are left out since no candidate meets the conditions.
    """

    anchors: EmbeddingTable
    candidates: EmbeddingTable
    anchor_rows: Int[Tensor, " m"]
    positive_rows: Int[Tensor, " m"]
    negative_rows: Int[Tensor, "m k"]
    scores: Float[Tensor, "m k"]
    without_positive: int = 0
    without_negative: int = 0

    def table(self, layout: Literal["columns", "triplets"] = "columns") -> pa.Table:
        """The texts or files of anchors, positives and negatives.

        Args:
            layout: "columns": a row for each anchor that has all negatives, in `negative_1`, `negative_2`, …;
                "triplets": a row for each negative, in `negative`.
        """
        check_choice("MinedNegatives.table", "layout", layout, ("columns", "triplets"))
        found = self.negative_rows >= 0
        if layout == "triplets":
            anchors, places = found.nonzero(as_tuple=True)
            negatives = {"negative": self.negative_rows[anchors, places]}
        else:
            anchors = found.all(1).nonzero()[:, 0]
            whole = self.negative_rows[anchors]
            negatives = {f"negative_{number + 1}": whole[:, number] for number in range(whole.shape[1])}
        columns = {"anchor": _paths(self.anchors, self.anchor_rows[anchors])}
        columns["positive"] = _paths(self.candidates, self.positive_rows[anchors])
        return pa.table(columns | {name: _paths(self.candidates, rows) for name, rows in negatives.items()})

    def write(self, path: str | Path, layout: Literal["columns", "triplets"] = "columns") -> Path:
        """Write `table` as .parquet, .csv or .jsonl, which `create_source` reads.

        Raises:
            InputError: the suffix is another one, or no anchor has all its negatives.
        """
        from pyarrow import csv, parquet

        path, table = Path(path), self.table(layout)
        if path.suffix not in _SUFFIXES:
            raise InputError("MinedNegatives.write", expected=f"one of {', '.join(_SUFFIXES)}", got=path.name)
        if not table.num_rows:
            fix = "fewer num_negatives, wider conditions, or layout='triplets'"
            raise InputError("MinedNegatives.write", expected="an anchor with all its negatives", got="none", fix=fix)
        create_folder(path.parent)
        if path.suffix == ".jsonl":
            return replace_file(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table.to_pylist()))
        write = parquet.write_table if path.suffix == ".parquet" else csv.write_csv
        return replace_file(path, lambda file: write(table, file))


class _Conditions(NamedTuple):
    """Which candidates may be negatives, and how many are taken."""

    num_negatives: int
    range_min: int
    range_max: int | None
    max_score: float | None
    min_score: float | None
    absolute_margin: float | None
    relative_margin: float | None
    sampling: str


def mine_hard_negatives(
    anchors: EmbeddingTable,
    candidates: EmbeddingTable | None = None,
    *,
    positives: Literal["id", "label"] = "id",
    num_negatives: int = 3,
    range_min: int = 0,
    range_max: int | None = None,
    max_score: float | None = None,
    min_score: float | None = None,
    absolute_margin: float | None = None,
    relative_margin: float | None = None,
    sampling: Literal["top", "random"] = "top",
    seed: int = 0,
) -> MinedNegatives:
    """The nearest candidates of each anchor that are not its positives, exactly, by cosine similarity.

    Candidates are ranked by similarity, positives left out; 0 is the nearest. A negative has a rank from `range_min` to
    below `range_max`, and a similarity of at most each of

        max_score,    s⁺ - absolute_margin,    s⁺ - relative_margin · |s⁺|,

    with s⁺ the similarity of the least similar positive.

    Args:
        anchors: embeddings by `mmcon embed` or `embed_source`.
        candidates: those of the corpus, by the same model; None: the anchors, of which none is its own candidate.
        positives: rows of one sample ("id"), or of one class ("label").
        num_negatives: negatives of an anchor; some anchors may have fewer.
        range_min: skip so many of the nearest.
        range_max: the end of the ranks; None: no end, and for random negatives `range_min` + 10 · `num_negatives`.
        max_score: the largest similarity of a negative.
        min_score: the smallest similarity of a negative.
        absolute_margin: see above.
        relative_margin: see above.
        sampling: "top": the nearest of these; "random": so many of them, without replacement.
        seed: of random negatives.

    Returns:
        Negatives of every anchor that has a positive; memory for similarities is bounded, whatever the corpus.

    Raises:
        InputError: numbers that do not fit; tables of two models; for "label", tables without labels; or no anchor has
            a positive and a negative.
        DataError: a row is not finite.
    """
    corpus = anchors if candidates is None else candidates
    conditions = _Conditions(
        num_negatives, range_min, range_max, max_score, min_score, absolute_margin, relative_margin, sampling
    )
    _check(conditions)
    _check_origins(anchors, corpus)
    queries, pool = _with_group(positives, anchors, corpus)
    check_same_width(WHERE, queries, pool)
    generator = torch.Generator().manual_seed(seed)
    parts = list(_mined_blocks(queries, pool, conditions, generator, same=candidates is None))
    return _collected(anchors, corpus, *(torch.cat(part) for part in zip(*parts, strict=True)))


def _collected(
    anchors: EmbeddingTable,
    corpus: EmbeddingTable,
    rows: Int[Tensor, " m"],
    positive: Int[Tensor, " m"],
    negative: Int[Tensor, "m k"],
    scores: Float[Tensor, "m k"],
) -> MinedNegatives:
    """The anchors that have a positive and a negative."""
    has_positive, has_negative = positive >= 0, (negative >= 0).any(1)
    kept = has_positive & has_negative
    if not bool(kept.any()):
        got = f"{int((~has_positive).sum()):,} without a positive, {int(has_positive.sum()):,} without a negative"
        fix = "give a corpus with rows of the same ids, or positives='label'; loosen margins, scores and ranks"
        raise InputError(WHERE, expected="an anchor with both", got=got, fix=fix)
    return MinedNegatives(
        anchors, corpus, rows[kept], positive[kept], negative[kept], scores[kept],
        without_positive=int((~has_positive).sum()), without_negative=int((has_positive & ~has_negative).sum()),
    )  # fmt: skip


def _mined_blocks(
    queries: Features, pool: Features, conditions: _Conditions, generator: torch.Generator, *, same: bool
) -> Iterator[tuple[Int[Tensor, " r"], Int[Tensor, " r"], Int[Tensor, "r k"], Float[Tensor, "r k"]]]:
    """By block of anchors: their rows, their most similar positive (-1: none), their negatives, and the scores."""
    of_query, of_pool = queries.index["group"], pool.index["group"]
    for rows, cosines in similarity_blocks(queries, pool):
        positive = (of_query[rows, None] == of_pool) & (of_query[rows, None] != NO_CLASS)
        excluded = positive
        if same:
            own = rows[:, None] == torch.arange(len(pool))
            positive, excluded = positive & ~own, positive | own
        best = cosines.masked_fill(~positive, -torch.inf).max(1)
        limits = _limits(cosines.masked_fill(~positive, torch.inf).amin(1), conditions)
        negatives, scores = _negatives(cosines.masked_fill_(excluded, -torch.inf), limits, conditions, generator)
        yield rows, torch.where(positive.any(1), best.indices, -1), negatives, scores


def _limits(least: Float[Tensor, " r"], conditions: _Conditions) -> Float[Tensor, " r"]:
    """The largest similarity of a negative of each anchor, from that of its least similar positive."""
    limits = torch.full_like(least, math.inf if conditions.max_score is None else conditions.max_score)
    if conditions.absolute_margin is not None:
        limits = torch.minimum(limits, least - conditions.absolute_margin)
    if conditions.relative_margin is not None:
        margin = conditions.relative_margin * least.abs().clamp_max(1)  # infinite without positives
        limits = torch.minimum(limits, least - margin)
    return limits


def _negatives(
    others: Float[Tensor, "r c"], limits: Float[Tensor, " r"], conditions: _Conditions, generator: torch.Generator
) -> tuple[Int[Tensor, "r k"], Float[Tensor, "r k"]]:
    """The negatives of anchors and their similarities, from those of candidates that are no positives (others -inf)."""
    count, first, end = conditions.num_negatives, conditions.range_min, conditions.range_max
    if conditions.sampling == "random" and end is None:
        end = first + 10 * count
    # Candidates above the limit are the nearest; they have the ranks before those that are left.
    above = others > limits[:, None]
    rank = above.sum(1)[:, None]
    width = min(others.shape[1], first + count if conditions.sampling == "top" else int(end or 0))
    found = others.masked_fill_(above, -torch.inf).topk(width, dim=1)
    ranks = rank + torch.arange(width)
    fits = (ranks >= first) & (found.values > -torch.inf)
    fits &= ranks < (math.inf if end is None else end)
    if conditions.min_score is not None:
        fits &= found.values >= conditions.min_score
    # In the order of a key: the places that fit come first, the nearest or random ones before the others.
    order = torch.arange(width).expand_as(ranks).float()
    if conditions.sampling == "random":
        order = torch.rand(ranks.shape, generator=generator) * width
    chosen = order.masked_fill(~fits, width).argsort(dim=1, stable=True)[:, :count]
    nearest_first = torch.where(fits.gather(1, chosen), chosen, width).argsort(dim=1, stable=True)
    chosen = chosen.gather(1, nearest_first)
    negatives = torch.where(fits, found.indices, -1).gather(1, chosen)
    scores = torch.where(fits, found.values, torch.nan).gather(1, chosen)
    missing = (0, count - chosen.shape[1])
    return pad(negatives, missing, value=-1), pad(scores, missing, value=torch.nan)


def _check(conditions: _Conditions) -> None:
    check_whole(WHERE, "num_negatives", conditions.num_negatives, least=1)
    check_whole(WHERE, "range_min", conditions.range_min, least=0)
    check_choice(WHERE, "sampling", conditions.sampling, ("top", "random"))
    end = conditions.range_max
    if (
        end is not None
        and check_whole(WHERE, "range_max", end, least=1) < conditions.range_min + conditions.num_negatives
    ):
        expected = "range_max of at least range_min + num_negatives"
        got = f"range_max={end}, range_min={conditions.range_min}, num_negatives={conditions.num_negatives}"
        raise InputError(WHERE, expected=expected, got=got)
    for name in ("max_score", "min_score"):
        score = getattr(conditions, name)
        if score is not None and (not isinstance(score, Real) or math.isnan(score)):
            raise InputError(WHERE, expected=f"a number as {name}", got=repr(score))
    for name in ("absolute_margin", "relative_margin"):
        margin = getattr(conditions, name)
        if margin is not None and (not isinstance(margin, Real) or not 0 <= float(margin) < math.inf):
            raise InputError(WHERE, expected=f"a finite {name} >= 0", got=repr(margin))


def _check_origins(*tables: EmbeddingTable) -> None:
    if len({(table.origin.fingerprint, table.origin.space) for table in tables}) > 1:
        got = " and ".join(f"{table.origin.model} (space {table.origin.space!r})" for table in tables)
        raise InputError(WHERE, expected="embeddings of one model and space", got=got, fix="embed both by one model")


def _with_group(positives: str, *tables: EmbeddingTable) -> list[Features]:
    """The embeddings of tables with a column `group`: rows of one group are positives."""
    check_choice(WHERE, "positives", positives, ("id", "label"))
    if positives == "id":
        groups = [torch.from_numpy(np.array(table.index["id"].to_numpy())) for table in tables]
    else:
        names = [table.index["label"].to_pylist() for table in tables]
        known = {name: number for number, name in enumerate(dict.fromkeys(itertools.chain(*names))) if name is not None}
        if not known:
            raise InputError(WHERE, expected="labels, for positives='label'", got="none", fix="positives='id'")
        groups = [torch.tensor([known.get(name, NO_CLASS) for name in own]) for own in names]
    return [Features(_finite(table), Index({"group": group})) for table, group in zip(tables, groups, strict=True)]


def _finite(table: EmbeddingTable) -> Float[Tensor, "n d"]:
    values = torch.from_numpy(table.numpy())
    if not bool(values.isfinite().all()):
        row = int((~values.isfinite()).any(1).nonzero()[0])
        raise DataError(repr(table), expected="finite embeddings", got=f"row {row}", fix="embed the data again")
    return values


def _paths(table: EmbeddingTable, rows: Int[Tensor, " m"]) -> pa.ChunkedArray:
    return table.index["path"].take(pa.array(rows.numpy()))
