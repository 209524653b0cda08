"""The published ImageNet-C: its corruptions, AlexNet's errors on it, and its folder as sources.

The errors are those of the table "AlexNet ImageNet-C Error" of its repository (hendrycks/robustness), whose averages
are the constants by which other code normalizes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from mmcon.errors import DataError
from mmcon.sources.base import Source
from mmcon.sources.factory import create_source

# fmt: off
#: AlexNet's errors by corruption, at severities 1 to 5.
ALEXNET_ERRORS: dict[str, tuple[float, ...]] = {
    "gaussian-noise": (0.69528, 0.82542, 0.93554, 0.98138, 0.99452),
    "shot-noise":     (0.71224, 0.85108, 0.93574, 0.98182, 0.99146),
    "impulse-noise":  (0.78374, 0.89808, 0.94870, 0.98720, 0.99548),
    "defocus-blur":   (0.65624, 0.73202, 0.85036, 0.91364, 0.94714),
    "glass-blur":     (0.64308, 0.75054, 0.88806, 0.91622, 0.93344),
    "motion-blur":    (0.58430, 0.70048, 0.82108, 0.89750, 0.92638),
    "zoom-blur":      (0.70008, 0.76992, 0.80784, 0.84198, 0.87198),
    "snow":           (0.71726, 0.88392, 0.86468, 0.91870, 0.94952),
    "frost":          (0.61390, 0.79734, 0.88790, 0.89942, 0.93430),
    "fog":            (0.67474, 0.76050, 0.84378, 0.87260, 0.94500),
    "brightness":     (0.45140, 0.48502, 0.54048, 0.62166, 0.72440),
    "contrast":       (0.64548, 0.76150, 0.88874, 0.97760, 0.99270),
    "elastic":        (0.52596, 0.70116, 0.55686, 0.64076, 0.80554),
    "pixelate":       (0.52218, 0.54620, 0.73728, 0.87092, 0.91262),
    "jpeg":           (0.51002, 0.54718, 0.57294, 0.65458, 0.74778),
    "speckle-noise":  (0.66192, 0.74440, 0.90246, 0.94548, 0.97268),
    "gaussian-blur":  (0.54732, 0.70444, 0.82574, 0.89864, 0.95940),
    "spatter":        (0.47196, 0.62194, 0.75052, 0.84132, 0.90182),
    "saturate":       (0.59342, 0.65514, 0.51174, 0.70834, 0.82260),
}
# fmt: on
#: Of torchvision's weights, which the table is of: top-1 56.522 % on the validation set of ImageNet.
ALEXNET_CLEAN_ERROR = 0.43478
EFFECTS = tuple(ALEXNET_ERRORS)
#: The 15 corruptions of the benchmark; the other four are meant for choosing settings, and are in no mean.
BENCHMARK = EFFECTS[:15]
#: Folders whose names are not those of the corruptions with a hyphen.
_FOLDERS = {"elastic": "elastic_transform", "jpeg": "jpeg_compression"}


def published_sources(
    root: str | Path,
    classes: Sequence[str],
    *,
    effects: Sequence[str] = EFFECTS,
    severities: Sequence[int] = (1, 2, 3, 4, 5),
) -> Iterator[tuple[str, int, Source]]:
    """The sources of an ImageNet-C folder: `CORRUPTION/SEVERITY/CLASS/*.JPEG`, there or one folder deeper.

    Corruptions whose folder is not there are left out; at least one must be there, with all severities.

    Args:
        root: the folder that the archives (noise, blur, weather, digital, extra) were unpacked to.
        classes: the names of the classes, by label, which the class folders have.
        effects: the corruptions to look for.
        severities: of each.

    Raises:
        DataError: no corruption is there, one lacks a severity, or class folders are not among the classes.
    """
    found = {effect: folder for effect in effects if (folder := _folder(Path(root), effect)) is not None}
    where = f"ImageNet-C {str(root)!r}"
    if not found:
        expected = f"folders such as {_folder_name('gaussian-noise')}/1/CLASS"
        raise DataError(where, expected=expected, got="none", fix="unpack the archives of ImageNet-C there")
    missing = [f"{f.name}/{s}" for f in found.values() for s in severities if not (f / str(s)).is_dir()]
    if missing:
        raise DataError(where, expected=f"severities {list(severities)} of each corruption", got=f"no {missing[:5]}")
    return (
        (effect, severity, _labeled(folder / str(severity), classes))
        for effect, folder in found.items()
        for severity in severities
    )


def _folder_name(effect: str) -> str:
    return _FOLDERS.get(effect, effect.replace("-", "_"))


def _folder(root: Path, effect: str) -> Path | None:
    """The folder of a corruption, below the root or below a folder of it."""
    name = _folder_name(effect)
    return next((path for path in (root / name, *sorted(root.glob(f"*/{name}"))) if path.is_dir()), None)


def _labeled(folder: Path, classes: Sequence[str]) -> Source:
    """All images of a folder of classes, with the labels that the training data give to these classes."""
    source = create_source(folder, modality="image", split="all")
    label_of = {name: label for label, name in enumerate(classes)}
    unknown = [name for name in source.classes if name not in label_of]
    if unknown or source.labels is None:
        raise DataError(
            f"ImageNet-C {str(folder)!r}",
            expected=f"class folders named as the {len(classes)} classes of the training data, such as {classes[:2]}",
            got=f"{len(unknown)} others: {unknown[:5]}",
            fix="name the folders of both as ImageNet does (n01440764, ...)",
        )
    numbers = torch.tensor([label_of[name] for name in source.classes])
    source.columns["label"], source.classes = numbers[source.labels], tuple(classes)
    return source
