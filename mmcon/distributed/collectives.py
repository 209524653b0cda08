"""Rows of all processes, with gradients: the only file of the house that talks to other processes.

Every process calls these functions together and in the same order. In a single process they return what they were
given.

How gradients come out true. Process r holds local anchors and has the gathered candidates of all; its share of the loss
is L_r and the true loss is L = Σ_r L_r. `gather` sums the gradients that all processes have for a row and gives them to
its owner, so each embedding receives ∂L, and parameters of the model receive on process r the part that flows through
its rows. Data parallelism then *averages* over R processes, so L must be multiplied by R once: `total` does that, and
nothing else in the house does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from mmcon.batch import Index
from mmcon.errors import InputError

#: Backends that can give each process its own block of a sum; the others sum everything everywhere.
SCATTERING = ("nccl", "gloo")


def get_world_size() -> int:
    """How many processes take part."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def get_rank() -> int:
    """Which of them this one is."""
    return dist.get_rank() if get_world_size() > 1 else 0


class Gathered(NamedTuple):
    """All processes' rows under names.

    Attributes:
        embeddings: by name `n d`, the rows of process 0, then those of process 1, …; gradients flow to their owners.
        tables: by name, the rows' columns, of those that all processes have.
        offsets: by name, the position of this process's first row.
    """

    embeddings: dict[Any, Tensor]
    tables: dict[Any, Index]
    offsets: dict[Any, int]


def gather(embeddings: Mapping[Any, Tensor], tables: Mapping[Any, Index]) -> Gathered:
    """Rows of all processes; numbers of rows may differ, and a name that a process lacks counts as no rows.

    Args:
        embeddings: by name, this process's rows `n d`.
        tables: by name, the columns of the same rows.
    """
    if get_world_size() == 1:
        return Gathered(dict(embeddings), dict(tables), dict.fromkeys(embeddings, 0))
    plan = _exchange({name: _Description.of(embeddings[name], tables[name]) for name in embeddings})
    names = sorted({name for described in plan for name in described})
    local = [_rows_or_none(name, embeddings, plan) for name in names]
    sizes = [[described[name].rows if name in described else 0 for described in plan] for name in names]
    rows = _GatherRows.apply(sizes, *local)
    return Gathered(
        embeddings=dict(zip(names, rows, strict=True)),
        tables={name: _gather_table(name, tables, plan, device_of(embeddings)) for name in names},
        offsets={name: sum(sizes[i][: get_rank()]) for i, name in enumerate(names)},
    )


def total(share: Tensor) -> Tensor:
    """The true loss from each process's share of it, with the factor that makes averaged gradients true.

    The value is the sum of shares over processes; the gradient of this process's share is multiplied by their number,
    since data parallelism averages.
    """
    return share if get_world_size() == 1 else _Total.apply(share)


def shared(parameter: Tensor) -> Tensor:
    """A parameter that is used outside the data-parallel module: its gradient is averaged over processes here.

    With it a learnable temperature is right whether or not the objective is wrapped: averaging equal gradients again
    leaves them as they are.
    """
    return parameter if get_world_size() == 1 else _Shared.apply(parameter)


def sum_over_ranks(values: Tensor) -> Tensor:
    """Sums of counts or statistics, without gradient."""
    if get_world_size() == 1:
        return values
    summed = values.detach().clone()
    dist.all_reduce(summed)
    return summed


def summed_over_ranks(values: Tensor) -> Tensor:
    """Sums that all processes go on with: each receives the gradients that all of them have for the sum."""
    return values if get_world_size() == 1 else _Summed.apply(values)


def any_rank(here: bool, device: torch.device | str) -> bool:
    """Whether something holds on any process, so that all act alike; `device` is one that they can talk from."""
    return here if get_world_size() == 1 else bool(sum_over_ranks(torch.tensor(int(here), device=device)))


def gather_objects(value: Any) -> list[Any]:
    """Every process's value, in their order: anything that can be pickled."""
    return [value] if get_world_size() == 1 else _exchange(value)


@torch.no_grad()
def broadcast_from_first(tensors: Iterable[Tensor]) -> None:
    """Give all processes the first one's values, in place."""
    for tensor in tensors if get_world_size() > 1 else ():
        values = tensor.detach().contiguous()  # backends do not take channels-last ones
        dist.broadcast(values, src=0)
        tensor.copy_(values)


def patient_group() -> Any:
    """Processes that may wait for one another for days, where the usual limits of minutes would end the run.

    Over gloo, which waits without using a device; None in a single process. Every process must ask.
    """
    return dist.new_group(backend="gloo", timeout=timedelta(days=30)) if get_world_size() > 1 else None


def barrier(group: Any) -> None:
    """Wait until every process has come here."""
    if group is not None:
        dist.barrier(group)


