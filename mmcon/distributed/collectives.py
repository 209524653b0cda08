"""Collective operations over ranks, with gradients where the loss needs them.

Every rank calls these functions in the same order. With a world size of 1 they return their input.

Gradients: rank r has local anchors and the gathered candidates of all ranks. Its share of the loss is L_r, and the loss
of the global batch is L = Σ_r L_r. The backward pass of `gather` sums the gradient of each row over ranks and returns
it to the rank that owns the row. So each local embedding receives ∂L, and the backward pass of the model yields the
terms of ∂L that flow through local rows. Data parallelism *averages* these terms over R ranks, so L is multiplied by R
once. `global_loss` applies that factor, and no other function does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from torch import Tensor

from mmcon.batch import Index
from mmcon.errors import InputError, MmconError

T = TypeVar("T")

#: Backends with a reduce-scatter; with the others an all-reduce takes its place.
REDUCE_SCATTER_BACKENDS = ("nccl", "gloo")


def get_world_size() -> int:
    """The number of ranks; 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def get_rank() -> int:
    """The rank of this process; 0 without torch.distributed."""
    return dist.get_rank() if get_world_size() > 1 else 0


class Gathered(NamedTuple):
    """Embeddings of all ranks, by (space, modality).

    Attributes:
        embeddings: `n d`, the rows of rank 0, then those of rank 1, …; gradients return to the rank that owns the row.
        tables: the index of the same rows, with the columns that all ranks have.
        offsets: the position of the first row of this rank.
    """

    embeddings: dict[Any, Float[Tensor, "_ _"]]
    tables: dict[Any, Index]
    offsets: dict[Any, int]


def gather(embeddings: Mapping[Any, Float[Tensor, "_ _"]], tables: Mapping[Any, Index]) -> Gathered:
    """All-gather rows, with gradient. The number of rows may differ by rank; a missing name counts as 0 rows.

    Args:
        embeddings: by name, the rows of this rank, `n d`.
        tables: by name, the index of the same rows.
    """
    if get_world_size() == 1:
        return Gathered(dict(embeddings), dict(tables), dict.fromkeys(embeddings, 0))
    headers = gather_objects({name: _Header.from_rows(embeddings[name], tables[name]) for name in embeddings})
    # Sorted, so that all ranks run the collectives in the same order.
    names = sorted({name for header in headers for name in header})
    device = _communication_device(embeddings)
    local = [_local_rows(name, embeddings, headers, device) for name in names]
    sizes = [[header[name].rows if name in header else 0 for header in headers] for name in names]
    rows = _GatherRows.apply(sizes, *local)
    return Gathered(
        embeddings=dict(zip(names, rows, strict=True)),
        tables={name: _gather_table(name, tables, headers, device) for name in names},
        offsets={name: sum(sizes[i][: get_rank()]) for i, name in enumerate(names)},
    )


