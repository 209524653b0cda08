"""Transfer: hand-made predictions whose tests can be counted, and the command on models that are not trained."""

from __future__ import annotations

import json

import pytest
import torch
from evaluation_cases import labeled_features
from PIL import Image

import mmcon
from mmcon import cli
from mmcon.errors import DataError, InputError, MmconError
from mmcon.evaluation.saved_predictions import save_predictions
from mmcon.evaluation.statistics import Classification, holm
from mmcon.evaluation.transfer import compare_transfer
from mmcon.inference.model_transfer import evaluate_transfer

TEST = labeled_features(40, 0)


def save(folder, wrong, metric="linear_probe"):
    """Predictions that are wrong on the first samples."""
    correct = torch.arange(len(TEST)) >= wrong
    predicted = torch.where(correct, TEST.labels, (TEST.labels + 1) % 5)
    top1 = correct.double().mean().item()
    save_predictions(folder, {metric: Classification(top1, 1.0, {}, predicted, correct)}, TEST)


def test_holms_correction_is_for_all_data_sets_and_both_tests(tmp_path):
    wrong = {"flowers": (0, 10), "birds": (0, 2), "cars": (3, 3)}
    for data, (first, second) in wrong.items():
        for seed in range(3):
            save(tmp_path / data / "supcon" / f"seed-{seed}", first)
            save(tmp_path / data / "simclr" / f"seed-{seed}", second)
    result = compare_transfer(tmp_path, data=list(wrong), methods=["supcon", "simclr"])
    # The first is correct alone on 10, 2 and 0 samples: 2 of the 2^10, 2^2 and 2^0 exchanges are as extreme.
    plain = [2 / 2**10, 2 / 2**2, 1.0]
    found = [d.of_samples for d in result.differences]
    assert [d.p_samples for d in found] == pytest.approx(plain)
    assert [d.p_corrected for d in found] == pytest.approx(holm(plain))
    assert [d.verdict for d in found] == ["supcon better", "not different", "not different"]
    # Of three seeds that all differ in one direction, 2 of 2^3 exchanges are as extreme.
    assert [d.p_seeds_corrected for d in result.differences] == pytest.approx(holm([0.25, 0.25, 1.0]))
    (mean,) = result.means
    assert mean.difference.value == pytest.approx((10 + 2 + 0) / 40 / 3)
    assert (mean.p_data, mean.wins, mean.verdict) == (0.5, (1, 0, 2), "not different")
    assert result.table().count("not different: supcon − simclr") == 3
    assert json.loads(json.dumps(result.to_json()))["differences"][1]["result"] == "not different"
    assert len(result.plot().axes) == 1


def test_one_data_set_has_no_test_over_data_sets(tmp_path):
    save(tmp_path / "flowers" / "a", 0)
    save(tmp_path / "flowers" / "b", 9)
    (mean,) = compare_transfer(tmp_path, data=["flowers"], methods=["a", "b"]).means
    assert (mean.verdict, mean.p_data) == ("one data set", None)
    save(tmp_path / "flowers" / "a", 0, "fine-tuning")  # of an earlier call with another protocol
    save(tmp_path / "flowers" / "b", 9, "fine-tuning")
    result = compare_transfer(tmp_path, data=["flowers"], methods=["a", "b"], metrics=["linear_probe"])
    assert [(mean.metric, mean.difference.value) for mean in result.means] == [("linear_probe", mean.difference.value)]
    with pytest.raises(InputError, match="two methods"):
        compare_transfer(tmp_path, data=["flowers"], methods=["a"])
    with pytest.raises(DataError, match="predictions"):
        compare_transfer(tmp_path, data=["birds"], methods=["a", "b"])