def whole(tensor: Tensor) -> Tensor:
    """A tensor of which processes hold parts (FSDP2) with all of them; every process must ask. Others are returned."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def mean_over_ranks(gradients: list[Tensor]) -> list[Tensor]:
    """Averages of gradients, by one message a dtype and device."""
    if get_world_size() == 1:
        return gradients
    averaged: list[Tensor] = list(gradients)
    for kind in sorted({(g.dtype, g.device) for g in gradients}, key=str):
        members = [i for i, g in enumerate(gradients) if (g.dtype, g.device) == kind]
        flat = torch.cat([gradients[i].reshape(-1) for i in members])
        dist.all_reduce(flat)
        parts = (flat / get_world_size()).split([gradients[i].numel() for i in members])
        for i, part in zip(members, parts, strict=True):
            averaged[i] = part.view_as(gradients[i])
    return averaged


def device_of(embeddings: Mapping[Any, Tensor]) -> torch.device:
    """Where this process's rows are; a process without any uses its backend's usual device."""
    for rows in embeddings.values():
        return rows.device
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


class _Description(NamedTuple):
    """What other processes must know of rows to receive them."""

    rows: int
    width: int
    dtype: torch.dtype
    learns: bool
    columns: dict[str, tuple[tuple[int, ...], torch.dtype]]

    @staticmethod
    def of(rows: Tensor, table: Index) -> _Description:
        if table.n != len(rows):
            raise InputError("gather", expected=f"a table of {len(rows)} rows", got=f"{table.n}")
        columns = {name: (tuple(column.shape[1:]), column.dtype) for name, column in table.items()}
        return _Description(len(rows), rows.shape[1], rows.dtype, rows.requires_grad, columns)


def _exchange(value: Any) -> list[Any]:
    everyone: list[Any] = [None] * get_world_size()
    dist.all_gather_object(everyone, value)
    return everyone


def _rows_or_none(name: Any, embeddings: Mapping[Any, Tensor], plan: list[dict[Any, Any]]) -> Tensor:
    """This process's rows, or none of the right width, which still take part in the backward pass."""
    having = [described[name] for described in plan if name in described]
    if len({(described.width, described.dtype) for described in having}) > 1:
        got = str([(described.width, described.dtype) for described in having])
        raise InputError("gather", expected=f"rows of {name!r} of one width and dtype on all processes", got=got)
    learns = torch.is_grad_enabled() and any(described.learns for described in having)
    if name in embeddings:
        rows = embeddings[name]
        return rows.detach().requires_grad_() if learns and not rows.requires_grad else rows
    kind = {"dtype": having[0].dtype, "device": device_of(embeddings)}
    return torch.zeros(0, having[0].width, requires_grad=learns, **kind)


def _gather_table(name: Any, tables: Mapping[Any, Index], plan: list[dict[Any, Any]], device: torch.device) -> Index:
    having = [described[name] for described in plan if name in described]
    shared_columns = [c for c in having[0].columns if all(d.columns.get(c) == having[0].columns[c] for d in having)]
    sizes = [described[name].rows if name in described else 0 for described in plan]
    columns = {}
    for column in shared_columns:
        shape, dtype = having[0].columns[column]
        local = (
            tables[name][column].to(device) if name in tables else torch.zeros((0, *shape), dtype=dtype, device=device)
        )
        columns[column] = _all_gather(local, sizes)
    return Index(columns, n=sum(sizes))


def _all_gather(local: Tensor, sizes: list[int]) -> Tensor:
    """Rows of all processes under one another, padded on the way to the longest."""
    carried = local.to(torch.uint8) if local.dtype == torch.bool else local
    padded = carried.new_zeros((max(sizes), *local.shape[1:]))
    padded[: len(local)] = carried
    received = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(received, padded.contiguous())
    return torch.cat([rows[:size] for rows, size in zip(received, sizes, strict=True)]).to(local.dtype)


def _own_sum(gathered: Tensor, sizes: list[int]) -> Tensor:
    """The sum over processes of values for the rows of all, of which this process receives those of its own rows.

    Half the traffic of summing everything everywhere. Blocks are padded to the longest, since backends take equal ones.
    """
    if dist.get_backend() not in SCATTERING:
        return sum_over_ranks(gathered.contiguous()).split(sizes)[get_rank()]
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
    """All names at once, so that backward is one node and processes cannot meet it in different orders."""

    @staticmethod
    def forward(ctx: Any, sizes: list[list[int]], *local: Tensor) -> tuple[Tensor, ...]:
        ctx.sizes = sizes
        return tuple(_all_gather(rows.detach(), n) for rows, n in zip(local, sizes, strict=True))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return None, *(_own_sum(gradient, sizes) for gradient, sizes in zip(gradients, ctx.sizes, strict=True))


class _Summed(torch.autograd.Function):
    """Sum over processes, forward and backward."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return sum_over_ranks(values)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return sum_over_ranks(gradients[0].contiguous())


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, share: Tensor) -> Tensor:
        return sum_over_ranks(share)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * get_world_size()


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parameter: Tensor) -> Tensor:
        return parameter.view_as(parameter)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return mean_over_ranks([gradients[0]])[0]
