"""Manifests, tar shards, tables and streams, each made of the bundled images and trained from."""

import csv
import io
import json
import tarfile
import time
from itertools import chain

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from torchvision.io import encode_png

import mmcon
from mmcon.affinity import SameLabel
from mmcon.errors import ConfigError, DataError, UnknownNameError
from mmcon.loading.loader import ViewLoader
from mmcon.loading.streaming import StreamLoader
from mmcon.models.contrastive_model import ContrastiveModel
from mmcon.models.encoders import create_encoder
from mmcon.models.shared_spaces import SharedSpace
from mmcon.samplers.uniform import UniformSampler
from mmcon.sources import hub
from mmcon.sources.archives import expand_pattern
from mmcon.sources.base import DatasetSource, TensorSource
from mmcon.sources.bundled.fashion_images import fashion
from mmcon.sources.factory import create_source
from mmcon.sources.streaming import Stream, StreamSample
from mmcon.training.optim import create_optimizer


@pytest.fixture(scope="module")
def images():
    """Ninety of the bundled test images of three classes: PNG bytes, label, class name, id."""
    source = fashion("test")
    rows = torch.cat([(source.labels == label).nonzero()[:30, 0] for label in range(3)])
    rows = rows[torch.randperm(90, generator=torch.Generator().manual_seed(0))].tolist()
    return [
        {
            "id": f"row-{row:04d}",
            "image": bytes(encode_png(source.values[row]).numpy().tobytes()),
            "label": int(source.labels[row]),
            "class_name": source.classes[int(source.labels[row])],
            "pixels": source.values[row],
        }
        for row in rows
    ]


@pytest.fixture
def tables(tmp_path, images):
    """A folder of parquet files as a hub has them: data/train-… and data/test-…."""
    (tmp_path / "table" / "data").mkdir(parents=True)
    for split, part in (("train", images[:60]), ("test", images[60:])):
        columns = {name: [p[name] for p in part] for name in ("id", "image", "label", "class_name")}
        columns["image"] = [{"bytes": b, "path": None} for b in columns["image"]]
        features = {
            "image": {"_type": "Image"},
            "label": {"_type": "ClassLabel", "names": ["top", "trouser", "pullover"]},
        }
        features |= {name: {"_type": "Value", "dtype": "string"} for name in ("id", "class_name")}
        table = pa.table(columns).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        parquet.write_table(table, tmp_path / "table" / "data" / f"{split}-00000-of-00001.parquet", row_group_size=16)
    return tmp_path / "table"


