"""Planted cues: does a model rest on a mark that goes with the label in training and not in the test?

`plant_cue` puts one of few marks on every sample: a color or a patch on images, a tone in sounds, a word in texts. With
a correlation of .95 the mark is that of the sample's class for 95 % of the samples. With none it is drawn evenly, and a
classifier that reads the mark is right by chance alone.

    train = plant_cue(source, "color", correlation=0.95)     # train an encoder on it, by any objective
    broken = plant_cue(test, "color", correlation=None)      # and test it where the mark says nothing

Cues are planted before the views: a view that changes colors may hide a color, as in training with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from mmcon.errors import ConfigError, DataError
from mmcon.evaluation.evaluation_list import EvaluationInput, number_option
from mmcon.evaluation.features import Features
from mmcon.evaluation.probe import fit_probe
from mmcon.evaluation.statistics import Interval, wilson
from mmcon.media import AudioHandle, TextHandle
from mmcon.random import keys
from mmcon.sources.base import Positions, Source, channels_of

Kind = Literal["color", "patch", "tone", "word"]
#: By modality, the kinds of cues that can be planted.
KINDS: dict[str, tuple[Kind, ...]] = {"image": ("color", "patch"), "audio": ("tone",), "text": ("word",)}
CORRELATION = 0.95
#: The side of the patch as a share of the shorter side of the image.
PATCH_SHARE = 1 / 7
#: The frequencies of the lowest and the highest tone, and their level as a share of the sound's, which counts as .1 at
#: least.
TONES_HZ, TONE_LEVEL = (400.0, 3200.0), 0.5
WORDS = ("amber", "birch", "cobalt", "delta", "ember", "fjord", "grove", "harbor", "indigo", "juniper")


@final
class PlantedCue(Source):
    """A source with a cue in every sample; the column `cue` is its number.

    Args:
        source: samples of one modality.
        plant: a function from an opened sample, decoded or not, the number of its cue and the number of cues to the
            sample with the cue.
        cues: of each sample, integers below `count`.
        count: the number of cues.
    """

    def __init__(
        self, source: Source, plant: Callable[[Any, int, int], Any], cues: Int[Tensor, " n"], count: int
    ) -> None:
        self.source, self.plant, self.cues, self.count = source, plant, cues, count
        super().__init__(
            ids=source.ids,
            modality=source.modality,
            classes=source.classes,
            columns={**source.columns, "cue": cues},
            name=f"{source.name} with a planted {plant.__name__.strip('_')}",
            max_failures=source.max_failures,
        )
        self.categories = source.categories

    def open(self, rows: Positions) -> list[Any]:
        """Open the samples of the original source, with their cues."""
        at = torch.as_tensor(rows)
        opened = zip(self.source.open(at), self.cues[at].tolist(), strict=True)
        return [self.plant(sample, cue, self.count) for sample, cue in opened]

    def present(self, rows: Int[Tensor, " m"]) -> Bool[Tensor, " m"] | None:
        """As in the original source."""
        return self.source.present(rows)

    def name_of(self, row: int) -> str:
        """What the original source calls a sample."""
        return self.source.name_of(row)


def plant_cue(source: Source, kind: Kind, *, correlation: float | None, seed: int = 0) -> PlantedCue:
    """A source whose samples have a cue, one for each class.

    Args:
        source: labeled samples of one modality.
        kind: "color" or "patch" of images, "tone" of sounds, "word" of texts.
        correlation: the probability that a sample has the cue of its class, else that of another class; None: the cue
            is drawn evenly, without the label.
        seed: of the draws, which are by sample.

    Raises:
        ConfigError: a cue of another modality, or a correlation outside of [0, 1].
        DataError: no labels, or fewer than two classes.
    """
    if kind not in KINDS.get(source.modality, ()):
        known = (
            f"one of {list(KINDS.get(source.modality, ()))}" if source.modality in KINDS else "images, audio or text"
        )
        raise ConfigError(f"plant_cue of {source.modality}", expected=known, got=repr(kind))
    if correlation is not None and not 0 <= correlation <= 1:
        raise ConfigError("plant_cue", expected="a correlation from 0 to 1, or None", got=str(correlation))
    labels, count = source.labels, len(source.classes)
    if labels is None or count < 2:
        raise DataError("plant_cue", expected="labels of two classes or more", got=source.describe().partition("\n")[0])
    draws = keys(seed=seed, sample=source.ids).child("planted cue")
    if correlation is None:
        cues = draws.integers("even", 0, count)
    else:
        others = (labels + 1 + draws.integers("other", 0, count - 1)) % count
        cues = torch.where(draws.bernoulli("own", correlation), labels, others)
    return PlantedCue(source, _PLANT[kind], cues, count)


@dataclass(frozen=True)
class CueReliance:
    """The accuracies of a probe that was fitted to samples with a cue.

    Attributes:
        clean: on samples without cues, of a probe that was fitted without cues.
        aligned: on samples whose cues go with the label as in training.
        broken: on samples whose cues say nothing.
        follows_cue: of samples with the cue of another class, the share that is taken for that class.
        chance: that share for a classifier whose errors do not read the cue.
    """

    clean: Interval
    aligned: Interval
    broken: Interval
    follows_cue: Interval
    chance: float


@dataclass(frozen=True)
class CueResult:
    """How far a linear probe of frozen features rests on planted cues, by kind.

    Attributes:
        kinds: by kind.
        correlation: in the training samples.
        n: the number of test samples.
        notes: which kinds were left out, and why.
    """

    kinds: Mapping[str, CueReliance]
    correlation: float
    n: int
    notes: tuple[str, ...] = ()

    def table(self) -> str:
        """Accuracies by kind, as text."""
        columns = ("without cue", "cue as in training", "cue broken", "follows the cue")
        lines = [f"cues planted in training with correlation {self.correlation:g}; {self.n:,} test samples", ""]
        lines.append(f"{'':8}" + "".join(f"{column:23}" for column in columns) + "by chance")
        for name, kind in self.kinds.items():
            cells = (kind.clean, kind.aligned, kind.broken, kind.follows_cue)
            lines.append(f"{name:8}" + "".join(f"{cell!s:23}" for cell in cells) + f"{kind.chance:.3f}")
        return "\n".join([*lines, *self.notes])

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        names = ("clean", "aligned", "broken", "follows_cue")
        kinds = {
            kind: {name: _with_ends(getattr(found, name)) for name in names} | {"chance": found.chance}
            for kind, found in self.kinds.items()
        }
        return {"correlation": self.correlation, "samples": self.n, "kinds": kinds, "notes": list(self.notes)}

    def plot(self) -> Any:
        """A figure: accuracy without cues, with those of training, and with broken ones, by kind."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(2 + 2.2 * len(self.kinds), 4), layout="constrained")
        axes = figure.subplots()
        for number, name in enumerate(("clean", "aligned", "broken")):
            found = [getattr(kind, name) for kind in self.kinds.values()]
            at = [row + 0.25 * (number - 1) for row in range(len(found))]
            errors = [[i.value - i.low for i in found], [i.high - i.value for i in found]]
            axes.bar(at, [i.value for i in found], width=0.22, yerr=errors, capsize=3, label=name)
        axes.set_xticks(range(len(self.kinds)), list(self.kinds))
        axes.set(ylabel="top-1 of the probe", ylim=(0, 1))
        axes.legend()
        return figure


