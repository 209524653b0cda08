"""The feature dump: equal to an extraction in one pass, resumed after a kill, shared by ranks, replaced when old."""

import errno
import threading
from pathlib import Path

import pytest
import torch
from pyarrow import parquet

from mmcon.errors import DataError
from mmcon.evaluation import dump
from mmcon.evaluation.dump import read_dump, write_dump
from mmcon.evaluation.features import Features, extract_features
from mmcon.loading.loader import one_pass
from mmcon.sources.base import DatasetSource, TensorSource
from mmcon.views import Identity

ABOUT = {"model": "a"}


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
    monkeypatch.setattr(dump, "PART_SAMPLES", 8)


def source_of(n=21):
    values = torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, 1, 2, 2)
    return TensorSource(values, ids=100 + torch.arange(n), labels=torch.arange(n) % 3, classes=["a", "b", "c"])


class Encoder:
    """Pixels as features; it counts the rows that it encodes, and may fail at a row."""

    def __init__(self, fails_at=None):
        self.rows, self.fails_at = 0, fails_at

    def __call__(self, batch):
        self.rows += len(batch.views["image"][0])
        if self.fails_at is not None and self.rows > self.fails_at:
            raise KeyboardInterrupt
        return batch.views["image"][0].flatten(1).float()


def write(folder, source, encode, **options):
    return write_dump(folder, source, encode, [Identity()], **{"about": ABOUT, "batch_size": 4, **options})


def test_a_dump_is_the_extraction_in_one_pass_mapped_from_one_file(tmp_path):
    source = source_of()
    found = write(tmp_path, source, Encoder())
    whole = extract_features(Encoder(), one_pass(source, {"image": [Identity()]}))
    assert torch.equal(found.values, whole.values)
    assert torch.equal(found.index["sample"], source.ids)
    assert torch.equal(found.labels, source.labels)
    assert found.metadata == {"model": "a", "samples": "21"}
    assert {path.name for path in tmp_path.iterdir()} == {"features.safetensors", "index.parquet", "about.json"}
    # The storage is the file: a copy would have a size of its own.
    assert found.values.untyped_storage().nbytes() >= found.values.nbytes
    table = parquet.read_table(tmp_path / "index.parquet")
    assert table["class"].to_pylist()[:4] == ["a", "b", "c", "a"]
    assert table["name"].to_pylist()[2] == source.name_of(2)


def test_a_killed_extraction_goes_on_where_it_ended(tmp_path):
    source, killed = source_of(), Encoder(fails_at=12)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, source, killed)
    assert [path.name for path in sorted(tmp_path.glob("part-*"))] == ["part-000000.safetensors"]
    again = Encoder()
    found = write(tmp_path, source, again)
    assert again.rows == 21 - 8
    assert torch.equal(found.values[:, 0], torch.arange(21.0))
    complete = Encoder()
    assert torch.equal(write(tmp_path, source, complete).values, found.values)
    assert complete.rows == 0


@pytest.mark.parametrize("batch_size", [1, 3, 5, 100])
def test_a_killed_extraction_goes_on_with_another_batch_size(tmp_path, batch_size):
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, source_of(), Encoder(fails_at=12), batch_size=3)
    again = Encoder()
    assert torch.equal(write(tmp_path, source_of(), again, batch_size=batch_size).values[:, 0], torch.arange(21.0))
    assert again.rows == 21 - 8


def test_ranks_share_the_parts(tmp_path):
    source, encoders = source_of(), [Encoder(), Encoder()]
    other = threading.Thread(target=write, args=(tmp_path, source, encoders[1]), kwargs={"rank": 1, "world_size": 2})
    other.start()
    found = write(tmp_path, source, encoders[0], rank=0, world_size=2)
    other.join(20)
    assert (encoders[0].rows, encoders[1].rows) == (8 + 5, 8)
    assert torch.equal(found.values[:, 0], torch.arange(21.0))


def test_features_of_another_model_are_replaced(tmp_path):
    write(tmp_path, source_of(), Encoder())
    other = Encoder()
    write(tmp_path, source_of(), other, about={"model": "b"})
    assert other.rows == 21
    assert read_dump(tmp_path).metadata["model"] == "b"


