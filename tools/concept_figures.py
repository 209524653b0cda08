"""Draw the figures of docs/concepts.md: views by key, a view as a function, and affinities as matrices.

uv run python tools/concept_figures.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import mmcon
from mmcon.affinity import Affinity, Hierarchy, MultiLabel, SameLabel, SameSample, TimeKernel

IMAGES = Path(__file__).parent.parent / "docs" / "images"
BLUE, GRAY = "#1b6ca8", "#444444"
SAMPLE, SIZE, EPOCHS = 12, 64, 6


def main() -> None:
    matplotlib.use("agg")
    matplotlib.rcParams |= {"svg.hashsalt": "mmcon", "svg.fonttype": "path", "font.size": 9}
    views_by_key().savefig(IMAGES / "views_by_key.webp", dpi=110, bbox_inches="tight")
    affinities().savefig(IMAGES / "affinities.svg", bbox_inches="tight", metadata={"Date": None})


def views_by_key() -> Figure:
    """One sample, its two views in several epochs, and the first of them again."""
    source = mmcon.create_source("samples/emoji", split="test")
    sample = source.open([SAMPLE])[0]
    image = torch.nn.functional.interpolate(_pixels(sample)[None], size=(SIZE, SIZE), mode="nearest")
    view = mmcon.create_view("image/simclr", size=SIZE, strength=0.5, area=(0.35, 1.0))
    figure = Figure(figsize=(8.4, 2.2))
    grid = figure.add_gridspec(2, EPOCHS + 3, width_ratios=[1, 0.2, *[1] * EPOCHS, 1], hspace=0.08)
    _show(figure.add_subplot(grid[:, 0]), image[0], "the sample")
    for row in range(2):
        for epoch in range(EPOCHS + 1):
            key = mmcon.keys(seed=0, epoch=epoch % EPOCHS, sample=source.ids[SAMPLE : SAMPLE + 1], view=row)
            again = epoch == EPOCHS
            title = ("epoch 0 again" if again else f"epoch {epoch}") if row == 0 else ""
            axes = figure.add_subplot(grid[row, epoch + 2])
            _show(axes, view(image, key)[0], title, color=BLUE if again or epoch == 0 else GRAY)
            if epoch == 0:
                axes.set_ylabel(f"view {row}")
    return figure


def affinities() -> Figure:
    """Weights of the same twelve rows by five affinities, and by a product of two."""
    rows = torch.arange(12)
    label, seconds = rows // 4, rows * 0.5
    tags = torch.stack([rows < 6, (rows % 4) < 2, rows > 8], 1).float()
    tree = Hierarchy.table(torch.tensor([[0, 0], [0, 1], [1, 2]]), [0.0, 0.4, 1.0])
    shown: dict[str, Affinity] = {
        "SameSample\n(two views each)": SameSample(rows // 2),
        "SameLabel\n(three classes)": SameLabel(label),
        "MultiLabel": MultiLabel(tags, measure="jaccard"),
        "Hierarchy": Hierarchy(label, table=tree),
        "TimeKernel": TimeKernel(seconds, width_seconds=1.0, group=None),
        "SameLabel\n× TimeKernel": SameLabel(label) * TimeKernel(seconds, width_seconds=1.0, group=None),
    }
    figure = Figure(figsize=(8.4, 1.8))
    for axes, (name, affinity) in zip(figure.subplots(1, len(shown)), shown.items(), strict=True):
        axes.imshow(affinity.dense(), cmap="Blues", vmin=0, vmax=1)
        axes.set(title=name, xticks=[], yticks=[])
        axes.title.set_fontsize(8)
    figure.axes[0].set(xlabel="candidates", ylabel="anchors")
    return figure


def _pixels(sample: object) -> Tensor:
    decoded = sample if isinstance(sample, Tensor) else sample.decode()  # type: ignore[attr-defined]
    return decoded.float() / 255


def _show(axes: Axes, image: Tensor, title: str, color: str = GRAY) -> None:
    axes.imshow(image.permute(1, 2, 0).clamp(0, 1))
    axes.set_title(title, fontsize=8, color=color)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_edgecolor(color)


if __name__ == "__main__":
    main()
