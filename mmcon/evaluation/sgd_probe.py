"""The linear probe by stochastic gradient descent, as published protocols have it, on cached features.

All learning rates and weight decays of the grid are trained side by side in one pass; the pair with the best accuracy
on held-out training samples is trained again on all of them. The test set is used once, at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from mmcon.distributed.collectives import get_rank
from mmcon.errors import InputError
from mmcon.evaluation.features import Features
from mmcon.evaluation.probe import LinearProbe, held_out_rows, scaling_statistics
from mmcon.evaluation.statistics import class_indices
from mmcon.random import keys
from mmcon.training.progress import Progress

#: Learning rates for columns of variance 1 / d, so that they hold for every width.
LEARNING_RATES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
WEIGHT_DECAYS = (1e-3, 1e-4, 1e-5, 0.0)
MOMENTUM = 0.9
#: Held-out rows that are classified at once, by all pairs of the grid.
VALIDATION_ROWS = 1024


def fit_sgd_probe(
    train: Features,
    *,
    learning_rates: Sequence[float] = LEARNING_RATES,
    weight_decays: Sequence[float] = WEIGHT_DECAYS,
    epochs: int = 30,
    batch_size: int = 256,
    held_out_share: float = 0.2,
    seed: int = 0,
    device: torch.device | str | None = None,
    title: str = "linear probe by SGD",
) -> LinearProbe:
    """Fit a linear probe by SGD with momentum 0.9 and a cosine schedule; columns are scaled to mean 0, variance 1 / d.

    Of equally good pairs the lowest rate and the highest decay are kept. The order of the rows is drawn by the seed.

    Args:
        train: labeled features; the validation samples are held out of these.
        learning_rates: the rates to choose among.
        weight_decays: the L2 strengths to choose among; the bias is free.
        epochs: passes over the features.
        batch_size: rows in a step.
        held_out_share: share of the training samples for validation; all rows of a sample are on one side.
        seed: seed of the validation split and of the order.
        device: device of the fit; by default that of the features.
        title: the name of the phase, for the progress.

    Raises:
        InputError: there are fewer than two classes, the grid is empty or negative, or a side of the split is empty.
    """
    grid = list(product(sorted(learning_rates), sorted(weight_decays, reverse=True)))
    if not grid or grid[0][0] <= 0 or min(weight_decays) < 0 or epochs < 1 or batch_size < 1:
        got = f"{tuple(learning_rates)}, {tuple(weight_decays)}, {epochs} epochs of batches of {batch_size}"
        raise InputError("fit_sgd_probe", expected="rates > 0, decays >= 0, epochs and batches >= 1", got=got)
    labels = train.labels.to(device or train.values.device)
    classes = labels.unique()
    if len(classes) < 2:
        raise InputError("fit_sgd_probe", expected="at least two classes", got=f"{len(classes)}")
    values = train.values.to(labels.device)
    mean, scale = scaling_statistics(values, "standard")
    scale = scale * values.shape[1] ** 0.5
    x, y = (values - mean) / scale, class_indices(labels, classes, where="fit_sgd_probe")
    settings: dict[str, int] = {"classes": len(classes), "epochs": epochs, "batch_size": batch_size, "seed": seed}
    accuracies: dict[str, float] = {}
    chosen = grid[0]
    if len(grid) > 1:
        out = held_out_rows(train, share=held_out_share, seed=seed).to(x.device)
        weight, bias = _train(x[~out], y[~out], grid, title=title, **settings)
        # The logits of all rows and the whole grid may not fit into memory.
        held_out = zip(x[out].split(VALIDATION_ROWS), y[out].split(VALIDATION_ROWS), strict=True)
        guesses = ((torch.baddbmm(bias, rows.expand(len(grid), -1, -1), weight).argmax(2), of) for rows, of in held_out)
        hits = torch.cat([guess == of for guess, of in guesses], dim=1).double().mean(1)
        accuracies = {f"{rate:g}, {decay:g}": float(hit) for (rate, decay), hit in zip(grid, hits, strict=True)}
        chosen = grid[int(hits.argmax())]
    weight, bias = _train(x, y, [chosen], title=f"{title}, chosen", **settings)
    return LinearProbe(weight[0], bias[0, 0], mean, scale, False, classes, chosen[1], accuracies, chosen[0])


def _train(
    x: Float[Tensor, "n d"],
    y: Int[Tensor, " n"],
    grid: Sequence[tuple[float, float]],
    *,
    classes: int,
    epochs: int,
    batch_size: int,
    seed: int,
    title: str,
) -> tuple[Float[Tensor, "g d k"], Float[Tensor, "g 1 k"]]:
    """The weights and biases of a classifier for each (learning rate, weight decay), trained on the same batches."""
    rate, decay = (torch.tensor(column).to(x).view(-1, 1, 1) for column in zip(*grid, strict=True))
    weight, bias = x.new_zeros(len(grid), x.shape[1], classes), x.new_zeros(len(grid), 1, classes)
    velocities = torch.zeros_like(weight), torch.zeros_like(bias)
    steps_per_epoch = -(-len(x) // batch_size)
    steps = torch.arange(epochs * steps_per_epoch, dtype=torch.float64)
    schedule = (0.5 * (1 + (torch.pi * steps / len(steps)).cos())).tolist()
    with Progress(title, len(steps), enabled=get_rank() == 0) as progress, torch.no_grad():
        for epoch in range(epochs):
            order = keys(seed=seed, epoch=epoch).child("sgd probe").permutation("order", len(x))[0].to(x.device)
            for rows in order.split(batch_size):
                batch = x[rows].expand(len(grid), -1, -1)
                # The gradient of the mean cross-entropy by the logits: softmax minus the one-hot label.
                gradient = torch.baddbmm(bias, batch, weight).softmax(2)
                gradient = (gradient - functional.one_hot(y[rows], classes)) / len(rows)
                own_rate = rate * schedule[progress.done]
                for parameter, velocity, slope in (
                    (weight, velocities[0], batch.mT @ gradient + decay * weight),
                    (bias, velocities[1], gradient.sum(1, keepdim=True)),
                ):
                    velocity.mul_(MOMENTUM).add_(slope)
                    parameter.sub_(own_rate * velocity)
                progress.advance(progress.done + 1)
    return weight, bias
