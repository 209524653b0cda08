"""The loss under `torch.compile`: one node of the graph, or, for what a node cannot carry, no part of the graph.

The node takes the arguments of a call in parts (`mmcon.affinity.graph_arguments`) and computes all that depends on
values: checks, the choice of a backend, the loops over tiles. So there is one graph for every number of rows, and its
losses are those without `torch.compile`, to the bit. For the backward pass it keeps a few numbers of each anchor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from mmcon.affinity.graph_arguments import Flat, flatten, has_gradient, unflatten, with_gradients
from mmcon.losses.backends.autograd_node import SAVED_ROWS, PassKind
from mmcon.losses.backends.selection import first_pass, losses_of_pass
from mmcon.losses.loss_inputs import AnchorLosses, Problem, check_positives, check_weights_again, prepare
from mmcon.losses.settings import LossSettings

Target = TypeVar("Target", bound=Callable[..., Any])
Found = tuple[Float[Tensor, " a"], Bool[Tensor, " a"], Float[Tensor, "9 a"], Int[Tensor, ""]]


def outside_graphs(function: Target) -> Target:
    """Decorate a function: `torch.compile` leaves it as it is, between the graph before it and the graph after it."""
    return torch.compiler.disable(function, reason="its steps depend on values")  # type: ignore[return-value]


def losses_in_graph(
    anchors: Shaped[Tensor, "..."],
    candidates: Shaped[Tensor, "..."] | None,
    affinity: Any,
    temperature: float | Shaped[Tensor, "..."],
    self_index: Shaped[Tensor, "..."] | None,
    options: Sequence[tuple[str, Any]],
) -> AnchorLosses | None:
    """The loss of each anchor as a node of the graph that is traced; None where a node cannot carry the arguments.

    Args:
        anchors: this and the rest as in `weighted_supcon`; they are checked when the graph runs.
        candidates: None: the anchors.
        affinity: one that has parts, or a matrix.
        temperature: a number or a scalar.
        self_index: or None.
        options: names and values of `LossSettings`.
    """
    flat = flatten((anchors, candidates, affinity, temperature, self_index, tuple(options)))
    if flat is None:
        return None
    losses, valid, _, _ = torch.ops.mmcon.anchor_losses(*flat)
    return AnchorLosses(losses, valid)


def _problem(flat: Flat) -> Problem:
    """The problem of a call, checked."""
    anchors, candidates, affinity, temperature, self_index, options = unflatten(flat)
    settings = LossSettings(**dict(options))
    check_weights_again(affinity, settings)
    return prepare(anchors, candidates, affinity, temperature=temperature, self_index=self_index, settings=settings)


def _forward(tensors: list[Shaped[Tensor, "..."]], numbers: list[float], integers: list[int], text: str) -> Found:
    """The losses, which anchors have one, what the backward pass needs of each anchor, and of which kind that is."""
    with torch.no_grad(), _full_precision(tensors[0]):
        problem = _problem(Flat(with_gradients(tensors, text), numbers, integers, text))
        (losses, valid), found = first_pass(problem)
        check_positives(valid, problem.settings)
        saved = losses.new_zeros(SAVED_ROWS, len(losses))
        if found is not None:
            rows = found.saved()
            saved[: len(rows)] = rows
    kind = PassKind.OTHER if found is None else found.kind
    return losses.clone(), valid.clone(), saved, torch.tensor(int(kind), device="cpu")


def _forward_shapes(
    tensors: list[Shaped[Tensor, "..."]], numbers: list[float], integers: list[int], text: str
) -> Found:
    anchors = tensors[0]
    rows, dtype = anchors.shape[0], torch.float64 if anchors.dtype == torch.float64 else torch.float32
    losses, valid = anchors.new_empty(rows, dtype=dtype), anchors.new_empty(rows, dtype=torch.bool)
    saved = anchors.new_empty(SAVED_ROWS, rows, dtype=dtype)
    return losses, valid, saved, torch.empty((), dtype=torch.int64, device="cpu")


def _backward(
    gradient: Float[Tensor, " a"],
    saved: Float[Tensor, "9 a"],
    kind: Int[Tensor, ""],
    tensors: list[Shaped[Tensor, "..."]],
    numbers: list[float],
    integers: list[int],
    text: str,
) -> list[Shaped[Tensor, "..."]]:
    """The gradients of the tensors that had one when the graph was traced."""
    leaves = with_gradients(tensors, text)
    with torch.enable_grad(), _full_precision(tensors[0]):
        problem = _problem(Flat(leaves, numbers, integers, text))
        losses, _ = losses_of_pass(problem, PassKind(int(kind)), saved)
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    if not losses.requires_grad:  # of tensors that no loss depends on, such as labels
        return [torch.zeros_like(leaf) for leaf in wanted]
    found = torch.autograd.grad(losses, wanted, gradient, allow_unused=True, materialize_grads=True)
    # Copies, in the layout of the tensors: the engine may use a gradient that it is given for another input too.
    return [torch.empty_like(leaf).copy_(x) for leaf, x in zip(wanted, found, strict=True)]


def _backward_shapes(
    gradient: Float[Tensor, " a"],
    saved: Float[Tensor, "9 a"],
    kind: Int[Tensor, ""],
    tensors: list[Shaped[Tensor, "..."]],
    numbers: list[float],
    integers: list[int],
    text: str,
) -> list[Shaped[Tensor, "..."]]:
    return [torch.empty_like(x) for x, wanted in zip(tensors, has_gradient(text), strict=True) if wanted]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Found) -> None:
    tensors, *ctx.rest = inputs
    _, valid, saved, kind = output
    ctx.mark_non_differentiable(valid, saved, kind)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, saved, kind)


def _gradients(ctx: Any, gradient: Float[Tensor, " a"] | None, *_: Any) -> tuple[Any, ...]:
    *tensors, saved, kind = ctx.saved_tensors
    # PyTorch takes an empty list for one of tensors, of which there are as many gradients.
    others = [[] if isinstance(part, list) and not part else None for part in ctx.rest]
    if gradient is None:
        return [None for _ in tensors], *others
    found = iter(torch.ops.mmcon.anchor_losses_backward(gradient, saved, kind, tensors, *ctx.rest))
    return [next(found) if wanted else None for wanted in has_gradient(ctx.rest[-1])], *others


def _full_precision(rows: Shaped[Tensor, "..."]) -> torch.autocast:
    """Under autocast the products would be in half precision."""
    return torch.autocast(rows.device.type, enabled=False)


# Not `torch.library.custom_op`: no autograd is possible within such an operator, and the backward pass of parameters of
# weights, and of full matrices, uses it.
_LIBRARY = torch.library.Library("mmcon", "DEF")
_PARTS = "Tensor[] tensors, float[] numbers, SymInt[] integers, str text"
_BACKWARD_PARTS = f"Tensor gradient, Tensor saved, Tensor kind, {_PARTS}"
# On a GPU the host reads values in them, which the recording of a CUDA graph does not allow: mode="reduce-overhead"
# runs them between the graphs.
_TAGS = (torch.Tag.cudagraph_unsafe,)
_LIBRARY.define(f"anchor_losses({_PARTS}) -> (Tensor, Tensor, Tensor, Tensor)", tags=_TAGS)
_LIBRARY.define(f"anchor_losses_backward({_BACKWARD_PARTS}) -> Tensor[]", tags=_TAGS)
_LIBRARY.impl("anchor_losses", _forward, "CompositeExplicitAutograd")
_LIBRARY.impl("anchor_losses_backward", _backward, "CompositeExplicitAutograd")
torch.library.register_fake("mmcon::anchor_losses", _forward_shapes, lib=_LIBRARY)
torch.library.register_fake("mmcon::anchor_losses_backward", _backward_shapes, lib=_LIBRARY)
torch.library.register_autograd("mmcon::anchor_losses", _gradients, setup_context=_keep, lib=_LIBRARY)
