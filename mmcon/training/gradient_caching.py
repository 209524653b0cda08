"""Gradient caching (GradCache): the exact loss of a batch that does not fit in memory, by two passes over chunks.

A contrastive loss couples all rows, so the gradients of small batches do not add up to that of a large one. Gradient
caching (Gao et al. 2021) first embeds all rows, one chunk at a time and without a graph, and computes the objective on
all embeddings. The backward pass embeds each chunk again, with a graph, and backpropagates the gradient of its rows.
The memory is that of one chunk, and the cost is one more forward pass.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, final

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from mmcon.batch import ViewBatch, count_rows, tree_map
from mmcon.distributed.collectives import all_reduce_mean, gather_objects
from mmcon.distributed.fsdp import gradient_sync_enabled, is_sharded, set_gradient_sync
from mmcon.errors import InputError
from mmcon.models.ema import unwrap

Embeddings = dict[str, dict[str, Float[Tensor, "_ _"]]]


def cached(
    model: nn.Module,
    objective: Callable[[Embeddings, ViewBatch], Float[Tensor, ""]],
    batch: ViewBatch,
    *,
    chunk_size: int,
) -> Float[Tensor, ""]:
    """`objective(model(batch), batch)` and its gradients, with the memory of one chunk.

    Gradients equal those of a plain step up to rounding, with any number of modalities and ranks. Details:

    - *Dropout and other randomness* in the model: the second pass of a chunk restores the generator states of its first
      pass, so both have the same masks. Masks differ from those of a step without chunks.
    - *Batch norm* in training mode uses the statistics of a chunk, as in any gradient accumulation. Gradients equal
      those of the plain step only without it, or in evaluation mode. Running statistics are updated in the first pass.
    - *Several ranks* (DDP): pass the wrapped model. Its hooks do not run, since it is called twice per chunk; the
      gradients are averaged here, in one all-reduce. Buffers are not synchronized.
    - *Sharded weights* (FSDP2): pass the sharded model. Its hooks gather the weights for every chunk, and gradients are
      reduced with the last. All ranks have the same number of chunks, of at most `chunk_size` rows.

    Args:
        model: maps a batch to embeddings by space and modality; each row depends on its own views only.
        objective: takes the embeddings and the batch.
        batch: the batch that does not fit in memory.
        chunk_size: the number of rows that fit, of each view group of each modality.

    Returns:
        The loss; its `backward()` runs the second pass.

    Raises:
        InputError: `chunk_size` is below 1; or, with sharded weights, a rank lacks rows that others have.
    """
    if chunk_size < 1:
        raise InputError("cached", expected="chunk_size of at least 1 row", got=str(chunk_size))
    if is_sharded(model):
        pieces = _pieces_by_group(batch, chunk_size)
        passes: _TwoPassModel = _ShardedTwoPassModel(
            model, [Chunk(*piece) for piece in split(batch, chunk_size, pieces)]
        )
    else:
        chunks = [Chunk(*piece) for piece in split(batch, chunk_size)]
        passes = _FullTwoPassModel(unwrap(model), chunks, average=unwrap(model) is not model)
    return objective(passes.embed(batch), batch)


@dataclass
class Chunk:
    """A piece of the batch with its row numbers, and the generator and autocast states of its first pass."""

    batch: ViewBatch
    rows: dict[str, Int[Tensor, " r"]]
    states: list[Any] = field(default_factory=list)
    autocast: dict[str, torch.dtype] = field(default_factory=dict)


def split(
    batch: ViewBatch, chunk_size: int, pieces: Mapping[tuple[str, int], int] | None = None
) -> Iterator[tuple[ViewBatch, dict[str, Int[Tensor, " r"]]]]:
    """Split a batch into pieces of one view group each, and yield them with their row numbers by modality.

    Args:
        batch: the whole batch.
        chunk_size: the largest number of rows of a piece.
        pieces: by modality and view group, the number of pieces of nearly equal size, instead of `chunk_size`.
    """
    for modality, groups in batch.views.items():
        start = 0
        for number, views in enumerate(groups):
            n = count_rows(views)
            count = None if pieces is None else pieces[modality, number]
            # No rows are a piece too: on several ranks the model takes part in the collective operations of the others.
            starts = range(0, max(n, 1), chunk_size)
            borders = [*starts, n] if count is None else [n * i // count for i in range(count + 1)]
            for low, high in itertools.pairwise(borders):
                piece = tree_map(lambda x, low=low, high=high: x[low:high], views)
                rows = torch.arange(start + low, start + high)
                table = batch.index[modality].take(slice(start + low, start + high))
                yield ViewBatch({modality: (piece,)}, {modality: table}, step=batch.step), {modality: rows}
            start += n


def _pieces_by_group(batch: ViewBatch, chunk_size: int) -> dict[tuple[str, int], int]:
    """The number of pieces of each view group, the same on all ranks, since all gather the weights for each piece."""
    own = {(m, i): count_rows(views) for m, groups in batch.views.items() for i, views in enumerate(groups)}
    by_rank = gather_objects(own)
    pieces = {name: max(-(-rows.get(name, 0) // chunk_size) for rows in by_rank) for rows in by_rank for name in rows}
    scarce = sorted(name for name, count in pieces.items() if any(rows.get(name, 0) < count for rows in by_rank))
    if scarce:
        name = scarce[0]
        raise InputError(
            "cached",
            expected=f"at least {pieces[name]} rows of {name[0]!r} on every rank, one per piece (sharded weights)",
            got=f"{[rows.get(name, 0) for rows in by_rank]} rows by rank",
            fix="raise --chunk-size, or choose --engine ddp",
        )
    return pieces


class _TwoPassModel(ABC):
    """Embeds chunks twice: first without a graph, then in the backward pass with one."""

    def __init__(self, model: nn.Module, chunks: list[Chunk]) -> None:
        self.model, self.chunks = model, chunks
        self.names: list[tuple[str, str]] = []

    @abstractmethod
    def leaves(self) -> list[Shaped[Tensor, "..."]]:
        """The inputs of the autograd node, which receive the gradients that the second pass returns."""

    @abstractmethod
    def second_pass(self, gradients: Sequence[Float[Tensor, "_ _"]]) -> Sequence[Shaped[Tensor, "..."] | None]:
        """The gradients of the leaves, from those of all embeddings."""

    def embed(self, batch: ViewBatch) -> Embeddings:
        """Embeddings of all rows, by space and modality; their graph is one node, the second pass."""
        rows = _SecondPass.apply(self, {m: table.n for m, table in batch.index.items()}, *self.leaves())
        embeddings: Embeddings = {}
        for (space, modality), z in zip(self.names, rows, strict=True):
            embeddings.setdefault(space, {})[modality] = z
        return embeddings

    def first_pass(self, counts: Mapping[str, int]) -> list[Float[Tensor, "_ _"]]:
        """The embeddings of all chunks without a graph, in the order of `names`; records generator states."""
        whole: dict[tuple[str, str], Float[Tensor, "_ _"]] = {}
        for chunk in self.chunks:
            # Before the pass: the second pass starts from the same states and draws the same dropout masks.
            chunk.states, chunk.autocast = _generator_states(_devices(chunk.batch)), _autocast_state()
            for name, z in _flat(self.model(chunk.batch)):
                n = counts[name[1]]
                rows = whole.setdefault(name, z.new_zeros(n, z.shape[1]))
                rows[chunk.rows[name[1]].to(z.device)] = z
        self.names = sorted(whole)
        return [whole[name] for name in self.names]

    def embed_again(
        self, chunk: Chunk, gradients: Sequence[Float[Tensor, "_ _"]]
    ) -> tuple[list[Float[Tensor, "r _"]], list[Float[Tensor, "r _"]]]:
        """The embeddings of a chunk with a graph, and their gradients; without those that need no gradient."""
        by_name = dict(zip(self.names, gradients, strict=True))
        with torch.enable_grad(), _autocast(chunk.autocast):
            pairs = [(z, by_name[name][chunk.rows[name[1]].to(z.device)]) for name, z in _flat(self.model(chunk.batch))]
        # autograd refuses outputs without a graph, such as those of a frozen encoder.
        learning = [(z, gradient) for z, gradient in pairs if z.requires_grad]
        return [z for z, _ in learning], [gradient for _, gradient in learning]


@final
class _FullTwoPassModel(_TwoPassModel):
    """For full weights on each rank: gradients are summed over chunks, and averaged over ranks once."""

    def __init__(self, model: nn.Module, chunks: list[Chunk], *, average: bool) -> None:
        super().__init__(model, chunks)
        self.average = average
        self.parameters: list[Tensor] = [p for p in model.parameters() if p.requires_grad]

    def leaves(self) -> list[Shaped[Tensor, "..."]]:
        return self.parameters

    def second_pass(self, gradients: Sequence[Float[Tensor, "_ _"]]) -> Sequence[Shaped[Tensor, "..."] | None]:
        summed = [torch.zeros_like(parameter) for parameter in self.parameters]
        for chunk in self.chunks:
            with _replayed(chunk, self.model):
                for total, gradient in zip(summed, self._chunk_gradients(chunk, gradients), strict=True):
                    if gradient is not None:
                        total += gradient
        return all_reduce_mean(summed) if self.average else summed

    def _chunk_gradients(
        self, chunk: Chunk, gradients: Sequence[Float[Tensor, "_ _"]]
    ) -> Sequence[Shaped[Tensor, "..."] | None]:
        outputs, at_outputs = self.embed_again(chunk, gradients)
        if not outputs:
            return [None] * len(self.parameters)
        return torch.autograd.grad(outputs, self.parameters, at_outputs, allow_unused=True)


@final
class _ShardedTwoPassModel(_TwoPassModel):
    """For sharded weights: FSDP2's hooks gather weights for every pass, and reduce gradients with the last chunk."""

    def leaves(self) -> list[Shaped[Tensor, "..."]]:
        return [torch.zeros((), requires_grad=True)]  # a leaf, so that autograd runs the backward pass

    def second_pass(self, gradients: Sequence[Float[Tensor, "_ _"]]) -> Sequence[Shaped[Tensor, "..."] | None]:
        now = gradient_sync_enabled(self.model)
        try:
            for number, chunk in enumerate(self.chunks, start=1):
                # One reduce-scatter for all chunks: with each chunk it would multiply the traffic.
                set_gradient_sync(self.model, now and number == len(self.chunks))
                with _replayed(chunk, self.model):
                    outputs, at_outputs = self.embed_again(chunk, gradients)
                    torch.autograd.backward(outputs, at_outputs)
        finally:
            set_gradient_sync(self.model, now)
        return [None]


