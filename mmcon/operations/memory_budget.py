"""What a run will need: memory by what holds it, and the arithmetic of its views, before any of it is rented.

    per_row = activation_bytes(lambda rows: network(batch_of(rows)))      # measured at two small batches
    need = Memory.of(network, optimizer, activations_per_row=per_row, rows=768)
    print(need.describe())

Everything is counted by the byte from the tensors themselves; only activations and operations are measured at a small
batch and extrapolated, since both grow by the row. A device holds more than this: its libraries' own memory, and what
its allocator cannot use. `RESERVED` stands for both.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.optim import Optimizer
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from mmcon.errors import InputError

#: Of a device's memory, the share that libraries and a fragmented allocator take: a rule of thumb, not a measurement.
RESERVED = 0.1
#: Multiply-adds count as two operations; the backward pass costs about twice the forward pass.
PASSES = 3
GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes that one process holds at the peak of a step, by what holds them.

    Attributes:
        parameters: of what is trained.
        gradients: one for each trained parameter.
        optimizer: its state, as it is after a step.
        copies: of the model, such as a momentum encoder or an average of weights, and a queue's rows.
        activations_per_row: kept for the backward pass, by row (one view of one sample), the view itself included.
        rows: rows that are embedded at once: views × samples of one process, or a chunk of them.
    """

    parameters: int
    gradients: int
    optimizer: int
    copies: int
    activations_per_row: int | float
    rows: int

    @staticmethod
    def of(
        network: nn.Module,
        optimizer: Optimizer,
        *,
        activations_per_row: int | float,
        rows: int,
        copies: Iterable[Any] = (),
    ) -> Memory:
        """Count a network, an optimizer that has made a step, and whatever else has a `state_dict`."""
        trained = [p for p in network.parameters() if p.requires_grad]
        return Memory(
            parameters=byte_count([*network.parameters(), *network.buffers()]),
            gradients=byte_count(trained),
            optimizer=byte_count(tensors_in([dict(state) for state in optimizer.state.values()])),
            copies=byte_count(tensors_in([copy.state_dict() for copy in copies])),
            activations_per_row=activations_per_row,
            rows=rows,
        )

    @property
    def fixed(self) -> int:
        """Bytes that do not depend on the batch."""
        return self.parameters + self.gradients + self.optimizer + self.copies

    @property
    def total(self) -> int:
        """Bytes in all."""
        return self.fixed + round(self.activations_per_row * self.rows)

    def rows_that_fit(self, device_bytes: int) -> int:
        """How many rows a device of so many bytes can embed at once."""
        return max(0, int((device_bytes * (1 - RESERVED) - self.fixed) / self.activations_per_row))

    def describe(self) -> str:
        """The arithmetic, a line each."""
        named = {name: getattr(self, name) for name in ("parameters", "gradients", "optimizer", "copies")}
        lines = [f"  {name:<12} {size / GIB:10.2f} GiB" for name, size in named.items()]
        each = f"{self.rows:,} rows × {self.activations_per_row / 2**20:.1f} MiB"
        lines.append(f"  {'activations':<12} {self.activations_per_row * self.rows / GIB:10.2f} GiB = {each}")
        return "\n".join([*lines, f"  {'together':<12} {self.total / GIB:10.2f} GiB"])


def byte_count(tensors: Iterable[Tensor]) -> int:
    """Bytes of the tensors, each storage once."""
    sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t.numel()}
    return sum(sizes.values())


def tensors_in(tree: Any) -> list[Tensor]:
    """Every tensor in nested dicts and lists."""
    if isinstance(tree, Tensor):
        return [tree]
    parts = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list | tuple) else ()
    return [tensor for part in parts for tensor in tensors_in(part)]


def saved_bytes(forward: Callable[[], Any], *, parameters: Iterable[Tensor] = ()) -> int:
    """Bytes that a forward pass keeps for its backward pass, each storage once, parameters left out.

    Args:
        forward: makes a graph; what it returns is dropped.
        parameters: what is held anyway.
    """
    known = {p.untyped_storage().data_ptr() for p in parameters}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        # Held until the end, so that no address is given out twice.
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.enable_grad(), saved_tensors_hooks(pack, lambda tensor: tensor):
        graph = forward()
    del graph
    return sum(t.untyped_storage().nbytes() for place, t in kept.items() if place not in known)


def peak_bytes(step: Callable[[], Any]) -> int:
    """The most bytes that torch holds on the CPU at once during a step, beyond what it held before.

    Counted by its profiler, which sees allocations by torch and none of what libraries keep to themselves.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as watch:
        step()
    results: Any = watch.profiler
    events = sorted(results.kineto_results.events(), key=lambda event: event.start_ns())
    levels = itertools.accumulate(event.nbytes() for event in events if event.name() == "[memory]")
    return max(levels, default=0)


def activation_bytes(
    forward: Callable[[int], Any], *, parameters: Iterable[Tensor] = (), small: int = 2, large: int = 4
) -> float:
    """Bytes that a forward pass keeps for each row: the slope between two small batches.

    Args:
        forward: embeds so many rows and returns the result with its graph.
        parameters: what is held anyway.
        small: rows of the one batch.
        large: rows of the other.
    """
    if not 1 <= small < large:
        raise InputError("activation_bytes", expected="1 <= small < large rows", got=f"{small}, {large}")
    held = list(parameters)
    sizes = [saved_bytes(lambda n=n: forward(n), parameters=held) for n in (small, large)]
    return (sizes[1] - sizes[0]) / (large - small)


def forward_operations(forward: Callable[[int], Any], *, rows: int = 2) -> float:
    """Floating-point operations of a forward pass for each row; a multiply-add counts as two."""
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        forward(rows)
    return counted.get_total_flops() / rows


@dataclass(frozen=True, kw_only=True)
class Cost:
    """GPU hours by arithmetic: operations ÷ what a device is assumed to achieve. An estimate, never a measurement.

    Attributes:
        samples: in an epoch.
        views: of each sample.
        epochs: passes over the samples.
        operations: of a forward pass for one view.
        passes: 3 for training, 1 for a frozen encoder.
        device: whose peak is meant.
        peak: operations a second that the device's maker states.
        share: of the peak that is assumed to be achieved; ordinary for a ResNet in bfloat16.
    """

    samples: int
    views: int
    epochs: int
    operations: int | float
    passes: int = PASSES
    device: str = "A100, bfloat16"
    peak: int | float = 312e12
    share: float = 0.2

    @property
    def hours(self) -> float:
        """Hours of one such device."""
        work = self.samples * self.views * self.epochs * self.operations * self.passes
        return work / (self.peak * self.share) / 3600

    def describe(self) -> str:
        """The arithmetic in one line."""
        views = f"{self.samples:,} samples × {self.views} view(s) × {self.epochs} epochs"
        work = f"{views} × {self.operations / 1e9:.1f} GFLOP × {self.passes} pass(es)"
        speed = f"({self.peak / 1e12:.0f} TFLOP/s × {self.share:.0%}, {self.device})"
        return f"{work} ÷ {speed} = {self.hours:,.0f} GPU hours, estimated"
