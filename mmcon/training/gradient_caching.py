"""Gradient caching: the loss of a batch that does not fit, exact, by a second forward pass in chunks (Gao et al. 2021).

A contrastive loss couples all rows, so gradients of small batches do not add up to that of a large one. Here all rows
are embedded first, a chunk at a time and without a graph; the objective is computed on all embeddings; and in the
backward pass each chunk is embedded again, this time with a graph, and handed its part of the embeddings' gradient.
Memory is that of one chunk; time is one more forward pass.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn

from mmcon.batch import ViewBatch, count_rows, tree_map
from mmcon.distributed.collectives import all_reduce_mean, gather_objects
from mmcon.distributed.fsdp import gradient_sync_enabled, is_sharded, set_gradient_sync
from mmcon.errors import InputError
from mmcon.models.ema import unwrap

Embeddings = dict[str, dict[str, Tensor]]


def cached(
    model: nn.Module, objective: Callable[[Embeddings, ViewBatch], Tensor], batch: ViewBatch, *, chunk_size: int
) -> Tensor:
    """The loss of a batch, with the memory of a chunk: what `objective(model(batch), batch)` is, gradients included.

    Gradients are those of the plain step to rounding, in any number of modalities and processes. What to know:

    - *Dropout and other randomness* in the model: each chunk draws its own, and draws the same again in its second
      pass, from the state of torch's generators before its first; that state is put back, so that training goes on from
      where the first passes left it. Masks differ from those of an unchunked step, as they do between any two splits.
    - *Batch norm* in training mode normalises by the statistics of a chunk, as any accumulation of gradients does, and
      not by those of the whole batch: only in evaluation mode, or without it, are gradients those of the plain step.
      Running statistics are updated in the first pass only.
    - *Several processes*: pass the wrapped model. Its own hooks do not run, since it is called twice in pieces; the
      gradients of its parameters are averaged here, in one message. Buffers stay each process's own.
    - *Weights in parts* (FSDP2): pass the model in parts. Its hooks gather the weights for every chunk, and gradients
      are summed over processes with the last. Pieces are as many in each process, and at most `chunk_size` rows.

    Args:
        model: takes a batch and returns embeddings by space and modality, each row from its own views only.
        objective: takes embeddings and the batch.
        batch: what does not fit at once.
        chunk_size: rows that do fit, of each part of each modality.

    Returns:
        The loss, a scalar; its `backward()` runs the second pass.

    Raises:
        InputError: chunks of no rows; or, of a model in parts, a process that lacks rows which others have.
    """
    if chunk_size < 1:
        raise InputError("cached", expected="chunk_size of at least 1 row", got=str(chunk_size))
    if is_sharded(model):
        pieces = _pieces_everywhere(batch, chunk_size)
        replay: _Replay = _ReplayInParts(model, [Chunk(*piece) for piece in split(batch, chunk_size, pieces)])
    else:
        chunks = [Chunk(*piece) for piece in split(batch, chunk_size)]
        replay = _ReplayOfWhole(unwrap(model), chunks, average=unwrap(model) is not model)
    return objective(replay.embed(batch), batch)


@dataclass
class Chunk:
    """A piece of the batch, where its rows go, and the state of generators and autocast that it was embedded under."""

    batch: ViewBatch
    rows: dict[str, Tensor]
    states: list[Any] = field(default_factory=list)
    autocast: dict[str, torch.dtype] = field(default_factory=dict)


def split(
    batch: ViewBatch, chunk_size: int, pieces: Mapping[tuple[str, int], int] | None = None
) -> Iterator[tuple[ViewBatch, dict[str, Tensor]]]:
    """Pieces of at most `chunk_size` rows, each of one part of one modality, and the positions of their rows.

    Args:
        batch: what is split.
        chunk_size: the most rows of a piece.
        pieces: by modality and number of a part, how many pieces of nearly equal size are made of it instead.
    """
    for modality, parts in batch.views.items():
        start = 0
        for number, part in enumerate(parts):
            n = count_rows(part)
            count = None if pieces is None else pieces[modality, number]
            borders = [*range(0, n, chunk_size), n] if count is None else [n * i // count for i in range(count + 1)]
            for low, high in itertools.pairwise(borders):
                piece = tree_map(lambda x, low=low, high=high: x[low:high], part)
                rows = torch.arange(start + low, start + high)
                table = batch.index[modality].take(slice(start + low, start + high))
                yield ViewBatch({modality: (piece,)}, {modality: table}, step=batch.step), {modality: rows}
            start += n


def _pieces_everywhere(batch: ViewBatch, chunk_size: int) -> dict[tuple[str, int], int]:
    """How many pieces each part makes, the same number in every process, since all gather weights for each."""
    own = {(m, i): count_rows(part) for m, parts in batch.views.items() for i, part in enumerate(parts)}
    rows = gather_objects(own)
    pieces = {name: max(-(-of.get(name, 0) // chunk_size) for of in rows) for of in rows for name in of}
    scarce = sorted(name for name, count in pieces.items() if any(of.get(name, 0) < count for of in rows))
    if scarce:
        name = scarce[0]
        raise InputError(
            "cached",
            expected=f"a row a piece in every process, {pieces[name]} of {name[0]!r}, for weights in parts",
            got=f"{[of.get(name, 0) for of in rows]} rows by process",
            fix="raise --chunk-size, or choose --engine ddp",
        )
    return pieces


class _Replay(ABC):
    """Embeds chunks twice: without a graph, then in the backward pass with one."""

    def __init__(self, model: nn.Module, chunks: list[Chunk]) -> None:
        self.model, self.chunks = model, chunks
        self.names: list[tuple[str, str]] = []

    @abstractmethod
    def leaves(self) -> list[Tensor]:
        """What the second pass returns gradients of."""

    @abstractmethod
    def second_pass(self, gradients: Sequence[Tensor]) -> Sequence[Tensor | None]:
        """The gradients of the leaves, from those of all embeddings."""

    def embed(self, batch: ViewBatch) -> Embeddings:
        """Embeddings of all rows, by space and modality; the graph behind them is one node, the second pass."""
        rows = _SecondPass.apply(self, {m: table.n for m, table in batch.index.items()}, *self.leaves())
        embeddings: Embeddings = {}
        for (space, modality), z in zip(self.names, rows, strict=True):
            embeddings.setdefault(space, {})[modality] = z
        return embeddings

    def first_pass(self, counts: Mapping[str, int]) -> list[Tensor]:
        whole: dict[tuple[str, str], Tensor] = {}
        for chunk in self.chunks:
            chunk.states, chunk.autocast = _generator_states(_devices(chunk.batch)), _autocast_state()
            for name, z in _flat(self.model(chunk.batch)):
                n = counts[name[1]]
                rows = whole.setdefault(name, z.new_zeros(n, z.shape[1]))
                rows[chunk.rows[name[1]].to(z.device)] = z
        self.names = sorted(whole)
        return [whole[name] for name in self.names]

    def again(self, chunk: Chunk, gradients: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """A chunk's embeddings with a graph, and the gradients that fall to them; without those that have none."""
        by_name = dict(zip(self.names, gradients, strict=True))
        with torch.enable_grad(), _autocast(chunk.autocast):
            pairs = [(z, by_name[name][chunk.rows[name[1]].to(z.device)]) for name, z in _flat(self.model(chunk.batch))]
        learning = [(z, gradient) for z, gradient in pairs if z.requires_grad]
        return [z for z, _ in learning], [gradient for _, gradient in learning]


