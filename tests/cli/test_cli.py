"""The `mmcon` command."""

import json
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from mmcon import cli
from mmcon.cli import recipe
from mmcon.operations import doctor
from mmcon.sources.factory import create_source


@pytest.fixture
def mmcon(capsys):
    """Run the command in this process: (status, what it printed, what it complained)."""

    def run(*arguments):
        status = cli.main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.jpg"
    rows, columns = np.indices((60, 80))
    Image.fromarray(np.stack([rows * 4, columns * 3, rows * columns % 255], 2).astype("uint8")).save(path)
    return path


def test_views_are_listed_with_what_they_are(mmcon):
    status, out, _ = mmcon("views")
    assert status == 0
    assert any(line.split()[0] == "image/simclr" and "SimAugment" in line for line in out.splitlines())
    assert "sampler/uniform" in out
    only = mmcon("views", "--modality", "image")[1]
    assert "image/simclr" in only
    assert "video/" not in only


def test_a_view_is_described(mmcon):
    status, out, _ = mmcon("views", "image/simclr")
    assert status == 0
    assert out.startswith("image/simclr  (view, image; from mmcon_views.image.simclr)")
    assert "strength = 1.0" in out


def test_invalid_input_gives_one_line_and_a_fix(mmcon, tmp_path, photo):
    for arguments, message in (
        (("views", "image/simcrl"), "did you mean 'image/simclr'"),
        (("views", "--modality", "smell"), "expected a modality"),
        (("show", "image/simclr", "--input", tmp_path / "gone.jpg"), "gone.jpg"),
        (("show", "image/simclr", "--input", photo, "--option", "sise=8"), "did you mean 'size'"),
        (("show", "image/simclr", "--input", photo, "--views", 0), "--views of 1 or more"),
        (("show",), "mmcon show image/simclr --input photo.jpg"),
        (("show", "--replay", photo), "a record that `mmcon show` wrote"),
        (("recipe", "copy", "imagenet_supcom"), "did you mean 'imagenet_supcon'"),
    ):
        status, out, err = mmcon(*arguments)
        assert (status, out) == (2, ""), arguments
        assert err.startswith("mmcon: ")
        assert message in err
        assert "Traceback" not in err


def test_a_sheet_is_drawn_recorded_and_replayed(mmcon, tmp_path, photo):
    sheet = tmp_path / "new" / "sheet.png"
    common = ("--option", "size=24", "--seed", 7)
    status, out, err = mmcon("show", "image/simclr", "--input", photo, "--views", 3, "--output", sheet, *common)
    assert (status, err) == (0, "")
    assert f"3 views: {sheet}" in out
    record = json.loads(sheet.with_suffix(".json").read_text())
    assert (record["view"], record["options"], record["seed"], record["views"]) == ("image/simclr", {"size": 24}, 7, 3)
    again = tmp_path / "again.png"
    assert mmcon("show", "--replay", sheet.with_suffix(".json"), "--output", again)[0] == 0
    pictures = [np.asarray(Image.open(path)) for path in (sheet, again)]
    assert np.array_equal(*pictures)
    assert pictures[0].std() > 10
    other = tmp_path / "other.png"
    mmcon("show", "image/simclr", "--input", photo, "--views", 3, "--output", other, "--option", "size=24", "--seed", 8)
    assert not np.array_equal(np.asarray(Image.open(other)), pictures[0])


def test_two_samples_are_mixed_on_a_sheet(mmcon, tmp_path, photo):
    other, sheet = tmp_path / "black.png", tmp_path / "sheet.png"
    with Image.open(photo) as image:
        Image.new("RGB", image.size).save(other)
    arguments = "show", "image/cutmix", "--input", photo, "--views", 2, "--output", sheet
    status, _, err = mmcon(*arguments)
    assert status == 2
    assert "--partner FILE" in err
    assert mmcon(*arguments, "--partner", other)[0] == 0
    record = json.loads(sheet.with_suffix(".json").read_text())
    assert record["partner"] == str(other)
    assert mmcon("show", "--replay", sheet.with_suffix(".json"), "--output", tmp_path / "again.png")[0] == 0
    first, again = (np.asarray(Image.open(path)) for path in (sheet, tmp_path / "again.png"))
    assert np.array_equal(first, again)


def test_recipes_are_listed_and_copied(mmcon, tmp_path):
    assert any(
        line.startswith("imagenet_supcon ") and "Supervised contrastive learning" in line
        for line in mmcon("recipe", "list")[1].splitlines()
    )
    status, out, _ = mmcon("recipe", "copy", "imagenet_supcon", "--to", tmp_path / "mine")
    copied = tmp_path / "mine" / "imagenet_supcon.py"
    assert status == 0
    assert str(copied) in out
    assert copied.read_text() == recipe.recipes()["imagenet_supcon"].read_text()
    status, _, err = mmcon("recipe", "copy", "imagenet_supcon.py", "--to", tmp_path / "mine")
    assert status == 2
    assert "expected no such file yet" in err


