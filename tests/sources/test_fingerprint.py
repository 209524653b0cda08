"""Fingerprints: equal for equal data, and different for each kind of change that a resumed run must notice."""

import hashlib
import math
import os

import pyarrow
import pyarrow.parquet
import pytest
import torch
from torchvision.io import write_png

from mmcon.sources import file_states, fingerprint
from mmcon.sources.base import DatasetSource, Subset, TensorSource
from mmcon.sources.factory import create_source
from mmcon.sources.fingerprint import MEASURED, file_sizes, fingerprint_changes, fingerprint_of
from mmcon.sources.joined import GroupedSource, JoinedSource
from mmcon.sources.text import TextSource

OTHER = "files of other sizes, or other texts"


@pytest.fixture
def folder(tmp_path):
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(3):
                write_png(torch.zeros(3, 8, 8, dtype=torch.uint8), str(tmp_path / split / name / f"{i}.png"))
    return tmp_path


def moved(folder):
    (folder / "train" / "cat" / "1.png").rename(folder / "train" / "dog" / "9.png")


def relabeled(folder):
    (folder / "train" / "bird").mkdir()
    write_png(torch.zeros(3, 8, 8, dtype=torch.uint8), str(folder / "train" / "bird" / "0.png"))
    (folder / "train" / "cat" / "1.png").unlink()


def grown(folder):
    write_png(torch.randint(0, 255, (3, 32, 32), dtype=torch.uint8), str(folder / "train" / "cat" / "1.png"))


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda folder: None, []),
        (lambda folder: (folder / "val" / "cat" / "1.png").unlink(), []),
        (
            lambda folder: (folder / "train" / "cat" / "1.png").unlink(),
            ["5 samples instead of 6", "other samples or another order", "other labels", OTHER],
        ),
        (moved, ["other samples or another order", "other labels"]),
        (relabeled, ["other samples or another order", "other labels"]),
        (grown, [OTHER]),
    ],
    ids=["same", "other split", "removed", "moved", "relabeled", "replaced"],
)
def test_a_change_of_the_data_changes_the_fingerprint(folder, change, found):
    before = create_source(folder).fingerprint()
    change(folder)
    assert fingerprint_changes(before, create_source(folder).fingerprint()) == found


def test_fingerprints_of_subsets_and_joined_sources(folder):
    source = create_source(folder)
    assert source.fingerprint() == Subset(source, range(6)).fingerprint()
    assert source.fingerprint() != Subset(source, [1, 0, 2, 3, 4, 5]).fingerprint()
    names = TensorSource(torch.zeros(6, 2), ids=source.ids, modality="text")
    before = JoinedSource(source, names).fingerprint()
    grown(folder)
    assert fingerprint_changes(before, JoinedSource(create_source(folder), names).fingerprint()) == [OTHER]


def texts_of(kind, texts, tmp_path):
    """The texts as a source, whose names of samples do not depend on them."""
    ids = ["a", "b", "c"]
    if kind == "hub":
        folder = tmp_path / texts[0]
        folder.mkdir()
        pyarrow.parquet.write_table(pyarrow.table({"text": texts, "id": ids}), folder / "train.parquet")
        return create_source(folder, modality="text", split="all", id_column="id")
    source = TextSource(texts, ids=ids)
    if kind == "subset":
        return Subset(source, [2, 1, 0])
    if kind == "captions":  # the second caption of the first sample changes too
        return GroupedSource(source, torch.tensor([7, 7, 8]))
    if kind == "joined":
        images = TensorSource(torch.zeros(3, 3, 4, 4, dtype=torch.uint8), ids=source.ids)
        return JoinedSource(images, source)
    return DatasetSource(texts, names=ids, modality="text") if kind == "list" else source


@pytest.mark.parametrize("kind", ["memory", "list", "hub", "subset", "captions", "joined"])
def test_other_texts_under_the_same_names_are_another_fingerprint(kind, tmp_path):
    before = texts_of(kind, ["red", "green", "blue"], tmp_path).fingerprint()
    now = texts_of(kind, ["rot", "green", "blue"], tmp_path).fingerprint()
    assert fingerprint_changes(before, now) == [OTHER]
    now = texts_of(kind, ["Red", "gelb", "blue"], tmp_path).fingerprint()
    assert fingerprint_changes(before, now) == [OTHER]