class Handle:
    """A 2 × 2 image of one number, or a file that cannot be read."""

    def __init__(self, item, name):
        self.item, self.facts = item, {"height": 2, "width": 2}

    def decode(self):
        if self.item in (1, 9):
            raise DataError("test", expected="a sample", got="none")
        return torch.full((1, 2, 2), self.item, dtype=torch.uint8)


def test_unreadable_samples_are_left_out(tmp_path):
    source = DatasetSource(list(range(20)), handle=Handle, max_failures=1.0)
    found = write(tmp_path, source, Encoder())
    assert found.values[:, 0].tolist() == [0, *range(2, 9), *range(10, 20)]
    assert write(tmp_path, source, Encoder()).values.shape == (18, 4)


def test_a_passing_error_of_the_disk_loses_no_part(tmp_path, monkeypatch):
    """As with too many open files: safetensors calls a file "not found" then."""
    write_part, open_file, fails = Features.save, Path.open, []

    def save(features, file):
        fails.append(write_part(features, file))

    def opened(file, *options):
        if file in fails:
            raise OSError(errno.EMFILE, "Too many open files")
        return open_file(file, *options)

    with monkeypatch.context() as patched:
        patched.setattr(Features, "save", save)
        patched.setattr(Path, "open", opened)
        with pytest.raises(OSError, match="Too many open files"):
            write(tmp_path, source_of(), Encoder())
    assert not [*tmp_path.glob("*.empty")]
    again = Encoder()
    assert torch.equal(write(tmp_path, source_of(), again).values[:, 0], torch.arange(21.0))
    assert again.rows == 0


def test_a_part_that_is_damaged_while_others_are_written_is_named(tmp_path, monkeypatch):
    def cut(condition):
        (tmp_path / "part-000001.safetensors").write_bytes(b"half")

    with monkeypatch.context() as patched:
        patched.setattr(dump, "_wait", cut)
        with pytest.raises(DataError, match="part-000001"):
            write(tmp_path, source_of(), Encoder())
    again = Encoder()
    assert torch.equal(write(tmp_path, source_of(), again).values[:, 0], torch.arange(21.0))
    assert again.rows == 8


def test_the_rows_of_several_views_become_one(tmp_path):
    def mean(features):
        first = features.index["view"] == 0
        values = torch.stack([features.values[first], features.values[~first]]).mean(0)
        return Features(values, features.index.take(first))

    view = Identity()
    found = write_dump(tmp_path, source_of(), Encoder(), [view, view], about=ABOUT, batch_size=4, combine=mean)
    assert torch.equal(found.values[:, 0], torch.arange(21.0))


def test_a_damaged_dump_is_named(tmp_path):
    write(tmp_path, source_of(), Encoder())
    file = tmp_path / "features.safetensors"
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(DataError, match=r"features\.safetensors"):
        read_dump(tmp_path)
    with pytest.raises(DataError, match="readable sample"):
        write(tmp_path / "none", DatasetSource([1, 9], handle=Handle, max_failures=1.0), Encoder())


@pytest.mark.parametrize("name", ["part-000000.safetensors", "features.safetensors"])
def test_features_that_are_cut_off_are_told_and_extracted_again(tmp_path, name, caplog):
    """As after a power failure, or by an earlier version that a full disk ended."""
    if name.startswith("part"):
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path, source_of(), Encoder(fails_at=12))
    else:
        write(tmp_path, source_of(), Encoder())
    file = tmp_path / name
    file.write_bytes(file.read_bytes()[:-4])
    # Of processes that were killed, the last one by an earlier version.
    for left in (f".{name}.1234", ".index.parquet.1234", ".about.json.1234", "features.safetensors.unfinished"):
        (tmp_path / left).write_bytes(b"half")
    again = Encoder()
    assert torch.equal(write(tmp_path, source_of(), again).values[:, 0], torch.arange(21.0))
    assert again.rows == 21
    assert f"{name} is cut off; its features are extracted again" in caplog.text
    assert {path.name for path in tmp_path.iterdir()} == {"features.safetensors", "index.parquet", "about.json"}
