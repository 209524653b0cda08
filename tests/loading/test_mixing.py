"""Views that mix samples of the global batch: the same on any number of processes, and their labels as an affinity."""

from pathlib import Path

import pytest
import torch
from mmcon_views.image.mixup import partner_positions, soft_labels
from mmcon_views.shared_draws import SharedByViews
from PIL import Image
from torch.nn import functional

import mmcon
from mmcon.affinity import Dense, MixedLabel, MultiLabel, SameLabel
from mmcon.batch import Index, ViewBatch
from mmcon.errors import ConfigError, InputError
from mmcon.loading.loader import ViewLoader
from mmcon.loading.mixup_partners import add_partners
from mmcon.loading.streaming import StreamLoader
from mmcon.objective.baseline_objectives import CrossEntropy
from mmcon.objective.queue import Queue
from mmcon.samplers.uniform import UniformSampler
from mmcon.sources.base import TensorSource
from mmcon.sources.factory import create_source
from mmcon.sources.joined import JoinedSource
from mmcon.sources.streaming import Stream, StreamSample
from mmcon.testing import LawBroken, check_view
from mmcon.views import Chain, ViewGenerator

N, BATCH, SIZE = 22, 9, 12


class Remembers(ViewGenerator):
    modality, scope = "image", "stateful"

    def draw(self, keys, meta):
        return {}

    def apply(self, batch, params):
        return batch


