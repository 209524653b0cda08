"""Checkpoints are there whole, or they are not there."""

import json

import pytest
import torch

from mmcon.errors import CheckpointError
from mmcon.training import checkpoint
from mmcon.training.checkpoint import MANIFEST, Checkpoints, find_faults, load_checkpoint


def state(step):
    return {"step": step, "model": {"weight": torch.full((4, 3), float(step))}, "queue": [1, "two", None]}


@pytest.fixture
def three(tmp_path):
    """Checkpoints of steps 10, 20 and 30."""
    kept = Checkpoints(tmp_path / "checkpoints", keep=3)
    for step in (10, 20, 30):
        kept.save(step, state(step))
    return kept


def names(kept):
    return [int(place.name.removeprefix("step-")) for place in kept.all()]


def test_what_is_saved_comes_back(three):
    loaded = load_checkpoint(three.newest())
    assert loaded["step"] == 30
    assert torch.equal(loaded["model"]["weight"], state(30)["model"]["weight"])
    assert loaded["queue"] == [1, "two", None]
    assert names(three) == [10, 20, 30]


def test_the_newest_below_a_step_is_strictly_below(three):
    assert three.newest(before=30).name == "step-000000020"
    assert three.newest(before=31).name == "step-000000030"
    assert three.newest(before=10) is None


def test_two_checkpoints_are_kept_by_default(tmp_path):
    kept = Checkpoints(tmp_path / "checkpoints")
    for step in (1, 2, 3):
        kept.save(step, state(step))
    assert names(kept) == [2, 3]


def test_where_there_is_none(tmp_path):
    kept = Checkpoints(tmp_path / "nowhere")
    assert (kept.newest(), kept.best(), kept.all()) == (None, None, [])


def truncate(place):
    with (place / "state.pt").open("r+b") as file:
        file.truncate(50)


def flip_a_byte(place):
    data = bytearray((place / "state.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (place / "state.pt").write_bytes(data)


DAMAGE = {
    "truncated": (truncate, "state.pt is missing or differs"),
    "one bit flipped": (flip_a_byte, "state.pt is missing or differs"),
    "file gone": (lambda place: (place / "state.pt").unlink(), "state.pt is missing or differs"),
    "no manifest": (lambda place: (place / MANIFEST).unlink(), "manifest.json cannot be read"),
    "half a manifest": (lambda place: (place / MANIFEST).write_text('{"step": 3'), "manifest.json cannot be read"),
    "an empty manifest": (lambda place: (place / MANIFEST).write_text(""), "manifest.json cannot be read"),
    "no files listed": (lambda place: (place / MANIFEST).write_text('{"step": 3}'), "manifest.json cannot be read"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_and_named(three, kind):
    damage, told = DAMAGE[kind]
    newest = three.newest()
    damage(newest)
    assert find_faults(newest)
    with pytest.raises(CheckpointError, match=rf"{newest.name}(.|\n)*{told}(.|\n)*the one before it"):
        load_checkpoint(newest)
    assert three.newest().name == "step-000000020"
    assert load_checkpoint(three.newest())["step"] == 20


def test_only_the_newest_and_the_best_stay(tmp_path):
    kept = Checkpoints(tmp_path, keep=2)
    for step, score in ((1, 0.3), (2, 0.9), (3, 0.5), (4, None), (5, 0.6)):
        kept.save(step, state(step), score=score)
    assert names(kept) == [2, 4, 5]
    assert kept.best().name == "step-000000002"
    kept.save(6, state(6), score=0.95)
    assert names(kept) == [5, 6]


def test_the_newest_of_equal_scores_is_best(tmp_path):
    kept = Checkpoints(tmp_path, keep=3)
    for step in (1, 2):
        kept.save(step, state(step), score=0.5)
    assert kept.best().name == "step-000000002"


def test_a_step_can_be_saved_again(three):
    three.save(30, state(99))
    assert load_checkpoint(three.newest())["step"] == 99
    assert names(three) == [10, 20, 30]


@pytest.mark.parametrize("written", [0, 1])
def test_a_full_disk_leaves_what_was_there(three, monkeypatch, written):
    """The disk is full at the state (0) or at the manifest (1); the folder that was begun is gone afterwards."""
    write, count = checkpoint._write, iter(range(10))

    def full(path, content):
        if next(count) == written:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        write(path, content)

    monkeypatch.setattr(checkpoint, "_write", full)
    with pytest.raises(CheckpointError, match=r"step-000000040(.|\n)*No space left on device(.|\n)*free space"):
        three.save(40, state(40))
    assert names(three) == [10, 20, 30]
    assert not list(three.folder.glob(".step-*"))
    assert load_checkpoint(three.newest())["step"] == 30


def test_a_write_that_died_leaves_nothing_that_counts(three, monkeypatch):
    class Died(BaseException):
        pass

    def dies(path, content):
        path.write_bytes(b"half")
        raise Died

    monkeypatch.setattr(checkpoint, "_write", dies)
    with pytest.raises(Died):
        three.save(40, state(40))
    monkeypatch.undo()
    assert three.newest().name == "step-000000030"
    assert list(three.folder.glob(".step-*"))
    three.save(50, state(50))
    assert not list(three.folder.glob(".step-*"))


def test_the_manifest_lists_sizes_and_hashes(three):
    manifest = json.loads((three.newest() / MANIFEST).read_text())
    assert manifest["step"] == 30
    assert manifest["files"]["state.pt"]["bytes"] == (three.newest() / "state.pt").stat().st_size
    assert len(manifest["files"]["state.pt"]["sha256"]) == 64


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    """Only tensors and plain values are read back: a file from elsewhere cannot execute anything."""
    import pickle
    from pathlib import Path

    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "touched",)

    kept = Checkpoints(tmp_path / "checkpoints")
    kept.save(1, {"model": Evil()})
    with pytest.raises(pickle.UnpicklingError):
        load_checkpoint(kept.newest())
    assert not (tmp_path / "touched").exists()
