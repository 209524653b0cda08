"""The training objective: the weighted sum of contrastive losses over spaces and modality pairs (blocks).

A *block* is an ordered pair of modalities (or of single views of them) in a space: anchors of one against candidates of
the other, with its own softmax and its own number of valid anchors. The loss is the weighted sum of blocks,

    L = Σ_blocks weight · (1 / valid anchors of all ranks) Σ_anchors ℓ_i .

Its value is the loss of the global batch. Its gradient, averaged over ranks by data parallelism, is the gradient of one
rank with the whole batch: `mmcon.distributed.collectives.global_loss` applies the factor.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmcon.affinity import Affinity, as_affinity, as_number, check_choice
from mmcon.batch import Index, ViewBatch
from mmcon.distributed import collectives
from mmcon.errors import ConfigError, InputError
from mmcon.losses.compilation import outside_graphs
from mmcon.losses.loss_inputs import AnchorLosses
from mmcon.losses.settings import LossSettings, check_options
from mmcon.objective.block_losses import BlockInputs, losses_of_blocks
from mmcon.objective.block_metrics import BlockMetrics, ObjectiveMetrics
from mmcon.objective.block_records import BlockRecord, diagnose_blocks
from mmcon.objective.block_table import BlockTable, SpaceBlock, as_blocks, by_space, temperature_module
from mmcon.objective.candidates import (
    CandidateMemory,
    Embeddings,
    GlobalBatch,
    rows_by_name,
    stored_columns,
    tables_by_modality,
)
from mmcon.objective.pair_blocks import Block
from mmcon.objective.truncation import label_of_truncated, truncated, truncation_weights

__all__ = ["Block", "BlockMetrics", "CandidateMemory", "Objective", "ObjectiveMetrics"]

#: The temperatures of one step, by module.
Temperatures = Mapping[nn.Module, float | Tensor]


class Objective(nn.Module):
    """The loss of a batch, from embeddings by space and modality.

    For one modality in one space: `Objective(affinity=SameLabel(), temperature=0.1)`. The other settings default to
    supervised contrastive learning; presets set them for other methods, `Objective(**presets.clip(temperature=0.07))`.

    Args:
        affinity: positive weights: an affinity with column names, a function of two tables, or these by space.
        temperature: a number, a parameter, a module that returns a tensor (`LearnableTemperature`), or these by space.
        blocks: the pairs of modalities, each a `Block` or its fields; None: every ordered pair in every space, each
            with weight 1.
        union: with `blocks=None`, one block a space, with a single softmax over all modalities.
        queue: candidates beyond the batch (`Queue`, `Bank`).
        negatives_from: "queue": the rows of the batch are positives alone and those of the queue negatives alone, as in
            MoCo; "all": the affinity decides for both.
        truncate: numbers of leading dimensions whose loss is added (Matryoshka; Kusupati et al. 2022, eq. 1): the first
            dimensions at length one, with the same affinity, candidates and temperature. All dimensions are always part
            of the loss, with weight 1.
        truncate_weights: of these losses; None: 1 each.
        settings: of `weighted_supcon`: form, denominator, negative_weights, row_normalize, similarity, scale, backend;
            reduction (`valid`, `all` or `sum`, for each block); no_positives (`exclude`, or `error` if an anchor on
            any rank has none).

    Attributes:
        last: the metrics of each block in the last step; those of its first 32 dimensions as `BLOCK[:32]`.
        last_rows: by block, the anchors of this rank in the last step, without gradient, and the number of candidates
            in the softmax of each.
        records: by block, what the last step was made of (see `BlockRecord`), if it is set to a dict; None: not kept.

    Raises:
        ConfigError: an unknown setting, with the nearest known one; blocks together with `union`; negatives of a queue
            without one, or with other negative weights.
        InputError: a setting with an unknown value.

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
        queue: CandidateMemory | None = None,
        negatives_from: Literal["all", "queue"] = "all",
        truncate: Sequence[int] = (),
        truncate_weights: Sequence[float] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        own = ("affinity", "temperature", "blocks", "union", "queue", "negatives_from", "truncate", "truncate_weights")
        check_options("Objective", settings, [*own, *(field.name for field in fields(LossSettings))])
        # What a batch with NaN does to a run is decided by the guard on its gradients (`on_nonfinite`).
        self.settings = LossSettings(**{"check_finite": False, **settings})
        check_choice("Objective", "reduction", self.settings.reduction, ("valid", "all", "sum"))
        if blocks is not None and (union or not blocks):
            raise ConfigError("Objective", expected="blocks, or union over the default ones", got=f"union={union}")
        self.blocks, self.queue, self.negatives_from = as_blocks(blocks), queue, negatives_from
        check_choice("Objective", "negatives_from", negatives_from, ("all", "queue"))
        others = [self.settings.negative_weights, *(block.negative_weights for block in self.blocks or ())]
        if negatives_from == "queue" and (queue is None or any(weights is not None for weights in others)):
            got = "no queue" if queue is None else "negative_weights"
            raise ConfigError(
                "Objective(negatives_from='queue')", expected="a queue, without negative_weights", got=got
            )
        modules = {name: temperature_module(value) for name, value in by_space(temperature).items()}
        for i, block in enumerate(self.blocks or ()):
            if block.temperature is not None:
                modules[f"block {i}"] = block.temperature
        self.truncate = truncation_weights(truncate, truncate_weights, self.settings)
        self.temperatures = nn.ModuleDict(modules)
        affinities = {name: as_affinity(value) for name, value in by_space(affinity).items()}
        self._table = BlockTable(self.blocks, union, affinities, self.temperatures, self.settings)
        self.affinity_parameters = nn.ParameterList(self._table.parameters())
        self._register_similarity()
        self._names_are_known = False
        self.last = ObjectiveMetrics()
        self.last_rows: dict[str, tuple[Float[Tensor, "a d"], int]] = {}
        self.records: dict[str, BlockRecord] | None = None

    @outside_graphs
    def forward(
        self,
        embeddings: Embeddings | Float[Tensor, "n d"],
        batch: ViewBatch | Mapping[str, Index] | Index,
        candidates: Embeddings | Float[Tensor, "n d"] | None = None,
    ) -> Float[Tensor, ""]:
        """The loss of the global batch.

        Args:
            embeddings: by space and modality, the rows of this rank; a tensor with one space and one modality.
            batch: the batch, or its tables by modality, or one table for all.
            candidates: embeddings of the same rows by a momentum encoder, which replace the rows as candidates; an
                anchor's own row is left out.

        Raises:
            InputError: rows and tables do not fit, or, before `check` or a first loss, no block has both sides.
        """
        tables = tables_by_modality(embeddings, batch)
        local, local_tables = rows_by_name(embeddings, tables, self.blocks)
        gathered = pool = collectives.gather(local, local_tables)
        if candidates is not None:
            pool = collectives.gather(*rows_by_name(candidates, tables, self.blocks))
        step, temperatures = GlobalBatch(local, gathered, pool), self._evaluate_temperatures()
        blocks = self._table.resolve(gathered.embeddings)
        inputs = {label: self._block_inputs(step, block, temperatures) for label, block in blocks.items() if block}
        self._keep(inputs)
        weights = {label: block.weight for label, block in blocks.items() if block}
        losses = losses_of_blocks(inputs)
        found = {label: (weights[label], _sums(losses[label])) for label in inputs}
        for dim, weight in self.truncate.items():
            losses = losses_of_blocks(truncated(inputs, dim))
            found |= {
                label_of_truncated(label, dim): (weights[label] * weight, _sums(losses[label])) for label in inputs
            }
        if not found:
            return self._empty_loss(embeddings, list(blocks))
        self._names_are_known = True
        return self._combine(found, list(blocks))

    def check(
        self, spaces: Mapping[str, Iterable[str]], source: Any = None, views: Mapping[str, int] | None = None
    ) -> None:
        """Check, before the first step, that the model and its data can fill the blocks.

        After this check, a batch in which no block has both sides has a loss of 0 and is counted: the names are known
        to be correct, so the batch lacks the modalities by chance. Without the check it raises an error.

        Args:
            spaces: by space, the modalities that have a head (`ContrastiveModel.modalities_by_space`).
            source: the training data, or None; the samples of a stream are not known ahead.
            views: by modality, the number of views in a batch, or None if it is not known yet.

        Raises:
            ConfigError: a block names an unknown space, modality or view, has no affinity or temperature, or has
                positives by sample where no sample has both modalities.
        """
        self._table.check(spaces, source, views)
        self._names_are_known = True

    def log_values(self, *, independent_negatives: bool = False) -> dict[str, float]:
        """The numbers of the last step for its log line: learned temperatures, and the diagnostics of `records`.

        With several blocks, also the loss of each, under its name.

        Args:
            independent_negatives: whether the batch is sampled uniformly; the rows of a queue are not.
        """
        learned = {name: module for name, module in self.temperatures.items() if any(True for _ in module.parameters())}
        names = {name: "temperature" if len(learned) == 1 else f"temperature/{name}" for name in learned}
        values = {names[name]: as_number(module()) for name, module in learned.items()}
        if len(self.last) > 1:
            values |= {f"loss/{name}": float(block.loss) for name, block in self.last.items()}
        independent = independent_negatives and self.queue is None
        return values | diagnose_blocks(self.records or {}, independent_negatives=independent)

    def _register_similarity(self) -> None:
        """Register a similarity with parameters, whose gradients are averaged over ranks: it is not wrapped by DDP."""
        self.similarity = self.settings.similarity if isinstance(self.settings.similarity, nn.Module) else None
        for parameter in () if self.similarity is None else self.similarity.parameters():
            parameter.register_hook(lambda gradient: collectives.all_reduce_mean([gradient])[0])

    def _evaluate_temperatures(self) -> Temperatures:
        """Each temperature once for all blocks, so that its gradient is averaged over ranks once."""
        values: dict[nn.Module, float | Tensor] = {}
        for module in dict.fromkeys(self.temperatures.values()):
            value = module()
            learns = isinstance(value, Tensor) and value.requires_grad
            values[module] = collectives.average_gradient(value) if learns else value
        return values

    def _block_inputs(self, step: GlobalBatch, block: SpaceBlock, temperatures: Temperatures) -> BlockInputs:
        """The arguments of the loss of a block, of the anchors of this rank."""
        z, table = step.anchors(block.anchors)
        candidates = step.candidates(block.anchors, block.candidates, self.queue)
        settings, affinity = block.settings, _bound(block.affinity, table, candidates.table)
        if isinstance(settings.negative_weights, Affinity):
            settings = replace(settings, negative_weights=_bound(settings.negative_weights, table, candidates.table))
        if self.negatives_from == "queue":
            pool = z if candidates.embeddings is None else candidates.embeddings
            stored = stored_columns(len(z), len(pool), candidates.stored, z.device)
            affinity, settings = affinity * ~stored, replace(settings, negative_weights=stored)
        temperature = temperatures[block.temperature]
        return BlockInputs(z, candidates.embeddings, affinity, temperature, candidates.self_index, settings)

    def _keep(self, inputs: Mapping[str, BlockInputs]) -> None:
        """Keep the rows of each block, and its other arguments if they are asked for, without gradient."""
        self.last_rows = {}
        self.records = None if self.records is None else {}
        for label, (z, candidates, affinity, temperature, self_index, _) in inputs.items():
            pool = z if candidates is None else candidates
            excludes_self = candidates is None or self_index is not None
            self.last_rows[label] = z.detach(), len(pool) - excludes_self
            if self.records is not None:
                self.records[label] = BlockRecord(
                    z.detach(), None if candidates is None else pool.detach(), affinity,
                    temperature.detach() if isinstance(temperature, Tensor) else temperature, self_index,
                )  # fmt: skip

    def _combine(self, found: Mapping[str, tuple[float, Float[Tensor, "3"]]], labels: list[str]) -> Float[Tensor, ""]:
        """The weighted sum of the blocks, each divided by its number of anchors on all ranks."""
        # One collective for all blocks, without gradient: the gradient flows through the sums of this rank alone.
        of_all_ranks = collectives.all_reduce_sum(torch.stack([sums for _, sums in found.values()]).detach())
        self.last = ObjectiveMetrics()
        shares = []
        for (label, (weight, sums)), (loss, anchors, valid) in zip(found.items(), of_all_ranks, strict=True):
            if self.settings.no_positives == "error" and bool(valid < anchors):
                got = f"{int(anchors - valid)} of {int(anchors)} without one in {label}"
                raise InputError("Objective", expected="a positive for every anchor", got=got)
            divisor = {"valid": valid, "all": anchors, "sum": torch.ones_like(valid)}[self.settings.reduction]
            divisor = divisor.clamp_min(1)
            shares.append(weight * sums[0] / divisor)
            self.last[label] = BlockMetrics(loss / divisor, anchors, valid)
        empty = [label for label in labels if label not in found]
        self.last |= dict.fromkeys(empty, BlockMetrics.empty(of_all_ranks.device))
        return collectives.global_loss(torch.stack(shares).sum())

    def _empty_loss(self, embeddings: Embeddings | Float[Tensor, "n d"], labels: list[str]) -> Float[Tensor, ""]:
        """The loss of a batch in which no block has both sides: 0, with a gradient of 0."""
        if not self._names_are_known:
            raise InputError(
                "Objective",
                expected=f"modalities of the blocks {labels}",
                got="none of them on any rank",
                fix="name modalities and spaces as the model's embeddings do; objective.check(...) compares them, and "
                "then a batch may lack them all",
            )
        by_space = {"": {"": embeddings}} if isinstance(embeddings, Tensor) else embeddings
        # Every embedding is in the graph, since data parallelism waits for the gradient of each parameter.
        zero = torch.stack([z.sum() for rows in by_space.values() for z in rows.values()]).sum() * 0
        self.last = ObjectiveMetrics(dict.fromkeys(labels, BlockMetrics.empty(zero.device)))
        return collectives.global_loss(zero)


def _sums(found: AnchorLosses) -> Float[Tensor, "3"]:
    """The sum of losses, the number of anchors and that of valid ones."""
    total = found.losses.sum()
    # Filled in on the device: a copy of the number would make the host wait for it.
    return torch.stack([total, torch.full_like(total, len(found.losses)), found.valid.sum().to(total)])


def _bound(affinity: Affinity, anchors: Index, candidates: Index | None) -> Affinity:
    """The affinity bound to the tables of a block; gradients of its parameters are averaged over ranks."""
    return affinity.bind(anchors, candidates).map_parameters(collectives.average_gradient)
