"""Draw docs/images/spaces.svg: from a batch of three modalities to the loss.

uv run python tools/spaces_figure.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

OUTPUT = Path(__file__).parent.parent / "docs" / "images" / "spaces.svg"
COLORS = {"image": "#1b6ca8", "text": "#c8553d", "audio": "#5b8c5a"}
HEIGHTS = {"image": 5.0, "text": 3.0, "audio": 1.0}
# The samples of the batch that have the modality.
PRESENT = {"image": (1, 1, 1, 1), "text": (1, 1, 1, 1), "audio": (1, 0, 1, 0)}
SPACES = {"meaning": (4.3, ("image", "text", "audio")), "class": (1.0, ("image", "audio"))}
BATCH, ENCODER, HEAD, SPACE, LOSS = 0.0, 2.6, 5.3, 8.6, 12.3


def box(axes: Axes, x: float, y: float, text: str, color: str, width: float = 1.7, height: float = 0.62) -> None:
    shape = FancyBboxPatch(
        (x, y - height / 2), width, height, boxstyle="round,pad=0.06", facecolor=color, edgecolor="none", alpha=0.9
    )
    axes.add_patch(shape)
    axes.text(x + width / 2, y, text, ha="center", va="center", color="white", fontsize=8.5)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], color: str) -> None:
    style = {"arrowstyle": "-|>", "mutation_scale": 8, "linewidth": 1.1, "color": color}
    axes.add_patch(FancyArrowPatch(start, end, connectionstyle="arc3,rad=0", shrinkA=0, shrinkB=0, **style))


def batch(axes: Axes, modality: str) -> None:
    """A square for each sample; an empty one is missing."""
    y, color = HEIGHTS[modality], COLORS[modality]
    for i, present in enumerate(PRESENT[modality]):
        face = color if present else "white"
        edge = {"edgecolor": color, "linestyle": "-" if present else ":"}
        axes.add_patch(Rectangle((BATCH + 0.42 * i, y - 0.17), 0.34, 0.34, facecolor=face, **edge))
    axes.text(BATCH, y + 0.34, modality, color=color, fontsize=9, va="bottom")


def blocks(axes: Axes, space: str) -> None:
    """Anchors by candidates: a square for each block; hollow ones are not in the loss."""
    y, modalities = SPACES[space]
    side = 0.62
    low = y - side * len(modalities) / 2
    axes.text(SPACE, low + side * len(modalities) + 0.42, f"space “{space}”", fontsize=9, va="bottom")
    for r, anchors in enumerate(modalities):
        bottom = low + side * (len(modalities) - 1 - r)
        axes.text(
            SPACE - 0.12, bottom + side / 2, anchors, color=COLORS[anchors], fontsize=7.5, ha="right", va="center"
        )
        for c, candidates in enumerate(modalities):
            contrasted = (
                anchors != candidates and {anchors, candidates} != {"image", "audio"} if space == "meaning" else True
            )
            face = {"facecolor": "#4a4a4a" if contrasted else "none", "edgecolor": "#4a4a4a", "linewidth": 0.8}
            axes.add_patch(Rectangle((SPACE + side * c, bottom), side, side, alpha=0.75, **face))
            if space == "meaning" and contrasted:
                for i in range(4):  # partners are on the diagonal
                    corner = (SPACE + side * c + side * (0.08 + 0.23 * i), bottom + side * (0.77 - 0.23 * i))
                    axes.add_patch(Rectangle(corner, 0.12 * side, 0.12 * side, facecolor="white", edgecolor="none"))
            if r == 0:
                x = SPACE + side * (c + 0.5)
                top = low + side * len(modalities) + 0.06
                axes.text(x, top, candidates, color=COLORS[candidates], fontsize=7.5, ha="center", va="bottom")
    arrow(axes, (SPACE + side * len(modalities) + 0.1, y), (LOSS - 0.1, 2.9), "#4a4a4a")


def main() -> None:
    matplotlib.rcParams["svg.hashsalt"] = "mmcon"
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    axes = figure.subplots()
    for x, title in (
        (BATCH, "a batch"),
        (ENCODER, "encoders"),
        (HEAD, "heads"),
        (SPACE - 0.6, "blocks: anchors × candidates"),
        (LOSS, "loss"),
    ):
        axes.text(x, 6.5, title, fontsize=9.5, weight="bold", va="bottom")
    for modality, color in COLORS.items():
        batch(axes, modality)
        arrow(axes, (BATCH + 1.75, HEIGHTS[modality]), (ENCODER - 0.1, HEIGHTS[modality]), color)
        box(axes, ENCODER, HEIGHTS[modality], f"{modality} encoder", color)
    for space, (y, modalities) in SPACES.items():
        for i, modality in enumerate(modalities):
            height = y + 0.85 * ((len(modalities) - 1) / 2 - i)
            box(axes, HEAD, height, f"{modality} → {space}", COLORS[modality], width=2.0)
            arrow(axes, (ENCODER + 1.8, HEIGHTS[modality]), (HEAD - 0.1, height), COLORS[modality])
        blocks(axes, space)
    axes.text(LOSS, 2.9, "Σ weight · block", fontsize=9.5, va="center")
    axes.set_xlim(-0.1, 14.4)
    axes.set_ylim(-0.2, 7.0)
    axes.set_aspect("equal")
    axes.axis("off")
    figure.savefig(OUTPUT, metadata={"Date": None})


if __name__ == "__main__":
    main()
