"""The record of checked files: what is read again, what never enters it, and a cache that is damaged or read-only."""

import os
import time

import pytest
import torch
from torchvision.io import write_png

from mmcon.media.image import ImageHandle
from mmcon.sources import checked_files, image
from mmcon.sources.factory import create_source

OLD = time.time() - 3600


@pytest.fixture
def reads(monkeypatch):
    """The ids of the images whose headers are read."""
    seen = []
    facts = ImageHandle.__dict__["facts"].func
    monkeypatch.setattr(ImageHandle, "facts", property(lambda handle: seen.append(handle.id) or facts(handle)))
    return seen


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.setattr(checked_files, "RECORDED", 10)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(10):
            file = tmp_path / "photos" / name / f"{i}.png"
            write_png(torch.zeros(3, 8, 8, dtype=torch.uint8), str(file))
            os.utime(file, (OLD, OLD))
    return tmp_path / "photos"


def opened(folder, reads, **options):
    """The number of samples, and what was read."""
    reads.clear()
    n = len(create_source(folder, split="all", **options))
    return n, sorted(reads)


def test_files_are_read_once_until_they_change(photos, reads):
    assert len(opened(photos, reads)[1]) == 20
    assert opened(photos, reads) == (20, [])
    write_png(torch.zeros(3, 99, 8, dtype=torch.uint8), str(photos / "cat" / "1.png"))
    os.utime(photos / "cat" / "1.png", (OLD, OLD))  # another size
    os.utime(photos / "cat" / "2.png", (OLD + 1, OLD + 1))  # another time
    (photos / "cat" / "3.png").rename(photos / "cat" / "new.png")  # another path
    assert opened(photos, reads) == (20, ["cat/1.png", "cat/2.png", "cat/new.png"])
    assert opened(photos, reads) == (20, [])
    # Another check has a record of its own.
    assert len(opened(photos, reads, check="pixels")[1]) >= 20
    assert len(opened(photos, reads, max_pixels=1_000)[1]) == 20


def test_unreadable_and_recent_files_are_read_again(photos, reads):
    bad = photos / "cat" / "bad.png"
    bad.write_bytes(b"no image")
    os.utime(bad, (OLD, OLD))
    (photos / "dog" / "0.png").touch()
    for _ in range(3):
        n, read = opened(photos, reads)
        assert n == 20
    assert read == ["cat/bad.png", "dog/0.png"]
    bad.unlink()
    assert opened(photos, reads) == (20, ["dog/0.png"])


def test_the_record_can_be_switched_off_and_is_for_large_folders(photos, reads, monkeypatch):
    opened(photos, reads)
    monkeypatch.setenv("MMCON_CACHE", "off")
    assert len(opened(photos, reads)[1]) == 20
    monkeypatch.delenv("MMCON_CACHE")
    assert opened(photos, reads)[1] == []
    monkeypatch.setattr(checked_files, "RECORDED", 1_000)
    assert len(opened(photos, reads)[1]) == 20


@pytest.mark.parametrize("content", [b"", b"no array", b"\x93NUMPY\x01\x00", "empty array"])
def test_a_damaged_record_is_written_again(photos, reads, content, tmp_path):
    opened(photos, reads)
    (record,) = (tmp_path / "cache" / "mmcon").iterdir()
    if content == "empty array":
        import numpy as np

        np.save(record, np.zeros(3))
    else:
        record.write_bytes(content)
    assert len(opened(photos, reads)[1]) == 20
    assert opened(photos, reads) == (20, [])


def test_a_cache_that_cannot_be_written_to_costs_no_run(photos, reads, monkeypatch, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    caplog.set_level("INFO", logger="mmcon.sources.checked_files")
    assert len(opened(photos, reads)[1]) == 20
    assert "is not recorded" in caplog.text


def test_a_recorded_folder_asks_for_each_file_once(photos, reads, monkeypatch):
    """Three calls for every part of every path made most of the time in which a large folder opened."""
    opened(photos, reads)
    asked = []
    for name, call in (("stat", os.stat), ("lstat", os.lstat)):

        def ask(path, *args, call=call, **options):
            asked.append(str(path))
            return call(path, *args, **options)

        monkeypatch.setattr(os, name, ask)
    opened(photos, reads)
    of_files = [path for path in asked if path.endswith(".png")]
    assert len(of_files) == len(set(of_files)) == 20
    assert len(asked) - len(of_files) < 40  # of folders


def test_an_unchanged_record_is_not_written_again(photos, reads, tmp_path):
    opened(photos, reads)
    (record,) = (tmp_path / "cache" / "mmcon").iterdir()
    os.utime(record, (OLD, OLD))
    opened(photos, reads)
    assert record.stat().st_mtime == pytest.approx(OLD, abs=1)
    (photos / "cat" / "0.png").unlink()
    opened(photos, reads)
    assert record.stat().st_mtime > OLD + 1


def test_the_limit_of_the_check_is_as_documented():
    assert (image.CHECKED, checked_files.RECORDED) == (100_000, 1_000)