def test_the_doctor_examines_data(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(5):
            Image.new("RGB", (16, 16), (i * 20, 0, 0)).save(tmp_path / name / f"{i}.png")
    healthy = list(doctor.data(str(tmp_path)))
    assert {finding.level for finding in healthy} == {"good"}, [str(f) for f in healthy]
    assert "2 classes" in str(healthy[1])
    whole = (tmp_path / "dog" / "3.png").read_bytes()
    (tmp_path / "dog" / "3.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "cat" / "1.png").write_bytes(whole[: len(whole) // 2])
    (finding,) = doctor.data(str(tmp_path), everything=True)  # a fifth of the files is too much to go on
    assert finding.level == "bad"
    assert "1.png" in str(finding)


def test_the_doctor_decodes_held_out_files_too(tmp_path):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(6):
                Image.effect_noise((80, 80), 99).save(tmp_path / split / name / f"{i}.jpg")
    bad = tmp_path / "test" / "dog" / "2.jpg"
    bad.write_bytes(bad.read_bytes()[:1500])
    (tmp_path / "test" / "cat" / "5.jpg").write_bytes(b"")
    found = {finding.subject: finding for finding in doctor.data(str(tmp_path), options={"max_failures": 0.2})}
    assert found["image files"].level == "good"
    assert "1 unreadable image files left out" in found["held-out split"].message
    assert found["held-out image files"].level == "note"
    assert "1 of 11 decoded samples cannot be read" in found["held-out image files"].message
    assert "dog/2.jpg" in found["held-out image files"].message


def test_the_doctor_and_the_recipes_accept_the_same_share_of_unreadable_files(tmp_path, mmcon, monkeypatch):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(20):
            Image.new("RGB", (16, 16), (i * 5, 0, 0)).save(tmp_path / name / f"{i}.png")
    for i in range(2):  # 2 of 42, which the reference recipe accepts and a limit of .01 does not
        (tmp_path / "cat" / f"bad{i}.png").write_bytes(b"no image")
    assert "unreadable image files left out" in create_source(tmp_path).describe()
    monkeypatch.setattr(doctor, "environment", lambda: iter(()))
    status, out, _ = mmcon("doctor", "--data", tmp_path)
    assert (status, "BAD" in out) == (0, False)
    status, out, _ = mmcon("doctor", "--data", tmp_path, "--option", "max_failures=0.01")
    assert (status, "--option max_failures=0.2" in out) == (1, True)


def test_the_doctor_names_a_folder_that_is_not_there(tmp_path):
    (finding,) = doctor.data(str(tmp_path / "gone"))
    assert finding.level == "bad"
    assert "gone" in str(finding)


@pytest.mark.slow
def test_the_doctor_examines_the_environment():
    findings = {finding.subject: finding for finding in doctor.environment()}
    for subject in ("versions", "decoding images", "decoding audio", "decoding video", "process groups"):
        assert findings[subject].level == "good", str(findings[subject])
    assert "gloo" in findings["process groups"].message


def recipe_run(*arguments, **options):
    """The status and the output of `mmcon recipe run` in a process of its own."""
    command = [sys.executable, "-m", "mmcon.cli", "recipe", "run", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)


def test_a_plain_error_of_a_recipe_has_no_traceback_and_no_launcher(tmp_path):
    run = recipe_run("imagenet_supcon", "--data", tmp_path / "nowhere", "--output-dir", tmp_path / "run", "--cpu")
    out, _ = run.communicate(timeout=120)
    assert run.returncode == 1
    assert "nowhere" in out
    assert "Traceback" not in out
    assert "num_processes" not in out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("flags", "launched"), [([], True), (["--cpu"], False)])
def test_a_recipe_starts_a_process_for_each_gpu_unless_it_runs_on_the_cpu(monkeypatch, flags, launched):
    started = []
    monkeypatch.setattr("mmcon.cli.recipe.gpus", lambda: 4)
    monkeypatch.setattr("os.execv", lambda program, words: started.extend(words))
    cli.main(["recipe", "run", "imagenet_supcon", *flags])
    assert ("--num_processes" in started) == launched


def test_a_recipe_that_is_interrupted_before_its_first_step_says_so_in_a_word(tmp_path):
    file = tmp_path / "waits.py"
    file.write_text(
        '"""Waits."""\nimport time\nfrom dataclasses import dataclass\nimport mmcon\n\n'
        "@dataclass(frozen=True, kw_only=True)\nclass Config(mmcon.RunConfig):\n    word: str = ''\n\n"
        "def main(config):\n    print(config.word, flush=True)\n    time.sleep(60)\n\n"
        "mmcon.run_recipe(main, Config)\n"
    )
    run = recipe_run(file, "--word", "ready")
    assert run.stdout is not None
    assert run.stdout.readline() == "ready\n"
    run.send_signal(signal.SIGINT)
    assert run.communicate(timeout=60)[0] == "interrupted\n"
    assert run.returncode == 130
