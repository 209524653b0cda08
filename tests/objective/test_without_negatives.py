"""BYOL, SimSiam and feature regression: by hand, without collapse, and their errors. Ranks: test_loss_processes.py."""

import pytest
import torch
from loss_cases import unit
from torch import nn

from mmcon.affinity import SameLabel
from mmcon.batch import Index, ViewBatch
from mmcon.errors import ConfigError, InputError
from mmcon.models.contrastive_model import ContrastiveModel
from mmcon.models.ema import MomentumEncoder
from mmcon.models.predictor import Predictor, predicted
from mmcon.models.shared_spaces import SharedSpace
from mmcon.objective.without_negatives import FeatureRegression, Prediction
from mmcon.training.collapse import embedding_spread

SAMPLES, WIDTH = 64, 8
TABLE = Index({"sample": torch.tensor([0, 1, 2, 0, 1, 3]), "label": torch.tensor([0, 0, 1, 0, 0, 1])})


def embeddings_of(z, q):
    return {"shared": {"image": z}, predicted("shared"): {"image": q}}


@pytest.mark.parametrize("affinity", [None, SameLabel()])
def test_each_row_predicts_the_other_views(affinity):
    z, q = unit(6, 4).requires_grad_(), unit(6, 4, seed=1).requires_grad_()
    column = TABLE["sample" if affinity is None else "label"].tolist()
    losses = []
    for i in range(6):
        others = [j for j in range(6) if j != i and column[j] == column[i]]
        if others:
            losses.append(sum(float((q[i] - z[j]).detach().square().sum()) for j in others) / len(others))
    objective = Prediction(affinity=affinity, weight=2.0)
    loss = objective(embeddings_of(z, q), TABLE)
    assert loss.item() == pytest.approx(2 * sum(losses) / len(losses), rel=1e-10)
    loss.backward()
    assert z.grad is None  # targets have no gradient
    assert bool(q.grad.abs().sum() > 0)
    rows, count = objective.last_rows["shared/image"]
    assert rows is not z
    assert (count, rows.requires_grad) == (6, False)


def test_targets_of_a_momentum_encoder_replace_those_of_the_model():
    z, q, target = unit(6, 4), unit(6, 4, seed=1).requires_grad_(), unit(6, 4, seed=2)
    given = Prediction()(embeddings_of(z, q), TABLE, {"shared": {"image": target}})
    torch.testing.assert_close(given, Prediction()(embeddings_of(target, q), TABLE))


def test_a_batch_without_second_views_has_a_loss_of_0():
    z, q = unit(3, 4), unit(3, 4, seed=1).requires_grad_()
    loss = Prediction()(embeddings_of(z, q), Index({"sample": torch.arange(3)}))
    loss.backward()
    assert (loss.item(), float(q.grad.abs().sum())) == (0, 0)


class Encoder(nn.Module):
    feature_dim = 32

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(WIDTH, 32), nn.BatchNorm1d(32), nn.ReLU())

    def forward(self, views):
        return self.layers(views)


def train(*, stop_gradient=True, momentum=None, steps=60):
    """The spread of the embeddings of samples (about .14 before), and the loss, after training on noisy views."""
    torch.manual_seed(0)
    model = ContrastiveModel({"image": Encoder()}, {"shared": SharedSpace(dim=16, head="mlp-batch-norm")})
    network, objective = Predictor(model, hidden_dim=8), Prediction(stop_gradient=stop_gradient)
    target = None if momentum is None else MomentumEncoder(network, momentum=momentum)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    samples = torch.randn(SAMPLES, WIDTH)
    numbers = torch.arange(SAMPLES).repeat(2)
    for _ in range(steps):
        views = samples.repeat(2, 1) + 0.3 * torch.randn(2 * SAMPLES, WIDTH)
        batch = ViewBatch({"image": (views,)}, {"image": Index({"sample": numbers})})
        loss = objective(network(batch), batch, None if target is None else target(batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if target is not None:
            target.update(network)
    return float(embedding_spread(model.embed(samples, "image")["shared"])), loss.item()


def test_without_the_stopped_gradient_embeddings_collapse():
    collapsed, loss = train(stop_gradient=False)
    assert collapsed < 0.05  # and all is predicted
    assert loss < 0.01
    assert train()[0] > 0.3  # SimSiam


def test_byol_does_not_collapse():
    assert train(momentum=0.95)[0] > 0.3


def test_a_predictor_returns_unit_rows_beside_the_embeddings():
    model = ContrastiveModel({"image": Encoder()}, {"shared": SharedSpace(dim=6)})
    batch = ViewBatch({"image": (torch.randn(5, WIDTH),)}, {"image": Index({"sample": torch.arange(5)})})
    found = Predictor(model, hidden_dim=4).eval()(batch)
    assert list(found) == ["shared", "shared (predicted)"]
    for rows in (found["shared"]["image"], found[predicted("shared")]["image"]):
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(5))


def test_embeddings_regress_the_features_of_a_teacher():
    z, teacher = unit(6, 4), 3 * unit(6, 4, seed=5)
    objective = FeatureRegression(target="t")
    loss = objective({"shared": {"image": z}}, Index({"t": teacher}))
    assert loss.item() == pytest.approx(float((2 - 2 * (z * teacher / 3).sum(1)).mean()), rel=1e-10)
    with pytest.raises(InputError, match=r"got embeddings \(6, 4\), column 't' \(6, 7\)(.|\n)*SharedSpace\(dim=7\)"):
        objective({"shared": {"image": z}}, Index({"t": torch.ones(6, 7)}))


@pytest.mark.parametrize(("given", "got"), [({"other": {}}, r"\['other'\]"), (unit(6, 4), "Tensor")])
def test_embeddings_of_another_space_or_of_none_are_refused(given, got):
    with pytest.raises(InputError, match=f"FeatureRegression(.|\n)*embeddings of 'shared'; got {got}"):
        FeatureRegression(target="t")(given, Index({"t": unit(6, 4)}))
    with pytest.raises(InputError, match=f"Prediction(.|\n)*embeddings of 'shared'; got {got}"):
        Prediction()(given, TABLE)


def test_what_a_prediction_lacks_is_named():
    with pytest.raises(InputError, match=r"embeddings of 'shared \(predicted\)'; got \['shared'\](.|\n)*Predictor"):
        Prediction()({"shared": {"image": unit(6, 4)}}, TABLE)
    with pytest.raises(ConfigError, match="a space among \\['shared'\\]; got 'other'"):
        Predictor(ContrastiveModel({"image": Encoder()}), hidden_dim=4, space="other")