def global_loss(local_loss: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """The loss of the global batch: the sum of each rank's share of it.

    The gradient of the local share is multiplied by the world size, since data parallelism averages gradients.
    """
    return local_loss if get_world_size() == 1 else _GlobalLoss.apply(local_loss)


def average_gradient(parameter: Shaped[Tensor, " *shape"]) -> Shaped[Tensor, " *shape"]:
    """The identity; its backward pass averages the gradient over ranks.

    It serves parameters outside the data-parallel module, such as a learnable temperature. The result is the same if
    the objective is wrapped too: averaging equal gradients again does not change them.
    """
    return parameter if get_world_size() == 1 else _AverageGradient.apply(parameter)


def all_reduce_sum(values: Shaped[Tensor, " *shape"]) -> Shaped[Tensor, " *shape"]:
    """The sum over ranks, without gradient."""
    if get_world_size() == 1:
        return values
    summed = values.detach().clone()
    dist.all_reduce(summed)
    return summed


def all_reduce_sum_with_gradient(values: Float[Tensor, " *shape"]) -> Float[Tensor, " *shape"]:
    """The sum over ranks; the backward pass sums the gradients of all ranks."""
    return values if get_world_size() == 1 else _AllReduceSum.apply(values)


def all_reduce_mean(tensors: list[Shaped[Tensor, "..."]]) -> list[Shaped[Tensor, "..."]]:
    """The mean over ranks of each tensor, without gradient, by one all-reduce for each dtype and device."""
    if get_world_size() == 1:
        return tensors
    averaged: list[Shaped[Tensor, "..."]] = list(tensors)
    # Few large messages, in the same order on all ranks: each all-reduce has a latency of its own.
    for kind in sorted({(x.dtype, x.device) for x in tensors}, key=str):
        members = [i for i, x in enumerate(tensors) if (x.dtype, x.device) == kind]
        flat = torch.cat([tensors[i].reshape(-1) for i in members])
        dist.all_reduce(flat)
        means = (flat / get_world_size()).split([tensors[i].numel() for i in members])
        for i, mean in zip(members, means, strict=True):
            averaged[i] = mean.view_as(tensors[i])
    return averaged


def any_rank(condition: bool, device: torch.device | str) -> bool:
    """Logical OR over ranks; `device` is one that the backend communicates from."""
    return condition if get_world_size() == 1 else bool(all_reduce_sum(torch.tensor(int(condition), device=device)))


def gather_objects(value: Any) -> list[Any]:
    """The value of every rank, by rank; the values must be picklable."""
    if get_world_size() == 1:
        return [value]
    values: list[Any] = [None] * get_world_size()
    dist.all_gather_object(values, value)
    return values


def from_main_rank(act: Callable[[], T]) -> T:
    """Call a function on rank 0 alone, and return its value on every rank, picklable. Every rank must call this.

    Raises:
        MmconError: rank 0 raised it. All ranks raise it, so that none waits for the others.
    """
    value: Any = None
    if get_rank() == 0:
        try:
            value = act()
        except MmconError as error:
            if get_world_size() == 1:
                raise
            value = error
    value = gather_objects(value)[0]
    if isinstance(value, MmconError):
        raise value
    return value


@torch.no_grad()
def broadcast(tensors: Iterable[Shaped[Tensor, "..."]]) -> None:
    """Copy the values of rank 0 to all ranks, in place."""
    for tensor in tensors if get_world_size() > 1 else ():
        values = tensor.detach().contiguous()  # backends reject channels-last tensors
        dist.broadcast(values, src=0)
        tensor.copy_(values)


def group_without_timeout() -> Any:
    """A process group for barriers of up to 30 days; the default timeouts of minutes would end the run.

    It uses gloo, which waits without occupying a device. It is None with a world size of 1. Every rank must call this.
    """
    return dist.new_group(backend="gloo", timeout=timedelta(days=30)) if get_world_size() > 1 else None


def barrier(group: Any) -> None:
    """Wait until every rank of the group has called this; return at once for None."""
    if group is not None:
        dist.barrier(group)


def full_tensor(tensor: Shaped[Tensor, " *shape"]) -> Shaped[Tensor, " *shape"]:
    """The full tensor of one that is sharded over ranks (FSDP2), which every rank must call; others are returned."""
    # Not by its class, DTensor, whose import takes as long as a third of torch.
    gathered = getattr(tensor, "full_tensor", None)
    return tensor if gathered is None else gathered()


class _Header(NamedTuple):
    """The shapes and dtypes that the other ranks need in order to receive rows and their table."""

    rows: int
    width: int
    dtype: torch.dtype
    requires_grad: bool
    columns: dict[str, tuple[tuple[int, ...], torch.dtype]]

    @staticmethod
    def from_rows(rows: Float[Tensor, "n d"], table: Index) -> _Header:
        if table.n != len(rows):
            raise InputError("gather", expected=f"a table of {len(rows)} rows", got=f"{table.n}")
        columns = {name: (tuple(column.shape[1:]), column.dtype) for name, column in table.items()}
        return _Header(len(rows), rows.shape[1], rows.dtype, rows.requires_grad, columns)


Headers = Sequence[Mapping[Any, _Header]]


def _communication_device(embeddings: Mapping[Any, Float[Tensor, "_ _"]]) -> torch.device:
    """The device of the local rows; without rows, the usual device of the backend."""
    for rows in embeddings.values():
        return rows.device
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


def _local_rows(
    name: Any, embeddings: Mapping[Any, Float[Tensor, "_ _"]], headers: Headers, device: torch.device
) -> Float[Tensor, "n d"]:
    """The rows of this rank, or 0 rows of the same width, which still take part in the backward pass."""
    present = [header[name] for header in headers if name in header]
    if len({(header.width, header.dtype) for header in present}) > 1:
        got = str([(header.width, header.dtype) for header in present])
        raise InputError("gather", expected=f"rows of {name!r} of one width and dtype on all ranks", got=got)
    requires_grad = torch.is_grad_enabled() and any(header.requires_grad for header in present)
    if name in embeddings:
        rows = embeddings[name]
        return rows.detach().requires_grad_() if requires_grad and not rows.requires_grad else rows
    return torch.zeros(0, present[0].width, requires_grad=requires_grad, dtype=present[0].dtype, device=device)


def _gather_table(name: Any, tables: Mapping[Any, Index], headers: Headers, device: torch.device) -> Index:
    present = [header[name] for header in headers if name in header]
    sizes = [header[name].rows if name in header else 0 for header in headers]
    columns = {}
    for column, (shape, dtype) in present[0].columns.items():
        if any(header.columns.get(column) != (shape, dtype) for header in present):
            continue
        local = torch.zeros((0, *shape), dtype=dtype, device=device)
        columns[column] = _all_gather_rows(tables[name][column].to(device) if name in tables else local, sizes)
    return Index(columns, n=sum(sizes))


def _all_gather_rows(local: Shaped[Tensor, " local *shape"], sizes: list[int]) -> Shaped[Tensor, " n *shape"]:
    """The rows of all ranks in the order of ranks, padded to the longest for the transfer."""
    # all_gather takes tensors of one size; booleans travel as bytes, which every backend supports.
    carried = local.to(torch.uint8) if local.dtype == torch.bool else local
    padded = carried.new_zeros((max(sizes), *local.shape[1:]))
    padded[: len(local)] = carried
    received = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(received, padded.contiguous())
    return torch.cat([rows[:size] for rows, size in zip(received, sizes, strict=True)]).to(local.dtype)


def _reduce_scatter(gathered: Float[Tensor, "n d"], sizes: list[int]) -> Float[Tensor, "local d"]:
    """The sum over ranks of values for the rows of all ranks; each rank receives the sums of its own rows.

    Half the traffic of an all-reduce. Chunks are padded to the longest, since backends require equal ones.
    """
    if dist.get_backend() not in REDUCE_SCATTER_BACKENDS:
        return all_reduce_sum(gathered.contiguous()).split(sizes)[get_rank()]
    longest, blocks = max(sizes), gathered.contiguous()
    if len(set(sizes)) > 1:
        padded = gathered.new_zeros(len(sizes), longest, *gathered.shape[1:])
        for block, rows in zip(padded, gathered.split(sizes), strict=True):
            block[: len(rows)] = rows
        blocks = padded.flatten(0, 1)
    summed = gathered.new_empty(longest, *gathered.shape[1:])
    dist.reduce_scatter_tensor(summed, blocks)
    return summed[: sizes[get_rank()]]


class _GatherRows(torch.autograd.Function):
    """Gathers all names in one node of the graph, so that ranks run its collectives in the same order."""

    @staticmethod
    def forward(ctx: Any, sizes: list[list[int]], *local: Float[Tensor, "_ _"]) -> tuple[Float[Tensor, "_ _"], ...]:
        ctx.sizes = sizes
        return tuple(_all_gather_rows(rows.detach(), n) for rows, n in zip(local, sizes, strict=True))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Float[Tensor, "_ _"]) -> tuple[Float[Tensor, "_ _"] | None, ...]:
        return None, *(_reduce_scatter(gradient, sizes) for gradient, sizes in zip(gradients, ctx.sizes, strict=True))


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Float[Tensor, " *shape"]) -> Float[Tensor, " *shape"]:
        return all_reduce_sum(values)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Float[Tensor, " *shape"]) -> Float[Tensor, " *shape"]:
        return all_reduce_sum(gradients[0].contiguous())


class _GlobalLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local_loss: Float[Tensor, ""]) -> Float[Tensor, ""]:
        return all_reduce_sum(local_loss)

    @staticmethod
    def backward(ctx: Any, *gradients: Float[Tensor, ""]) -> Float[Tensor, ""]:
        return gradients[0] * get_world_size()


class _AverageGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parameter: Shaped[Tensor, " *shape"]) -> Shaped[Tensor, " *shape"]:
        return parameter.view_as(parameter)

    @staticmethod
    def backward(ctx: Any, *gradients: Shaped[Tensor, " *shape"]) -> Shaped[Tensor, " *shape"]:
        return all_reduce_mean([gradients[0]])[0]
