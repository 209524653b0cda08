"""Shared spaces: published forms as special cases, blocks over views, what is refused early, tuning, and evaluation."""

import math

import pytest
import torch
from loss_cases import unit
from torch import nn

import mmcon
from mmcon.affinity import SameLabel, SameSample
from mmcon.batch import Index, ViewBatch
from mmcon.errors import ConfigError, DataError, InputError
from mmcon.evaluation.cross_modal import SpaceEmbeddings, cross_modal_metrics, prompt_texts, zero_shot_classification
from mmcon.evaluation.features import Features, extract_features, precompute_features
from mmcon.loading.loader import ViewLoader, one_pass
from mmcon.losses import presets
from mmcon.models.contrastive_model import ContrastiveModel
from mmcon.models.fine_tuning import add_lora, freeze, merge_lora, set_trainable
from mmcon.models.shared_spaces import SharedSpace
from mmcon.objective.objective import Block, Objective
from mmcon.samplers.uniform import UniformSampler
from mmcon.sources.base import Subset, TensorSource
from mmcon.sources.factory import create_source
from mmcon.sources.joined import GroupedSource, JoinedSource, modality_pair_counts
from mmcon.views import Chain, Identity

N, D = 7, 5
IMAGE, TEXT, SOUND = (unit(N, D, seed=seed) for seed in range(3))
TABLE = Index({"sample": torch.arange(N), "label": torch.arange(N) % 3, "view": torch.zeros(N, dtype=torch.int64)})


