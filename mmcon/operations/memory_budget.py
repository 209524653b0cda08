"""Estimates of the memory and the GPU hours of a run, before it starts.

    per_row = activation_bytes(lambda rows: network(batch_of(rows)))      # measured at two small batches
    need = Memory.measure(network, optimizer, activations_per_row=per_row, rows=768)
    print(need.describe())

Weights, gradients and optimizer states are counted from their tensors. Activations and operations are measured at a
small batch and extrapolated, since both are linear in the rows. `RESERVED` is the share of a device's memory that
libraries and a fragmented allocator take.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.optim import Optimizer
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from mmcon.errors import InputError

#: The share of a device's memory that libraries and a fragmented allocator take: a rule of thumb, not a measurement.
RESERVED = 0.1
#: Multiply-adds count as two operations; the backward pass costs about twice the forward pass.
PASSES = 3
GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one rank at the peak of a step, by their use.

    Attributes:
        parameters: of the trained network.
        gradients: of the trained parameters.
        optimizer: its state after a step.
        copies: copies of the model, such as a momentum encoder or averaged weights, and a queue.
        activations_per_row: kept for the backward pass, per row (one view of one sample), the view included.
        rows: rows that are embedded at once: views × samples of one rank, or a chunk of them.
    """

    parameters: int
    gradients: int
    optimizer: int
    copies: int
    activations_per_row: int | float
    rows: int

    @staticmethod
    def measure(
        network: nn.Module,
        optimizer: Optimizer,
        *,
        activations_per_row: int | float,
        rows: int,
        copies: Iterable[Any] = (),
    ) -> Memory:
        """Count a network, an optimizer after its first step, and further objects with a `state_dict`."""
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
        """All bytes."""
        return self.fixed + round(self.activations_per_row * self.rows)

    def rows_that_fit(self, device_bytes: int) -> int:
        """The number of rows that fit on a device at once."""
        return max(0, int((device_bytes * (1 - RESERVED) - self.fixed) / self.activations_per_row))

    def describe(self) -> str:
        """The estimate as text, one use per line."""
        named = {name: getattr(self, name) for name in ("parameters", "gradients", "optimizer", "copies")}
        lines = [f"  {name:<12} {size / GIB:10.2f} GiB" for name, size in named.items()]
        each = f"{self.rows:,} rows × {self.activations_per_row / 2**20:.1f} MiB"
        lines.append(f"  {'activations':<12} {self.activations_per_row * self.rows / GIB:10.2f} GiB = {each}")
        return "\n".join([*lines, f"  {'together':<12} {self.total / GIB:10.2f} GiB"])


def byte_count(tensors: Iterable[Shaped[Tensor, "..."]]) -> int:
    """Bytes of the tensors; each storage counts once."""
    # By storage: tied weights and views of one buffer take their memory once.
    sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t.numel()}
    return sum(sizes.values())


def tensors_in(tree: Any) -> list[Shaped[Tensor, "..."]]:
    """The tensors in nested dicts, lists and tuples."""
    if isinstance(tree, Tensor):
        return [tree]
    branches = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list | tuple) else ()
    return [tensor for branch in branches for tensor in tensors_in(branch)]


def saved_bytes(forward: Callable[[], Any], *, parameters: Iterable[Shaped[Tensor, "..."]] = ()) -> int:
    """Bytes that a forward pass keeps for its backward pass; each storage counts once, parameters do not.

    Args:
        forward: builds a graph; its result is dropped.
        parameters: tensors that are in memory without the pass.
    """
    known = {p.untyped_storage().data_ptr() for p in parameters}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
        # Kept until the end: a freed address could be used again, and two tensors would count as one.
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.enable_grad(), saved_tensors_hooks(pack, lambda tensor: tensor):
        graph = forward()
    del graph
    return sum(t.untyped_storage().nbytes() for address, t in kept.items() if address not in known)


def peak_bytes(step: Callable[[], Any]) -> int:
    """The peak of torch's CPU memory in a step, less the memory before it.

    The profiler counts allocations by torch in this thread, not those of other threads and libraries.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as watch:
        step()
    results: Any = watch.profiler
    events = sorted(results.kineto_results.events(), key=lambda event: event.start_ns())
    # The events carry changes; their running sum is the memory in use.
    levels = itertools.accumulate(event.nbytes() for event in events if event.name() == "[memory]")
    return max(levels, default=0)


def activation_bytes(
    forward: Callable[[int], Any], *, parameters: Iterable[Shaped[Tensor, "..."]] = (), small: int = 2, large: int = 4
) -> float:
    """Bytes that a forward pass keeps per row: the slope between two small batches.

    Args:
        forward: embeds a number of rows and returns the result with its graph.
        parameters: tensors that are in memory without the pass.
        small: rows of the smaller batch.
        large: rows of the larger batch.
    """
    if not 1 <= small < large:
        raise InputError("activation_bytes", expected="1 <= small < large rows", got=f"{small}, {large}")
    held = list(parameters)
    sizes = [saved_bytes(lambda n=n: forward(n), parameters=held) for n in (small, large)]
    return (sizes[1] - sizes[0]) / (large - small)


def forward_operations(forward: Callable[[int], Any], *, rows: int = 2) -> float:
    """Floating-point operations of a forward pass per row; a multiply-add counts as two."""
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        forward(rows)
    return counted.get_total_flops() / rows


@dataclass(frozen=True, kw_only=True)
class Cost:
    """GPU hours by arithmetic: operations ÷ the assumed speed of a device. An estimate, not a measurement.

    Attributes:
        samples: in an epoch.
        views: of each sample.
        epochs: passes over the samples.
        operations: of a forward pass for one view.
        passes: 3 for training, 1 for a frozen encoder.
        device: the name of the device.
        peak: operations per second that its maker states.
        share: the assumed share of the peak; 0.2 is ordinary for a ResNet in bfloat16.
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
