"""The laws of encoders: `check_encoder`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from mmcon.batch import count_rows, tree_map
from mmcon.models.evaluation_mode import evaluation_mode
from mmcon.testing.laws import LawBroken, bitwise_equal, unchanged_global_randomness

#: Of the largest feature: other batch sizes select other kernels, whose sums round in another order.
TOLERANCE = 1e-4


def check_encoder(make: Callable[[], nn.Module], views: Any) -> None:
    """Check an encoder against its laws.

    Args:
        make: builds the encoder, with random weights of its own.
        views: at least three rows of views, as training passes them: a stacked tensor, or a mapping of tensors.

    Raises:
        LawBroken: a law does not hold.
    """
    n = count_rows(views)
    if n < 3:
        raise ValueError(f"check_encoder needs at least 3 rows of views, got {n}")
    encoder, other = make(), make()
    features = _features(encoder, views)
    _width_is_as_declared(encoder, features, n)
    _evaluation_is_a_function(encoder, views, features)
    _batch_independence(encoder, views, features, n)
    if hasattr(encoder, "feature_maps"):
        _maps_are_ordered(encoder, views, n)
    _parameters_have_gradients(encoder, views)
    _weights_are_the_state(encoder, other, views)
    _copies(encoder, views)


def _features(encoder: nn.Module, views: Any) -> Shaped[Tensor, "..."]:
    with evaluation_mode(encoder), torch.no_grad():
        return encoder(views)


def _rows(views: Any, rows: slice | Int[Tensor, " r"]) -> Any:
    return tree_map(lambda x: x[rows], views)


def _width_is_as_declared(encoder: nn.Module, features: Shaped[Tensor, "..."], n: int) -> None:
    """Features are finite floats `n feature_dim`."""
    width = getattr(encoder, "feature_dim", None)
    if tuple(features.shape) != (n, width) or not features.is_floating_point():
        observed = f"feature_dim = {width}, but features {features.dtype} of shape {tuple(features.shape)} for {n} rows"
        raise LawBroken(type(encoder).__name__, "features are n feature_dim", observed)
    if not bool(torch.isfinite(features).all()):
        raise LawBroken(type(encoder).__name__, "features are finite", "NaN or infinite values")


def _evaluation_is_a_function(encoder: nn.Module, views: Any, features: Float[Tensor, "n d"]) -> None:
    """In evaluation mode features are the same again; neither the state of the module nor the global one changes."""
    before = copy.deepcopy(encoder.state_dict())
    with unchanged_global_randomness(type(encoder).__name__, "the forward pass in evaluation mode"):
        again = _features(encoder, views)
    if not bitwise_equal(again, features):
        raise LawBroken(
            type(encoder).__name__, "evaluation is a function", "a second call in evaluation mode has other features"
        )
    if not bitwise_equal(encoder.state_dict(), before):
        raise LawBroken(
            type(encoder).__name__,
            "evaluation changes nothing",
            "a parameter or a buffer has another value after a call",
        )


def _batch_independence(encoder: nn.Module, views: Any, features: Float[Tensor, "n d"], n: int) -> None:
    """In evaluation mode the features of a row do not depend on the other rows or on their order."""
    for rows in (torch.arange(n).flip(0), *(torch.tensor([row]) for row in range(n))):
        alone = _features(encoder, _rows(views, rows))
        distance = (alone - features[rows]).abs().max() / features.abs().max().clamp_min(1e-12)
        if float(distance) > TOLERANCE:
            observed = f"rows {rows.tolist()} alone differ by {float(distance):.2g} of the largest feature"
            raise LawBroken(type(encoder).__name__, "rows do not depend on the batch", observed)


def _maps_are_ordered(encoder: Any, views: Any, n: int) -> None:
    """Feature maps are finite floats `n d h w`, each coarser than the one before, and rows do not depend on others."""
    with evaluation_mode(encoder), torch.no_grad():
        maps, alone = encoder.feature_maps(views), encoder.feature_maps(_rows(views, slice(0, 1)))
    shapes = [tuple(each.shape) for each in maps]
    falling = all(a[2] > b[2] for a, b in pairwise(shapes))
    if not shapes or not falling or any(len(shape) != 4 or shape[0] != n for shape in shapes):
        raise LawBroken(type(encoder).__name__, "feature maps are n d h w, the finest first", f"maps {shapes}")
    for whole, single in zip(maps, alone, strict=True):
        distance = (whole[:1] - single).abs().max() / whole.abs().max().clamp_min(1e-12)
        if not float(distance) <= TOLERANCE:  # NaN too
            observed = f"a map of row 0 alone differs by {float(distance):.2g} of the largest value"
            raise LawBroken(type(encoder).__name__, "maps of a row do not depend on the batch", observed)


def _parameters_have_gradients(encoder: nn.Module, views: Any) -> None:
    """In training, every parameter that requires a gradient gets a finite one: ranks wait for all of them."""
    training = copy.deepcopy(encoder).train()
    with torch.random.fork_rng(devices=[]):
        features = training(views)
    # Unequal weights: the sum over rows of a batch norm has no gradient.
    weights = torch.cos(torch.arange(features.numel(), dtype=features.dtype)).view_as(features)
    (features * weights).sum().backward()
    without = [name for name, p in training.named_parameters() if p.requires_grad and p.grad is None]
    if without:
        observed = f"{', '.join(without[:3])} without one; remove it, or set requires_grad=False"
        raise LawBroken(type(encoder).__name__, "parameters have gradients", observed)
    odd = [name for name, p in training.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    if odd:
        raise LawBroken(type(encoder).__name__, "gradients are finite", f"not of {', '.join(odd[:3])}")


def _weights_are_the_state(encoder: nn.Module, other: nn.Module, views: Any) -> None:
    """An encoder with the state dict of another has the same features, also after a step of training."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        encoder.train()(views)
    try:
        other.load_state_dict(encoder.state_dict())
    except RuntimeError as error:
        raise LawBroken(
            type(encoder).__name__, "weights are the state", f"another instance does not load them: {error}"
        ) from error
    if not bitwise_equal(_features(other, views), _features(encoder, views)):
        observed = "another instance with the same state dict has other features; use parameters and persistent buffers"
        raise LawBroken(type(encoder).__name__, "weights are the state", observed)


def _copies(encoder: nn.Module, views: Any) -> None:
    """A deep copy has the same features: momentum encoders and untrained baselines are copies."""
    try:
        copied = copy.deepcopy(encoder)
    except Exception as error:
        raise LawBroken(type(encoder).__name__, "copies", f"it cannot be copied: {error!r}") from error
    if not bitwise_equal(_features(copied, views), _features(encoder, views)):
        raise LawBroken(type(encoder).__name__, "copies", "a deep copy has other features")