def exactly(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


# --- published forms -------------------------------------------------------------------------------------------------


def test_clip_as_published():
    """Radford et al. 2021, figure 3: the mean of two cross-entropies over the matrix of cosines."""
    logits = IMAGE @ TEXT.T / 0.07
    target = torch.arange(N)
    published = (nn.functional.cross_entropy(logits, target) + nn.functional.cross_entropy(logits.T, target)) / 2
    objective = Objective(**presets.clip(temperature=0.07))
    exactly(objective({"shared": {"image": IMAGE, "text": TEXT}}, {"image": TABLE, "text": TABLE}), published)


def test_supcon_as_published():
    """Khosla et al. 2020, eq. 2, written out pair by pair; every class has two rows or more."""
    total = 0.0
    for i in range(N):
        others = [a for a in range(N) if a != i]
        denominator = sum(math.exp(float(IMAGE[i] @ IMAGE[a]) / 0.1) for a in others)
        positives = [p for p in others if p % 3 == i % 3]
        total -= sum(float(IMAGE[i] @ IMAGE[p]) / 0.1 - math.log(denominator) for p in positives) / len(positives)
    objective = Objective(affinity=SameLabel(), temperature=0.1)
    exactly(objective({"shared": {"image": IMAGE}}, {"image": TABLE}), torch.tensor(total / N, dtype=torch.float64))


@pytest.mark.parametrize(("core", "pairs"), [(None, 6), ("image:0", 4)])
def test_cmc_is_the_sum_over_pairs_of_views(core, pairs):
    """Tian et al. 2020, eqs. 6 and 7: the core view, or the full graph."""
    rows = torch.cat([IMAGE, TEXT, SOUND])
    table = Index({"sample": torch.arange(N).repeat(3), "view": torch.arange(3).repeat_interleave(N)})
    objective = Objective(**presets.cmc(temperature=0.1, views=("image:0", "image:1", "image:2"), core=core))
    views = IMAGE, TEXT, SOUND
    wanted = [(a, c) for a in range(3) for c in range(3) if a != c and (core is None or 0 in (a, c))]
    assert len(wanted) == pairs
    expected = sum(nn.functional.cross_entropy(views[a] @ views[c].T / 0.1, torch.arange(N)) for a, c in wanted)
    exactly(objective({"shared": {"image": rows}}, {"image": table}), expected)
    assert len(objective.last) == pairs


def test_modalities_as_one_candidate_set():
    union = Objective(affinity=SameSample(), temperature=0.2, blocks=[Block(("image", "text"))])
    rows = torch.cat([IMAGE, TEXT])
    logits = (rows @ rows.T / 0.2).masked_fill(torch.eye(2 * N, dtype=torch.bool), -torch.inf)
    expected = nn.functional.cross_entropy(logits, torch.arange(2 * N).roll(N))
    exactly(union({"shared": {"image": IMAGE, "text": TEXT}}, {"image": TABLE, "text": TABLE}), expected)


# --- what is refused before the first step ---------------------------------------------------------------------------


class Tower(nn.Module):
    feature_dim = 4

    def __init__(self, inner=3):
        super().__init__()
        self.layer, self.norm = nn.Linear(inner, 4), nn.BatchNorm1d(4)

    def forward(self, views):
        return self.norm(self.layer(views))


def two_towers():
    return ContrastiveModel({"image": Tower(), "text": Tower()}, {"shared": SharedSpace(dim=D)})


def source(modality, ids, **options):
    return TensorSource(torch.randn(len(ids), 3), modality=modality, ids=torch.tensor(ids), **options)


def test_a_table_of_pairs_is_checked_against_the_model():
    model = two_towers()
    spaces = model.modalities_by_space()
    assert spaces == {"shared": ["image", "text"]}
    for block, message in {
        Block("image", "tekst"): "text",
        Block("image", "text", space="shard"): "shared",
        Block("image:first", "text"): "image:0",
    }.items():
        with pytest.raises(ConfigError, match=message):
            Objective(affinity=SameSample(), temperature=0.1, blocks=[block]).check(spaces)


def test_a_pair_that_never_meets_is_refused_where_it_must_meet_by_sample(tmp_path):
    joined = JoinedSource(source("image", [0, 1]), source("text", [1, 2]), source("audio", [2, 3]))
    assert modality_pair_counts(joined)["image", "audio"] == 0
    assert modality_pair_counts(joined)["image", "text"] == 1
    spaces = {"shared": ["image", "text", "audio"]}
    blocks = [Block("image", "audio")]
    with pytest.raises(ConfigError, match="none in"):
        Objective(affinity=SameSample(), temperature=0.1, blocks=blocks).check(spaces, joined)
    Objective(affinity=SameLabel(), temperature=0.1, blocks=blocks).check(spaces, joined)  # classes may meet
    Objective(affinity=SameSample(), temperature=0.1, blocks=[Block("image", "text")]).check(spaces, joined)


def test_a_run_checks_the_pairs_before_its_first_step(tmp_path):
    run = mmcon.Run(tmp_path / "run", cpu=True)
    model = two_towers()
    objective = Objective(affinity=SameSample(), temperature=0.1, blocks=[Block("image", "sound")])
    with pytest.raises(ConfigError, match="sound"):
        run.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1), objective=objective)
    run.close()


def test_sources_that_share_no_sample_are_refused():
    with pytest.raises(DataError, match="same id"):
        JoinedSource(source("image", [0, 1]), source("text", [2, 3]))


# --- samples with several instances, or none -------------------------------------------------------------------------


