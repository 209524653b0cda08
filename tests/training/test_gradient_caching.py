"""Gradient caching gives the gradients of the plain step."""

import pytest
import torch
from torch import nn

from mmcon.affinity import SameLabel, SameSample
from mmcon.batch import Index, ViewBatch
from mmcon.errors import InputError
from mmcon.losses.temperature import LearnableTemperature
from mmcon.objective.objective import Objective
from mmcon.training.gradient_caching import cached

N = 10


class TwoTowers(nn.Module):
    """Images and texts in two spaces, with a part that both share."""

    def __init__(self, *middle: nn.Module):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.image, self.text, self.fine = (nn.Linear(m, 6, dtype=torch.float64) for m in (5, 4, 6))
        self.middle = nn.Sequential(*middle)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)

    def forward(self, batch):
        embeddings = {"coarse": {}, "fine": {}}
        for modality, parts in batch.views.items():
            h = torch.cat([self.middle(getattr(self, modality)(part).tanh()) for part in parts])
            embeddings["coarse"][modality] = nn.functional.normalize(h, dim=1)
            embeddings["fine"][modality] = nn.functional.normalize(self.fine(h), dim=1)
        return embeddings


def batch_of_two_modalities(n=N):
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    samples = torch.arange(n)
    index = Index({"sample": samples, "label": samples % 3})
    views = {"image": (draw(n, 5), draw(n, 5)), "text": (draw(n, 4),)}
    return ViewBatch(views, {"image": Index.cat([index, index]), "text": index})


def objective():
    affinity = {"coarse": SameLabel(), "fine": SameSample()}
    return Objective(affinity=affinity, temperature=LearnableTemperature(initial=0.2).double())


def gradients(model, objective, loss):
    loss.backward()
    found = [parameter.grad.clone() for parameter in [*model.parameters(), *objective.parameters()]]
    model.zero_grad()
    objective.zero_grad()
    return found


@pytest.mark.parametrize("chunk_size", [1, 3, 100])
def test_gradients_equal_those_of_the_plain_step(chunk_size):
    model, goal, batch = TwoTowers(), objective(), batch_of_two_modalities()
    plain_loss = goal(model(batch), batch)
    plain = gradients(model, goal, plain_loss)
    loss = cached(model, goal, batch, chunk_size=chunk_size)
    torch.testing.assert_close(loss, plain_loss, rtol=0, atol=1e-12)
    for ours, theirs in zip(gradients(model, goal, loss), plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_dropout_is_the_same_in_both_passes_and_the_generator_goes_on_from_the_first():
    model, goal, batch = TwoTowers(nn.Dropout(0.5)), objective(), batch_of_two_modalities()
    torch.manual_seed(3)
    expected = gradients(model, goal, goal(model(batch), batch))
    after_plain = torch.get_rng_state()

    torch.manual_seed(3)
    # One chunk a part: the model embeds part by part, so masks are drawn in the plain step's order.
    ours = gradients(model, goal, cached(model, goal, batch, chunk_size=N))
    torch.testing.assert_close(torch.get_rng_state(), after_plain)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_batch_norm_updates_its_statistics_once():
    model, goal, batch = TwoTowers(nn.BatchNorm1d(6, dtype=torch.float64)), objective(), batch_of_two_modalities()
    cached(model, goal, batch, chunk_size=N).backward()
    assert int(model.middle[0].num_batches_tracked) == 3  # two parts of images, one of texts


def test_batch_norm_in_evaluation_mode_is_exact():
    model, goal, batch = (
        TwoTowers(nn.BatchNorm1d(6, dtype=torch.float64)).eval(),
        objective(),
        batch_of_two_modalities(),
    )
    plain = gradients(model, goal, goal(model(batch), batch))
    for a, b in zip(gradients(model, goal, cached(model, goal, batch, chunk_size=4)), plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_autocast_of_the_call_holds_in_the_second_pass():
    seen = []

    class Watcher(nn.Linear):
        def forward(self, x):
            y = super().forward(x.float())
            seen.append(y.dtype)
            return y.double()

    model, batch = TwoTowers(), batch_of_two_modalities()
    model.middle = nn.Sequential(Watcher(6, 6))
    with torch.autocast("cpu", torch.bfloat16):
        loss = cached(model, objective(), batch, chunk_size=N)
    loss.backward()
    assert set(seen) == {torch.bfloat16}
    assert len(seen) == 6


def test_a_frozen_tower_stays_without_gradient():
    model, goal, batch = TwoTowers(), objective(), batch_of_two_modalities()
    model.text.requires_grad_(False)
    cached(model, goal, batch, chunk_size=4).backward()
    assert model.text.weight.grad is None
    assert model.image.weight.grad.abs().sum() > 0


def test_chunks_of_no_rows_are_refused():
    with pytest.raises(InputError, match="at least 1 row"):
        cached(TwoTowers(), objective(), batch_of_two_modalities(), chunk_size=0)
