"""The loader: the same batches for any workers and ranks, from any step, with unreadable or missing samples."""

import errno

import pytest
import torch

from mmcon.batch import Index
from mmcon.errors import ConfigError, DataError
from mmcon.loading.loader import ViewLoader, group_views, one_pass
from mmcon.registry import create_view
from mmcon.samplers.uniform import UniformSampler
from mmcon.sources.base import Source, TensorSource
from mmcon.sources.joined import JoinedSource
from mmcon.views import Chain, Identity, ViewGenerator

N = 22


class Noise(ViewGenerator):
    """Adds noise; batched."""

    modality = "image"

    def draw(self, keys, meta):
        return {"noise": keys.normal("noise", shape=(2,))}

    def apply(self, batch, params):
        return batch + params["noise"].to(batch.dtype).sum(1).view(-1, 1, 1, 1)


class Window(ViewGenerator):
    """Cuts four columns at a drawn place; ragged, and leaves a column of times."""

    modality, ragged = "image", True

    def draw(self, keys, meta):
        return {"left": keys.integers("left", 0, meta["width"] - 3)}

    def apply(self, batch, params):
        return [x[..., left : left + 4] for x, left in zip(map(decoded, batch), params["left"].tolist(), strict=True)]

    def output_meta(self, meta, params):
        return {**meta, "width": torch.full_like(meta["width"], 4)}

    def columns(self, meta, params):
        return {"time": params["left"].double()}


def decoded(sample):
    return sample if isinstance(sample, torch.Tensor) else sample.decode()


class Handle:
    """A picture whose header says its size; some cannot be decoded."""

    def __init__(self, pixels, fails):
        self.pixels, self.fails, self.facts = pixels, fails, {"height": 5, "width": pixels.shape[-1], "channels": 1}

    def decode(self):
        if self.fails:
            raise DataError("a file", expected="a readable image", got="garbage")
        return self.pixels


class Pictures(Source):
    """Pictures of different widths."""

    def __init__(self, n=N, broken=()):
        self.broken = set(broken)
        super().__init__(ids=torch.arange(n) + 100, modality="image", labels=torch.arange(n) % 3)

    def open(self, rows):
        rows = torch.as_tensor(rows).tolist()
        return [Handle(torch.full((1, 5, 6 + row % 4), float(row)), row in self.broken) for row in rows]


def loader(source=None, views=None, batch_size=6, seed=1, **options):
    source = source or Pictures()
    view = Chain(Window(), Noise())
    sampler = UniformSampler(source.ids, batch_size=batch_size, seed=seed)
    return ViewLoader(source, views or {"image": [view, view, Window()]}, sampler, seed=seed, **options)


def same(a, b):
    assert a.step == b.step
    for modality in a.views:
        assert all(torch.equal(x, y) for x, y in zip(a.views[modality], b.views[modality], strict=True))
        assert set(a.index[modality]) == set(b.index[modality])
        assert all(torch.equal(a.index[modality][name], b.index[modality][name]) for name in a.index[modality])


def two_epochs(made):
    return [batch for _ in range(2) for batch in made]


def test_a_batch_has_its_views_and_its_table():
    batch = next(iter(loader()))
    assert [tuple(part.shape) for part in batch.views["image"]] == [(12, 1, 5, 4), (6, 1, 5, 4)]
    index = batch.index["image"]
    assert index["view"].tolist() == [0] * 6 + [1] * 6 + [2] * 6
    assert torch.equal(index["sample"][:6], index["sample"][6:12])
    assert torch.equal(index["sample"][:6], index["sample"][12:])
    assert torch.equal(index["label"], (index["sample"] - 100) % 3)
    assert set(index["time"].tolist()) <= set(range(7))
    assert not torch.equal(batch.views["image"][0][:6], batch.views["image"][0][6:])


def test_consecutive_uses_of_a_generator_make_one_view_group():
    a, b = Identity(), Identity()
    assert [group.views for group in group_views({"image": [a, a, b, a]})] == [(0, 1), (2,), (3,)]


