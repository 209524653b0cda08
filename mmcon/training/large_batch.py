"""Gradient caching: the loss of a batch that does not fit, exact, by a second forward pass in chunks (Gao et al. 2021).

A contrastive loss couples all rows, so gradients of small batches do not add up to that of a large one. Here all rows
are embedded first, a chunk at a time and without a graph; the objective is computed on all embeddings; and in the
backward pass each chunk is embedded again, this time with a graph, and handed its part of the embeddings' gradient.
Memory is that of one chunk; time is one more forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mmcon.batch import ViewBatch, rows_of, tree_map
from mmcon.candidates.gather import mean_over_processes
from mmcon.errors import ConfigError, InputError
from mmcon.models.momentum import inside
from mmcon.training.engine import is_sharded

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
          Running
      statistics are updated in the first pass only.
    - *Several processes*: pass the wrapped model. Its own hooks do not run, since it is called twice in pieces; the
      gradients of its parameters are averaged here, in one message. Buffers stay each process's own.

    Args:
        model: takes a batch and returns embeddings by space and modality, each row from its own views only.
        objective: takes embeddings and the batch.
        batch: what does not fit at once.
        chunk_size: rows that do fit, of each part of each modality.

    Returns:
        The loss, a scalar; its `backward()` runs the second pass.

    Raises:
        InputError: chunks of no rows.
        ConfigError: the model is sharded over processes.
    """
    if chunk_size < 1:
        raise InputError("cached", expected="chunk_size of at least 1 row", got=str(chunk_size))
    if is_sharded(model):
        raise ConfigError(
            "cached",
            expected="whole copies of the weights in each process",
            got="a model in parts (FSDP2), whose hooks expect one pass forward and one back",
            fix="choose --engine ddp, or leave out --chunk-size",
        )
    inner = inside(model)
    parameters: list[Tensor] = [parameter for parameter in inner.parameters() if parameter.requires_grad]
    chunks = [Chunk(piece, rows) for piece, rows in split(batch, chunk_size)]
    replay = _Replay(inner, chunks, parameters, average=inner is not model)
    return objective(replay.embed(batch), batch)


@dataclass
class Chunk:
    """A piece of the batch, where its rows go, and the state of generators and autocast that it was embedded under."""

    batch: ViewBatch
    rows: dict[str, Tensor]
    states: list[Any] = field(default_factory=list)
    autocast: dict[str, torch.dtype] = field(default_factory=dict)


def split(batch: ViewBatch, chunk_size: int) -> Iterator[tuple[ViewBatch, dict[str, Tensor]]]:
    """Pieces of at most `chunk_size` rows, each of one part of one modality, and the positions of their rows."""
    for modality, parts in batch.views.items():
        start = 0
        for part in parts:
            n = rows_of(part)
            for low in range(0, n, chunk_size):
                high = min(low + chunk_size, n)
                piece = tree_map(lambda x, low=low, high=high: x[low:high], part)
                rows = torch.arange(start + low, start + high)
                table = batch.index[modality].take(slice(start + low, start + high))
                yield ViewBatch({modality: (piece,)}, {modality: table}, step=batch.step), {modality: rows}
            start += n


class _Replay:
    """Embeds chunks twice: without a graph, then in the backward pass with one."""

    def __init__(self, model: nn.Module, chunks: list[Chunk], parameters: list[Tensor], *, average: bool) -> None:
        self.model, self.chunks, self.parameters, self.average = model, chunks, parameters, average
        self.names: list[tuple[str, str]] = []

    def embed(self, batch: ViewBatch) -> Embeddings:
        """Embeddings of all rows, by space and modality; the graph behind them is one node, the second pass."""
        rows = _SecondPass.apply(self, {m: table.n for m, table in batch.index.items()}, *self.parameters)
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

    def second_pass(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        by_name = dict(zip(self.names, gradients, strict=True))
        summed = [torch.zeros_like(parameter) for parameter in self.parameters]
        for chunk in self.chunks:
            with _replayed(chunk, self.model):
                for total, gradient in zip(summed, self._chunk_gradients(chunk, by_name), strict=True):
                    if gradient is not None:
                        total += gradient
        return mean_over_processes(summed) if self.average else summed

    def _chunk_gradients(self, chunk: Chunk, by_name: Mapping[tuple[str, str], Tensor]) -> Sequence[Tensor | None]:
        with torch.enable_grad(), _autocast(chunk.autocast):
            pairs = [(z, by_name[name][chunk.rows[name[1]].to(z.device)]) for name, z in _flat(self.model(chunk.batch))]
        learning = [(z, gradient) for z, gradient in pairs if z.requires_grad]
        if not learning:
            return [None] * len(self.parameters)
        outputs, at_outputs = zip(*learning, strict=True)
        return torch.autograd.grad(outputs, self.parameters, at_outputs, allow_unused=True)


class _SecondPass(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, replay: _Replay, counts: dict[str, int], *parameters: Tensor) -> tuple[Tensor, ...]:
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