@pytest.mark.parametrize("kind", ["captions", "joined", "memory"])
def test_hashes_of_contents_of_earlier_versions_are_not_compared(kind, tmp_path):
    now = texts_of(kind, ["red", "green", "blue"], tmp_path).fingerprint()
    earlier = {name: value for name, value in now.items() if name != "contents"} | {"sizes": "0", "texts": "0"}
    assert fingerprint_changes(earlier, now) == []
    assert fingerprint_changes(earlier | {"ids": "0"}, now) == ["other samples or another order"]


def test_sizes_of_every_kind_of_cell(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    cells = ["a", tmp_path / "a", b"123", ("x.tar", 512, 7), {"bytes": b"1", "path": "a"}, {"bytes": None, "path": "a"}]
    assert file_sizes([*cells, "absent", object()], tmp_path) == [5, 5, 3, 7, 1, 5, -1, -1]


def test_a_million_samples_ask_for_the_sizes_of_a_part():
    asked = []
    fingerprint_of(torch.arange(1_300_000), None, lambda rows: asked.append(rows) or [1] * len(rows))
    (rows,) = asked
    assert len(rows) == len(rows.unique()) == MEASURED
    assert (int(rows[0]), int(rows[-1])) == (0, 1_299_987)  # 99,999 · 13


@pytest.mark.parametrize("seconds", [0, 1000])
def test_a_slow_disk_is_asked_by_several_threads(seconds, tmp_path, monkeypatch):
    monkeypatch.setattr(file_states, "_SLOW_SECONDS", seconds)
    monkeypatch.setattr(file_states, "_CHUNK", 7)
    files = [tmp_path / str(size) for size in range(300)]
    for size, file in enumerate(files[::2]):
        file.write_bytes(b"." * size)
        os.utime(file, ns=(0, size))
    expected = [[i // 2, i // 2] if i % 2 == 0 else [-1, 0] for i in range(300)]
    assert file_states.file_states(map(str, files)).tolist() == expected


def test_columns_where_there_were_none_are_told():
    def of(**columns):
        return TensorSource(torch.zeros(3, 2), modality="text", columns=columns).fingerprint()

    assert fingerprint_changes(of(), of(time=torch.arange(3))) == ["other values in further columns"]


@pytest.mark.parametrize("kind", [torch.uint8, torch.bool, torch.int64, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(0,), (3,), (5, 7)])
def test_a_hash_in_parts_is_that_of_the_whole(kind, shape, monkeypatch):
    """The second one: earlier checkpoints hold it."""
    monkeypatch.setattr(fingerprint, "_HASHED", 4)
    values = torch.arange(math.prod(shape)).reshape(shape).to(kind).t()
    whole = values.to(torch.float64 if kind.is_floating_point else torch.int64).contiguous().numpy().tobytes()
    assert fingerprint._digest(values) == hashlib.blake2b(whole, digest_size=16).hexdigest()


def test_other_values_in_further_columns_are_told(folder):
    """Groups, times and prompts decide which pairs are positive, also those of one member of a joined source."""

    def of(time, prompt="a", features=0.0):
        texts = ["a", prompt, "a", "b", "b", "b"]
        columns = {"time": torch.tensor([0.0, time]).repeat(3), "side": torch.full((6, 4), features)}
        own = TensorSource(torch.zeros(6, 2), modality="text", columns=columns, categories={"prompt": texts})
        other = TensorSource(torch.zeros(7, 2), modality="audio", ids=torch.arange(7))
        return [source.fingerprint() for source in (own, Subset(own, [1, 3]), JoinedSource(other, own))]

    for changed in (of(0.25), of(0.5, "b")):
        for before, now in zip(of(0.5), changed, strict=True):
            assert fingerprint_changes(before, now) == ["other values in further columns"]
    for before, now in zip(of(0.5), of(0.5, features=1e-7), strict=True):
        assert fingerprint_changes(before, now) == []  # of a network, whose last bits may differ
        assert fingerprint_changes({k: v for k, v in before.items() if k != "columns"}, now) == []
