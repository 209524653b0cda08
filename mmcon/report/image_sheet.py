"""A contact sheet of an image: the image and its views, each with its parameters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float, Shaped
from torch import Tensor

from mmcon.errors import InputError
from mmcon.media.image import ImageHandle
from mmcon.views import Params


def open_sample(path: Path) -> ImageHandle:
    """Open an image.

    Raises:
        DataError: it cannot be read.
    """
    handle = ImageHandle(path)
    handle.facts  # noqa: B018 (an unreadable file raises here, before parameters are drawn)
    return handle


def write_sheet(
    output: Path,
    sample: ImageHandle,
    views: Shaped[Tensor, "b c h w"],
    captions: Sequence[str],
    title: str,
    *,
    params: Params | None = None,
) -> None:
    """Write the sheet.

    Args:
        output: the file, in the format of its ending: .png, .jpg, .pdf or .svg.
        sample: the image.
        views: `b c h w`, uint8 or floats in [0, 1].
        captions: the parameters of each view, one per line.
        title: the title of the sheet.
        params: unused; sheets of other modalities plot them.
    """
    from matplotlib.figure import Figure

    images = [as_plotted(sample.decode()), *map(as_plotted, views)]
    texts = ["original", *captions]
    columns = min(3, len(images))
    rows = -(-len(images) // columns)
    lines = max(text.count("\n") + 1 for text in texts)
    figure = Figure(figsize=(3.4 * columns, rows * (3.5 + 0.125 * lines) + 0.5), layout="constrained")
    figure.suptitle(title)
    for number, (image, text) in enumerate(zip(images, texts, strict=True), start=1):
        axes = figure.add_subplot(rows, columns, number)
        axes.imshow(image.numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_xlabel(text, fontsize=6, loc="left", family="monospace")
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        figure.savefig(output, dpi=130, bbox_inches="tight", pad_inches=0.1)
    except (OSError, ValueError) as error:
        raise InputError("contact sheet", expected="a .png, .jpg, .pdf or .svg to write", got=str(error)) from error


def as_plotted(view: Shaped[Tensor, "..."]) -> Float[Tensor, "h w *rgb"]:
    """A view `c h w` in the layout of matplotlib: floats in [0, 1], `h w` or `h w 3`."""
    if view.dim() != 3 or view.shape[0] not in (1, 3):
        raise InputError("contact sheet", expected="views `c h w` of 1 or 3 channels", got=str(tuple(view.shape)))
    values = view.float() / 255 if view.dtype == torch.uint8 else view.float()
    return rearrange(values.clamp(0, 1), "c h w -> h w c").squeeze(-1)