class _SecondPass(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, passes: _TwoPassModel, counts: dict[str, int], *leaves: Shaped[Tensor, "..."]
    ) -> tuple[Float[Tensor, "_ _"], ...]:
        ctx.passes = passes
        return tuple(passes.first_pass(counts))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Float[Tensor, "_ _"]) -> tuple[Shaped[Tensor, "..."] | None, ...]:
        return None, None, *ctx.passes.second_pass(gradients)


def _flat(
    embeddings: Mapping[str, Mapping[str, Float[Tensor, "_ _"]]],
) -> Iterator[tuple[tuple[str, str], Float[Tensor, "_ _"]]]:
    return (((space, modality), z) for space, rows in embeddings.items() for modality, z in rows.items())


def _devices(batch: ViewBatch) -> list[torch.device]:
    found: set[torch.device] = set()
    tree_map(lambda x: (found.add(x.device), x)[1], batch.views)
    return sorted((device for device in found if device.type == "cuda"), key=str)


def _generator_states(devices: list[torch.device]) -> list[Any]:
    return [torch.get_rng_state(), *((device, torch.cuda.get_rng_state(device)) for device in devices)]


def _autocast_state() -> dict[str, torch.dtype]:
    """The device types with autocast enabled, and its dtype."""
    return {kind: torch.get_autocast_dtype(kind) for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)}


@contextmanager
def _autocast(state: Mapping[str, torch.dtype]) -> Iterator[None]:
    with ExitStack() as stack:
        for kind, dtype in state.items():
            stack.enter_context(torch.autocast(kind, dtype))
        yield


@contextmanager
def _replayed(chunk: Chunk, model: nn.Module) -> Iterator[None]:
    """Set torch's generators to their states of the first pass; afterwards restore them and the buffers."""
    # The first pass has updated the running statistics of batch norm; the second must not do so again.
    buffers = [buffer.clone() for buffer in model.buffers()]
    with torch.random.fork_rng([device for device, _ in chunk.states[1:]]):
        torch.set_rng_state(chunk.states[0])
        for device, state in chunk.states[1:]:
            torch.cuda.set_rng_state(state, device)
        yield
    with torch.no_grad():
        for buffer, before in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(before)
