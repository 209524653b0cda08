"""Default learning rates: the family of an encoder, the rule of a batch size, and groups of encoders with own rates."""

import copy
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

import mmcon
from mmcon.errors import ConfigError
from mmcon.models.encoders import create_encoder
from mmcon.training.collapse import COLLAPSED_SPREAD, embedding_spread
from mmcon.training.config import as_plain, check_changes, from_mapping
from mmcon.training.default_rates import RULES, RateRule, default_rates, encoder_family
from mmcon.training.optim import create_optimizer_and_schedule


@dataclass(frozen=True, kw_only=True)
class Config(mmcon.RunConfig):
    """A recipe's configuration with a rate of its own."""

    batch_size: int = 64
    tuned_rate: ClassVar[float] = 3e-3


def published(encoder):
    """An encoder as if it had published weights."""
    encoder = copy.deepcopy(encoder)
    encoder.made_from = {**encoder.made_from, "pretrained": True}
    return encoder


def test_families():
    torch.manual_seed(0)
    small, residual = create_encoder("mmcon/resnet-tiny"), create_encoder("resnet18")
    assert [encoder_family(encoder) for encoder in (small, residual)] == ["small", "convolutional"]
    transformer = create_encoder("timm/test_vit", embed_dim=192, depth=3, image_size=64)
    assert encoder_family(transformer) == "transformer"
    assert encoder_family(create_encoder("text/embedding-bag", modality="text")) == "small"  # its tokens do not count
    assert encoder_family(published(residual)) == "pretrained convolutional"
    assert encoder_family(published(transformer)) == "pretrained transformer"
    deep = create_encoder("timm/mobilenetv3_small_050")  # 570,000 parameters in 34 batch norms
    assert encoder_family(deep) == "grouped convolutional"
    assert encoder_family(create_encoder("shufflenet_v2_x0_5")) == "grouped convolutional"
    assert encoder_family(published(deep)) == "pretrained convolutional"
    frames = create_encoder("mmcon/frames", modality="video", frame_encoder="resnet18")
    assert encoder_family(frames) == "convolutional"


def test_rates_follow_the_batch_size():
    # AdamW by the square root: a quarter of the batch halves the rate. SGD linearly.
    assert RateRule(1e-3, 256, 0.5, "").at(64) == pytest.approx(5e-4)
    assert RateRule(0.05, 256, 1.0, "").at(64) == pytest.approx(0.0125)
    model = mmcon.ContrastiveModel({"image": create_encoder("mmcon/resnet-tiny")})
    assert default_rates(Config(), [model]) == {"encoders.image": (3e-3, "small")}
    assert default_rates(Config(batch_size=16), [model])["encoders.image"][0] == pytest.approx(1.5e-3)
    assert default_rates(mmcon.RunConfig(), [model])["encoders.image"][0] == 4e-3
    sgd = default_rates(Config(optimizer="sgd", batch_size=512), [model])["encoders.image"][0]
    assert sgd == pytest.approx(0.1)


def test_networks_of_grouped_convolutions_have_twice_the_rate_of_others():
    rates = [
        default_rates(mmcon.RunConfig(batch_size=256), [mmcon.ContrastiveModel({"image": create_encoder(name)})])
        for name in ("timm/mobilenetv3_small_050", "resnet18")
    ]
    assert [found["encoders.image"][0] for found in rates] == [1e-3, 5e-4]


def test_every_family_has_a_rule_for_every_optimizer():
    families = {family for family, _ in RULES}
    assert {(f, o) for f in families for o in ("adamw", "sgd", "lars")} - set(RULES) == {("small", "adamw")}


def test_heads_of_large_encoders_from_random_weights_have_a_batch_norm():
    small, large = create_encoder("mmcon/resnet-tiny"), create_encoder("resnet18")
    config = Config(projection_dim=32)
    assert config.shared_space(small) == mmcon.SharedSpace(dim=32, head="mlp")
    assert config.shared_space(small, published(large)).head == "mlp"
    assert config.shared_space(small, large).head == "mlp-batch-norm"
    assert Config(projection_head="linear").shared_space(large, unit_features=True) == mmcon.SharedSpace(
        head="linear", unit_features=True
    )


def test_a_head_with_batch_norm_keeps_apart_what_the_features_barely_distinguish():
    torch.manual_seed(0)
    features = 1 + 1e-3 * torch.randn(64, 32)  # nearly constant, as those of deep networks at random weights
    spread = {}
    for head in ("mlp", "mlp-batch-norm"):
        layers = mmcon.ContrastiveModel(
            {"any": create_encoder("mmcon/precomputed-features", modality="any", feature_dim=32)},
            {"shared": mmcon.SharedSpace(dim=16, head=head)},
        ).heads["shared"]["any"]
        spread[head] = float(embedding_spread(layers(features).detach()))
    assert spread["mlp"] < COLLAPSED_SPREAD < 0.1 < spread["mlp-batch-norm"]


def test_each_encoder_has_its_rate_and_the_heads_the_highest():
    residual = published(create_encoder("resnet18"))
    frozen = create_encoder("mmcon/resnet-tiny").requires_grad_(False)
    encoders = {"image": residual, "sketch": create_encoder("mmcon/resnet-tiny"), "frozen": frozen}
    model, said = mmcon.ContrastiveModel(encoders), []
    optimizer, _ = create_optimizer_and_schedule(Config(batch_size=256), [model], steps_per_epoch=1, log=said.append)
    rates = {name: g["initial_lr"] for g in optimizer.param_groups for name in g["names"]}
    assert rates["encoders.image.network.conv1.weight"] == pytest.approx(1e-4)
    assert rates["encoders.sketch.network.0.weight"] == pytest.approx(6e-3)
    assert rates["heads.shared.image.layers.0.weight"] == pytest.approx(6e-3)
    assert len(said) == 1
    assert "0.0001 for encoders.image (pretrained convolutional)" in said[0]


@pytest.mark.parametrize(
    ("flags", "steps", "warmup"),
    [
        ({}, None, 14),  # half of 28 steps, not a tenth
        ({}, 2, 2),  # the recipe's own
        ({"warmup_share": 0.1}, 2, 3),  # a flag is taken as it is: runs of earlier versions have .1 in config.yaml
        ({"warmup_share": 0.0}, None, 0),
        ({"warmup_epochs": 1.0, "warmup_share": 0.1}, 2, 4),
    ],
)
def test_a_given_rate_applies_to_all_and_short_runs_warm_up_longer(flags, steps, warmup):
    layer, said = nn.Linear(2, 2), []
    config = Config(learning_rate=0.5, epochs=7, **flags)
    options = {"steps_per_epoch": 4, "warmup_steps": steps, "log": said.append}
    optimizer, schedule = create_optimizer_and_schedule(config, [layer], **options)
    assert said == []
    seen = []
    for _ in range(28):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert seen.index(max(seen)) == warmup


def test_a_run_of_an_earlier_version_does_not_take_the_new_defaults_in_silence():
    earlier = {**as_plain(Config(learning_rate=0.01)), "clip_norm": None, "warmup_share": 0.1}
    with pytest.raises(ConfigError, match=r"clip_norm: None -> 10.0, warmup_share: 0.1 -> None"):
        check_changes(earlier, as_plain(Config(learning_rate=0.01)))
    assert check_changes(earlier, as_plain(from_mapping(Config, earlier))) == {}  # --config FOLDER/config.yaml