def source(n: int = N) -> TensorSource:
    pixels = torch.randint(0, 256, (n, 3, 16, 14), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    return TensorSource(pixels, labels=torch.arange(n) % 4)


def mixed(name: str = "image/mixup") -> Chain:
    crop = mmcon.create_view("image/random-resized-crop", size=SIZE, area=(0.5, 1.0))
    return Chain(crop, mmcon.create_view(name), mmcon.create_view("image/color-jitter", brightness=0.4))


def batches(data, views, steps: int = 2, world_size: int = 1, batch_size: int = BATCH, **options) -> list[ViewBatch]:
    """The batches of some steps, in each the rows of all processes one after another, view-major as one process has."""
    loaders = [
        ViewLoader(
            data,
            views,
            UniformSampler(data.ids, batch_size=batch_size, seed=0),
            seed=5,
            rank=p,
            world_size=world_size,
            **options,
        )
        for p in range(world_size)
    ]
    made = [list(zip(range(steps), loader, strict=False)) for loader in loaders]
    return [joined([of[step][1] for of in made]) for step in range(steps)]


def joined(parts: list[ViewBatch]) -> ViewBatch:
    """One batch of those of several processes, ordered as one process orders it."""
    views, index = {}, {}
    for modality in parts[0].views:
        shares = [torch.cat(part.views[modality]) for part in parts]
        tables = [part.index[modality] for part in parts]
        rows, table = torch.cat(shares), Index.cat(tables)
        order = torch.cat([torch.full((t.n,), p) for p, t in enumerate(tables)])
        # View-major: by view, and within a view by process, and there as it stood.
        key = table["view"] * 1_000_000 + order * 1_000 + torch.cat([torch.arange(t.n) for t in tables])
        views[modality], index[modality] = (rows[key.argsort()],), table.take(key.argsort())
    return ViewBatch(views, index)


def same(a: ViewBatch, b: ViewBatch) -> bool:
    tables = all(torch.equal(a.index["image"][name], b.index["image"][name]) for name in a.index["image"])
    return tables and torch.equal(torch.cat(a.views["image"]), torch.cat(b.views["image"]))


@pytest.mark.parametrize("name", ["image/mixup", "image/cutmix"])
@pytest.mark.parametrize("world_size", [2, 3, 9])
def test_any_number_of_processes_makes_the_same_mixed_views(name, world_size):
    view = mixed(name)
    views = {"image": [view, view, mixed("image/cutmix")]}
    for one, several in zip(batches(source(), views), batches(source(), views, world_size=world_size), strict=True):
        assert {"share", "partner_label", "partner_sample"} <= set(one.index["image"])
        assert same(one, several)


def test_a_worker_and_a_device_that_mixes_late_make_the_same():
    views = {"image": [mixed(), mixed("image/cutmix")]}
    here = batches(source(), views)
    for other in (batches(source(), views, workers=1), batches(source(), views, device="cpu", world_size=2)):
        assert all(same(a, b) for a, b in zip(here, other, strict=True))


def test_a_partner_view_is_made_by_its_own_key():
    crop = mmcon.create_view("image/random-resized-crop", size=SIZE, area=(0.5, 1.0))
    data, named = source(), ("crop", crop)
    (plain,) = batches(data, {"image": [Chain(named)] * 2}, steps=1)
    (batch,) = batches(data, {"image": [Chain(named, ("mix", mmcon.create_view("image/mixup")))] * 2}, steps=1)
    table, x = batch.index["image"], plain.views["image"][0].float() / 255
    x = x if plain.views["image"][0].dtype == torch.uint8 else plain.views["image"][0]
    loader = ViewLoader(
        data,
        {"image": [Chain(named, ("mix", mmcon.create_view("image/mixup")))] * 2},
        UniformSampler(data.ids, batch_size=BATCH, seed=0),
        seed=5,
    )
    drawn = next(iter(loader)).params["image"][0]["mix"]
    places = torch.arange(BATCH).repeat(2)
    partner = partner_positions(drawn["partner"], places, BATCH) + BATCH * table["view"]
    share = drawn["share"].float()[:, None, None, None]
    assert torch.equal(table["partner_sample"], plain.index["image"]["sample"][partner])
    assert torch.equal(table["partner_label"], table["partner_sample"] % 4)
    assert not bool((table["partner_sample"] == table["sample"]).any())
    torch.testing.assert_close(batch.views["image"][0], x * share + x[partner] * (1 - share), rtol=0, atol=1e-6)


def test_views_that_are_not_mixed_are_their_own_partners():
    crop = mmcon.create_view("image/random-resized-crop", size=SIZE)
    (batch,) = batches(source(), {"image": [mixed(), crop]}, steps=1)
    table = batch.index["image"].take(slice(BATCH, None))
    assert torch.equal(table["partner_label"], table["label"])
    assert torch.equal(table["share"], torch.ones(BATCH, dtype=torch.float64))


def test_other_modalities_say_that_they_are_not_mixed():
    """Of the pictures, one process has none: its texts say so all the same."""
    pictures = TensorSource(source().values[:8], labels=source().labels[:8], ids=torch.arange(8))
    words = TensorSource(torch.rand(12, 3), modality="vector", ids=torch.arange(12))
    data = JoinedSource(pictures, words)
    views = {"image": [mixed()], "vector": [mmcon.views.Identity()]}
    for rank in range(6):
        sampler = UniformSampler(data.ids, batch_size=12, seed=0)
        batch = next(iter(ViewLoader(data, views, sampler, seed=0, rank=rank, world_size=6)))
        text = batch.index["vector"]
        assert torch.equal(text["partner_sample"], text["sample"])
        assert torch.equal(text["share"], torch.ones(2, dtype=torch.float64))
    (batch,) = batches(data, views, steps=1, batch_size=12)
    image, text = batch.index["image"], batch.index["vector"]
    weights = MixedLabel("sample", "partner_sample").bind(image, text).dense()
    own = (image["sample"][:, None] == text["sample"]) * image["share"][:, None]
    other = (image["partner_sample"][:, None] == text["sample"]) * (1 - image["share"][:, None])
    torch.testing.assert_close(weights, (own + other).float())


def test_all_views_of_a_sample_may_share_the_draw_of_a_partner():
    crop = mmcon.create_view("image/random-resized-crop", size=SIZE)
    view = Chain(("crop", crop), ("mix", SharedByViews(mmcon.create_view("image/cutmix"))))
    views = {"image": [view, view]}
    (one,), (three,) = batches(source(), views, steps=1), batches(source(), views, steps=1, world_size=3)
    assert same(one, three)
    table = one.index["image"]
    assert torch.equal(table["partner_sample"][:BATCH], table["partner_sample"][BATCH:])
    assert torch.equal(table["share"][:BATCH], table["share"][BATCH:])


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(1)
    for i in range(12):
        folder = tmp_path / "train" / f"class{i % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(0, 256, (20 + i, 24, 3), generator=generator).to(torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{i}.jpg")
    file = tmp_path / "train" / "class1" / "4.jpg"
    file.write_bytes(file.read_bytes()[:700])
    (tmp_path / "val" / "class0").mkdir(parents=True)
    Image.new("RGB", (20, 20)).save(tmp_path / "val" / "class0" / "a.png")
    return tmp_path