@final
class _ReplayOfWhole(_Replay):
    """With all weights in each process: gradients are summed here, and averaged over processes once."""

    def __init__(self, model: nn.Module, chunks: list[Chunk], *, average: bool) -> None:
        super().__init__(model, chunks)
        self.average = average
        self.parameters: list[Tensor] = [p for p in model.parameters() if p.requires_grad]

    def leaves(self) -> list[Tensor]:
        return self.parameters

    def second_pass(self, gradients: Sequence[Tensor]) -> Sequence[Tensor | None]:
        summed = [torch.zeros_like(parameter) for parameter in self.parameters]
        for chunk in self.chunks:
            with _replayed(chunk, self.model):
                for total, gradient in zip(summed, self._chunk_gradients(chunk, gradients), strict=True):
                    if gradient is not None:
                        total += gradient
        return all_reduce_mean(summed) if self.average else summed

    def _chunk_gradients(self, chunk: Chunk, gradients: Sequence[Tensor]) -> Sequence[Tensor | None]:
        outputs, at_outputs = self.again(chunk, gradients)
        if not outputs:
            return [None] * len(self.parameters)
        return torch.autograd.grad(outputs, self.parameters, at_outputs, allow_unused=True)


@final
class _ReplayInParts(_Replay):
    """With a part of the weights in each process: FSDP2's hooks gather weights for every pass.

    They leave gradients where the optimizer looks for them, averaged over processes with the last chunk.
    """

    def leaves(self) -> list[Tensor]:
        return [torch.zeros((), requires_grad=True)]  # only so that there is a backward pass

    def second_pass(self, gradients: Sequence[Tensor]) -> Sequence[Tensor | None]:
        now = gradient_sync_enabled(self.model)
        try:
            for number, chunk in enumerate(self.chunks, start=1):
                set_gradient_sync(self.model, now and number == len(self.chunks))
                with _replayed(chunk, self.model):
                    outputs, at_outputs = self.again(chunk, gradients)
                    torch.autograd.backward(outputs, at_outputs)
        finally:
            set_gradient_sync(self.model, now)
        return [None]


class _SecondPass(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, replay: _Replay, counts: dict[str, int], *leaves: Tensor) -> tuple[Tensor, ...]:
        ctx.replay = replay
        return tuple(replay.first_pass(counts))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *ctx.replay.second_pass(gradients)


def _flat(embeddings: Mapping[str, Mapping[str, Tensor]]) -> Iterator[tuple[tuple[str, str], Tensor]]:
    return (((space, modality), z) for space, rows in embeddings.items() for modality, z in rows.items())


def _devices(batch: ViewBatch) -> list[torch.device]:
    found: set[torch.device] = set()
    tree_map(lambda x: (found.add(x.device), x)[1], batch.views)
    return sorted((device for device in found if device.type == "cuda"), key=str)


def _generator_states(devices: list[torch.device]) -> list[Any]:
    return [torch.get_rng_state(), *((device, torch.cuda.get_rng_state(device)) for device in devices)]


def _autocast_state() -> dict[str, torch.dtype]:
    """The kinds of device for which autocast is on, with its dtype."""
    return {kind: torch.get_autocast_dtype(kind) for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)}


@contextmanager
def _autocast(state: Mapping[str, torch.dtype]) -> Iterator[None]:
    with ExitStack() as stack:
        for kind, dtype in state.items():
            stack.enter_context(torch.autocast(kind, dtype))
        yield


@contextmanager
def _replayed(chunk: Chunk, model: nn.Module) -> Iterator[None]:
    """Torch's generators as they were in the first pass; they and the model's buffers are put back after."""
    buffers = [buffer.clone() for buffer in model.buffers()]
    with torch.random.fork_rng([device for device, _ in chunk.states[1:]]):
        torch.set_rng_state(chunk.states[0])
        for device, state in chunk.states[1:]:
            torch.cuda.set_rng_state(state, device)
        yield
    with torch.no_grad():
        for buffer, before in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(before)
