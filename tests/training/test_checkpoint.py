"""Checkpoints are there whole, or they are not there."""

import json
import shutil
from pathlib import Path

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
    **{
        f"manifest {text[:40]}": (
            lambda place, text=text: (place / MANIFEST).write_text(text, encoding="utf-8", errors="surrogateescape"),
            "manifest.json cannot be read",
        )
        for text in (
            '{"step": 3}',
            '{"step": 3, "files": {}}',
            "null",
            "[1, 2]",
            '{"files": null}',
            '{"files": {"state.pt": null}}',
            '{"files": {"state.pt": {"bytes": "many", "sha256": 3}}}',
            '{"files": {"state.pt": {"bytes": 3}}}',
            '{"files": {"' + "n" * 5000 + '": {"bytes": 3, "sha256": ""}}}',
            '{"files": {"../../state.pt": {"bytes": 3, "sha256": ""}}}',
            "[" * 100_000,
            '{"step": ' + "9" * 10_000 + "}",
            "\udcff\udcfe",
        )
    },
    "manifest is a folder": (lambda place: ((place / MANIFEST).unlink(), (place / MANIFEST).mkdir()), "cannot be read"),
    "state is a folder": (
        lambda place: ((place / "state.pt").unlink(), (place / "state.pt").mkdir()),
        "state.pt is miss",
    ),
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


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_checkpoints_do_not_count_and_are_set_aside(three, kind, capsys):
    """Two of two kept are damaged: the new ones stay, and the damaged ones keep their content under another name."""
    kept = Checkpoints(three.folder, keep=2)
    for place in kept.all()[1:]:
        DAMAGE[kind][0](place)
    kept.save(40, state(40))
    assert names(kept) == [10, 40]
    kept.save(50, state(50))
    assert names(kept) == [40, 50]
    assert sorted(place.name for place in kept.folder.iterdir() if place.name.startswith("damaged")) == [
        "damaged-step-000000020",
        "damaged-step-000000030",
    ]
    assert "step-000000020 is damaged" in capsys.readouterr().out
    assert kept.lost() == []


@pytest.mark.parametrize("kind", DAMAGE)
def test_the_best_is_never_a_damaged_one(tmp_path, kind):
    kept = Checkpoints(tmp_path, keep=3)
    for step, score in ((1, 0.5), (2, 0.9), (3, 0.1)):
        kept.save(step, state(step), score=score)
    DAMAGE[kind][0](kept.best())
    assert kept.best().name == "step-000000001"
    kept.save(4, state(4))
    assert kept.best().name == "step-000000001"


@pytest.mark.parametrize("score", ["NaN", "Infinity", '"high"', "null", "[1]", "true && false"])
def test_a_score_that_is_no_number_does_not_count(tmp_path, score):
    kept = Checkpoints(tmp_path, keep=3)
    for step in (1, 2):
        kept.save(step, state(step), score=0.5)
    text = (kept.all()[1] / MANIFEST).read_text()
    (kept.all()[1] / MANIFEST).write_text(text.replace('"score": 0.5', f'"score": {score}'))
    assert kept.best().name == "step-000000001"


def test_only_checkpoints_that_are_all_damaged_are_lost(three):
    assert three.lost() == []
    for place in three.all()[1:]:
        truncate(place)
    assert three.lost() == []
    truncate(three.all()[0])
    assert len(three.lost()) == 3
    three.set_aside_damaged()
    assert names(three) == []
    assert [text.split(":")[0] for text in three.lost()] == [f"damaged-step-0000000{step}" for step in (10, 20, 30)]


def test_a_second_damaged_checkpoint_of_a_step_gets_a_name_of_its_own(three):
    for _ in range(2):
        truncate(three.save(40, state(40)))
        three.set_aside_damaged()
    assert {place.name for place in three.folder.glob("damaged-*")} == {
        f"damaged-step-000000040{n}" for n in ("", "-2")
    }