def test_a_view_with_an_unreadable_partner_is_unchanged(photos):
    data = create_source(photos, split="train", check="none")
    views = {"image": [mixed()] * 2}
    (one,) = batches(data, views, steps=1, batch_size=12)
    (two,) = batches(data, views, steps=1, batch_size=12, world_size=2)
    assert same(one, two)
    table = one.index["image"]
    assert table.n == 22  # both views of the faulty sample are left out
    own = table["partner_sample"] == table["sample"]
    faulty = {int(i) for i in data.ids} - {int(i) for i in table["sample"]}
    assert len(faulty) == 1
    assert not set(table["partner_sample"].tolist()) & faulty
    assert 0 < int(own.sum()) < 22  # those whose partner it would have been


def test_samples_without_the_modality_have_no_position():
    there = TensorSource(source().values, labels=source().labels, ids=torch.arange(N))
    words = TensorSource(torch.rand(30, 3), modality="vector", ids=torch.arange(5, 35))
    data = JoinedSource(there, words)
    views = {"image": [mixed()], "vector": [mmcon.views.Identity()]}
    options = {"batch_size": 20, "steps": 1}
    (one,), (three,) = batches(data, views, **options), batches(data, views, world_size=3, **options)
    assert one.index["image"].n < 20
    assert same(one, three)


def test_a_stream_mixes_within_its_global_batches():
    pixels = [torch.full((3, 8, 8), i / 30) for i in range(30)]

    def rows(skip: int):
        return iter([StreamSample(f"row {i}", pixels[i], i % 3) for i in range(skip, 30)])

    def loaded(rank: int, world_size: int) -> ViewBatch:
        stream = Stream(rows, modality="image", handle=lambda media, name: media, classes=("a", "b", "c"))
        loader = StreamLoader(
            stream,
            {"image": [mmcon.create_view("image/mixup")]},
            batch_size=10,
            buffer=20,
            steps_per_epoch=2,
            seed=0,
            rank=rank,
            world_size=world_size,
        )
        return next(iter(loader))

    assert same(joined([loaded(0, 1)]), joined([loaded(p, 3) for p in range(3)]))


def test_invalid_mixing_raises_before_the_first_step():
    sampler = UniformSampler(source().ids, batch_size=1, seed=0)
    with pytest.raises(ConfigError, match="global batch of at least 2"):
        ViewLoader(source(), {"image": [mixed()]}, sampler, seed=0)
    sampler = UniformSampler(source().ids, batch_size=4, seed=0)
    twice = Chain(mixed(), mmcon.create_view("image/cutmix"))
    with pytest.raises(ConfigError, match="at most one child that mixes"):
        ViewLoader(source(), {"image": [twice]}, sampler, seed=0)
    remembers = Chain(("memory", Remembers()), mmcon.create_view("image/mixup"))
    with pytest.raises(ConfigError, match="no stateful child"):
        ViewLoader(source(), {"image": [remembers]}, sampler, seed=0)


def test_mixing_a_batch_of_one_raises():
    mixup, photo = mmcon.create_view("image/mixup"), torch.rand(1, 3, 8, 8)
    with pytest.raises(InputError, match=r"image/mixup(.|\n)*batch of one(.|\n)*ViewLoader"):
        mixup(photo, mmcon.keys(seed=0, epoch=0, sample=[1], view=0))
    sizes = [torch.rand(3, 8, 8), torch.rand(3, 8, 9), torch.rand(3, 8, 8)]
    with pytest.raises(InputError, match=r"samples of one shape(.|\n)*begin the chain with"):
        Chain(mixup)(sizes, mmcon.keys(seed=0, epoch=0, sample=[1, 2, 3], view=0))


