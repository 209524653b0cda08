"""The loss under `torch.compile`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

Target = TypeVar("Target", bound=Callable[..., Any])


def outside_graphs(function: Target) -> Target:
    """Decorate a loss: `torch.compile` leaves it as it is, between the graph before it and the graph after it.

    The choice of a backend depends on values, and tracing would unroll the loops over tiles, which have their own
    memory and kernels. So results are those without `torch.compile`, to the bit.
    """
    return torch.compiler.disable(function, reason="the loss has its own kernels")  # type: ignore[return-value]