def test_other_files_among_the_checkpoints_are_left_alone(three):
    for name in ("step-notes", "step-1.txt", "notes.txt"):
        (three.folder / name).write_text("mine")
    three.save(40, state(40))
    assert names(three) == [20, 30, 40]
    assert {"step-notes", "step-1.txt", "notes.txt"} <= {place.name for place in three.folder.iterdir()}


def test_a_run_folder_that_is_gone_is_named(three, tmp_path):
    kept = Checkpoints(tmp_path / "run" / "checkpoints")
    with pytest.raises(CheckpointError, match=r"run, which was deleted or moved"):
        kept.save(1, state(1))
    assert not (tmp_path / "run").exists()


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


def test_a_step_that_is_saved_again_is_there_whenever_a_folder_is_removed(three, monkeypatch):
    """A large one takes seconds, in which the process may be killed."""
    remove, newest = shutil.rmtree, []

    def removes(path, **options):
        remove(path, **options)
        newest.append(three.newest().name)

    monkeypatch.setattr(shutil, "rmtree", removes)
    three.save(30, state(99))
    assert set(newest) == {"step-000000030"}
    assert not list(three.folder.glob(".step-*"))


@pytest.mark.parametrize("how", ["error", "kill"])
def test_a_step_that_was_being_replaced_comes_back(three, monkeypatch, how):
    """After an error of the second renaming at once, and after a kill between the two at the next start."""
    rename = Path.rename

    def fails(path, target):
        if how == "error" and path.suffix == checkpoint.REPLACED:
            return rename(path, target)
        if target.name == "step-000000030":
            raise OSError(5, "Input/output error") if how == "error" else KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(CheckpointError if how == "error" else KeyboardInterrupt):
        three.save(30, state(99))
    monkeypatch.undo()
    assert names(three) == ([10, 20, 30] if how == "error" else [10, 20])
    three.restore_replaced()
    assert names(three) == [10, 20, 30]
    assert load_checkpoint(three.newest())["step"] == 30


@pytest.mark.parametrize("written", [0, 1])
def test_a_full_disk_leaves_what_was_there(three, monkeypatch, written):
    """The disk is full at the state (0) or at the manifest (1); the folder that was begun is gone afterwards."""
    write, count = checkpoint.write_through, iter(range(10))

    def full(path, content):
        if next(count) == written:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        write(path, content)

    monkeypatch.setattr(checkpoint, "write_through", full)
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

    monkeypatch.setattr(checkpoint, "write_through", dies)
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
    from pathlib import Path

    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "touched",)

    kept = Checkpoints(tmp_path / "checkpoints")
    kept.save(1, {"model": Evil()})
    with pytest.raises(CheckpointError, match=r"tensors and plain values(.|\n)*UnpicklingError(.|\n)*nothing of this"):
        load_checkpoint(kept.newest())
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("held", [[1, 2], "text", {"model": 1}, {"step": "three"}])
def test_a_file_of_plain_values_that_is_no_state_is_refused(three, held):
    torch.save(held, three.all()[-1] / "state.pt")
    with pytest.raises(CheckpointError, match=r"TypeError: no state of a run"):
        load_checkpoint(three.all()[-1], checked=True)


def test_an_old_checkpoint_that_cannot_be_removed_does_not_end_the_run(three, monkeypatch):
    """As on a network disk, where another program holds a file open."""

    def busy(*_, **__):
        raise OSError(16, "Device or resource busy")

    with monkeypatch.context() as patched:
        patched.setattr("os.rmdir", busy)
        three.save(40, state(40))
    assert load_checkpoint(three.newest())["step"] == 40


def test_folders_are_flushed_before_and_after_the_rename(three, monkeypatch):
    """Else a power failure could leave the name without its files, or lose the name."""
    flushed = []
    path = three.folder / "step-000000040"
    monkeypatch.setattr(checkpoint, "sync_folder", lambda folder: flushed.append((folder.name[:6], path.exists())))
    three.save(40, state(40))
    assert flushed == [(".step-", False), ("checkp", True)]