@pytest.fixture
def shards(tmp_path, images):
    """Three webdataset shards for training and one for testing."""
    (tmp_path / "shards").mkdir()
    parts = {f"train-{i:03d}": images[20 * i : 20 * i + 20] for i in range(3)} | {"test-000": images[60:]}
    for name, part in parts.items():
        with tarfile.open(tmp_path / "shards" / f"{name}.tar", "w") as archive:
            for p in part:
                notes = json.dumps({"kind": p["class_name"]}).encode()
                for suffix, data in (("png", p["image"]), ("cls", str(p["label"]).encode()), ("json", notes)):
                    member = tarfile.TarInfo(f"{p['id']}.{suffix}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    return tmp_path / "shards"


def losses_of(batches, steps=4):
    """Losses of a few steps of SupCon on the labels that a loader gives."""
    torch.manual_seed(0)
    model = ContrastiveModel(
        {"image": create_encoder("mmcon/resnet-tiny", width=8)}, {"shared": SharedSpace(dim=16, head="linear")}
    )
    objective = mmcon.Objective(affinity=SameLabel(), temperature=0.5)
    optimizer = create_optimizer(model, "adamw", learning_rate=3e-3)
    seen = []
    while len(seen) < steps:
        for batch in batches:
            loss = objective(model(batch), batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen.append(loss.item())
    return seen


def view():
    return mmcon.create_view("image/random-resized-crop", size=28)


def trains(source):
    loader = ViewLoader(
        source, {"image": [view()] * 2}, UniformSampler(source.ids, batch_size=len(source), seed=0), seed=0
    )
    seen = losses_of(loader, steps=8)
    return seen[-1] < seen[0] - 0.05


# --- manifests -------------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path, images):
    (tmp_path / "media").mkdir()
    for p in images:
        (tmp_path / "media" / f"{p['id']}.png").write_bytes(p["image"])
    return tmp_path


def rows_of_manifest(images):
    return [
        {"file": f"media/{p['id']}.png", "class": p["class_name"], "split": "train" if i < 60 else "val"}
        for i, p in enumerate(images)
    ]


def write_manifest(files, images, suffix):
    rows, path = rows_of_manifest(images), files / f"list.{suffix}"
    if suffix == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    elif suffix == "parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="") as out:
            writer = csv.DictWriter(out, list(rows[0]), delimiter="\t" if suffix == "tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_manifests_point_to_files(files, images, suffix):
    path = write_manifest(files, images, suffix)
    train, test = create_source(path, split="train"), create_source(path, split="test")
    assert (len(train), len(test)) == (60, 30)
    assert train.classes == test.classes == ("T-shirt/top", "pullover", "trouser")
    assert "media column: 'file', by its name" in train.describe()
    assert torch.equal(train.open([7])[0].decode()[:1], images[7]["pixels"])
    assert train.classes[int(train.labels[7])] == images[7]["class_name"]
    assert trains(train)


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "json", "parquet"])
def test_pairs_of_every_format_are_joined_by_the_image(files, images, suffix):
    names = [f"media/{p['id']}.png" for p in images[:30]]
    rows = [
        {"image": names[i % 30], "title": f"title {i}", "body": f"body {i}", "label": i % 30 % 3} for i in range(90)
    ]
    path = files / f"pairs.{suffix}"
    if suffix == "json":
        path.write_text(json.dumps(rows))
    elif suffix == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    elif suffix == "parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="") as out:
            writer = csv.DictWriter(out, list(rows[0]), delimiter="\t" if suffix == "tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    train, test = (
        create_source(path, modality=("image", "text"), split=split, text_columns=("title", "body"), test_share=0.3)
        for split in ("train", "test")
    )
    assert len(train) + len(test) == 30
    assert not set(train.ids.tolist()) & set(test.ids.tolist())
    texts = train.members["text"].open([4])[0]
    assert len(texts.instances) == 3
    number = int(texts.instances[0].value.removeprefix("title "))
    assert texts.instances[0].version("body").value == f"body {number}"
    shown = train.members["image"].open([4])[0].decode()[:1]
    assert torch.equal(shown, images[number % 30]["pixels"])
    assert int(train.labels[4]) == number % 30 % 3


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        ("path,label\n0.png,007\n1.png,101\n", ("007", "101")),
        ("path,label\n0.png,3\n1.png,other\n", ("3", "other")),
        ("\ufeffpath, label\n0.png,3\n1.png,1\n", ("0", "1", "2", "3")),
        ("path,label\n0.png,a\n1.png,\n", "1 samples without one"),
        ("path,label\n0.png,a\n1.png,b,c\n", "3 cells in line 3"),
        ("path,label\n0.png,0.5\n1.png,0.25\n", "all of one type"),
    ],
)
def test_labels_of_csv_tables(tmp_path, text, classes):
    (tmp_path / "list.csv").write_text(text, encoding="utf-8")
    for i in range(2):
        (tmp_path / f"{i}.png").write_bytes(b"")
    if isinstance(classes, str):
        with pytest.raises(DataError, match=classes):
            create_source(tmp_path / "list.csv", split="all")
    else:
        assert create_source(tmp_path / "list.csv", split="all").classes == classes


def test_parquet_that_holds_the_bytes(tmp_path, images):
    rows = [{"id": p["id"], "photo": p["image"], "label": p["label"]} for p in images]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "all.parquet")
    train, test = (create_source(tmp_path / "all.parquet", split=s, test_share=0.3) for s in ("train", "test"))
    assert len(train) + len(test) == 90
    assert set(train.names) | set(test.names) == {p["id"] for p in images}
    assert trains(train)


def test_a_missing_file_among_the_first_is_left_out_as_any_unreadable_one(files, images):
    rows = rows_of_manifest(images)
    rows[1]["file"] = "gone.png"
    (files / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    whole, kept = (create_source(files / "list.jsonl", split="all", check=check) for check in ("none", "headers"))
    assert (len(whole), len(kept)) == (len(rows), len(rows) - 1)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"label_column": "clas"}, "did you mean 'class'"),
        ({"file": "scan"}, {}, r"--image-column NAME"),
        ({}, {"root": "/"}, "are not there"),
        ({}, {"split": "extra"}, r"\['train', 'val'\]"),
        ({}, {"classes": ["pullover"]}, "T-shirt/top"),
        ({}, {"label_column": "file"}, "different texts"),
    ],
)
def test_manifests_that_cannot_be_used(files, images, change, options, message):
    rows = [{change.get(k, k): v for k, v in row.items()} for row in rows_of_manifest(images)]
    (files / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match=message):
        create_source(files / "list.jsonl", **options)