def evaluate_cues(given: EvaluationInput) -> CueResult:
    """Fit a probe to training samples with a cue, and test it where the cue is as in training and where it is broken.

    The encoder stays as it is: the figures tell how much of the cue its features show. What training on cues does to an
    encoder is measured by `benchmarks/planted_cues.py`. Options: `cue_correlation` (.95).

    Raises:
        ConfigError: no cue can be planted in this modality.
    """
    if given.modality not in KINDS:
        raise ConfigError("cues", expected=f"a modality among {list(KINDS)}", got=repr(given.modality))
    correlation = number_option(given.options, "cue_correlation", CORRELATION, lowest=0, highest=1)
    clean = given.probe.evaluate(given.test).interval()
    # A tint would give the encoder three channels instead of one.
    gray = given.modality == "image" and channels_of(given.train_source) == 1
    notes = ("color is left out: the images are gray",) if gray else ()
    kinds = {}
    for kind in KINDS[given.modality][1 if gray else 0 :]:
        splits = {
            "training": (given.train_source, correlation),
            "aligned": (given.test_source, correlation),
            "broken": (given.test_source, None),
        }
        found = {
            name: given.features(plant_cue(source, kind, correlation=of, seed=given.seed), title=f"{kind}, {name}")
            for name, (source, of) in splits.items()
        }
        kinds[kind] = cue_reliance(found["training"], found["aligned"], found["broken"], clean, seed=given.seed)
    return CueResult(kinds, correlation, len(given.test), notes)