@pytest.mark.parametrize(("name", "options"), [
    ("image/simclr", {"size": 32, "blur": True}), ("image/simclr-tf", {"size": 32, "blur": True}),
    ("image/simclr-supcon", {"size": 32, "warp": 1.0}),
    ("image/supcon-autoaugment", {"size": 32}), ("image/supcon-autoaugment", {"size": 32, "policy": "imagenet"}),
    ("image/stacked-randaugment-supcon", {"size": 32}), ("image/stacked-randaugment-infomin", {"size": 32}),
    ("image/dino", {"size": 32, "crop": "global-2"}),
    ("image/cmc", {"size": 32, "space": "ydbdr"}), ("image/linear-hue", {}), ("image/mixup", {}), ("image/cutmix", {}),
])  # fmt: skip
def test_views_are_finished_on_a_device_from_what_was_drawn_on_the_cpu(name, options):
    """On "meta", where nothing can be read back: a device is never waited for, and no tensor meets one of the CPU."""
    pictures = torch.rand(N, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    rows = TensorSource(pictures, modality="image")
    view = create_view(name, **options)
    loader = ViewLoader(
        rows, {"image": [view, view]}, UniformSampler(rows.ids, batch_size=N, seed=0), seed=0, device="meta"
    )
    (views,) = next(iter(loader)).views["image"]
    assert views.device.type == "meta"
    assert views.shape == (2 * N, 3, 32, 32)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(workers):
    """Two epochs, so that the stream goes on across the border between them."""
    alone, helped = two_epochs(loader()), two_epochs(loader(workers=workers))
    assert [batch.step for batch in helped] == list(range(6))
    for a, b in zip(alone, helped, strict=True):
        same(a, b)


def test_a_loader_goes_on_from_any_step():
    whole = two_epochs(loader())
    for step in range(6):
        resumed = loader()
        resumed.load_state_dict({"step": step})
        rest = [batch for _ in range(2 - step // 3) for batch in resumed]
        assert [batch.step for batch in rest] == list(range(step, 6))
        same(rest[0], whole[step])
        assert resumed.state_dict() == {"step": 6}


def test_processes_share_a_global_batch():
    for whole, *shards in zip(loader(), *(loader(rank=p, world_size=4) for p in range(4)), strict=True):
        rows = Index.cat([shard.index["image"] for shard in shards])
        assert sum(shard.index["image"].n for shard in shards) == whole.index["image"].n
        order = torch.argsort(rows["view"] * 1000 + rows["sample"])
        expected = torch.argsort(whole.index["image"]["view"] * 1000 + whole.index["image"]["sample"])
        values = torch.cat([torch.cat(shard.views["image"]) for shard in shards])
        assert torch.equal(values[order], torch.cat(whole.views["image"])[expected])


def test_seeds_and_epochs_change_the_draws():
    first, second = two_epochs(loader())[0], two_epochs(loader())[3]
    assert not torch.equal(first.index["image"]["sample"], second.index["image"]["sample"])
    other = next(iter(loader(seed=2)))
    assert not torch.equal(first.views["image"][0], other.views["image"][0])


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_samples_are_left_out_and_named(workers):
    whole, faulty = loader(), loader(Pictures(broken=[3, 8]), workers=workers)
    for a, b in zip(two_epochs(whole), two_epochs(faulty), strict=True):
        kept = ~torch.isin(a.index["image"]["sample"], torch.tensor([103, 108]))
        assert torch.equal(a.index["image"]["sample"][kept], b.index["image"]["sample"])
        assert torch.equal(torch.cat(a.views["image"])[kept], torch.cat(b.views["image"]))
    assert set(faulty.failures) <= {103, 108}
    assert faulty.failures
    assert all("garbage" in reason and "key: keys(seed=1" in reason for reason in faulty.failures.values())


def accepting(broken):
    """A source that accepts any number of unreadable samples."""
    source = Pictures(broken=broken)
    source.max_failures = 1.0
    return source


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_without_a_readable_sample_is_passed_over(workers, caplog):
    whole = two_epochs(loader())
    broken = whole[1].index["image"]["sample"].unique()
    faulty = loader(accepting((broken - 100).tolist()), workers=workers)
    steps = [batch for _ in range(2) for batch in faulty.each_step()]
    assert set(faulty.failures) == set(broken.tolist())
    assert [batch.step for batch in steps] == [batch.step for batch in whole]
    assert [bool(batch.modalities) for batch in steps[:3]] == [True, False, True]
    assert "step 2 is passed over: none of its samples can be read" in caplog.text
    for expected, batch in zip(whole, steps, strict=True):
        kept = ~torch.isin(expected.index["image"]["sample"], broken)
        assert kept.any() == bool(batch.modalities)
        if batch.modalities:
            assert torch.equal(torch.cat(batch.views["image"]), torch.cat(expected.views["image"])[kept])
    assert [batch.step for batch in loader(accepting((broken - 100).tolist()))] == [0, 2]


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_rank_without_a_readable_sample_has_views_of_no_rows(workers):
    """Those of step 1 and rank 1; what the ranks have together is what one process has."""
    plan = loader().sampler.batch(1)
    broken = plan.shard(1, 3).indices.tolist()
    alone = two_epochs(loader(accepting(broken)))
    made = [loader(accepting(broken), rank=rank, world_size=3, workers=workers) for rank in range(3)]
    ranks = [[batch for _ in range(2) for batch in each.each_step()] for each in made]
    empty, usual = ranks[1][1], ranks[0][1]
    assert [(part.shape[0], part.shape[1:]) for part in empty.views["image"]] == [
        (0, part.shape[1:]) for part in usual.views["image"]
    ]
    assert {name: (column.dtype, len(column)) for name, column in empty.index["image"].items()} == {
        name: (column.dtype, 0) for name, column in usual.index["image"].items()
    }
    for rank, each in enumerate(made):  # each reports the unreadable samples of its own shards
        own = torch.cat([each.sampler.batch(step).shard(rank, 3).indices for step in range(6)]).tolist()
        assert set(each.failures) == {100 + row for row in broken if row in own}
    for whole, *shards in zip(alone, *ranks, strict=True):
        found = torch.cat([shard.index["image"]["sample"] for shard in shards])
        assert found.sort().values.tolist() == whole.index["image"]["sample"].sort().values.tolist()


def test_a_stateful_view_remembers_no_sample_of_another_rank():
    class Memory(Noise):
        scope = "stateful"

    broken = loader().sampler.batch(1).shard(1, 3).indices.tolist()
    views = {"image": [Chain(Window(), Memory())]}
    with pytest.raises(DataError, match="at least one readable sample"):
        two_epochs(loader(accepting(broken), views, rank=1, world_size=3))


def test_a_modality_without_a_readable_sample_is_left_out_of_its_batch():
    def joined(broken):
        pictures = accepting(broken)
        return JoinedSource(
            pictures, TensorSource(torch.arange(30.0 * N).view(N, 1, 30), modality="audio", ids=pictures.ids)
        )

    views = {"image": [Window()], "audio": [Identity()]}
    broken = loader().sampler.batch(1).indices.tolist()
    whole, faulty = list(loader(joined([]), views)), loader(joined(broken), views)
    batches = list(faulty)
    assert [batch.modalities for batch in batches] == [("image", "audio"), ("audio",), ("image", "audio")]
    assert set(faulty.failures) == {100 + row for row in broken}
    for expected, batch in zip(whole, batches, strict=True):
        assert torch.equal(batch.index["audio"]["sample"], expected.index["audio"]["sample"])
        assert all(torch.equal(batch.views[m][0], expected.views[m][0]) for m in batch.modalities)


def test_a_batch_without_a_readable_sample_ends_the_run_on_several_ranks_or_if_nothing_is_readable():
    with pytest.raises(DataError, match=r"at least one readable sample(.|\n)*mmcon doctor"):
        two_epochs(loader(accepting(range(N))))
    with pytest.raises(DataError, match=r"at least one readable sample(.|\n)*mmcon doctor"):
        two_epochs(loader(accepting(range(N - 2)), rank=1, world_size=3))


def test_a_sample_that_could_not_be_opened_is_not_tried_again(monkeypatch):
    tried = []

    def open_all_but_one(self, rows):
        rows = torch.as_tensor(rows).tolist()
        tried.append(rows)
        if 8 in rows:
            raise DataError("a file", expected="a readable image", got="nothing")
        return opened(self, rows)

    opened = Pictures.open
    monkeypatch.setattr(Pictures, "open", open_all_but_one)
    made = loader(batch_size=11)
    batches = two_epochs(made)
    # In its batch and alone; not for its other views, nor in the next epoch.
    assert [len(rows) for rows in tried if 8 in rows] == [22, 1]
    assert list(made.failures) == [108]
    assert all(108 not in batch.index["image"]["sample"] for batch in batches)


@pytest.mark.parametrize(("number", "later"), [
    (errno.EIO, True), (errno.EMFILE, True), (errno.ESTALE, True), (errno.ENOENT, False), (errno.EACCES, False),
])  # fmt: skip
@pytest.mark.parametrize("raw", [True, False])
def test_a_sample_is_tried_again_in_the_next_epoch_if_the_machine_lacked_something(number, later, raw, monkeypatch):
    """Open files, memory or a network disk: not the file is bad. The error is raised as it is, or as a DataError."""
    epoch, opened = [0], Pictures.open

    def open_later(self, rows):
        rows = torch.as_tensor(rows).tolist()
        if 8 in rows and epoch[0] == 0:
            error = OSError(number, "an error of the system")
            raise error if raw else DataError("a file", expected="a readable image", got="none") from error
        return opened(self, rows)

    monkeypatch.setattr(Pictures, "open", open_later)
    made = loader(batch_size=11)
    assert all(108 not in batch.index["image"]["sample"] for batch in made)
    assert list(made.failures) == [108]
    epoch[0] = 1
    assert any(108 in batch.index["image"]["sample"] for batch in made) == later


def test_a_modality_may_be_missing_for_some_samples():
    pictures = Pictures()
    sounds = TensorSource(torch.randn(8, 1, 30), modality="audio", ids=torch.arange(8) + 100)
    joined = JoinedSource(pictures, sounds)
    made = loader(joined, views={"image": [Window()], "audio": [Identity()]})
    for batch in made:
        expected = {s for s in batch.index["image"]["sample"].tolist() if s < 108}
        assert ("audio" in batch.modalities) == bool(expected)  # of a batch without one, it is not part
        if not expected:
            continue
        heard = batch.index["audio"]["sample"]
        assert set(heard.tolist()) == expected
        assert torch.equal(batch.views["audio"][0], sounds.values[heard - 100])


def test_one_pass_returns_every_sample_once_in_order():
    batches = list(one_pass(Pictures(), {"image": [Window()]}, batch_size=5))
    assert torch.cat([batch.index["image"]["sample"] for batch in batches]).tolist() == list(range(100, 100 + N))
    assert [batch.index["image"].n for batch in batches] == [5, 5, 5, 5, 2]
    halves = [one_pass(Pictures(), {"image": [Window()]}, batch_size=6, rank=p, world_size=2) for p in range(2)]
    seen = [batch.index["image"]["sample"] for half in halves for batch in half]
    assert sorted(torch.cat(seen).tolist()) == list(range(100, 100 + N))


def test_one_pass_has_no_batch_without_samples_where_the_last_batch_is_smaller_than_the_world():
    # 22 samples in batches of 7 leave one, which the last of two ranks gets.
    ranks = [list(one_pass(Pictures(), {"image": [Window()]}, batch_size=7, rank=p, world_size=2)) for p in range(2)]
    assert [len(batches) for batches in ranks] == [3, 4]
    assert all(batch.modalities for batches in ranks for batch in batches)


def test_invalid_arguments_raise():
    with pytest.raises(ConfigError, match=r"views for \['image'\]; got views for \['audio'\]"):
        loader(views={"audio": [Identity()]})
    with pytest.raises(ConfigError, match=r"at least 7 samples, one per rank; got batch_size=6"):
        loader(world_size=7)
