"""Folders and shards as people have them: suffixes, links, names in other encodings; what is left out is counted."""

import io
import json
import os
import tarfile

import pytest
import torch
from PIL import Image

from mmcon.errors import DataError, InputError
from mmcon.sources.base import DatasetSource, Subset, TensorSource
from mmcon.sources.factory import create_source
from mmcon.sources.quarantine import read_quarantine, report_failures


def image(suffix="png", shade=0):
    out = io.BytesIO()
    kind = {"jpg": "jpeg", "jpeg": "jpeg", "jfif": "jpeg", "tif": "tiff", "pnm": "ppm", "jpe": "jpeg"}.get(
        suffix, suffix
    )
    Image.new("RGB", (8, 8), (shade, shade, shade)).save(out, kind)
    return out.getvalue()


@pytest.fixture
def photos(tmp_path):
    """Twenty images in each of two classes."""
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(20):
            (tmp_path / name / f"{i}.png").write_bytes(image())
    return tmp_path


@pytest.mark.parametrize("suffix", ["jfif", "avif", "JPG", "jpe", "tif", "webp", "gif", "bmp", "pnm", "tga", "jp2"])
def test_every_readable_suffix_is_listed(photos, suffix):
    kind = {"jp2": "jpeg2000"}.get(suffix.lower(), suffix.lower())
    (photos / "cat" / f"more.{suffix}").write_bytes(image(kind))
    source = create_source(photos, split="all")
    assert len(source) == 41
    assert source.open([source.names.index(f"cat/more.{suffix}")])[0].decode().shape == (3, 8, 8)


def test_the_files_of_a_source_are_absolute_paths_in_its_order(photos, monkeypatch):
    monkeypatch.chdir(photos.parent)
    source = create_source(photos.name, split="all")
    assert [file.relative_to(photos).as_posix() for file in source.files] == list(source.names)
    assert Subset(source, [3, 1]).files == [photos / source.names[3], photos / source.names[1]]
    pairs = [(file, 0) for file in source.files]  # as torchvision lists them
    assert DatasetSource(pairs, labels=torch.zeros(40, dtype=torch.int64)).files == source.files
    with pytest.raises(InputError, match="a file of its own for every sample; got 40 of 40"):
        _ = TensorSource(torch.zeros(40, 3, 8, 8, dtype=torch.uint8)).files


def test_what_is_left_out_of_a_folder_is_counted(photos):
    for name in ("cat/notes.txt", "dog/a.HEIC", "dog/b.heic", "README", ".hidden.png"):
        (photos / name).write_bytes(b"")
    (photos / "loose.png").write_bytes(image())
    (photos / "cat" / ".thumbs").mkdir()
    (photos / "cat" / ".thumbs" / "1.png").write_bytes(image())
    said = create_source(photos, split="all").describe()
    assert said.startswith(f"{photos.name} (all): 40 image samples, 2 classes")
    assert "1 images outside of folders of classes left out" in said
    assert "4 files left out that are not image files: .heic 2, no suffix 1, .txt 1" in said


def test_folders_beside_splits_are_named(photos):
    for name, new in (("cat", "train/cat"), ("dog", "train/dog")):
        (photos / "train").mkdir(exist_ok=True)
        (photos / name).rename(photos / new)
    for name in ("val/cat", "val/dog", "extra/cat"):
        (photos / name).mkdir(parents=True)
        (photos / name / "1.png").write_bytes(image())
    for split in ("train", "test"):
        assert "folders beside those of the splits left out: extra" in create_source(photos, split=split).describe()


def test_links_to_folders_are_followed_once(photos, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "1.png").write_bytes(image())
    (photos / "owl").symlink_to(elsewhere)
    (photos / "emu").symlink_to(elsewhere)
    (photos / "cat" / "self").symlink_to(photos)
    source = create_source(photos, split="all")
    assert source.classes == ("cat", "dog", "emu", "owl")
    assert len(source) == 42


def test_names_that_are_not_utf8(photos, tmp_path_factory):
    os.rename(photos / "dog", os.fsencode(photos) + b"/ch\xe9vre")
    os.rename(photos / "cat" / "1.png", os.fsencode(photos) + b"/cat/\xff.png")
    quarantine = tmp_path_factory.mktemp("run") / "quarantine.jsonl"
    with open(os.fsencode(photos) + b"/cat/bad\xfe.png", "wb") as bad:
        bad.write(b"no image")
    source = create_source(photos, split="all", max_failures=0.5, quarantine=quarantine)
    assert source.classes == ("cat", "ch\\udce9vre")
    assert len(source.ids.unique()) == 40
    assert source.open([source.names.index("cat/\\udcff.png")])[0].decode().shape == (3, 8, 8)
    for text in (source.describe(), *source.names, json.dumps(source.classes, ensure_ascii=False)):
        text.encode()
    assert read_quarantine(quarantine) == [f"{photos}/cat/bad\\udcfe.png"]
    assert len(create_source(photos, split="all", max_failures=0.5, quarantine=quarantine)) == 40
    with pytest.raises(DataError, match=r"bad\\udcfe\.png") as caught:
        create_source(photos, split="all", max_failures=0.0)
    str(caught.value).encode()


