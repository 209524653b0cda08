"""The objective of training: spaces × blocks of modalities × affinities × candidates -> one loss, in any processes.

A *block* is an ordered pair of modalities (or of single views of them) in a space: anchors of one against candidates of
the other, with a softmax and a count of valid anchors of its own. The loss is the weighted sum of blocks,

    L = Σ_blocks weight · (1 / valid anchors of all processes) Σ_anchors ℓ_i .

Its value is the true loss of the global batch. Its gradient, once averaged over processes as data parallelism does, is
the gradient that one process with the whole batch would have: `mmcon.distributed.collectives` holds the factor.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mmcon.affinity import Affinity, as_affinity, as_number, check_choice
from mmcon.batch import Index, ViewBatch
from mmcon.distributed import collectives
from mmcon.errors import ConfigError, InputError
from mmcon.losses.negative_weights import HardNegatives
from mmcon.losses.settings import LossSettings
from mmcon.losses.supcon import anchor_losses
from mmcon.objective.candidates import MoreCandidates, Step, present
from mmcon.objective.pair_blocks import (
    Block,
    BlockReport,
    Report,
    check_blocks,
    check_meetings,
    fillable,
    plan,
    with_views,
)
from mmcon.sources.base import Source, meetings

__all__ = ["Block", "BlockReport", "MoreCandidates", "Objective", "Report"]

Embeddings = Mapping[str, Mapping[str, Tensor]]


class Objective(nn.Module):
    """The loss of a batch, from embeddings by space and modality.

    For one modality in one space: `Objective(affinity=SameLabel(), temperature=0.1)`. Settings beyond that default to
    the plain supervised loss; presets of other methods fill them in, `Objective(**presets.clip(temperature=0.07))`.

    Args:
        affinity: who is meant to be alike: an affinity with column names, a function of two tables, or these by space.
        temperature: a number, a parameter, a module that returns a tensor (`LearnableTemperature`), or these by space.
        blocks: which modalities are contrasted, each a `Block` or its fields; None: every ordered pair in
            every space, each with weight 1.
        union: with `blocks=None`, one block a space, a single softmax over all modalities.
        queue: candidates beyond the batch (`Queue`, `Bank`).
        reduction: `valid`, `all` or `sum`, in each block.
        no_positives: `exclude`, or `error` if any anchor of any process has none.
        settings: the other knobs of `weighted_supcon`: form, denominator, negative_weights, row_normalize, similarity,
            scale, backend.

    Attributes:
        last: what each block of the last step contributed (`Report`).

    >>> objective = Objective(affinity=SameLabel(), temperature=0.1)
    >>> z = torch.nn.functional.normalize(torch.eye(4), dim=1)
    >>> loss = objective(z, Index({"label": torch.tensor([0, 0, 1, 1])}))
    """

    def __init__(
        self,
        *,
        affinity: Any,
        temperature: Any,
        blocks: Sequence[Block | Mapping[str, Any]] | None = None,
        union: bool = False,
        queue: MoreCandidates | None = None,
        reduction: str = "valid",
        no_positives: str = "exclude",
        **settings: Any,
    ) -> None:
        super().__init__()
        check_choice("Objective", "reduction", reduction, ("valid", "all", "sum"))
        check_choice("Objective", "no_positives", no_positives, ("exclude", "error"))
        if blocks is not None and (union or not blocks):
            raise ConfigError("Objective", expected="blocks, or union over the default ones", got=f"union={union}")
        self.blocks = None if blocks is None else tuple(b if isinstance(b, Block) else Block(**b) for b in blocks)
        self.union, self.queue = union, queue
        self.reduction, self.no_positives = reduction, no_positives
        self.settings = LossSettings(**settings)
        negatives = self.settings.negative_weights
        if negatives is not None and not isinstance(negatives, HardNegatives):
            self.settings = replace(self.settings, negative_weights=as_affinity(negatives))
        self.temperatures = nn.ModuleDict()
        self._affinities: dict[str, Affinity] = {}
        self._take_temperatures(temperature)
        self._take_affinities(affinity)
        self._register_learnable()
        self._names_are_right = False
        self.last = Report()

    def forward(
        self, embeddings: Embeddings | Tensor, batch: ViewBatch | Mapping[str, Index] | Index, candidates: Any = None
    ) -> Tensor:
        """The loss of the global batch, a scalar.

        Args:
            embeddings: by space and modality, this process's rows `n d`; with one of each a tensor will do.
            batch: the batch, or its tables by modality, or for a tensor its table.
            candidates: embeddings of the same rows from elsewhere (a momentum encoder), to stand in as candidates; a
                row's own is left out.
        """
        tables = _tables(embeddings, batch)
        named, named_tables = with_views(_named(embeddings, tables), tables, self.blocks)
        rows = collectives.gather(named, named_tables)
        others = rows
        if candidates is not None:
            others = collectives.gather(*with_views(_named(candidates, tables), tables, self.blocks))
        step = Step(named, rows, others, candidates is None, _shared_temperatures(self.temperatures))
        planned = plan(self.blocks, self.union, rows.embeddings)
        blocks = {block.label(space): (space, block) for space, block in planned}
        sums = {label: self._block(step, space, block) for label, (space, block) in blocks.items()}
        if any(found is not None for found in sums.values()):
            self._names_are_right = True
            return self._combine(sums, blocks)
        return self._nothing(embeddings, list(sums))

    def check(
        self, spaces: Mapping[str, Iterable[str]], source: Any = None, views: Mapping[str, int] | None = None
    ) -> None:
        """Refuse, before the first step, blocks that a model or its data can never fill.

        From then on a batch in which no block has both its sides is a loss of 0 that is counted: names are right, so
        that such a batch is chance. Before, it is an error.

        Args:
            spaces: by space, the modalities that have a head there (`ContrastiveModel.modalities_by_space`).
            source: the training data, or None; of a stream, no rows are known ahead.
            views: by modality, how many views batches hold, or None if that is not known yet.

        Raises:
            ConfigError: a block names an unknown space, modality or view, no affinity or temperature is meant for it,
                or it pairs by sample what no sample has both of.
        """
        check_blocks(self.blocks, spaces, views)
        planned = fillable(
            plan(self.blocks, self.union, [(s, m) for s, there in spaces.items() for m in there]), spaces
        )
        affinities = [self._affinity(space, block) for space, block in planned]
        for space, block in planned:
            self._temperature_name(space, block)
        if isinstance(source, Source) and self.blocks is not None:
            pairs = [(block.label(space), block, a) for (space, block), a in zip(planned, affinities, strict=True)]
            check_meetings(pairs, meetings(source), source.name)
        self._names_are_right = True

    # ------------------------------------------------------------------------------------------ a step

    def _block(self, step: Step, space: str, block: Block) -> Tensor | None:
        """Sum of losses, number of anchors and of valid ones in this process, `3`; None where a side is missing."""
        anchors, candidates = (present(step.rows.embeddings, space, side) for side in block.sides)
        if not anchors or not candidates:
            return None
        z, table = step.anchors(anchors)
        pool, pool_table, self_index = step.candidates(anchors, candidates, self.queue)
        affinity = self._affinity(space, block).bind(table, pool_table)
        temperature = step.temperatures[self._temperature_name(space, block)]
        rows = anchor_losses(
            z,
            pool,
            affinity.map_parameters(collectives.average_gradient),
            temperature,
            self_index,
            self._bound_settings(block, table, pool_table),
        )
        sums = rows.losses.sum()
        return torch.stack([sums, sums.new_tensor(len(z)), rows.valid.sum().to(sums)])

    def _bound_settings(self, block: Block, table: Index, pool_table: Index | None) -> LossSettings:
        negatives = self.settings.negative_weights if block.negative_weights is None else block.negative_weights
        if isinstance(negatives, HardNegatives):
            return replace(self.settings, negative_weights=negatives)
        if negatives is None:
            return self.settings
        negatives = as_affinity(negatives)
        bound = negatives.bind(table, pool_table).map_parameters(collectives.average_gradient)
        return replace(self.settings, negative_weights=bound)

    def _combine(self, sums: Mapping[str, Tensor | None], blocks: Mapping[str, tuple[str, Block]]) -> Tensor:
        found = {label: s for label, s in sums.items() if s is not None}
        everywhere = collectives.all_reduce_sum(torch.stack(list(found.values())).detach())
        self.last = Report()
        shares = []
        for (label, local), (loss, anchors, valid) in zip(found.items(), everywhere, strict=True):
            if self.no_positives == "error" and bool(valid < anchors):
                got = f"{int(anchors - valid)} of {int(anchors)} without one in {label}"
                raise InputError("Objective", expected="a positive for every anchor", got=got)
            divisor = {"valid": valid, "all": anchors, "sum": torch.ones_like(valid)}[self.reduction].clamp_min(1)
            shares.append(blocks[label][1].weight * local[0] / divisor)
            self.last[label] = BlockReport(loss / divisor, anchors, valid)
        self.last |= _empty([label for label in sums if label not in found], everywhere.device)
        return collectives.global_loss(torch.stack(shares).sum())

    def _nothing(self, embeddings: Embeddings | Tensor, labels: list[str]) -> Tensor:
        """The loss of a batch in which no block has both its sides: 0, with a gradient of 0."""
        if not self._names_are_right:
            raise InputError(
                "Objective",
                expected=f"modalities of the blocks {labels}",
                got="none of them on any process",
                fix="name modalities and spaces as the model's embeddings do; objective.check(...) compares them, and "
                "then a batch may lack them all",
            )
        rows = (
            [embeddings] if isinstance(embeddings, Tensor) else [z for of in embeddings.values() for z in of.values()]
        )
        nothing = torch.stack([z.sum() for z in rows]).sum() * 0
        self.last = Report(_empty(labels, nothing.device))
        return collectives.global_loss(nothing)

    # -------------------------------------------------------------------------------------- settings

    def _take_temperatures(self, temperature: Any) -> None:
        by_space = temperature if isinstance(temperature, Mapping) else {"": temperature}
        for space, value in by_space.items():
            self.temperatures[_key(space)] = _as_module(value)
        for i, block in enumerate(self.blocks or ()):
            if block.temperature is not None:
                self.temperatures[f"block {i}"] = _as_module(block.temperature)

    def _temperature_name(self, space: str, block: Block) -> str:
        if block.temperature is not None:
            return f"block {next(i for i, known in enumerate(self.blocks or ()) if known is block)}"
        return _chosen("a temperature", self.temperatures, space)

    def _take_affinities(self, affinity: Any) -> None:
        by_space = affinity if isinstance(affinity, Mapping) else {"": affinity}
        self._affinities = {_key(space): as_affinity(value) for space, value in by_space.items()}

    def _affinity(self, space: str, block: Block) -> Affinity:
        if block.affinity is not None:
            return as_affinity(block.affinity)
        return self._affinities[_chosen("an affinity", self._affinities, space)]

    def _register_learnable(self) -> None:
        blocks = self.blocks or ()
        given = [self.settings.negative_weights, *(x for b in blocks for x in (b.affinity, b.negative_weights))]
        known = [as_affinity(x) for x in given if x is not None and not isinstance(x, HardNegatives)]
        affinities = [*self._affinities.values(), *known]
        learnable = {id(p): p for affinity in affinities for p in affinity.parameters() if isinstance(p, nn.Parameter)}
        self.affinity_parameters = nn.ParameterList(learnable.values())
        self.similarity = self.settings.similarity if isinstance(self.settings.similarity, nn.Module) else None
        if self.similarity is not None:
            for parameter in self.similarity.parameters():
                parameter.register_hook(lambda gradient: collectives.all_reduce_mean([gradient])[0])


def _tables(embeddings: Embeddings | Tensor, batch: ViewBatch | Mapping[str, Index] | Index) -> Mapping[str, Index]:
    if isinstance(batch, ViewBatch):
        return batch.index
    if isinstance(batch, Index):
        modalities = {"rows"} if isinstance(embeddings, Tensor) else {m for rows in embeddings.values() for m in rows}
        return dict.fromkeys(modalities, batch)
    return batch


def _named(embeddings: Embeddings | Tensor, tables: Mapping[str, Index]) -> dict[tuple[str, str], Tensor]:
    """Rows by (space, modality)."""
    if isinstance(embeddings, Tensor):
        if len(tables) != 1:
            got = f"a tensor, and tables of {sorted(tables)}"
            raise InputError("Objective", expected="embeddings by space and modality", got=got)
        return {("space", next(iter(tables))): embeddings}
    named = {(space, modality): z for space, rows in embeddings.items() for modality, z in rows.items()}
    for (space, modality), z in named.items():
        if modality not in tables or tables[modality].n != len(z):
            got = f"one of {tables[modality].n}" if modality in tables else f"tables of {sorted(tables)}"
            raise InputError("Objective", expected=f"a table of {len(z)} rows for {space}/{modality}", got=got)
    return named


def _empty(labels: list[str], device: torch.device) -> dict[str, BlockReport]:
    nothing = torch.zeros((), device=device)
    return {label: BlockReport(nothing, nothing, nothing) for label in labels}


def _key(space: str) -> str:
    """A module's name must not hold a dot."""
    return space.replace(".", "·") or "every space"


def _chosen(what: str, known: Any, space: str) -> str:
    for name in (_key(space), "every space"):
        if name in known:
            return name
    raise ConfigError("Objective", expected=f"{what} for space {space!r}", got=f"ones for {sorted(known)}")


class _Given(nn.Module):
    """A temperature that is a number, or a bare parameter."""

    def __init__(self, value: float | Tensor) -> None:
        super().__init__()
        if as_number(value) <= 0:
            raise ConfigError("Objective", expected="temperature above 0", got=str(as_number(value)))
        self.value = value

    def forward(self) -> float | Tensor:
        return self.value


def _as_module(temperature: Any) -> nn.Module:
    return temperature if isinstance(temperature, nn.Module) else _Given(temperature)


def _shared_temperatures(modules: nn.ModuleDict) -> dict[str, Any]:
    values = {name: module() for name, module in modules.items()}
    return {
        name: collectives.average_gradient(v) if isinstance(v, Tensor) and v.requires_grad else v
        for name, v in values.items()
    }
