"""Blocks: graded and masked ones as published, early errors, and batches without any pair."""

import pytest
import torch
from loss_cases import unit
from torch import nn

import mmcon
from mmcon.affinity import SameLabel, SameSample, SideFeatures
from mmcon.batch import Index
from mmcon.errors import ConfigError, InputError
from mmcon.loading.loader import ViewLoader
from mmcon.losses import HardNegatives, LearnableTemperature, presets
from mmcon.objective.objective import Block, Objective
from mmcon.objective.queue import Bank, Queue
from mmcon.samplers.uniform import UniformSampler
from mmcon.sources.base import TensorSource
from mmcon.sources.joined import JoinedSource
from mmcon.views import Identity

N, D, T = 8, 5, 0.2
IMAGE, TEXT, SOUND = (unit(N, D, seed=seed) for seed in range(3))
SIDE = unit(N, 4, seed=9)
CLASSES = torch.arange(N) % 3
TABLE = Index({"sample": torch.arange(N), "label": CLASSES, "view": torch.zeros(N, dtype=torch.int64), "side": SIDE})
TABLES = {"image": TABLE, "text": TABLE, "sound": TABLE}
TWO = {"shared": {"image": IMAGE, "text": TEXT}}
THREE = {"shared": {"image": IMAGE, "text": TEXT, "sound": SOUND}}