@pytest.fixture
def models(tmp_path):
    """Two models that are not trained, of one seed and of two."""
    source, views = mmcon.create_source("samples/emoji"), [mmcon.create_view("image/plain", size=16)]
    for seed, place in enumerate(("plain", "seeds/seed-0", "seeds/seed-1")):
        torch.manual_seed(seed)
        encoder = mmcon.create_encoder("mmcon/resnet-tiny", width=8)
        model = mmcon.ContrastiveModel({"image": encoder}, {})
        mmcon.inference.save_model(model, tmp_path / place / "model", views={"image": views}, source=source)
    return [str(tmp_path / "plain"), str(tmp_path / "seeds")]


@pytest.mark.slow
def test_the_command_evaluates_compares_and_goes_on(models, tmp_path, capsys):
    words = ["transfer", *models, "--data", "samples/emoji", "--output", str(tmp_path / "out"), "--device", "cpu"]
    assert cli.main(words) == 0
    shown = capsys.readouterr().out
    assert "not different" in shown or "better" in shown
    written = json.loads((tmp_path / "out" / "transfer.json").read_text())
    assert [len(a["by_seed"]) for a in written["accuracies"]] == [1, 2]
    assert (tmp_path / "out" / "transfer.png").stat().st_size > 1000
    assert (tmp_path / "out" / "transfer.txt").read_text().strip() in shown
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("probe.json")}
    assert len(times) == 3
    assert cli.main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == written
    assert {file: file.stat().st_mtime_ns for file in times} == times


@pytest.fixture
def colors(tmp_path):
    """Small pictures of two classes, one more red and one more green."""
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 16), ("test", 8)):
        for label in range(2):
            (tmp_path / "colors" / split / f"class{label}").mkdir(parents=True)
            for number in range(count):
                pixels = torch.randint(0, 150, (16, 16, 3), generator=generator)
                pixels[..., label] += 60
                file = tmp_path / "colors" / split / f"class{label}" / f"{number}.png"
                Image.fromarray(pixels.to(torch.uint8).numpy()).save(file)
    return tmp_path / "colors"


@pytest.mark.slow
def test_the_command_fine_tunes_models_of_several_seeds(models, colors, tmp_path, capsys):
    words = ["transfer", *models, "--data", str(colors), "--output", str(tmp_path / "out"), "--device", "cpu"]
    words += ["--protocols", "linear", "fine-tuned"]
    words += ["--option", "fine_tuning_epochs=1", "--option", "fine_tuning_rates=0.001"]
    assert cli.main(words) == 0
    written = json.loads((tmp_path / "out" / "transfer.json").read_text())
    found = {(a["metric"], len(a["by_seed"])): a["samples"] for a in written["accuracies"]}
    assert found == {(metric, seeds): 16 for metric in ("linear_probe", "fine-tuning") for seeds in (1, 2)}
    assert "fine-tuning" in capsys.readouterr().out


def test_bad_input_is_refused_before_the_work(models, tmp_path):
    for given, message in (
        ({"protocols": ["linaer"]}, "linear"),
        ({"models": models[:1]}, "two models"),
        ({"data": []}, "data set"),
        ({"models": [models[0], models[1] + "x"]}, "seedsx"),
        ({"data": ["samples/emoji", "samples/emojy"]}, "samples/emojy"),
    ):
        with pytest.raises(MmconError, match=message):
            evaluate_transfer(
                **{"models": models, "data": ["samples/emoji"], "output": tmp_path / "out", "protocols": ["linear"]}
                | given
            )
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("of_call", ["seed-2/predictions", "predictions"])
def test_results_of_other_seeds_are_refused(models, tmp_path, of_call):
    """Of an earlier call: those of more seeds would count, and those of one model would come before all seeds."""
    out = tmp_path / "out"
    (out / "emoji" / "seeds" / of_call).mkdir(parents=True)
    given = {"models": models, "data": ["samples/emoji"], "output": out}
    with pytest.raises(InputError, match=r"results of (seed-2|one model without seeds) in[\s\S]*--output"):
        evaluate_transfer(**given)
