"""The objective on one rank: blocks, weights, missing modalities, metrics, and errors."""

import pytest
import torch
from loss_cases import D, unit
from torch import nn

from mmcon.affinity import SameLabel, SameSample
from mmcon.batch import Index
from mmcon.errors import ConfigError, InputError
from mmcon.losses import LearnableTemperature, SupConLoss, presets, weighted_supcon
from mmcon.objective.objective import Block, Objective

N = 6
TABLE = Index({"sample": torch.arange(N), "label": torch.arange(N) % 2})
IMAGE, TEXT = unit(N, 4), unit(N, 4, seed=1)
BOTH = {"joint": {"image": IMAGE, "text": TEXT}}
TABLES = {"image": TABLE, "text": TABLE}


def pair(anchors, candidates, temperature=0.2):
    return weighted_supcon(anchors, candidates, SameSample(TABLE["sample"], TABLE["sample"]), temperature=temperature)


def test_the_simple_case_is_simple():
    objective = Objective(affinity=SameLabel(), temperature=0.1)
    expected = SupConLoss(temperature=0.1)(IMAGE[:, None], TABLE["label"])
    torch.testing.assert_close(objective(IMAGE, TABLE), expected)
    torch.testing.assert_close(objective({"space": {"image": IMAGE}}, {"image": TABLE}), expected)


def test_clip_is_half_of_each_direction():
    objective = Objective(**presets.clip(temperature=0.2))
    expected = (pair(IMAGE, TEXT) + pair(TEXT, IMAGE)) / 2
    torch.testing.assert_close(objective(BOTH, TABLES), expected)


def test_blocks_have_their_own_weights_temperatures_and_affinities():
    blocks = [
        Block("image", "text", weight=3.0, temperature=0.5),
        Block("text", affinity=SameLabel(), weight=0.1),
    ]
    objective = Objective(affinity=SameSample(), temperature=0.2, blocks=blocks)
    alone = weighted_supcon(TEXT, None, SameLabel(TABLE["label"]), temperature=0.2)
    torch.testing.assert_close(objective(BOTH, TABLES), 3 * pair(IMAGE, TEXT, 0.5) + 0.1 * alone)


def test_one_softmax_over_the_union():
    objective = Objective(affinity=SameSample(), temperature=0.2, union=True)
    rows = torch.cat([IMAGE, TEXT])
    expected = weighted_supcon(rows, None, SameSample(TABLE["sample"].repeat(2)), temperature=0.2)
    torch.testing.assert_close(objective(BOTH, TABLES), expected)
    assert list(objective.last) == ["joint/image+text"]


def test_settings_may_differ_by_space():
    embeddings = {"coarse": {"image": IMAGE}, "fine.grained": {"image": TEXT}}
    objective = Objective(
        affinity={"coarse": SameLabel(), "fine.grained": SameSample()},
        temperature={"coarse": 0.1, "fine.grained": LearnableTemperature(initial=0.5)},
    )
    loss = objective(embeddings, {"image": TABLE})
    torch.testing.assert_close(loss, weighted_supcon(IMAGE, None, SameLabel(TABLE["label"]), temperature=0.1))
    assert objective.last.metrics()["empty_blocks"] == 1  # no sample is there twice
    assert len(list(objective.parameters())) == 1


def test_a_block_without_valid_anchors_is_0_and_counted():
    objective = Objective(affinity=SameSample(), temperature=0.2)
    z = IMAGE.clone().requires_grad_()
    loss = objective(z, TABLE)
    loss.backward()
    assert float(loss.detach()) == 0
    assert z.grad.abs().sum() == 0
    assert objective.last.metrics() == {
        "loss/space/rows": 0.0,
        "valid_anchors/space/rows": 0.0,
        "empty_blocks": 1.0,
    }


def test_a_missing_modality_leaves_its_blocks_out():
    blocks = [Block("image"), Block("image", "text"), Block("text", "image")]
    objective = Objective(affinity=SameLabel(), temperature=0.2, blocks=blocks)
    loss = objective({"joint": {"image": IMAGE}}, {"image": TABLE})
    torch.testing.assert_close(loss, weighted_supcon(IMAGE, None, SameLabel(TABLE["label"]), temperature=0.2))
    assert objective.last.metrics()["empty_blocks"] == 2


def test_reductions_and_lonely_anchors():
    labels = Index({"label": torch.tensor([0, 0, 1, 2, 3, 4])})
    make = lambda **more: Objective(affinity=SameLabel(), temperature=0.2, **more)(IMAGE, labels)  # noqa: E731
    torch.testing.assert_close(make(reduction="sum"), 2 * make())
    torch.testing.assert_close(make(reduction="all"), make() / 3)
    with pytest.raises(InputError, match="4 of 6 without one"):
        make(no_positives="error")


def test_a_module_as_similarity_and_a_parameter_as_temperature_learn():
    similarity = nn.Bilinear(4, 4, 1, bias=False, dtype=D)

    class Scores(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = similarity

        def forward(self, anchors, candidates):
            return anchors @ self.inner.weight[0] @ candidates.T

    for backend in ("dense", "tiled"):
        temperature = nn.Parameter(torch.tensor(0.3, dtype=D))
        objective = Objective(affinity=SameLabel(), temperature=temperature, similarity=Scores(), backend=backend)
        assert {id(p) for p in objective.parameters()} == {id(temperature), id(similarity.weight)}
        objective(IMAGE, TABLE).backward()
        assert float(temperature.grad) != 0
    assert similarity.weight.grad.abs().sum() > 0


BAD = {
    "temperature above 0": lambda: Objective(affinity=SameLabel(), temperature=0.0),
    "reduction one of": lambda: Objective(affinity=SameLabel(), temperature=0.1, reduction="none"),
    "blocks, or union": lambda: Objective(affinity=SameLabel(), temperature=0.1, blocks=[Block("a")], union=True),
    "a temperature for space 'joint'": lambda: Objective(affinity=SameLabel(), temperature={"x": 0.1})(BOTH, TABLES),
    "a table of 6 rows": lambda: Objective(affinity=SameLabel(), temperature=0.1)(BOTH, {"image": TABLE}),
    "(?s)'backends'.*did you mean 'backend'": lambda: Objective(
        affinity=SameLabel(), temperature=0.1, backends="dense"
    ),
    "(?s)Block.*'weights'.*did you mean 'weight'": lambda: Objective(
        affinity=SameLabel(), temperature=0.1, blocks=[{"anchors": "image", "weights": 2.0}]
    ),
    "2 blocks 'joint/image'": lambda: Objective(
        affinity=SameLabel(), temperature=0.1, blocks=[Block("image"), Block("image", affinity=SameSample())]
    )(BOTH, TABLES),
    "none of them": lambda: Objective(affinity=SameLabel(), temperature=0.1, blocks=[Block("sound")])(BOTH, TABLES),
    "a column 'time'": lambda: Objective(**presets.temporal(width_seconds=1.0))(BOTH, TABLES),
}


@pytest.mark.parametrize("message", list(BAD))
def test_bad_settings_get_one_clear_error(message):
    with pytest.raises((InputError, ConfigError), match=message):
        BAD[message]()
