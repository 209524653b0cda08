"""Folders of files of any modality, with one sub-folder per class: below train/ and val/ as in ImageNet, or flat."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from mmcon.errors import DataError
from mmcon.media.audio_files import AUDIO_CONTAINER_SUFFIXES, AUDIO_SUFFIXES
from mmcon.media.frame_sequence import frame_files, natural_key
from mmcon.media.video_files import ANIMATION_SUFFIXES, VIDEO_SUFFIXES
from mmcon.sources.labels import number_texts
from mmcon.sources.listing import Listing, SplitOptions, split_listing
from mmcon.sources.splits import ALL, is_held_out, is_train, match_split

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
SUFFIXES = {
    "image": IMAGE_SUFFIXES,
    "audio": (*AUDIO_SUFFIXES, *AUDIO_CONTAINER_SUFFIXES),
    "video": (*VIDEO_SUFFIXES, *ANIMATION_SUFFIXES),
}


def list_folder(
    path: str | Path,
    *,
    split: str = "train",
    modality: str = "image",
    options: SplitOptions,
) -> Listing:
    """List the files of a folder: its sub-folders are the classes, or split folders that contain the classes.

    Sub-folders are searched recursively. A folder without split folders is split by a hash of the file names, so that
    added files do not move others between splits. For video, a folder of images is one clip, and so is an animated
    image.

    Args:
        path: the folder.
        split: "train"; "test" (also matches val, validation, ...); the name of another split folder; or "all".
        modality: the modality of the files. Images must be in folders by class; audio and videos may have no classes.
        options: the held-out share if there are no split folders.
    """
    where, root = f"folder/{modality}", Path(path).expanduser()
    if not root.is_dir():
        raise DataError(where, expected=f"a folder of {modality} files", got=f"{str(path)!r}, which is not a folder")
    bases, by_identity = _split_folders(where, root, split)
    found = [pair for base in bases for pair in _find(base, modality)]
    found = _checked(where, bases, found, modality)
    names = [_below(file, root) for file, _ in found]
    labels, classes = None, ()
    if found[0][1]:
        own = sorted({name for _, name in found})
        classes = tuple(own if by_identity else _classes(where, root, bases, own, modality))
        labels, _ = number_texts(where, [name for _, name in found], classes)
    files = [file for file, _ in found]
    listing = Listing(
        where, f"{root.name} ({split})", modality, names, files, labels, classes, folder=True, split=split
    )
    return split_listing(listing, split, options) if by_identity else listing


def split_folders(root: Path) -> list[str]:
    """The sub-folders that are splits; none without a training folder.

    A single split folder counts only if it is named `train` or is the only folder: `Train` next to `Bus` is a class.
    """
    folders = sorted(f.name for f in root.iterdir() if f.is_dir() and not f.name.startswith("."))
    train = match_split(folders, "train")
    held_out = [name for name in folders if is_held_out(name)]
    if train is None or not (held_out or train == "train" or folders == [train]):
        return []
    return [train, *held_out]


def _split_folders(where: str, root: Path, split: str) -> tuple[list[Path], bool]:
    """The folders that contain a split's classes, and whether files must be split by a hash of their names."""
    available = split_folders(root)
    if not available:
        return [root], True
    if split == ALL:
        return [root / name for name in available], False
    if len(available) == 1 and (is_train(split) or is_held_out(split)):
        return [root / available[0]], True
    wanted = match_split(available, split) or split
    if not (root / wanted).is_dir():
        raise DataError(where, expected=f"a split among {available}", got=repr(split), fix=f"see {root}")
    return [root / wanted], False


def _find(folder: Path, modality: str) -> list[tuple[Path, str]]:
    """The files of a modality below a folder, sorted by name, and the class of each ("" for none)."""
    if modality not in SUFFIXES:
        fix = "list the files in a table"
        raise DataError("folder", expected=f"a modality among {sorted(SUFFIXES)}", got=repr(modality), fix=fix)
    below = [f for f in folder.rglob("*") if not f.name.startswith(".")]
    files = [f for f in below if f.suffix.lower() in SUFFIXES[modality]]
    if modality == "video":  # a folder that contains only the frames of a video is one video
        folders = [f for f in below if f.is_dir()]
        leaves = [f for f in folders if not any(c.is_dir() for c in f.iterdir()) and len(frame_files(f)) > 1]
        of_frames = set(leaves)
        files = [*leaves, *(f for f in files if f.parent not in of_frames)]
        files.sort(key=lambda f: natural_key(f.as_posix()))
    else:
        files.sort(key=lambda f: f.parts)
    inside = [_below(file, folder).rpartition("/")[0].partition("/")[0] for file in files]
    return [pair for pair in zip(files, inside, strict=True) if not pair[1].startswith(".")]


def _below(file: Path, folder: Path) -> str:
    """The path of a file relative to a folder above it. (`Path.relative_to` takes seconds for a million files.)"""
    prefix = folder.as_posix()
    return file.as_posix() if prefix == "." else file.as_posix()[len(prefix) :].lstrip("/")


def _checked(where: str, bases: Sequence[Path], found: list[tuple[Path, str]], modality: str) -> list[tuple[Path, str]]:
    """The files with their classes, or all without; raise DataError for a layout that the modality cannot use."""
    classes, loose = {name for _, name in found} - {""}, sum(not name for _, name in found)
    layout = f"{bases[0]}/CLASS/FILE, one folder a class, or train/ and val/ with such"
    if modality == "image" and len(classes) < 2:
        got = f"one, {min(classes)!r}" if classes else f"no images in sub-folders; {loose:,} images without a class"
        raise DataError(
            where,
            expected="images in folders of at least two classes",
            got=f"{got}; files by suffix: {_suffixes(bases)}",
            fix=f"lay them out as {layout}; without labels, use a table and --objective simclr",
        )
    if not found:
        expected, got = f"{modality} files ({', '.join(SUFFIXES[modality])})", f"none below {str(bases[0])!r}"
        fix = "check --data and the modality"
        raise DataError(where, expected=expected, got=f"{got}; files by suffix: {_suffixes(bases)}", fix=fix)
    if modality == "image":
        return [(file, name) for file, name in found if name]
    if modality == "video" and classes and loose:
        fix = "move them into sub-folders, or out of them"
        expected = "videos all in sub-folders (classes), or all without"
        raise DataError(where, expected=expected, got=f"{loose} of {len(found)} loose", fix=fix)
    labeled = classes and not loose and (modality == "video" or len(classes) > 1)
    return found if labeled else [(file, "") for file, _ in found]


def _classes(where: str, root: Path, bases: Sequence[Path], own: list[str], modality: str) -> list[str]:
    """The classes of the training split, which number the labels of every split, then those of held-out splits only."""
    train = root / split_folders(root)[0]
    if train in bases:
        return own
    known = sorted({name for _, name in _find(train, modality)} - {""})
    unknown = sorted(set(own) - set(known))
    if unknown and modality == "image":
        fix = "give them training images, or take them out"
        raise DataError(where, expected=f"the classes of {train}", got=f"{unknown[:5]} in {bases[0]}", fix=fix)
    return [*known, *unknown]


def _suffixes(bases: Sequence[Path]) -> dict[str, int]:
    return dict(Counter(f.suffix.lower() for base in bases for f in base.rglob("*") if f.is_file()).most_common(4))