@pytest.mark.parametrize(("label", "message"), [(0.5, "whole numbers or as text"), (None, "1 samples without one")])
def test_labels_that_are_none(files, images, label, message):
    rows = rows_of_manifest(images)
    rows[3]["class"] = label
    (files / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match=message):
        create_source(files / "list.jsonl")
    assert create_source(files / "list.jsonl", label_column="none").labels is None


# --- shards ----------------------------------------------------------------------------------------------------------


def test_shards_are_read_by_position(shards, images):
    train, test = create_source(shards, split="train"), create_source(shards, split="val")
    assert (len(train), len(test)) == (60, 30)
    assert train.names[25] == images[25]["id"]
    assert torch.equal(train.open([25])[0].decode()[:1], images[25]["pixels"])
    assert train.labels.tolist() == [p["label"] for p in images[:60]]
    assert trains(train)


def test_shards_by_pattern_and_by_a_json_field(shards):
    source = create_source(f"{shards}/train-{{000..001}}.tar", label_column="json:kind")
    assert len(source) == 40
    assert source.classes == ("T-shirt/top", "pullover", "trouser")
    assert expand_pattern("a{08..11}.tar") == ["a08.tar", "a09.tar", "a10.tar", "a11.tar"]
    assert len(create_source(f"{shards}/t*.tar")) == 90


def test_shards_that_cannot_be_used(shards):
    with pytest.raises(DataError, match="not there"):
        create_source(f"{shards}/train-{{000..007}}.tar")
    with pytest.raises(DataError, match=r"suffixes \['cls', 'json', 'png'\]"):
        create_source(shards, modality="audio")
    (shards / "train-000.tar").write_bytes(b"x" * 2000)
    with pytest.raises(DataError, match=r"train-000\.tar"):
        create_source(shards)


# --- the datasets library --------------------------------------------------------------------------------------------


def test_tables_of_the_datasets_library(tables, images, tmp_path):
    cache = str(tmp_path / "cache")
    train, test = (create_source(tables, split=s, cache_dir=cache) for s in ("train", "test"))
    assert (len(train), len(test)) == (60, 30)
    assert train.classes == ("top", "trouser", "pullover")
    assert train.names[4] == images[4]["id"]
    assert train.open([4])[0].facts["height"] == 28
    assert torch.equal(train.open([9, 4])[1].decode()[:1], images[4]["pixels"])
    assert trains(train)
    by_name = create_source(tables, label_column="class_name", split="validation", cache_dir=cache)
    assert by_name.classes == ("T-shirt/top", "pullover", "trouser")
    with pytest.raises(DataError, match="did you mean 'class_name' or 'label'"):
        create_source(tables, label_column="classname", cache_dir=cache)
    with pytest.raises(DataError, match="a split among"):
        create_source(tables, split="other", cache_dir=cache)


def test_a_quarantine_file_makes_no_source_read_its_images_when_it_opens(tables, tmp_path, monkeypatch):
    read = []
    original = hub.TableCells.__getitem__
    monkeypatch.setattr(hub.TableCells, "__getitem__", lambda cells, i: read.append(i) or original(cells, i))
    source = create_source(tables, cache_dir=str(tmp_path / "cache"), quarantine=tmp_path / "quarantine.jsonl")
    assert source.open([0])[0].facts["height"] == 28
    assert not read


def test_the_labels_of_pairs_may_be_their_texts(files, images):
    path = files / "named.csv"
    lines = [f"media/{image['id']}.png,{image['class_name']}" for image in images[:30]]
    path.write_text("image,kind\n" + "\n".join(lines) + "\n")
    options = {"split": "all", "text_columns": ("kind",), "label_column": "kind"}
    pairs = create_source(path, modality=("image", "text"), **options)
    text = pairs.members["text"].open([0])[0].instances[0].value
    assert text == pairs.classes[int(pairs.labels[0])] == images[0]["class_name"]