def write_shard(path, members):
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def test_shards_with_members_of_several_suffixes(tmp_path):
    members = []
    for i in range(40):
        suffix = ("jpg", "jpeg", "PNG", "webp")[i % 4]
        members += [(f"{i:03d}.{suffix}", image(suffix.lower(), 6 * i)), (f"{i:03d}.cls", b"%d" % (i % 2))]
        members += [(f"{i:03d}.mask", image()), (f"{i:03d}.gif", image("gif"))] if i < 4 else []  # after the others
    members += [("900.npy", b"0"), ("900.cls", b"1"), ("901.npy", b"0")]
    source = create_source(write_shard(tmp_path / "mixed.tar", members))
    assert len(source) == 40
    assert "media: .jpg 10, .jpeg 10, .png 10, .webp 10; label: cls" in source.describe()
    assert "2 samples without image media left out; their members: .npy 2, .cls 1" in source.describe()
    assert source.labels.tolist() == [0, 1] * 20
    shades = [int(handle.decode().float().mean().round()) for handle in source.open(range(40))]
    assert max(abs(shade - 6 * i) for i, shade in enumerate(shades)) <= 2


@pytest.mark.parametrize(
    ("label", "column", "message"),
    [
        (b"\xff\xfe\xfd", "cls", r"sample '0'.*member \.cls.*UnicodeDecodeError"),
        (b"", "cls", r"1 samples without one, the first in sample '0'"),
        (b"no json", "json:kind", r"member \.json.*JSONDecodeError"),
        (b'{"other": 1}', "json:kind", r"a field 'kind'.*KeyError"),
        (b"[1]", "json:kind", r"member \.json.*TypeError"),
        (b"[" * 100_000, "json:kind", r"member \.json.*RecursionError"),
        (b'{"kind": null}', "json:kind", "1 samples without one"),
        (None, "cls", r"sample '0': expected a member \.cls in every sample; got members \['png'\]"),
    ],
)
def test_labels_of_shards_that_cannot_be_used(tmp_path, label, column, message):
    suffix = column.partition(":")[0]
    members = [("0.png", image()), ("1.png", image()), (f"1.{suffix}", b"1" if suffix == "cls" else b'{"kind": "a"}')]
    members += [] if label is None else [(f"0.{suffix}", label)]
    with pytest.raises(DataError, match=f"(?s){message}"):
        create_source(write_shard(tmp_path / "a.tar", members), label_column=column)


def test_names_in_shards_that_are_not_utf8(tmp_path):
    source = create_source(write_shard(tmp_path / "a.tar", [("caf\udce9.png", image()), ("b.png", image())]))
    assert source.names == ["caf\\udce9", "b"]
    assert torch.equal(source.open([0])[0].decode(), source.open([1])[0].decode())


def test_a_line_of_the_quarantine_file_that_was_cut_off_does_not_take_the_next_with_it(tmp_path, caplog):
    file = tmp_path / "quarantine.jsonl"
    file.write_text('{"file": "a.png", "reason": "x"}\n{"file": "b.p')
    report_failures("here", {"a.png": "x", "b.png": "y", "c.png": "z"}, 100, 0.1, file)
    assert read_quarantine(file) == ["a.png", "b.png", "c.png"]
    assert '1 damaged lines are skipped, the first: \'{"file": "b.p\'' in caplog.text


def test_files_are_in_the_order_of_the_parts_of_their_paths(tmp_path):
    names = ["a/z.png", "a/b/c.png", "a!/b.png", "a b/c.png", "a.b/c.png", "a/B.png", "é/ä.png", "é/z/a.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(image())
    assert list(create_source(tmp_path, split="all").names) == sorted(names, key=lambda name: name.split("/"))


def test_a_quarantine_file_lists_paths_below_any_root(photos, monkeypatch):
    monkeypatch.chdir(photos)
    for root, bad in ((".", "cat/3.png"), (photos, f"{photos}/cat/3.png")):
        (photos.parent / "listed.jsonl").write_text(json.dumps({"file": bad, "reason": ""}) + "\n")
        for check in ("none", "headers"):
            source = create_source(root, split="all", check=check, quarantine=photos.parent / "listed.jsonl")
            assert len(source) == 39
            assert "cat/3.png" not in source.names