def test_each_view_shows_one_of_the_instances():
    spoken = source("audio", [10, 11, 12, 13, 14, 15], columns={"voice": torch.arange(6), "word": torch.arange(6) // 3})
    grouped = GroupedSource(spoken, torch.tensor([7, 7, 7, 5, 5, 9]))
    assert grouped.ids.tolist() == [5, 7, 9]
    assert "voice" not in grouped.columns  # a view does not say whose voice it is
    view = Chain(mmcon.create_view("any/instance"))
    seen = set()
    for epoch in range(40):
        keys = mmcon.keys(seed=0, epoch=epoch, sample=grouped.ids)
        made = view(grouped.open([0, 1, 2]), keys)
        alone = view(grouped.open([1]), mmcon.keys(seed=0, epoch=epoch, sample=grouped.ids[1:2]))
        assert torch.equal(made[1], alone[0])
        row = (made[1] == spoken.values[:3]).all(1).nonzero()
        assert len(row) == 1
        seen.add(int(row))
        assert torch.equal(made[2], spoken.values[5])
    assert seen == {0, 1, 2}
    first = mmcon.create_view("any/instance", random=False)
    assert torch.equal(torch.stack(first(grouped.open([1]), mmcon.keys(sample=[7]))), spoken.values[:1])


def test_the_header_of_the_drawn_instance_is_told_on():
    lengths = torch.tensor([4, 8, 6])

    from mmcon.media import AudioHandle

    class Handles(mmcon.sources.base.Source):
        def open(self, rows):
            return [AudioHandle(torch.zeros(1, int(lengths[r])), source_rate_hz=16_000, id=str(r)) for r in rows]

    grouped = GroupedSource(Handles(ids=torch.arange(3), modality="audio"), torch.tensor([1, 1, 2]))
    view = mmcon.create_view("any/instance")
    meta = mmcon.views.meta_of(grouped.open([0, 1]), "audio")
    params = {"instance": torch.tensor([1, 0])}
    assert view.output_meta(meta, params)["length"].tolist() == [8, 6]


def test_a_batch_may_lack_a_modality_altogether():
    joined = JoinedSource(source("image", list(range(8))), source("text", [0]))
    loader = ViewLoader(
        joined, {"image": [Identity()], "text": [Identity()]}, UniformSampler(joined.ids, batch_size=2, seed=0), seed=0
    )
    blocks = [Block("image"), *presets.clip(temperature=0.1)["blocks"]]
    objective = Objective(affinity=SameSample(), temperature=0.1, blocks=blocks)
    model, found = two_towers(), []
    for batch in loader:
        found.append(batch.modalities)
        if "text" not in batch.modalities:  # a lone row would have no batch statistics
            assert bool(torch.isfinite(objective(model(batch), batch)))
            assert objective.last.metrics()["empty_blocks"] == 3
    assert sorted(found) == [("image",), ("image",), ("image",), ("image", "text")]


def test_texts_of_a_table_open_as_handles(tmp_path):
    table = tmp_path / "notes.csv"
    table.write_text("id,text,split\na,one thing,train\nb,another,train\n")
    notes = create_source(table, split="train", modality="text")
    assert [text.value for text in notes.open([0, 1])] == ["one thing", "another"]
    view = Chain(mmcon.create_view("any/instance"), mmcon.create_view("text/words"))
    made = view(notes.open([0, 1]), mmcon.keys(seed=0, sample=notes.ids[:2]))
    assert made["input_ids"].shape[0] == 2
    table.write_text('id,text,split\na,one thing,train\nc," ",train\n')
    with pytest.raises(DataError, match=r"line 3, column 'text': expected a text; got an empty cell \(1 in all\)"):
        create_source(table, split="train", modality="text")


def test_rows_of_a_joined_source_are_rows_of_its_members():
    joined = JoinedSource(source("image", [0, 1, 2]), source("text", [0, 1, 2]))
    part = Subset(joined, [2, 0])
    assert set(part.members) == {"image", "text"}
    assert torch.equal(part.members["text"].open([0]), joined.members["text"].open([2]))


def test_a_column_for_every_member():
    joined = JoinedSource(source("image", [5, 6]), source("text", [6, 7]))
    joined.add_column("side", torch.tensor([7, 6, 5]), torch.tensor([[7.0], [6.0], [5.0]]))
    batch = next(one_pass(joined, {"image": [Identity()], "text": [Identity()]}))
    assert batch.index["image"]["side"].tolist() == [[5.0], [6.0]]
    assert batch.index["text"]["side"].tolist() == [[6.0], [7.0]]
    with pytest.raises(DataError, match="every sample"):
        joined.add_column("side", torch.tensor([7]), torch.zeros(1, 1))


# --- how much learns -------------------------------------------------------------------------------------------------


def test_a_frozen_tower_keeps_its_weights_and_statistics():
    tower = freeze(Tower()).train()
    before = tower.norm.running_mean.clone()
    assert not tower(torch.randn(8, 3)).requires_grad
    assert torch.equal(tower.norm.running_mean, before)
    dropping = freeze(nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5))).train()
    x = torch.ones(2, 3)
    assert torch.equal(dropping(x), dropping[0](x))  # nothing is dropped
    partly = set_trainable(Tower(), "layer.*")
    assert {name for name, p in partly.named_parameters() if p.requires_grad} == {"layer.weight", "layer.bias"}
    with pytest.raises(ConfigError, match="match none"):
        freeze(Tower(), trainable=["laier.*"])