@pytest.mark.usefixtures("own_registry")
def test_a_registered_source_of_a_new_modality_opens_with_its_modality():
    @mmcon.register_source("mine/series", modality="series")
    def series(split: str = "train") -> TensorSource:
        return TensorSource(torch.zeros(3, 2), modality="series")

    assert create_source("mine/series", modality="series").modality == "series"
    with pytest.raises(DataError, match="modality 'series'"):
        create_source("mine/series", modality="image")
    with pytest.raises(UnknownNameError, match="a modality"):
        create_source("photos.csv", modality="imag")


def test_hub_names_without_a_network(monkeypatch):
    import datasets.config
    import huggingface_hub.constants

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="without a network, give the path"):
        create_source("nobody/nothing")


def test_map_style_datasets(images):
    rows = [(p["pixels"], p["label"]) for p in images]
    source = DatasetSource(rows, labels=torch.tensor([p["label"] for p in images]))
    assert torch.equal(source.open([5])[0], images[5]["pixels"])
    assert trains(source)


# --- streams ---------------------------------------------------------------------------------------------------------


def png(shade):
    return bytes(encode_png(torch.full((3, 8, 8), shade, dtype=torch.uint8)).numpy().tobytes())


def numbers(n, calls=None):
    def open_rows(skip):
        if calls is not None:
            calls.append(skip)
        return (StreamSample(f"row {i}", torch.full((1, 4, 4), i, dtype=torch.uint8), i % 3) for i in range(skip, n))

    return Stream(open_rows, handle=lambda media, name: media)


def samples(loader):
    return [batch.index["image"]["sample"].tolist() for batch in loader]


def whole(stream, **options):
    views = {"image": [mmcon.create_view("image/resize", size=4)]}
    return StreamLoader(stream, views, **{"batch_size": 10, "steps_per_epoch": 10, "seed": 0, "buffer": 32, **options})


def test_an_epoch_of_a_stream_has_every_row_once():
    loader = whole(numbers(100))
    first, second = samples(loader), samples(loader)
    assert len({s for batch in first for s in batch}) == 100
    assert sorted(chain(*first)) == sorted(chain(*second))
    assert first != second
    assert first == samples(whole(numbers(100)))


def test_processes_share_a_stream_without_loss_or_repeat():
    one = samples(whole(numbers(100)))
    three = [samples(whole(numbers(100), rank=p, world_size=3)) for p in range(3)]
    assert [list(chain(*parts)) for parts in zip(*three, strict=True)] == one


def test_the_position_of_a_stream_is_a_number():
    straight = whole(numbers(100))
    expected = samples(straight) + samples(straight)
    calls = []
    resumed = whole(numbers(100, calls))
    resumed.load_state_dict({"step": 17})
    assert samples(resumed) == expected[17:]
    assert calls == [64]  # the block that row 70 of the second pass stands in


def test_a_stream_that_ends_early_starts_anew():
    loader = whole(numbers(45), steps_per_epoch=10)
    seen = samples(loader)
    passes = [list(chain(*seen[i : i + 4])) for i in (0, 4)]
    assert all(len(set(rows)) == 40 for rows in passes)
    assert passes[0] != passes[1]
    resumed = whole(numbers(45), steps_per_epoch=10)
    resumed.load_state_dict({"step": 6})
    assert samples(resumed) == seen[6:]


def test_a_stream_that_raises_ends_with_its_name_and_the_number_of_samples():
    def failing(skip):
        yield from (StreamSample(f"row {i}", torch.zeros(1, 4, 4, dtype=torch.uint8)) for i in range(skip, 15))
        raise ConnectionResetError("reset by peer")

    loader = whole(Stream(failing, handle=lambda media, name: media, name="remote"), buffer=10)
    batches = iter(loader)
    next(batches)
    with pytest.raises(DataError, match=r"remote: .* got ConnectionResetError after 15 samples: reset(.|\n)*--resume"):
        next(batches)
    assert loader.step == 1


def test_a_stream_that_hangs_is_told(monkeypatch, caplog):
    monkeypatch.setattr("mmcon.sources.streaming.SILENT_SECONDS", 0.05)

    def slow(skip):
        for i in range(skip, 10):
            if i == 7:
                time.sleep(0.3)
            yield StreamSample(f"row {i}", torch.zeros(1, 4, 4, dtype=torch.uint8))

    batches = iter(whole(Stream(slow, handle=lambda media, name: media, name="remote"), buffer=10, steps_per_epoch=1))
    next(batches)
    assert "remote: no sample for" in caplog.text


