"""Probabilities of a saved probe: calibrated on held-out samples, and the same after loading."""

import json
import math

import pytest
import torch
from evaluation_cases import labeled_features

from mmcon.errors import CheckpointError, InputError
from mmcon.evaluation import calibrated_probe as module
from mmcon.evaluation.calibrated_probe import fit_calibrated_probe, load_probes, minimize_temperature, probe_and_save
from mmcon.evaluation.features import Features
from mmcon.evaluation.probe import linear_probe

NAMES = ("a", "b", "c", "d", "e")


def test_temperature_of_least_cross_entropy_is_found():
    # Logits ±z for the right class with share p: cross-entropy is least where the probability is p, at 2z/T = logit p.
    # The share is 75 of 100, smoothed by one sample of each class.
    logits = torch.tensor([[3.0, -3.0]]).repeat(100, 1).double()
    target = (torch.arange(100) >= 75).long()
    share = (75 * 101 + 25) / (100 * 102)
    expected = 6 / math.log(share / (1 - share))
    assert minimize_temperature(logits, target) == pytest.approx(expected, rel=1e-3)


def test_temperature_of_separable_samples_is_not_its_bound():
    target = torch.arange(40) % 4
    logits = 5 * torch.eye(4).double()[target]
    assert minimize_temperature(logits, target) == pytest.approx(5 / math.log(41), rel=1e-3)  # odds of n + 1 to 1
    assert minimize_temperature(logits / 50, target) == pytest.approx(1.0, abs=1e-3)  # no error was seen


def with_noise(n, seed):
    """Overlapping classes, and forty columns of noise."""
    features = labeled_features(n, seed, d=2)
    noise = torch.randn(n, 40, generator=torch.Generator().manual_seed(100 + seed))
    return Features(torch.cat([features.values, noise], 1), features.index)


def test_temperature_of_an_overconfident_probe_is_above_1_and_improves_held_out_probabilities():
    train, test = with_noise(150, 0), with_noise(2000, 1)
    probe = fit_calibrated_probe(train, NAMES, l2=1e-6)
    assert probe.temperature > 1.5

    def cross_entropy(probabilities):
        return -probabilities.gather(1, test.labels[:, None]).clamp(min=1e-12).log().mean().item()

    plain = torch.softmax(probe.probe.logits(test.values), 1)
    calibrated = probe.probabilities(test.values)
    assert cross_entropy(calibrated) < 0.8 * cross_entropy(plain)
    assert torch.equal(calibrated.argmax(1), plain.argmax(1))
    torch.testing.assert_close(calibrated.sum(1), torch.ones(2000))


def test_saved_probes_of_two_modalities_are_the_same_after_loading(tmp_path):
    train, test = labeled_features(200, 0), labeled_features(50, 1)
    found = probe_and_save(train, test, model_folder=tmp_path, classes=NAMES, modality="image")
    assert torch.equal(found.predicted, linear_probe(train, test).predicted)
    other = fit_calibrated_probe(labeled_features(200, 2, d=6), NAMES, scaling="unit")
    other.save(tmp_path, "audio")
    loaded = load_probes(tmp_path)
    assert set(loaded) == {"image", "audio"}
    assert loaded["image"].classes == NAMES
    expected = fit_calibrated_probe(train, NAMES)
    assert torch.equal(loaded["image"].probabilities(test.values), expected.probabilities(test.values))
    values = labeled_features(50, 3, d=6).values
    assert torch.equal(loaded["audio"].probabilities(values), other.probabilities(values))
    with pytest.raises(InputError, match="features of width 8; got width 6"):
        loaded["image"].probabilities(values)


def test_classes_that_a_split_lacks_and_few_samples_keep_the_probe():
    train = labeled_features(40, 0)
    absent = train.take(train.labels != 1)
    probe = fit_calibrated_probe(absent, NAMES)
    assert probe.classes == ("a", "c", "d", "e")
    few = train.take([0, 1, 2, 3, 4, 5])
    assert fit_calibrated_probe(few, NAMES, l2=0.1).temperature == 1.0


def test_folder_without_a_probe_has_none_and_a_damaged_one_is_one_error(tmp_path):
    assert load_probes(tmp_path) == {}
    fit_calibrated_probe(labeled_features(60, 0), NAMES).save(tmp_path, "image")
    about = tmp_path / "probe.json"
    whole = json.loads(about.read_text())
    for change, message in (
        ({"format": 7}, "format 1; got format 7"),
        ({"probes": {"image": {**whole["probes"]["image"], "classes": ["a"]}}}, "names of classes of another size"),
        ({"probes": {"audio": whole["probes"]["image"]}}, "KeyError"),
    ):
        about.write_text(json.dumps(whole | change))
        with pytest.raises(CheckpointError, match=message):
            load_probes(tmp_path)
    about.write_text(json.dumps(whole))
    weights = tmp_path / "probe.safetensors"
    weights.write_bytes(weights.read_bytes()[:50])
    with pytest.raises(
        CheckpointError, match=r"complete probe\.safetensors.*without them the model still encodes|complete"
    ):
        load_probes(tmp_path)


def test_probe_that_was_half_replaced_is_noticed(tmp_path, monkeypatch):
    fit_calibrated_probe(labeled_features(60, 0), NAMES).save(tmp_path, "image")

    def stop_at_the_classes(path, content):
        if path.name == "probe.json":
            raise KeyboardInterrupt
        path.write_bytes(content)

    monkeypatch.setattr(module, "replace_file", stop_at_the_classes)
    with pytest.raises(KeyboardInterrupt):
        fit_calibrated_probe(labeled_features(60, 1), NAMES).save(tmp_path, "image")
    with pytest.raises(CheckpointError, match="saved at another time"):
        load_probes(tmp_path)