def test_low_rank_additions_learn_and_merge():
    pytest.importorskip("peft")
    torch.manual_seed(0)
    tower, x = Tower().eval(), torch.randn(6, 3)
    names, start = list(tower.state_dict()), tower(x).detach()
    add_lora(tower, rank=2)
    torch.testing.assert_close(tower(x), start)  # it starts as what it was
    learning = [p for p in tower.parameters() if p.requires_grad]
    assert sum(p.numel() for p in learning) == 2 * (3 + 4)
    optimizer = torch.optim.SGD(learning, lr=0.5)
    for _ in range(3):
        tower(x).square().sum().backward()
        optimizer.step()
    learned = tower(x).detach()
    assert not torch.allclose(learned, start)
    merge_lora(tower)
    assert list(tower.state_dict()) == names
    torch.testing.assert_close(tower(x), learned)
    with pytest.raises(ConfigError, match="layer"):
        add_lora(Tower(), layers=["query"])


def test_heads_learn_on_features_that_were_computed_once():
    model = two_towers().eval()
    joined = JoinedSource(source("image", [0, 1, 2, 3]), source("text", [1, 2, 3]))
    views = {"image": [Identity()], "text": [Identity()]}
    once = precompute_features(model, joined, views)
    on_features = model.with_precomputed_features()
    (direct,), (stored,) = (
        [m(next(one_pass(s, views)))["shared"]["text"]] for m, s in ((model, joined), (on_features, once))
    )
    torch.testing.assert_close(direct, stored)
    assert all(a is b for a, b in zip(model.heads.parameters(), on_features.heads.parameters(), strict=True))


# --- evaluation ------------------------------------------------------------------------------------------------------


def test_two_modalities_are_compared_over_samples_that_have_both():
    rows = torch.eye(4)
    first = Features(rows, Index({"sample": torch.arange(4)}))
    second = Features(rows[[3, 1, 2]], Index({"sample": torch.tensor([3, 1, 2])}))
    found = cross_modal_metrics(first, second, ks=(1,))
    assert found.first_to_second.recall[1] == found.second_to_first.recall[1] == 1
    assert found.alignment == 0
    assert found.results()["first_to_second"]["queries"] == 3
    shifted = Features(rows[[1, 2, 3, 0]], first.index)
    assert cross_modal_metrics(first, shifted, ks=(1,)).first_to_second.recall[1] == 0
    with pytest.raises(InputError, match="both"):
        cross_modal_metrics(first, Features(rows[:1], Index({"sample": torch.tensor([9])})))


def test_classes_by_the_mean_of_their_prompts():
    texts, labels = prompt_texts({0: ["cat"], 2: ["dog", "puppy"]}, ["{}", "a {}"])
    assert texts == ["cat", "a cat", "dog", "a dog", "puppy", "a puppy"]
    assert labels.tolist() == [0, 0, 2, 2, 2, 2]
    prompts = Features(
        torch.tensor([[1.0, 0.2], [1, -0.2], [0, 1], [0, 2], [0, 1], [0.1, 1]]), Index({"label": labels})
    )
    rows = Features(torch.tensor([[0.9, 0.0], [0.0, 3.0], [1.0, 0.9]]), Index({"label": torch.tensor([0, 2, 2])}))
    assert zero_shot_classification(rows, prompts).correct.tolist() == [True, True, False]
    with pytest.raises(InputError, match=r"\[2\]"):
        zero_shot_classification(rows, prompts.take(slice(0, 2)))


def test_a_model_in_one_space_for_extract():
    model = two_towers()
    batch = ViewBatch({"image": (torch.randn(3, 3),)}, {"image": Index({"sample": torch.arange(3)})})
    dump = extract_features(SpaceEmbeddings(model, "shared"), [batch], modality="image")
    assert dump.values.shape == (3, D)
    with pytest.raises(InputError, match="shared"):
        extract_features(SpaceEmbeddings(model, "sharde"), [batch])