def exactly(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def partner(anchors, candidates, temperature=T):
    """One direction of CLIP."""
    return nn.functional.cross_entropy(anchors @ candidates.T / temperature, torch.arange(N))


def against(target, anchors, candidates, temperature=T):
    """Cross-entropy of the softmax over candidates against rows of a target distribution."""
    return -(target * torch.log_softmax(anchors @ candidates.T / temperature, dim=1)).sum(1).mean()


# --- graded, in one direction or in both -----------------------------------------------------------------------------


def test_cwcl_as_published():
    """Srinivasa et al. 2023, eqs. 3 to 5: w_ij = ⟨p_i, p_j⟩/2 + 1/2 over its row's sum; the way back is CLIP's."""
    weights = SIDE @ SIDE.T / 2 + 0.5
    there = against(weights / weights.sum(1, keepdim=True), IMAGE, TEXT)
    objective = Objective(**presets.cwcl(temperature=T, graded="image", other="text"))
    exactly(objective(TWO, TABLES), (there + partner(TEXT, IMAGE)) / 2)


def test_x_clr_between_modalities():
    """Sobal et al. 2024, eq. 3: the target is a softmax of the likeness that a frozen encoder sees."""
    target = torch.softmax(SIDE @ SIDE.T / 0.1, dim=1)
    settings = presets.clip(temperature=T) | {"affinity": SideFeatures("side", temperature=0.1)}
    exactly(Objective(**settings)(TWO, TABLES), (against(target, IMAGE, TEXT) + against(target, TEXT, IMAGE)) / 2)


def test_any_table_of_pairs():
    """Within and across modalities, by class and by sample, with a temperature and a weight for each block."""
    learned = LearnableTemperature(initial=0.5, minimum=0.3, maximum=0.6).double()
    blocks = [
        Block("image", "text", weight=2.0),
        Block("text", "sound", temperature=learned, weight=0.25),
        Block("sound", ("image", "text"), affinity=SameLabel()),
        Block("image", affinity=SameLabel(), temperature=0.1),
    ]
    objective = Objective(affinity=SameSample(), temperature=T, blocks=blocks)
    same = (CLASSES[:, None] == CLASSES).double()
    both = torch.cat([same, same], 1)
    others = same - torch.eye(N)
    logits = (IMAGE @ IMAGE.T / 0.1).masked_fill(torch.eye(N, dtype=torch.bool), -torch.inf)
    shares = torch.log_softmax(logits, dim=1).masked_fill(torch.eye(N, dtype=torch.bool), 0)
    within = -((others / others.sum(1, keepdim=True)) * shares).sum(1).mean()
    expected = 2 * partner(IMAGE, TEXT) + 0.25 * partner(TEXT, SOUND, float(learned().detach())) + within
    expected = expected + against(both / both.sum(1, keepdim=True), SOUND, torch.cat([IMAGE, TEXT]))
    loss = objective(THREE, TABLES)
    exactly(loss, expected)
    loss.backward()
    assert float(learned.log_logit_scale.grad) != 0
    with torch.no_grad():
        learned.log_logit_scale.fill_(9)
    assert float(learned().detach()) == pytest.approx(0.3)


# --- false negatives across modalities -------------------------------------------------------------------------------


def lightened(weight):
    """CLIP's loss where a negative of the anchor's class counts only so much."""
    same = (CLASSES[:, None] == CLASSES) & ~torch.eye(N, dtype=torch.bool)
    scale = torch.where(same, torch.tensor(weight, dtype=torch.float64), 1.0)

    def way(anchors, candidates):
        similarity = anchors @ candidates.T / T
        return -(similarity.diag() - (scale * similarity.exp()).sum(1).log()).mean()

    return (way(IMAGE, TEXT) + way(TEXT, IMAGE)) / 2


def test_false_negatives_are_masked_or_weighted_by_an_affinity():
    clip = presets.clip(temperature=T)
    exactly(Objective(**clip, negative_weights=~SameLabel())(TWO, TABLES), lightened(0))
    soft = 0.3 * SameLabel() + ~SameLabel()
    exactly(Objective(**clip, negative_weights=soft)(TWO, TABLES), lightened(0.3))


def test_a_block_may_have_negative_weights_of_its_own():
    blocks = [
        Block("image", "text", weight=0.5, negative_weights=~SameLabel()),
        Block("text", "image", weight=0.5, negative_weights=lambda a, c: a["label"][:, None] != c["label"]),
        Block("text", "sound"),
    ]
    objective = Objective(affinity=SameSample(), temperature=T, blocks=blocks)
    exactly(objective(THREE, TABLES), lightened(0) + partner(TEXT, SOUND))
    hard = Objective(
        affinity=SameSample(), temperature=T, blocks=[Block("image", "text", negative_weights=HardNegatives(1.0))]
    )
    assert float(hard(TWO, TABLES)) > float(partner(IMAGE, TEXT))  # near negatives count more, their sum as much


# --- candidates from a queue, for blocks of single views -------------------------------------------------------------


def test_a_queue_gives_the_view_that_a_block_speaks_of():
    rows, earlier = torch.cat([IMAGE, TEXT]), torch.cat([SOUND, -SOUND])
    views = torch.arange(2).repeat_interleave(N)
    now, before = ({"sample": torch.arange(N).repeat(2) + start, "view": views} for start in (0, N))
    queue = Queue(size=64)
    queue.push({"shared": {"image": earlier}}, {"image": Index(before)})
    objective = Objective(affinity=SameSample(), temperature=T, blocks=[Block("image:0", "image:1")], queue=queue)
    similarity = IMAGE @ torch.cat([TEXT, -SOUND]).T / T
    exactly(objective({"shared": {"image": rows}}, {"image": Index(now)}),
            nn.functional.cross_entropy(similarity, torch.arange(N)))  # fmt: skip

    bank = Bank(samples=torch.arange(2 * N))
    bank.push({"shared": {"image": earlier}}, {"image": Index(before)})
    objective.queue = bank
    with pytest.raises(InputError, match="one row a sample"):
        objective({"shared": {"image": rows}}, {"image": Index(now)})


# --- what is refused before the first step ---------------------------------------------------------------------------

SPACES = {"shared": ["image", "text"], "fine": ["image"]}
REFUSED = {
    "'tekst'(.|\n)*did you mean 'text'": ([Block("image", "tekst")], {}),
    "a space among .*; got 'shard'(.|\n)*'shared'": ([Block("image", "text", space="shard")], {}),
    "which have a head in space 'fine'; got 'text'": ([Block("image", "text", space="fine")], {}),
    "which batches have views of; got 'text'": ([Block("image", "text")], {"views": {"image": 1}}),
    "a view among .*'image:1'.*; got 'image:2'": ([Block("image:0", "image:2")], {"views": {"image": 2, "text": 1}}),
}


@pytest.mark.parametrize("message", list(REFUSED))
def test_a_table_that_cannot_be_filled_is_refused(message):
    blocks, more = REFUSED[message]
    with pytest.raises(ConfigError, match=message):
        Objective(affinity=SameSample(), temperature=T, blocks=blocks).check(SPACES, **more)


def test_every_block_needs_an_affinity_and_a_temperature():
    for settings, message in (
        ({"affinity": {"shared": SameSample()}, "temperature": T}, "an affinity for space 'fine'"),
        ({"affinity": SameSample(), "temperature": {"shared": T}}, "a temperature for space 'fine'"),
    ):
        with pytest.raises(ConfigError, match=message):
            Objective(**settings).check(SPACES)
        # A space that lacks a side of the block is none of its spaces.
        Objective(**settings, blocks=[Block("image", "text")]).check(SPACES)


def test_a_view_beside_its_whole_modality_is_refused():
    for sides in (("image", "image:1"), (("image", "image:0"), "text")):
        with pytest.raises(ConfigError, match=r"its own candidate(.|\n)*name every view"):
            Block(*sides)
    Block(("image:0", "image:1"))


class Tower(nn.Module):
    feature_dim = 3

    def __init__(self, inner=4):
        super().__init__()
        self.layer = nn.Linear(inner, 3)

    def forward(self, views):
        return self.layer(views)


def source(modality, ids):
    return TensorSource(torch.randn(len(ids), 4), modality=modality, ids=torch.tensor(ids))


def make_run(folder, blocks, joined, modalities=("image", "text"), batch_size=2):
    """A run over a joined source whose views are the samples themselves."""
    run = mmcon.Run(folder, cpu=True, settings=mmcon.training.config.RunSettings(epochs=1, checkpoint_every=100))
    model = mmcon.ContrastiveModel({m: Tower() for m in joined.members}, {"shared": mmcon.SharedSpace(dim=D)})
    objective = Objective(affinity=SameSample(), temperature=T, blocks=blocks)
    loader = ViewLoader(
        joined, {m: [Identity()] for m in modalities}, UniformSampler(joined.ids, batch_size=batch_size, seed=0), seed=0
    )
    run.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1), objective=objective)
    return run, model, objective, loader


