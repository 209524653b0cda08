"""From a trained model to its use on the command line: embed, search, classify."""

import csv
import json

import pytest
from inference_cases import image_model, image_text_model, save_pictures

from mmcon import cli
from mmcon.evaluation.calibrated_probe import fit_calibrated_probe
from mmcon.inference import load
from mmcon.inference.any_data import open_data


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of images with a probe, a model of images and texts, and five pictures."""
    folder = tmp_path_factory.mktemp("use")
    image_text_model(folder / "both")
    save_pictures(folder / "pictures")
    model = load(image_model(folder / "image"))
    features = model.encode_source(open_data(model, folder / "pictures"), normalize=False, show_progress=False)
    fit_calibrated_probe(features, ("a", "b"), l2=1e-6).save(folder / "image", "image")
    return folder


@pytest.fixture
def mmcon(capsys):
    """Run the command in this process: (status, stdout, stderr)."""

    def run(*arguments):
        status = cli.main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def test_photos_in_neighbors_out(mmcon, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    table, page, photo = tmp_path / "e.parquet", tmp_path / "s.html", folder / "pictures" / "b" / "3.png"
    broken = folder / "pictures" / "b" / "broken.png"
    broken.write_bytes(b"no picture")
    status, out, _ = mmcon("embed", "image", "pictures", "--output", table)
    assert status == 0
    assert f"{table}: 5 embeddings of width" in out
    assert f"1 left out, which cannot be read:\n  {broken.relative_to(folder)}" in out
    broken.unlink()
    monkeypatch.chdir(tmp_path)  # paths and the model's folder are absolute
    status, out, _ = mmcon("search", table, "--query", photo, "--k", 2, "--html", page)
    first = out.splitlines()[1].split()
    assert (status, first) == (0, ["1", "1.000", "b", str(photo)])
    assert f"page: {page}" in out
    assert "3.png" in page.read_text()


def test_programs_read_json_from_stdout(mmcon, folder, tmp_path):
    table = tmp_path / "e.npy"
    out = mmcon("embed", folder / "both", folder / "pictures", "--output", table, "--json", "--modality", "image")[1]
    about = json.loads(out)
    assert (about["rows"], about["space"], about["left_out"], about["resumed"]) == (5, "shared", [], 0)
    found = json.loads(mmcon("search", table, "--query", "a cat", "--json", "--k", 3)[1])
    assert (found["modality"], found["table"]["fingerprint"]) == ("text", about["fingerprint"])
    assert [hit["rank"] for hit in found["neighbors"]] == [1, 2, 3]
    names = "--classes", "a cat", "a dog"
    found = json.loads(
        mmcon("classify", folder / "both", folder / "pictures", "--modality", "image", *names, "--json")[1]
    )
    assert len(found) == 5
    assert {top["name"] for row in found for top in row["classes"]} <= {"a cat", "a dog"}


def test_files_are_classified_into_a_table(mmcon, folder, tmp_path, caplog):
    output = tmp_path / "c.csv"
    pictures = sorted((folder / "pictures").rglob("*.png"))
    missing = tmp_path / "gone.png"
    arguments = "classify", folder / "image", *pictures[:2], missing, "--top", 2
    status, out, err = mmcon(*arguments, "--output", output)
    assert (status, out) == (0, f"{output}: 2 files\n")
    assert err == "mmcon: 1 of 3 files left out, which cannot be read\n"
    assert str(missing) in caplog.text
    rows = list(csv.reader(output.read_text().splitlines()))
    assert rows[0] == ["file", "class", "probability", "class_2", "probability_2"]
    assert [row[0] for row in rows[1:]] == [str(path) for path in pictures[:2]]
    assert [row[1] for row in rows[1:]] == ["a", "a"]
    assert all(float(row[2]) + float(row[4]) == pytest.approx(1, abs=1e-5) for row in rows[1:])
    assert mmcon(*arguments)[1].splitlines()[0].startswith(f"{pictures[0]}  a ")


def test_bad_input_gives_one_error_and_status_2(mmcon, folder, tmp_path):
    model, table = folder / "image", tmp_path / "e.parquet"
    mmcon("embed", model, folder / "pictures", "--output", table)
    empty = tmp_path / "empty"
    empty.mkdir()
    damaged = tmp_path / "damaged.parquet"
    damaged.write_bytes(table.read_bytes()[:-50])
    for arguments, message in (
        (("embed", model, empty, "--output", tmp_path / "f.parquet"), "none below"),
        (("embed", tmp_path / "gone", folder / "pictures", "--output", table), "gone"),
        (("embed", model, folder / "pictures", "--output", tmp_path / "e.csv"), "suffix"),
        (("embed", model, folder / "pictures", "--output", table, "--space", "none"), "known are shared"),
        (("search", damaged, "--query", "x"), "complete and unchanged"),
        (("search", table, "--query", "a cat"), "no texts"),
        (("search", table, "--query", folder / "pictures" / "a" / "0.png", "--model", folder / "both"), "fingerprint"),
        (("search", table, "--query", folder / "pictures" / "a" / "0.png", "--k", 0), "k of 1 or more"),
        (("classify", folder / "both", folder / "pictures", "--modality", "image"), "a model with a probe"),
        (("classify", model, folder / "pictures", "--top", 0), "--top of 1 or more"),
        (("classify", model, folder / "pictures", "--device", "gpu"), "a device of this machine; got 'gpu'"),
        (("classify", model, folder / "pictures", "--output", table / "c.csv"), "a folder that is there, or can be"),
        (("embed", model, folder / "pictures", "--output", table / "e.npy"), "a folder that is there, or can be"),
        (("embed", model, table, "--output", table, "--option", "label_column"), "NAME=VALUE; got 'label_column'"),
        (("search", table, "--query", "x", "--html", table / "s.html"), "a folder that is there, or can be"),
    ):
        status, out, err = mmcon(*arguments)
        assert status == 2, (arguments, out, err)
        assert err.startswith("mmcon: ")
        assert message in err
        assert "Traceback" not in err


def test_numbers_that_cannot_be_are_refused_and_a_device_is_one_process(mmcon, folder, capsys, monkeypatch):
    arguments = "embed", folder / "image", folder / "pictures", "--output", "e.csv"
    for flag, value in (("--workers", -1), ("--batch-size", 0), ("--processes", 0)):
        with pytest.raises(SystemExit, match="2"):
            mmcon(*arguments, flag, value)
        assert f"got {value}" in capsys.readouterr().err
    monkeypatch.setattr("mmcon.cli.embed.gpus", lambda: 4)
    monkeypatch.setattr("mmcon.cli.embed.launch", lambda _, processes: pytest.fail(f"{processes} processes"))
    assert "suffix" in mmcon(*arguments, "--device", "cuda:1")[2]
    with pytest.raises(pytest.fail.Exception, match="4 processes"):
        mmcon(*arguments)
    monkeypatch.setattr("mmcon.cli.recipe.gpus", lambda: 4)
    monkeypatch.setattr("mmcon.cli.recipe.launch", lambda _, processes: pytest.fail(f"{processes} processes"))
    monkeypatch.setattr("mmcon.inference.model_evaluation.evaluate_model", lambda *_, **__: iter(()))
    assert mmcon("evaluate", folder / "image", "--device", "cpu")[0] == 0


def test_an_interruption_says_how_to_go_on(mmcon, folder, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("mmcon.inference.embedding_parts._embed", interrupt)
    status, _, err = mmcon("embed", folder / "image", folder / "pictures", "--output", tmp_path / "e.parquet")
    assert status == 130
    assert "the same command goes on" in err


@pytest.mark.parametrize(
    ("words", "function"),
    [
        (("evaluate", "model"), "mmcon.inference.model_evaluation.evaluate_model"),
        (("transfer", "a", "b", "--data", "c"), "mmcon.inference.model_transfer.evaluate_transfer"),
    ],
)
def test_interrupted_evaluations_say_how_to_go_on(mmcon, monkeypatch, words, function):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(function, interrupt)
    status, _, err = mmcon(*words, "--device", "cpu")
    assert status == 130
    assert "the same command goes on" in err
