"""The form of the rows that a trained model returns: their number of dimensions, and their length."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from mmcon.errors import InputError, check_whole


def formatted_rows(rows: Float[Tensor, "n d"], truncate_dim: int | None, normalize: bool) -> Float[Tensor, "n _d"]:
    """The first dimensions of rows (None: all), at length one if asked for."""
    if truncate_dim is not None:
        rows = rows[:, : checked_dim(truncate_dim, rows.shape[1])]
    return nn.functional.normalize(rows, dim=1) if normalize else rows.contiguous()


def checked_dim(truncate_dim: int | None, width: int) -> int:
    """The number of dimensions that are kept of `width`.

    Raises:
        InputError: it is no whole number from 1 to the width.
    """
    if truncate_dim is None:
        return width
    truncate_dim = check_whole("encode", "truncate_dim", truncate_dim, least=1)
    if truncate_dim > width:
        raise InputError("encode", expected=f"truncate_dim from 1 to {width}", got=repr(truncate_dim))
    return truncate_dim
