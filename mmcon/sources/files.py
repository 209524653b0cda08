"""Folders of files of any modality, with one sub-folder per class: below train/ and val/ as in ImageNet, or flat."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mmcon.errors import DataError
from mmcon.media.audio_files import AUDIO_CONTAINER_SUFFIXES, AUDIO_SUFFIXES
from mmcon.media.frame_sequence import FRAME_SUFFIXES, natural_key
from mmcon.media.video_files import ANIMATION_SUFFIXES, VIDEO_SUFFIXES
from mmcon.sources.labels import number_texts
from mmcon.sources.listing import Listing, SplitOptions, printable, split_listing
from mmcon.sources.splits import ALL, is_held_out, is_train, match_split

# fmt: off
IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".avif", ".bmp", ".dib", ".gif", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpx", ".tga", ".ico", ".qoi",
)
# fmt: on
SUFFIXES = {
    "image": IMAGE_SUFFIXES,
    "audio": (*AUDIO_SUFFIXES, *AUDIO_CONTAINER_SUFFIXES),
    "video": (*VIDEO_SUFFIXES, *ANIMATION_SUFFIXES),
}
_KNOWN_SUFFIXES = {modality: frozenset(suffixes) for modality, suffixes in SUFFIXES.items()}


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
    found = _find(root, bases, modality)
    _check(where, bases, found, modality)
    files, in_class, notes = _labeled(root, bases, found, modality)
    labels, classes = None, ()
    if in_class:
        own = sorted(set(in_class))
        classes = tuple(own if by_identity else _classes(where, root, bases, own, modality))
        labels, _ = number_texts(where, in_class, classes)
    listing = Listing(
        where,
        f"{printable(root.name)} ({split})",
        modality,
        [printable(file) for file in files],
        files,
        labels,
        tuple(map(printable, classes)),
        root=root,
        folder=True,
        split=split,
        notes=notes,
    )
    return split_listing(listing, split, options) if by_identity else listing


def list_files(path: str | Path, *, modality: str) -> Listing:
    """List all files of a modality below a folder, for a model that is trained: all splits, with or without classes.

    Labels are the names of the sub-folders (below those of splits), if every file is in one.

    Raises:
        DataError: there is no such folder, or no file of the modality in it.
    """
    where, root = f"folder/{modality}", Path(path).expanduser()
    if not root.is_dir():
        raise DataError(where, expected=f"a folder of {modality} files", got=f"{str(path)!r}, which is not a folder")
    found, splits = _find(root, [root], modality), split_folders(root)
    if not found.files:
        expected, others = f"{modality} files ({', '.join(SUFFIXES[modality])})", dict(found.others.most_common(4))
        got = f"none below {str(root)!r}; files by suffix: {others}"
        raise DataError(where, expected=expected, got=got, fix="check the path and the modality")
    inner = [folders[1:] if folders[0] in splits else folders for folders in (f.split("/") for f in found.files)]
    labels, classes = None, ()
    if all(len(folders) > 1 for folders in inner):
        labels, classes = number_texts(where, [printable(folders[0]) for folders in inner])
    notes = [f"{found.others.total():,} other files left out: {_counts(found.others)}"] if found.others else []
    if found.closed:
        notes.append(f"{len(found.closed):,} folders that cannot be listed, such as {printable(found.closed[0])}")
    names = [printable(file) for file in found.files]
    return Listing(
        where, printable(root.name), modality, names, found.files, labels, classes, root=root, folder=True,
        split=ALL, notes=tuple(notes),
    )  # fmt: skip


def split_folders(root: Path) -> list[str]:
    """The sub-folders that are splits; none without a training folder.

    A single split folder counts only if it is named `train` or is the only folder: `Train` next to `Bus` is a class.
    """
    folders = _folders(root)
    train = match_split(folders, "train")
    held_out = [name for name in folders if is_held_out(name)]
    if train is None or not (held_out or train == "train" or folders == [train]):
        return []
    return [train, *held_out]


def _folders(root: Path) -> list[str]:
    """The names of the visible sub-folders, sorted."""
    with os.scandir(root) as entries:
        seen = [entry for entry in entries if not entry.name.startswith(".")]
    return sorted(e.name for e in seen if (os.path.isdir(e.path) if e.is_symlink() else e.is_dir()))


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


@dataclass
class _Found:
    """Files of a modality as paths relative to the folder of all splits, and the class of each ("" for none).

    Attributes:
        others: by suffix, the number of files that are not of the modality.
        closed: folders that cannot be listed.
    """

    files: list[str] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    closed: list[str] = field(default_factory=list)


def _find(root: Path, bases: Sequence[Path], modality: str) -> _Found:
    """The files of a modality in folders of splits, sorted by name in each of them; hidden ones are left out."""
    if modality not in SUFFIXES:
        fix = "list the files in a table"
        raise DataError("folder", expected=f"a modality among {sorted(SUFFIXES)}", got=repr(modality), fix=fix)
    found = _Found()
    for base in bases:
        files = [file for folder in _walk(base, found.closed) for file in _files_in(*folder, modality, found.others)]
        # A null byte sorts below every letter, so that a folder's files stay together, as if the path were split.
        files.sort(key=natural_key if modality == "video" else lambda file: file.replace("/", "\0"))
        found.classes += [file.partition("/")[0] if "/" in file else "" for file in files]
        below = "" if base == root else f"{base.name}/"
        found.files += [f"{below}{file}" for file in files]
    return found


def _walk(base: Path, closed: list[str]) -> Iterator[tuple[str, list[str], list[str]]]:
    """Every folder below a base: its path in the base, its folders and its files; links are followed."""
    above: dict[str, set[tuple[int, int]]] = {}  # the identities of a folder and of those that it is in
    for place, inner, files in os.walk(
        base, followlinks=True, onerror=lambda error: closed.append(str(error.filename))
    ):
        state = os.stat(place)
        identity, outer = (state.st_dev, state.st_ino), above.get(os.path.dirname(place), set())
        if identity in outer:  # a link to a folder that it is in
            inner.clear()
            continue
        above[place] = outer | {identity}
        inner[:] = [name for name in inner if not name.startswith(".")]
        inside = os.path.relpath(place, base).replace(os.sep, "/")
        yield "" if inside == "." else f"{inside}/", inner, files


def _files_in(inside: str, folders: list[str], names: list[str], modality: str, others: Counter[str]) -> list[str]:
    """The files of a modality in one folder; a folder that contains only the frames of a video is one video."""
    visible, known = [name for name in names if name[0] != "."], _KNOWN_SUFFIXES[modality]
    suffixes = [name[name.rfind(".") :].lower() if "." in name else "" for name in visible]
    if modality == "video" and inside and not folders and sum(suffix in FRAME_SUFFIXES for suffix in suffixes) > 1:
        return [inside.removesuffix("/")]
    others.update(printable(suffix) for suffix in suffixes if suffix not in known)
    return [f"{inside}{name}" for name, suffix in zip(visible, suffixes, strict=True) if suffix in known]


def _check(where: str, bases: Sequence[Path], found: _Found, modality: str) -> None:
    """Raise DataError for a layout that the modality cannot use."""
    classes, loose = {*found.classes} - {""}, found.classes.count("")

    def have() -> str:  # takes a second for a million files
        suffixes = found.others + Counter(os.path.splitext(file)[1].lower() for file in found.files)
        return f"files by suffix: {dict(suffixes.most_common(4))}"

    if modality == "image" and len(classes) < 2:
        got = f"one, {min(classes)!r}" if classes else f"no images in sub-folders; {loose:,} images without a class"
        layout = f"{bases[0]}/CLASS/FILE, one folder a class, or train/ and val/ with such"
        raise DataError(
            where,
            expected="images in folders of at least two classes",
            got=f"{got}; {have()}",
            fix=f"lay them out as {layout}; without labels, use a table and --objective simclr",
        )
    if not found.files:
        expected, got = f"{modality} files ({', '.join(SUFFIXES[modality])})", f"none below {str(bases[0])!r}; {have()}"
        raise DataError(where, expected=expected, got=got, fix="check --data and the modality")
    if modality == "video" and classes and loose:
        fix = "move them into sub-folders, or out of them"
        expected = "videos all in sub-folders (classes), or all without"
        raise DataError(where, expected=expected, got=f"{loose} of {len(found.files)} loose", fix=fix)


def _labeled(
    root: Path, bases: Sequence[Path], found: _Found, modality: str
) -> tuple[list[str], list[str], tuple[str, ...]]:
    """The files with their classes, or with none; and notes on what is left out."""
    files, classes, loose = found.files, found.classes, found.classes.count("")
    notes = []
    if modality == "image" and loose:
        files, classes = ([f for f, name in zip(x, found.classes, strict=True) if name] for x in (files, classes))
        notes.append(f"{loose:,} images outside of folders of classes left out")
    elif loose or (modality == "audio" and len({*classes}) < 2):
        if 0 < loose < len(files):
            notes.append(f"no labels, since {loose:,} of {len(files):,} files are outside of sub-folders")
        classes = []
    if found.others:
        notes.append(f"{found.others.total():,} files left out that are not {modality} files: {_counts(found.others)}")
    used = {*split_folders(root), *(base.name for base in bases)}
    beside = [] if root in bases else [printable(name) for name in _folders(root) if name not in used]
    if beside:
        notes.append(f"folders beside those of the splits left out: {', '.join(beside[:5])}")
    if found.closed:
        notes.append(
            f"{len(found.closed):,} folders that cannot be listed left out, such as {printable(found.closed[0])}"
        )
    return files, classes, tuple(notes)


def _counts(counts: Mapping[str, int]) -> str:
    """Counts by suffix, the most common first."""
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    shown = [f"{suffix or 'no suffix'} {count:,}" for suffix, count in ordered[:5]]
    return ", ".join([*shown, "…"] if len(counts) > 5 else shown)


def _classes(where: str, root: Path, bases: Sequence[Path], own: list[str], modality: str) -> list[str]:
    """The classes of the training split, which number the labels of every split, then those of held-out splits only."""
    train = root / split_folders(root)[0]
    if train in bases:
        return own
    known = sorted({*_find(root, [train], modality).classes} - {""})
    unknown = sorted(set(own) - set(known))
    if unknown and modality == "image":
        fix = "give them training images, or take them out"
        raise DataError(where, expected=f"the classes of {train}", got=f"{unknown[:5]} in {bases[0]}", fix=fix)
    return [*known, *unknown]