def test_a_run_refuses_data_that_never_fill_a_pair(tmp_path):
    joined = JoinedSource(source("image", [0, 1, 2, 3]), source("text", [1, 2]), source("sound", [8]))
    for i, (blocks, modalities, message) in enumerate(
        (
            ([Block("image", "sound")], ("image", "sound"), "samples that have both sides"),
            ([Block("image", "text")], ("image", "sound"), "which batches have views of; got 'text'"),
        )
    ):
        run, _, _, loader = make_run(tmp_path / str(i), blocks, joined, modalities)
        with pytest.raises(ConfigError, match=message):
            next(run.batches(loader))
        run.close()


def test_a_batch_in_which_no_pair_occurs_is_a_step_that_learns_nothing(tmp_path):
    joined = JoinedSource(source("image", list(range(8))), source("text", [0, 1]))
    run, model, objective, loader = make_run(tmp_path / "run", [Block("image", "text")], joined)
    losses = []
    for batch in run.batches(loader):
        before = [p.detach().clone() for p in model.parameters()]
        loss = objective(model(batch), batch)
        run.step(loss)
        losses.append(float(loss.detach()))
        if "text" not in batch.modalities:
            assert losses[-1] == 0
            assert objective.last.metrics()["empty_blocks"] == 1
            assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert losses.count(0.0) >= 2
    run.close()
