"""The second stage as published, and the probe that learns along: what they learn, and what they must leave alone."""

import copy

import pytest
import torch
from torch import nn

from mmcon.batch import Index, ViewBatch
from mmcon.errors import ConfigError, DataError, InputError
from mmcon.evaluation.linear_classifier import LinearStage, accuracy, train_classifier
from mmcon.evaluation.online_probe import OnlineProbe
from mmcon.models.contrastive_model import ContrastiveModel
from mmcon.models.encoders import create_encoder
from mmcon.sources.bundled.fashion_images import fashion


@pytest.fixture(scope="module")
def batches():
    """Twelve batches of bundled images with their labels, and four held out."""
    source = fashion("test")
    rows = torch.randperm(2000, generator=torch.Generator().manual_seed(0))[:1600].split(100)
    made = [
        ViewBatch({"image": (source.values[r].float() / 255,)}, {"image": Index({"label": source.labels[r]})})
        for r in rows
    ]
    return made[:12], made[12:]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return ContrastiveModel({"image": create_encoder("mmcon/resnet-tiny", width=8, in_channels=1)})


def state(module):
    return copy.deepcopy(module.state_dict())


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def pooled(batches):
    """The same batches with 7 × 7 mean pixels in place of features, so that a step costs next to nothing."""

    def pool(batch):
        values = nn.functional.avg_pool2d(batch.views["image"][0], 4).flatten(1)
        return ViewBatch({"image": (values,)}, batch.index)

    return [pool(b) for b in batches[0]], [pool(b) for b in batches[1]]


@pytest.mark.parametrize(
    ("optimizer", "rate", "options"),
    [("rmsprop", 0.02, {}), ("sgd", 5.0, {"momentum": 0.0}), ("adamw", 0.1, {})],
)
def test_a_classifier_learns(pooled, optimizer, rate, options):
    encoder = create_encoder("mmcon/precomputed-features", feature_dim=49, modality="any")
    stage = LinearStage(epochs=12, optimizer=optimizer, learning_rate=rate, optimizer_options=options)
    torch.manual_seed(0)
    found = accuracy(train_classifier(encoder, pooled[0], classes=10, stage=stage), pooled[1])
    assert found["top1"] > 0.5  # a tenth by chance
    assert found["top5"] > 0.8


def test_batch_norm_is_frozen_or_updated(model, batches):
    train = batches[0][:2]
    weights = {n: p.clone() for n, p in model.encoders["image"].named_parameters()}
    statistics = {n: b.clone() for n, b in model.encoders["image"].named_buffers()}
    before = state(model)
    for choice in ("frozen", "updated"):
        stage = LinearStage(epochs=1, batch_norm=choice, batch_norm_momentum=0.5)
        encoder = train_classifier(model, train, classes=10, stage=stage).encoder
        assert all(torch.equal(p, weights[n]) for n, p in encoder.named_parameters())
        moved = any(not torch.equal(b, statistics[n]) for n, b in encoder.named_buffers())
        assert moved == (choice == "updated")
        assert same(before, state(model))


def test_one_step_by_hand():
    # One row at length one, label 0 of 2, no smoothing: the gradient of the weights is (softmax - one-hot) ⊗ feature,
    # with softmax = (½, ½) where all logits are equal.
    encoder = create_encoder("mmcon/precomputed-features", feature_dim=2, modality="any")
    batch = ViewBatch({"x": (torch.tensor([[3.0, 4.0]]),)}, {"x": Index({"label": torch.tensor([0])})})
    stage = LinearStage(
        epochs=1, optimizer="sgd", learning_rate=1.0, optimizer_options={"momentum": 0.0}, weight_decay=0.0,
        label_smoothing=0.0, schedule="constant",
    )  # fmt: skip
    torch.manual_seed(0)
    start = train_classifier(
        encoder, [batch], classes=2, stage=LinearStage(epochs=1, learning_rate=1e-30), modality="x"
    )
    torch.manual_seed(0)
    after = train_classifier(encoder, [batch], classes=2, stage=stage, modality="x")
    unit = torch.tensor([[0.6, 0.8]])
    p = torch.softmax(unit @ start.linear.weight.T, 1)
    expected = start.linear.weight - (p - torch.tensor([[1.0, 0.0]])).T @ unit
    torch.testing.assert_close(after.linear.weight.detach(), expected.detach())


def test_stages_that_cannot_be(model, batches):
    with pytest.raises(ConfigError, match="label_smoothing"):
        LinearStage(label_smoothing=1.0)
    with pytest.raises(DataError, match="labels below 3"):
        train_classifier(model, batches[0], classes=3, stage=LinearStage(epochs=1))
    with pytest.raises(InputError, match=r"encoders of \['image'\]"):
        train_classifier(model, batches[0], classes=10, stage=LinearStage(epochs=1), modality="text")
    with pytest.raises(InputError, match="at least one batch"):
        train_classifier(model, [], classes=10, stage=LinearStage(epochs=1))


# --- the probe that learns along -------------------------------------------------------------------------------------


def test_an_online_probe_learns_and_sends_no_gradient(model, batches):
    probe = OnlineProbe(model.encoders["image"], classes=10, learning_rate=0.05)
    model.train()
    seen = []
    for _ in range(2):
        for batch in batches[0][:8]:
            embeddings = model(batch)["shared"]["image"]
            seen.append(probe.update(batch.index["image"]["label"]))
            assert embeddings.requires_grad
            assert all(p.grad is None for p in model.parameters())
    assert seen[0]["probe_top1"] < 0.3
    assert sum(s["probe_top1"] for s in seen[-8:]) / 8 > 0.4


def test_a_probe_changes_nothing_in_training(batches):
    def weights(probed):
        torch.manual_seed(0)
        model = nn.Sequential(create_encoder("mmcon/resnet-tiny", width=8, in_channels=1), nn.Linear(32, 10))
        probe = OnlineProbe(model[0], classes=10) if probed else None
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for batch in batches[0][:3]:
            labels = batch.index["image"]["label"]
            loss = nn.functional.cross_entropy(model(batch.views["image"][0]), labels)
            optimizer.zero_grad()
            loss.backward()
            if probe:
                probe.update(labels)
            optimizer.step()
        return model.state_dict()

    assert same(weights(True), weights(False))


def test_a_probe_watches_training_alone(model, batches):
    batch = batches[0][0]
    labels = batch.index["image"]["label"]
    probe = OnlineProbe(model.encoders["image"], classes=10)
    with torch.no_grad():
        model(batch)
    model.eval()
    model(batch)
    with pytest.raises(InputError, match="once after each step"):
        probe.update(labels)
    model.train()
    model(batch)
    again = OnlineProbe(create_encoder("mmcon/resnet-tiny", width=8, in_channels=1), classes=10)
    probe.update(labels)
    again.load_state_dict(probe.state_dict())
    assert len(again.optimizer.state) == len(probe.optimizer.state) == 2
    probe.close()
    model(batch)
    with pytest.raises(InputError, match="got 0"):
        probe.update(labels)
