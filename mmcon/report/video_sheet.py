"""A contact sheet of a video: its views in the order of time, their spans, and their pairwise affinities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from mmcon.affinity import TimeKernel
from mmcon.affinity.base import Affinity
from mmcon.batch import Index
from mmcon.errors import InputError
from mmcon.evaluation.features import Features
from mmcon.media.video import VideoHandle
from mmcon.media.video_files import open_video
from mmcon.report.image_sheet import as_plotted

# The number of frames of a view in one row that stay recognizable.
SHOWN_FRAMES = 4


def open_sample(path: Path) -> VideoHandle:
    """Open a video, a folder of frames (shown at 25 a second), or an animated image.

    Raises:
        DataError: it cannot be read.
    """
    return open_video(path, name=path.name, frames_per_second=25 if path.is_dir() else None)


def write_sheet(
    output: Path,
    sample: VideoHandle,
    views: Shaped[Tensor, "..."],
    captions: Sequence[str],
    title: str,
    *,
    params: Mapping[str, Any],
    affinity: Affinity | None = None,
) -> None:
    """Write the sheet: views as strips of frames, their spans on the time line of the video, and their affinities.

    Args:
        output: the file, in the format of its ending: .png, .jpg, .pdf or .svg.
        sample: the video.
        views: `b t c h w`, uint8 or floats in [0, 1].
        captions: the parameters of each view, one per line.
        title: the title of the sheet.
        params: the parameters, with `start` and `end` of the clip sampler at any depth.
        affinity: by column names; by default a Gaussian kernel of time whose width is an eighth of the video.
    """
    from matplotlib.figure import Figure

    spans = _spans(params)
    if views.dim() != 5 or spans is None:
        raise InputError(
            "video sheet",
            expected="views `b t c h w` of a generator that draws spans of time, such as video/random-clip",
            got=f"shape {tuple(views.shape)}" + ("" if spans is not None else " without a span"),
        )
    start, end = spans
    order = ((start + end) / 2).argsort(stable=True)
    duration = sample.header.duration_seconds
    affinity = affinity or TimeKernel(width_seconds=duration / 8)
    table = {"time": (start + end) / 2, "time_start": start, "time_end": end, "group": torch.zeros(len(start)).long()}
    weights = affinity.bind(Index({name: column[order] for name, column in table.items()})).dense()

    rows = len(views)
    figure = Figure(figsize=(13, 1.2 + 1.15 * rows), layout="constrained")
    figure.suptitle(title)
    sides: Any = figure.subfigures(1, 2, width_ratios=(3, 2))
    strips, right = sides
    _strips(strips, views[order], [captions[int(i)] for i in order], start[order], end[order])
    line, heat = right.subplots(2, 1, height_ratios=(1, 2))
    for row, i in enumerate(order.tolist()):
        line.barh(row, max(float(end[i] - start[i]), duration / 200), left=float(start[i]), height=0.8)
    line.set(xlim=(0, duration), xlabel="seconds", ylabel="view", title=f"spans in {duration:.2f} s")
    line.invert_yaxis()
    shown = heat.imshow(weights.numpy(), vmin=0, vmax=1, cmap="viridis")
    heat.set(title="affinities (positive weights)", xlabel="view", ylabel="view")
    right.colorbar(shown, ax=heat)
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        figure.savefig(output, dpi=110)
    except (OSError, ValueError) as error:
        raise InputError("video sheet", expected="a .png, .jpg, .pdf or .svg to write", got=str(error)) from error


def write_similarity_by_lag(output: Path, features: Mapping[str, Features], *, bins: int = 12) -> None:
    """Plot the cosine similarity of two features of a video over their time lag, one line per encoder.

    Pairs are within one sample (a video, or a window of it). The line is the mean over videos of the mean over
    pairs; the band is one standard error over videos.

    Args:
        output: the file, in the format of its ending.
        features: by the line's name, with columns `time` and `group`.
        bins: number of bins of equal width, from a lag of 0 to the longest.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for name, table in features.items():
        centers, curves = _by_lag(table, bins)
        mean, error = curves.nanmean(0), _standard_error(curves)
        axes.plot(centers, mean, label=name)
        axes.fill_between(centers, mean - error, mean + error, alpha=0.2)
    axes.set(xlabel="time lag in seconds", ylabel="cosine similarity of features")
    axes.legend()
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=110)


def _by_lag(features: Features, bins: int) -> tuple[Float[Tensor, " {bins}"], Float[Tensor, "clips {bins}"]]:
    """Centers of the bins in seconds, and for each clip the mean cosine in each bin, `clips bins`."""
    index, unit = features.index, features.normalized().double()
    group, row, time = index["group"], index.get("sample", index["group"]), index["time"].double()
    a, b = torch.triu_indices(len(time), len(time), 1)
    together = (group[a] == group[b]) & (row[a] == row[b])
    a, b = a[together], b[together]
    lag = (time[b] - time[a]).abs()
    bin_index = (lag / lag.max() * bins).long().clamp(max=bins - 1)
    clips, clip = group[a].unique(return_inverse=True)
    sums = torch.zeros(2, len(clips) * bins, dtype=torch.float64)
    sums[0].index_add_(0, clip * bins + bin_index, (unit[a] * unit[b]).sum(1))
    sums[1].index_add_(0, clip * bins + bin_index, torch.ones_like(lag))
    curves = (sums[0] / sums[1]).unflatten(0, (len(clips), bins))
    return (torch.arange(bins) + 0.5) / bins * float(lag.max()), curves


def _standard_error(curves: Float[Tensor, "clips bins"]) -> Float[Tensor, " bins"]:
    if len(curves) < 2:
        return torch.zeros_like(curves[0])
    present = ~curves.isnan()
    spread = (curves - curves.nanmean(0)).square().nansum(0) / (present.sum(0) - 1).clamp(min=1)
    return (spread / present.sum(0).clamp(min=1)).sqrt()


def _strips(
    figure: Any,
    views: Shaped[Tensor, "b t c h w"],
    captions: Sequence[str],
    start: Float[Tensor, " b"],
    end: Float[Tensor, " b"],
) -> None:
    """A strip of frames per view, with its span and parameters below it."""
    axes = figure.subplots(len(views), 1, squeeze=False)[:, 0]
    for i, (axis, view) in enumerate(zip(axes, views, strict=True)):
        chosen = torch.linspace(0, len(view) - 1, min(SHOWN_FRAMES, len(view))).round().long()
        images = [as_plotted(view[k]) for k in chosen]
        axis.imshow(torch.cat(images, dim=1).numpy(), cmap="gray", vmin=0, vmax=1)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_ylabel(f"{i}", rotation=0, labelpad=12)
        caption = " · ".join(line for line in captions[i].splitlines() if not line.startswith("clip."))
        axis.set_xlabel(f"{float(start[i]):.2f} to {float(end[i]):.2f} s   {caption[:110]}", fontsize=5, loc="left")


def _spans(params: Mapping[str, Any]) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]] | None:
    """Start and end of each view, at any depth of nested parameters."""
    if isinstance(params.get("start"), Tensor) and isinstance(params.get("end"), Tensor) and "times" in params:
        return params["start"], params["end"]
    inner = (_spans(branch) for branch in params.values() if isinstance(branch, Mapping))
    return next((found for found in inner if found is not None), None)
