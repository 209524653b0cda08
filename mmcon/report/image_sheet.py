"""A contact sheet: an image and views of it, each with what was drawn for it, so that a person can look."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from mmcon.errors import InputError
from mmcon.media.image import ImageHandle
from mmcon.views import Params


def open_sample(path: Path) -> ImageHandle:
    """Open a photo.

    Raises:
        DataError: it cannot be read.
    """
    handle = ImageHandle(path)
    handle.facts  # noqa: B018 (an unreadable file is told before anything is drawn)
    return handle


def write_sheet(
    output: Path,
    sample: ImageHandle,
    views: Tensor,
    captions: Sequence[str],
    title: str,
    *,
    params: Params | None = None,
) -> None:
    """Write the picture.

    Args:
        output: a file whose ending says the format: .png, .jpg, .pdf or .svg.
        sample: the photo.
        views: `b c h w`, uint8 or floats in [0, 1].
        captions: what was drawn for each view, lines of text.
        title: stands above.
        params: what was drawn, for sheets that draw it; here the captions say all.
    """
    from matplotlib.figure import Figure

    pictures = [as_picture(sample.decode()), *map(as_picture, views)]
    texts = ["as it is", *captions]
    columns = min(3, len(pictures))
    rows = -(-len(pictures) // columns)
    lines = max(text.count("\n") + 1 for text in texts)
    figure = Figure(figsize=(3.4 * columns, rows * (3.5 + 0.125 * lines) + 0.5), layout="constrained")
    figure.suptitle(title)
    for place, (picture, text) in enumerate(zip(pictures, texts, strict=True)):
        axes = figure.add_subplot(rows, columns, place + 1)
        axes.imshow(picture.numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_xlabel(text, fontsize=6, loc="left", family="monospace")
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        figure.savefig(output, dpi=130, bbox_inches="tight", pad_inches=0.1)
    except (OSError, ValueError) as error:
        raise InputError("contact sheet", expected="a .png, .jpg, .pdf or .svg to write", got=str(error)) from error


def as_picture(view: Tensor) -> Tensor:
    """A view `c h w` as matplotlib shows it: floats in [0, 1], `h w` or `h w 3`."""
    if view.dim() != 3 or view.shape[0] not in (1, 3):
        raise InputError("contact sheet", expected="views `c h w` of 1 or 3 channels", got=str(tuple(view.shape)))
    values = view.float() / 255 if view.dtype == torch.uint8 else view.float()
    return values.clamp(0, 1).permute(1, 2, 0).squeeze(-1)