def test_a_sample_of_a_stream_that_cannot_be_decoded_is_left_out(caplog):
    def rows(skip):
        for i in range(skip, 20):
            yield StreamSample(f"row {i}", b"no image" if i == 3 else png(i))

    loader = whole(Stream(rows, name="remote"), steps_per_epoch=2)
    assert sum(batch.index["image"].n for batch in loader) == 19
    assert list(loader.files.values()) == ["remote: row 3"]


@pytest.mark.parametrize("how", ["cut", "gone"])
def test_a_file_of_a_stream_that_goes_bad_ends_with_one_error(how, tables):
    stream = Stream.from_hub(tables, split="train")
    for file in sorted(tables.rglob("*.parquet")):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]) if how == "cut" else file.unlink()
    with pytest.raises(DataError, match=r"a stream that can be read to its end; got \w+ after 0 samples"):
        next(iter(whole(stream)))


@pytest.mark.parametrize("fault", ["cut", "swapped", "emptied", "gone"])
def test_a_bad_sample_of_hub_data_is_left_out(fault, tmp_path):
    """Bytes in the table are cut, swapped or empty; a path in the table leads nowhere."""
    good = png(4)
    bad = {"cut": good[: len(good) // 2], "swapped": b"<html>404</html>" * 9, "emptied": b"", "gone": None}[fault]
    cells = [{"bytes": bad if i == 4 else png(i), "path": f"{i}.png"} for i in range(12)]
    features = {"image": {"_type": "Image"}, "id": {"_type": "Value", "dtype": "string"}}
    rows = pa.table({"id": [f"{i:02}" for i in range(12)], "image": cells}).replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    (tmp_path / "data").mkdir()
    parquet.write_table(rows, tmp_path / "data" / "train-00000.parquet")
    source = create_source(tmp_path, split="all", id_column="id")
    sampler = UniformSampler(source.ids, batch_size=12, seed=0)
    loader = ViewLoader(source, {"image": [mmcon.create_view("image/resize", size=4)]}, sampler, seed=0)
    assert next(iter(loader)).index["image"].n == 11
    assert list(loader.files) == [int(source.ids[4])]


@pytest.mark.parametrize("fault", ["cut", "swapped", "emptied"])
def test_hub_data_whose_file_is_bad_are_refused_with_one_error(fault, tmp_path):
    (tmp_path / "data").mkdir()
    file = tmp_path / "data" / "train-00000.parquet"
    parquet.write_table(pa.table({"image": [png(i) for i in range(9)]}), file)
    data = file.read_bytes()
    file.write_bytes({"cut": data[: len(data) // 2], "swapped": b"<html>404</html>" * 99, "emptied": b""}[fault])
    with pytest.raises(DataError, match=r"data set '.*': expected data that can be read"):
        create_source(tmp_path, split="all")


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_streams_of_the_datasets_library(kind, tables, shards, images):
    if kind == "parquet":
        stream = Stream.from_hub(tables, split="train")
    else:
        data = {"train": sorted(str(f) for f in shards.glob("train*.tar"))}
        stream = Stream.from_hub("webdataset", data_files=data, media_column="png", label_column="cls")
    rows = list(stream.read_from(0))
    assert [r.name for r in rows] == [p["id"] for p in images[:60]]
    assert [r.name for r in stream.read_from(40)] == [p["id"] for p in images[40:60]]
    assert torch.equal(stream.handle(rows[3].media, "x").decode()[:1], images[3]["pixels"])
    loader = StreamLoader(stream, {"image": [view()] * 2}, batch_size=60, steps_per_epoch=1, seed=0)
    seen = losses_of(loader, steps=8)
    assert seen[-1] < seen[0] - 0.05


def test_streams_that_cannot_be_used(tables):
    with pytest.raises(DataError, match="give classes="):
        next(iter(Stream.from_hub(tables, label_column="class_name").read_from(0)))
    named = Stream.from_hub(tables, label_column="class_name", classes=["T-shirt/top", "trouser", "pullover"])
    assert next(iter(named.read_from(0))).label in (0, 1, 2)
    with pytest.raises(ConfigError, match="raise buffer"):
        whole(numbers(100), buffer=5)
    with pytest.raises(DataError, match="at least 10 samples"):
        samples(whole(numbers(7)))
