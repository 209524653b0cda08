"""Draw docs/images/loss_gradient.svg: how the gradients of the out and the in form weight positives.

uv run python tools/loss_figure.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import torch
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from torch import Tensor

from mmcon.affinity import SameLabel
from mmcon.losses import diagnose, weighted_supcon

OUTPUT = Path(__file__).parent.parent / "docs" / "images" / "loss_gradient.svg"


def rows(classes: int = 8, each: int = 32, d: int = 32) -> tuple[Float[Tensor, "n d"], Int[Tensor, " n"]]:
    """Rows of classes around random centers, at distances from near to far."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(classes).repeat(each)
    spread = torch.linspace(0.3, 2.0, classes * each, dtype=torch.float64)[:, None]
    unit = lambda n: torch.nn.functional.normalize(  # noqa: E731
        torch.randn(n, d, generator=generator, dtype=torch.float64), dim=1
    )
    return torch.nn.functional.normalize(unit(classes)[labels] + spread * unit(classes * each), dim=1), labels


def attraction_of_positives(
    z: Float[Tensor, "n d"], labels: Int[Tensor, " n"], form: str, temperature: float
) -> tuple[Float[Tensor, " p"], Float[Tensor, " p"]]:
    """The similarity of one anchor to its positives, and the negative gradient at it times the temperature."""
    s = (z @ z.T)[:1].clone().requires_grad_()
    affinity = SameLabel(labels[:1], labels)
    loss = weighted_supcon(
        z[:1],
        z,
        affinity,
        temperature=temperature,
        form=form,
        self_index=torch.zeros(1, dtype=torch.int64),
        similarity=lambda anchors, candidates: s,
        backend="dense",
    )
    (gradient,) = torch.autograd.grad(loss, s)
    positive = labels == labels[0]
    positive[0] = False
    return s.detach()[0, positive], -gradient[0, positive] * temperature


def main() -> None:
    z, labels = rows()
    temperatures = torch.logspace(-1.7, 0, 25).tolist()
    found = [diagnose(z, None, SameLabel(labels), temperature=t) for t in temperatures]
    matplotlib.rcParams["svg.hashsalt"] = "mmcon"
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for form, color in (("out", "#1b6ca8"), ("in", "#c8553d")):
        left.plot(temperatures, [getattr(d, f"effective_positives_{form}") for d in found], color=color, label=form)
        similarity, attraction = attraction_of_positives(z, labels, form, 0.1)
        right.scatter(similarity, attraction, s=14, color=color, label=form)
    left.axhline(31, color="grey", lw=0.8, ls=":")
    left.set(xscale="log", xlabel="temperature", ylabel="effective positives (of 31)", ylim=(0, None))
    right.set(xlabel="similarity of a positive to the anchor", ylabel="pull on it (temperature .1)")
    left.legend(title="form", frameon=False)
    right.axhline(0, color="grey", lw=0.8)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(OUTPUT, format="svg", metadata={"Date": None})
    for t, d in zip(temperatures, found, strict=True):
        print(f"{t:.3f}  out {d.effective_positives_out:5.1f}  in {d.effective_positives_in:5.1f}")


if __name__ == "__main__":
    main()
