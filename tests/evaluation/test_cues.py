"""Planted cues: what is planted, how often it goes with the label, and that a probe's reliance on it shows."""

import json

import pytest
import torch

import mmcon
from mmcon.batch import Index
from mmcon.errors import ConfigError, DataError
from mmcon.evaluation.cues import CueResult, cue_reliance, evaluate_cues, plant_cue
from mmcon.evaluation.evaluation_list import EvaluationInput, EvaluationResult
from mmcon.evaluation.features import Features, extract_features
from mmcon.evaluation.statistics import wilson
from mmcon.loading.loader import one_pass
from mmcon.media import AudioFormat, AudioHandle
from mmcon.sources.base import DatasetSource, TensorSource
from mmcon.sources.text import TextSource


def images(n=400, channels=1, classes=4):
    values = torch.randint(
        60, 200, (n, channels, 14, 14), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    return TensorSource(values, labels=torch.arange(n) % classes, classes=tuple("abcd"[:classes]))


def test_cues_go_with_the_label_as_often_as_asked():
    source = images(4000)
    for correlation in (0.9, 1.0, 0.0):
        cues = plant_cue(source, "color", correlation=correlation).columns["cue"]
        agree = (cues == source.labels).double().mean()
        assert abs(float(agree) - correlation) < 0.02
        wrong = torch.bincount((cues - source.labels) % 4, minlength=4)[1:]
        assert wrong.min() >= 0.7 * wrong.max()  # the other classes, evenly
    even = plant_cue(source, "color", correlation=None).columns["cue"]
    table = torch.bincount(even * 4 + source.labels, minlength=16)
    assert table.min() > 180  # of 250 expected in each cell
    again = plant_cue(images(100), "color", correlation=None).columns["cue"]
    assert torch.equal(again, even[:100])  # by sample, whatever the others are


def test_images_get_a_color_or_a_patch():
    for channels in (1, 3):
        source = images(40, channels)
        plain = source.open(range(40))
        colored = plant_cue(source, "color", correlation=None)
        for tinted, pixels, cue in zip(colored.open(range(40)), plain, colored.cues.tolist(), strict=True):
            share = (tinted.float() / pixels.float()).mean((1, 2))
            red, green, blue = share.tolist()
            assert tinted.shape == (3, 14, 14)
            # Of four hues: red, chartreuse, cyan, violet.
            expected = ((1, 0.3, 0.3), (0.65, 1, 0.3), (0.3, 1, 1), (0.65, 0.3, 1))[cue]
            assert (red, green, blue) == pytest.approx(expected, abs=0.01)
        patched = plant_cue(source, "patch", correlation=None)
        places = {}
        for image, pixels, cue in zip(patched.open(range(40)), plain, patched.cues.tolist(), strict=True):
            at = (image != pixels).any(0).nonzero()
            places.setdefault(cue, []).append((tuple(at.amin(0).tolist()), tuple(at.amax(0).tolist())))
        assert all(len(set(found)) == 1 for found in places.values())
        assert len({found[0] for found in places.values()}) == 4
    assert torch.equal(source.open([0])[0], plain[0])  # the original is unchanged


def test_sounds_get_a_tone_and_texts_a_word():
    audio_format = AudioFormat(rate_hz=8000)
    sounds = [AudioHandle(torch.zeros(1, 8000), source_rate_hz=8000, audio_format=audio_format) for _ in range(12)]
    source = DatasetSource(sounds, modality="audio", labels=torch.arange(12) % 3, classes=("a", "b", "c"))
    planted = plant_cue(source, "tone", correlation=1.0)
    for row, handle in enumerate(planted.open(range(12))):
        spectrum = torch.fft.rfft(handle.decode()[0]).abs()
        assert int(spectrum.argmax()) == (400, 1131, 3200)[row % 3]  # bins of one hertz
        assert handle.facts["length"] == 8000
    texts = TextSource({"en": ["one", "two"], "de": ["eins", "zwei"]}, labels=[0, 1], classes=("a", "b"))
    planted = plant_cue(texts, "word", correlation=1.0)
    assert [text.versions for text in planted.open([0, 1])] == [
        ("amber one", "amber eins"),
        ("birch two", "birch zwei"),
    ]


def test_what_cannot_be_planted_is_refused():
    with pytest.raises(ConfigError, match="'color', 'patch'"):
        plant_cue(images(8), "tone", correlation=None)
    with pytest.raises(ConfigError, match=r"1\.5"):
        plant_cue(images(8), "color", correlation=1.5)
    with pytest.raises(DataError, match="two classes"):
        plant_cue(TensorSource(torch.zeros(4, 1, 8, 8, dtype=torch.uint8)), "color", correlation=None)
    with pytest.raises(DataError, match="bytes"):
        plant_cue(TensorSource(torch.zeros(4, 1, 8, 8), labels=[0, 1, 0, 1]), "color", correlation=None).open([0])


def test_a_probe_that_reads_the_cue_is_found_out():
    labels = torch.arange(300) % 3
    cues = torch.where(torch.arange(300) % 10 == 0, (labels + 1) % 3, labels)
    shown = torch.nn.functional.one_hot

    def features(values, cue, label):
        return Features(values.float(), Index({"sample": torch.arange(len(label)), "label": label, "cue": cue}))

    random = torch.randint(0, 3, (300,), generator=torch.Generator().manual_seed(1))
    reads_cue = [features(shown(cue, 3), cue, labels) for cue in (cues, cues, random)]
    found = cue_reliance(*reads_cue, wilson(300, 300))
    assert found.aligned.value == pytest.approx(0.9)
    assert found.follows_cue.value == 1
    assert found.broken.value == pytest.approx(float((random == labels).double().mean()))
    reads_label = [features(shown(labels, 3), cue, labels) for cue in (cues, cues, random)]
    found = cue_reliance(*reads_label, wilson(300, 300))
    assert (found.broken.value, found.follows_cue.value, found.chance) == (1, 0, 0)


def test_gray_images_get_the_patch_alone():
    train, test, view = images(40, 1), images(16, 1), mmcon.create_view("image/plain", size=14)
    encoder = torch.nn.Conv2d(1, 4, 14)

    def encode(batch):
        return encoder(batch.views["image"][0]).flatten(1)

    features = [extract_features(encode, one_pass(source, {"image": [view]})) for source in (train, test)]
    given = EvaluationInput(
        train=features[0], test=features[1], train_source=train, test_source=test, encode=encode, view=view,
        modality="image", classes=train.classes,
    )  # fmt: skip
    found = evaluate_cues(given)
    assert list(found.kinds) == ["patch"]
    assert "color is left out: the images are gray" in found.table()


def test_the_evaluation_of_cues_on_images():
    def pixels(batch):
        return batch.views["image"][0].mean((2, 3))

    train, test, view = images(60, 3), images(32, 3), mmcon.create_view("image/plain", size=14)
    features = [extract_features(pixels, one_pass(source, {"image": [view]})) for source in (train, test)]
    given = EvaluationInput(
        train=features[0], test=features[1], train_source=train, test_source=test, encode=pixels, view=view,
        modality="image", classes=train.classes, options={"cue_correlation": 1.0},
    )  # fmt: skip
    found = evaluate_cues(given)
    assert isinstance(found, EvaluationResult)
    assert isinstance(found, CueResult)
    color, patch = found.kinds["color"], found.kinds["patch"]
    assert color.aligned.value == 1  # mean colors show the tint
    assert color.follows_cue.value == 1
    assert patch.follows_cue.value < 0.6
    json.dumps(found.to_json(), allow_nan=False)
    assert "follows the cue" in found.table()
    assert found.plot().axes