def test_a_rank_makes_its_own_views_and_missing_partners():
    every, partners = add_partners(torch.tensor([4, 5, 6]), torch.tensor([6, 9, 1]))
    assert every[:3].tolist() == [4, 5, 6]
    assert sorted(every[3:].tolist()) == [1, 9]
    assert every[partners].tolist() == [6, 9, 1]


def test_a_view_that_mixes_with_more_than_its_partner_breaks_a_law():
    class WithTheMean(ViewGenerator):
        modality, scope = "image", "partner"

        def draw(self, keys, meta):
            return {"partner": keys.uniform("partner")}

        def partners(self, params, positions, n):
            return partner_positions(params["partner"], positions, n)

        def apply(self, batch, params, partners=None):
            return batch + self.mean(partners)

        @staticmethod
        def mean(others):
            return others.mean(0)

    with pytest.raises(LawBroken, match="partner independence"):
        check_view(WithTheMean(), torch.rand(5, 3, 6, 6))
    check_view(mixed(), torch.rand(5, 3, 16, 16))


# --- labels ----------------------------------------------------------------------------------------------------------


def test_the_affinity_is_that_of_soft_labels():
    generator = torch.Generator().manual_seed(0)
    labels, partners = torch.randint(0, 4, (2, 15), generator=generator)
    share = torch.rand(15, generator=generator)
    share[:3] = torch.tensor([0.0, 1.0, 0.5])
    soft = MultiLabel(soft_labels(labels, partners, share, 4))
    affinity = MixedLabel(labels, partners, share)
    torch.testing.assert_close(affinity.dense(), soft.dense(), rtol=0, atol=1e-6)
    plain = MixedLabel(labels, partners, torch.ones(15)).dense()
    assert torch.equal(plain, SameLabel(labels).dense())


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ((torch.rand(3), torch.arange(3), torch.rand(3)), "integers"),
        ((torch.arange(3), torch.arange(3), torch.arange(3)), "a share"),
        ((torch.arange(3), torch.arange(3), torch.tensor([0.0, 1.5, 1])), "from 0 to 1.5"),
    ],
)
def test_invalid_mixed_labels_raise(columns, expected):
    with pytest.raises(InputError, match=expected):
        MixedLabel(*columns)


def test_an_objective_reads_mixed_labels_of_the_batch_and_of_the_queue():
    (batch,) = batches(source(), {"image": [mixed()] * 2}, steps=1)
    table = batch.index["image"]
    z = functional.normalize(torch.randn(table.n, 8, generator=torch.Generator().manual_seed(3)).double(), dim=1)
    soft = soft_labels(table["label"], table["partner_label"], table["share"], 4).double()
    objective = mmcon.Objective(affinity=MixedLabel(), temperature=0.2)
    expected = mmcon.weighted_supcon(z, None, Dense(soft @ soft.T), temperature=0.2)
    torch.testing.assert_close(objective(z, table), expected, rtol=0, atol=1e-6)

    queue = Queue(size=10)
    queue.push({"space": {"image": z.flip(0)}}, {"image": table})
    more = mmcon.Objective(affinity=MixedLabel(), temperature=0.2, queue=queue)
    assert float(more({"space": {"image": z}}, {"image": table})) > float(expected)


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_cross_entropy_takes_both_labels_by_their_share(power):
    data = source()
    (batch,) = batches(data, {"image": [mixed()]}, steps=1)
    scores = torch.randn(BATCH, 4, generator=torch.Generator().manual_seed(0))
    table = batch.index["image"]
    loss = CrossEntropy(data, power=power)
    weights = torch.ones(4) if loss.weights is None else loss.weights
    soft = soft_labels(table["label"], table["partner_label"], table["share"], 4) * weights
    expected = -(soft * scores.log_softmax(1)).sum() / soft.sum()
    torch.testing.assert_close(loss(scores, batch), expected)
    plain = ViewBatch(batch.views, {"image": Index({"label": table["label"]})})
    torch.testing.assert_close(loss(scores, plain), functional.cross_entropy(scores, table["label"], weights))