def cue_reliance(
    train: Features, aligned: Features, broken: Features, clean: Interval, *, seed: int = 0
) -> CueReliance:
    """The reliance of a probe on the cues in its training features.

    Args:
        train: features of training samples, with the columns `label` and `cue`.
        aligned: test features whose cues go with the label as in training.
        broken: test features whose cues say nothing.
        clean: the accuracy without cues.
        seed: of the probe.
    """
    probe = fit_probe(train, seed=seed)
    on_broken = probe.evaluate(broken)
    cue, label = broken.index["cue"].cpu(), broken.labels.cpu()
    conflicting = cue != label
    count, followed = int(conflicting.sum()), int((on_broken.predicted == cue)[conflicting].sum())
    follows = wilson(followed, count) if count else Interval(math.nan, math.nan, math.nan, 0.95, 0)
    chance = (1 - on_broken.top1) / max(len(probe.classes) - 1, 1)
    return CueReliance(clean, probe.evaluate(aligned).interval(), on_broken.interval(), follows, chance)


def _color(sample: Any, cue: int, count: int) -> Shaped[Tensor, "3 h w"]:
    """The image tinted with one of `count` hues, half way to a picture in that color alone."""
    pixels = _decoded(sample)
    pixels = pixels.expand(3, -1, -1) if len(pixels) == 1 else pixels
    hue = torch.tensor([0.0, 1 / 3, 2 / 3]) - cue / count
    # The color circle as three triangles of the distance to red, green and blue.
    near = (2 - 6 * torch.minimum(hue.remainder(1), 1 - hue.remainder(1))).clamp(0, 1)
    tint = 0.3 + 0.7 * near
    return (pixels.float() * tint[:, None, None]).round().to(pixels.dtype)


def _patch(sample: Any, cue: int, count: int) -> Shaped[Tensor, "c h w"]:
    """The image with a black and white patch at one of `count` places on a circle around the center."""
    pixels = _decoded(sample).clone()
    h, w = pixels.shape[-2:]
    side = max(2, round(PATCH_SHARE * min(h, w)))
    angle = 2 * math.pi * cue / count
    top = round((h - side) / 2 * (1 + 0.8 * math.sin(angle)))
    left = round((w - side) / 2 * (1 + 0.8 * math.cos(angle)))
    half = side // 2
    pixels[:, top : top + side, left : left + side] = 255
    pixels[:, top : top + half, left : left + half] = 0
    pixels[:, top + half : top + side, left + half : left + side] = 0
    return pixels


def _tone(sample: Any, cue: int, count: int) -> AudioHandle:
    """The sound with one of `count` tones through all of it."""
    sound, rate_hz = sample.decode(), sample.audio_format.rate_hz
    frequency = TONES_HZ[0] * (TONES_HZ[1] / TONES_HZ[0]) ** (cue / max(count - 1, 1))
    level = TONE_LEVEL * max(float(sound.square().mean().sqrt()), 0.1) * math.sqrt(2)
    seconds = torch.arange(sound.shape[-1], dtype=torch.float64) / rate_hz
    tone = level * torch.sin(2 * math.pi * min(frequency, 0.45 * rate_hz) * seconds)
    mixed = (sound + tone.to(sound)).clamp(-1, 1)
    return AudioHandle(mixed, audio_format=sample.audio_format, id=sample.id, source_rate_hz=rate_hz)


def _word(sample: Any, cue: int, count: int) -> TextHandle:
    """The text, in each version, after one of `count` words."""
    word = WORDS[cue] if count <= len(WORDS) else f"{WORDS[cue % len(WORDS)]}{cue // len(WORDS)}"
    return TextHandle(tuple(f"{word} {text}" for text in sample.versions), sample.names, id=sample.id)


_PLANT: dict[str, Callable[[Any, int, int], Any]] = {"color": _color, "patch": _patch, "tone": _tone, "word": _word}


def _decoded(sample: Any) -> Shaped[Tensor, "c h w"]:
    pixels = sample if isinstance(sample, Tensor) else sample.decode()
    if pixels.dtype != torch.uint8 or pixels.dim() != 3:
        got = f"{pixels.dtype} of shape {tuple(pixels.shape)}"
        raise DataError("plant_cue", expected="images of bytes, `c h w`", got=got)
    return pixels


def _with_ends(interval: Interval) -> dict[str, float | None]:
    known = interval.n > 0
    return {
        "value": interval.value if known else None,
        "low": interval.low if known else None,
        "high": interval.high if known else None,
    }
