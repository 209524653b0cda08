"""Groups of parameters, schedules step by step, and averages, each against a derivation by hand."""

import math

import pytest
import torch
from torch import nn

from mmcon.errors import ConfigError, InputError
from mmcon.training.optim import create_optimizer, create_schedule, scaled_learning_rate, weight_average


def network():
    return nn.ModuleDict({"conv": nn.Conv2d(3, 4, 3), "norm": nn.BatchNorm2d(4), "head": nn.Linear(4, 2)})


def test_norms_and_biases_are_left_out_of_weight_decay():
    optimizer = create_optimizer(network(), "sgd", learning_rate=0.1, weight_decay=1e-3)
    by_decay = {g["weight_decay"]: set(g["names"]) for g in optimizer.param_groups}
    assert by_decay == {
        1e-3: {"conv.weight", "head.weight"},
        0.0: {"conv.bias", "norm.weight", "norm.bias", "head.bias"},
    }


def test_norms_and_biases_are_decayed_where_asked():
    optimizer = create_optimizer(network(), learning_rate=0.1, weight_decay=1e-3, decay_norm_and_bias=True)
    assert [g["weight_decay"] for g in optimizer.param_groups] == [1e-3]
    assert len(optimizer.param_groups[0]["params"]) == 6


def test_longest_prefix_sets_a_group():
    groups = {"conv": {"learning_rate": 0.01}, "conv.weight": {"learning_rate": 0.02, "weight_decay": 0.5}}
    optimizer = create_optimizer(network(), "sgd", learning_rate=0.1, weight_decay=1e-3, groups=groups)
    found = {name: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for name in g["names"]}
    assert found["conv.weight"] == (0.02, 0.5)
    assert found["conv.bias"] == (0.01, 0.0)
    assert found["head.weight"] == (0.1, 1e-3)


def test_shared_and_frozen_parameters():
    layer, frozen = nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False)
    optimizer = create_optimizer([layer, nn.Sequential(layer, frozen)], learning_rate=0.1)
    assert sum(len(g["params"]) for g in optimizer.param_groups) == 2


def test_lars_adapts_decayed_weights_alone():
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    before = [p.detach().clone() for p in layer.parameters()]
    optimizer = create_optimizer(layer, "lars", learning_rate=0.5, weight_decay=0.1, momentum=0.0)
    for p in layer.parameters():
        p.grad = torch.full_like(p, 2.0)
    optimizer.step()
    weight, bias = before
    grad = torch.full_like(weight, 2.0)
    trust = 0.001 * weight.norm() / (grad.norm() + 0.1 * weight.norm() + 1e-8)
    torch.testing.assert_close(layer.weight.detach(), weight - 0.5 * trust * (grad + 0.1 * weight))
    torch.testing.assert_close(layer.bias.detach(), bias - 0.5 * torch.full_like(bias, 2.0))


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars", "rmsprop"])
def test_every_optimizer_lowers_a_loss_and_resumes(name):
    def loss(layer):
        return (layer(torch.ones(1, 3)) - 1).square().mean()

    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    optimizer = create_optimizer(layer, name, learning_rate=0.05, weight_decay=1e-4)
    first = loss(layer).item()
    for _ in range(10):
        optimizer.zero_grad()
        loss(layer).backward()
        optimizer.step()
    assert loss(layer).item() < first
    again = create_optimizer(layer, name, learning_rate=1.0, weight_decay=0.3)
    again.load_state_dict(optimizer.state_dict())
    assert again.param_groups[0]["lr"] == 0.05


def rates(name, *, steps, warmup_steps=0, **options):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = create_schedule(optimizer, name, steps=steps, warmup_steps=warmup_steps, **options)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen


def test_cosine_after_warmup():
    # Warm-up of 3 rises by quarters and reaches the peak in step 3; then half a cosine over the 4 steps that are left.
    expected = [0.5, 1.0, 1.5] + [1 + math.cos(math.pi * k / 4) for k in range(4)]
    assert rates("cosine", steps=7, warmup_steps=3) == pytest.approx(expected)


def test_other_shapes():
    assert rates("constant", steps=3) == [2.0] * 3
    assert rates("polynomial", steps=4, power=1.0, final_share=0.2) == pytest.approx([2.0, 1.6, 1.2, 0.8])
    assert rates("step", steps=4, milestones=(0.5, 0.75)) == pytest.approx([2.0, 2.0, 0.2, 0.02])
    assert rates("exponential", steps=4, decay_steps=2, factor=0.5) == pytest.approx([2.0, 2.0, 1.0, 1.0])


def test_average_by_hand():
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, 1.0)
    average = weight_average(layer, decay=0.75)
    average.update_parameters(layer)  # the first takes the weights as they are
    nn.init.constant_(layer.weight, 5.0)
    average.update_parameters(layer)
    assert average.module.weight.item() == pytest.approx(0.75 * 1 + 0.25 * 5)


def test_scaled_learning_rate():
    # SupCon on ImageNet: .4 at batch 6144 is 9.6 in effect.
    assert scaled_learning_rate(0.4, 6144) == pytest.approx(9.6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: create_optimizer(network(), "adam", learning_rate=1.0), "'adamw'"),
        (lambda: create_optimizer(network(), learning_rate=0.0), "learning_rate > 0"),
        (lambda: create_optimizer(network(), learning_rate=1.0, groups={"con2": {}}), r"match none: \['con2'\]"),
        (lambda: create_optimizer(nn.ReLU(), learning_rate=1.0), "no parameter"),
        (lambda: rates("cosin", steps=3), "'cosine'"),
        (lambda: rates("cosine", steps=3, warmup_steps=4), "warmup_steps=4"),
        (lambda: rates("constant", steps=3, power=2.0), "power"),
    ],
)
def test_bad_settings_are_refused(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


def test_decay_of_an_average_is_checked():
    with pytest.raises(InputError, match="0 < decay < 1"):
        weight_average(nn.ReLU(), decay=1.0)
