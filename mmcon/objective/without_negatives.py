"""Losses without negatives: rows predict targets. BYOL and SimSiam (embeddings), and distillation (features)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mmcon.affinity import Affinity, SameSample, as_affinity, self_mask
from mmcon.batch import Index, ViewBatch
from mmcon.distributed import collectives
from mmcon.errors import InputError
from mmcon.models.predictor import predicted
from mmcon.objective.candidates import Embeddings, GlobalBatch, tables_by_modality

# Anchors at a time, to bound the memory of weights.
CHUNK = 512


@final
class Prediction(nn.Module):
    """Each view predicts the embeddings of the other views of its sample (BYOL, SimSiam); there are no negatives.

        L = weight · (1 / valid anchors of all ranks) Σ_i Σ_j Ŵ_ij ‖q_i - z_j‖²,      ‖q - z‖² = 2 - 2 ⟨q, z⟩

    with q the predictions of a `Predictor` and z the targets, both of length one, and Ŵ the positive weights divided by
    their row sum. Targets have no gradient: in BYOL they come from a momentum encoder (Grill et al. 2020, eq. 2, with
    weight 2), in SimSiam from the model itself (Chen and He 2021, eq. 4, with weight 1/2 and without its constant -1).

    Args:
        affinity: positive weights; by default views of one sample.
        space: of the embeddings.
        weight: multiplies the loss.
        stop_gradient: whether targets of the model itself have no gradient; without it the embeddings collapse.

    Attributes:
        last_rows: by block, the embeddings of this rank in the last step, and their number on all ranks.

    >>> objective = Prediction()
    >>> z, table = torch.eye(4), Index({"sample": torch.tensor([0, 1, 0, 1])})
    >>> objective({"shared": {"image": z}, "shared (predicted)": {"image": z.roll(2, 0)}}, table).item()
    0.0
    """

    supports_sharding = False  # its encoder is evaluated without the predictor, which needs full weights

    def __init__(
        self, *, affinity: Any = None, space: str = "shared", weight: float = 1.0, stop_gradient: bool = True
    ) -> None:
        super().__init__()
        self.affinity: Affinity = SameSample() if affinity is None else as_affinity(affinity)
        self.space, self.weight, self.stop_gradient = space, weight, stop_gradient
        self.last_rows: dict[str, tuple[Float[Tensor, "n d"], int]] = {}

    def forward(
        self,
        embeddings: Embeddings | Float[Tensor, "..."],
        batch: ViewBatch | Mapping[str, Index] | Index,
        targets: Embeddings | None = None,
    ) -> Float[Tensor, ""]:
        """The loss of the global batch; its gradient is averaged over ranks by data parallelism.

        Args:
            embeddings: by space and modality, with those of `predicted(space)`.
            batch: the batch, or its tables by modality, or one table for all.
            targets: embeddings of the same rows by a momentum encoder; None: those of the model itself.

        Raises:
            InputError: the embeddings lack the space or its predictions.
        """
        own, q = self._rows(embeddings, self.space), self._rows(embeddings, predicted(self.space))
        local = own if targets is None else self._rows(targets, self.space)
        if targets is not None or self.stop_gradient:
            local = {name: rows.detach() for name, rows in local.items()}
        tables = tables_by_modality(embeddings, batch)
        gathered = collectives.gather(local, {name: tables[name[1]] for name in local})
        # A tuple of its own: the targets are not the anchors, so that they are candidates in one process too.
        step, names = GlobalBatch(q, gathered, gathered._replace()), sorted(gathered.embeddings)
        anchors, table = step.anchors(names)
        pool = step.candidates(names, names, None)
        assert pool.embeddings is not None
        assert pool.self_index is not None
        means, valid = _mean_targets(self.affinity.bind(table, pool.table), pool.self_index, pool.embeddings)
        self.last_rows = {
            f"{self.space}/{name[1]}": (rows.detach(), len(pool.embeddings)) for name, rows in own.items()
        }
        return self.weight * _mean_over_ranks(2 - 2 * (anchors * means).sum(1), valid)

    def _rows(
        self, embeddings: Embeddings | Float[Tensor, "..."], space: str
    ) -> dict[tuple[str, str], Float[Tensor, "_ d"]]:
        rows = _rows_of("Prediction", embeddings, space, fix="wrap the model: Predictor(model, hidden_dim=...)")
        return {(self.space, modality): own for modality, own in rows.items()}


@final
class FeatureRegression(nn.Module):
    """Embeddings regress the features of a frozen teacher (SimReg; Navaneet et al. 2021).

        L = (1 / rows of all ranks) Σ_i ‖z_i - t_i / ‖t_i‖‖²

    The space of the embeddings has the width of the teacher's features, so that its head is the regressor.

    Args:
        target: the column with the teacher's features.
        space: of the embeddings.

    >>> loss = FeatureRegression(target="teacher")
    >>> loss({"shared": {"image": torch.eye(2)}}, Index({"teacher": torch.eye(2) * 3})).item()
    0.0
    """

    supports_sharding = True

    def __init__(self, *, target: str = "teacher", space: str = "shared") -> None:
        super().__init__()
        self.target, self.space = target, space
        self.last_rows: dict[str, tuple[Float[Tensor, "n d"], int]] = {}

    def forward(
        self, embeddings: Embeddings | Float[Tensor, "..."], batch: ViewBatch | Mapping[str, Index] | Index
    ) -> Float[Tensor, ""]:
        """The loss of the global batch; its gradient is averaged over ranks by data parallelism.

        Raises:
            InputError: the embeddings lack the space, or they and the features of the teacher differ in width.
        """
        found = _rows_of("FeatureRegression", embeddings, self.space, fix="space=... as in the model")
        tables = tables_by_modality(embeddings, batch)
        losses = []
        for modality, rows in found.items():
            features = tables[modality][self.target]
            if features.shape != rows.shape:
                got = f"embeddings {tuple(rows.shape)}, column {self.target!r} {tuple(features.shape)}"
                fix = f"SharedSpace(dim={features.shape[-1]})"
                raise InputError("FeatureRegression", expected="one shape `n d`", got=got, fix=fix)
            losses.append((rows - nn.functional.normalize(features.to(rows), dim=1)).square().sum(1))
            self.last_rows[f"{self.space}/{modality}"] = rows.detach(), len(rows)
        every = torch.cat(losses)
        return _mean_over_ranks(every, torch.ones_like(every, dtype=torch.bool))


def _rows_of(
    where: str, embeddings: Embeddings | Float[Tensor, "..."], space: str, *, fix: str
) -> Mapping[str, Float[Tensor, "_ d"]]:
    """The rows of a space by modality."""
    if not isinstance(embeddings, Mapping) or space not in embeddings:
        of = sorted(embeddings) if isinstance(embeddings, Mapping) else type(embeddings).__name__
        raise InputError(where, expected=f"embeddings of {space!r}", got=str(of), fix=fix)
    return embeddings[space]


def _mean_targets(
    affinity: Affinity, self_index: Int[Tensor, " a"], targets: Float[Tensor, "c d"]
) -> tuple[Float[Tensor, "a d"], Bool[Tensor, " a"]]:
    """For each anchor the weighted mean of its targets without its own row, and whether it has one."""
    affinity, columns = affinity.with_dtype(targets.dtype), slice(0, len(targets))
    means, valid = [targets.new_zeros(0, targets.shape[1])], [self_index.new_zeros(0, dtype=torch.bool)]
    for start in range(0, len(self_index), CHUNK):
        rows = slice(start, min(start + CHUNK, len(self_index)))
        weights = affinity.tile(rows, columns).to(targets)
        weights = weights.masked_fill(self_mask(self_index[rows], len(targets)), 0)
        has_target = (weights > 0).any(1)
        means.append(weights @ targets / torch.where(has_target, weights.sum(1), 1)[:, None])
        valid.append(has_target)
    return torch.cat(means), torch.cat(valid)


def _mean_over_ranks(losses: Float[Tensor, " a"], valid: Bool[Tensor, " a"]) -> Float[Tensor, ""]:
    """The mean over the valid anchors of all ranks; 0 without any."""
    total = torch.where(valid, losses, 0).sum()
    count = collectives.all_reduce_sum(valid.sum()).clamp_min(1)
    return collectives.global_loss(total / count)
