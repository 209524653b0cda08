"""Files on a disk as a source, and the usual layout of images in folders by class."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, final

import torch
from torch import Tensor

from mmcon.errors import DataError
from mmcon.media.image import ImageHandle
from mmcon.random import stable_ids
from mmcon.registry import register_source
from mmcon.sources.base import HELD_OUT, Source, held_out

SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"))
# Reading all headers takes about half a minute for this many files; more are checked only when asked.
CHECKED = 100_000


@final
class FileSource(Source):
    """Files as rows: a handle is made for each when it is opened.

    Args:
        files: what `handle` takes, one a row: paths, or (archive, offset, size).
        handle: from a file and its name to a handle with `facts` and `decode()`.
        names: what the rows are called, from which ids come.
        options: as for Source.
    """

    def __init__(
        self,
        files: Sequence[Any],
        *,
        handle: Callable[[Any, str], Any],
        names: Sequence[str],
        modality: str = "image",
        ids: Tensor | None = None,
        **options: Any,
    ) -> None:
        self.files, self.handle, self.names = files, handle, names
        super().__init__(ids=stable_ids(names) if ids is None else ids, modality=modality, **options)

    def open(self, rows: Tensor | Sequence[int]) -> list[Any]:
        """A handle for each row."""
        positions: list[int] = torch.as_tensor(rows).tolist()
        return [self.handle(self.files[row], self.names[row]) for row in positions]


def open_image(file: Path | bytes, name: str) -> ImageHandle:
    """An image as a handle that is called by its name in messages."""
    return ImageHandle(file, id=name)


@register_source("folder/images", modality="image")
def image_folder(
    path: str | Path,
    split: str = "train",
    test_share: float = 0.1,
    check: Literal["auto", "headers", "pixels", "none"] = "auto",
    max_failures: float = 0.01,
    quarantine: str | Path | None = None,
) -> FileSource:
    """Images in folders by class: under train/ and val/ as ImageNet is laid out, or flat.

    A flat folder is split by the images' identities, so that images which are added later move no other between splits.

    Args:
        path: the folder.
        split: "train"; "test" (also found as val, validation or valid); or any other sub-folder's name.
        test_share: what a flat folder holds out.
        check: read every file's header ("headers"), decode every file ("pixels"), or look at names alone ("none");
            by default headers up to 100,000 files.
        max_failures: the share of unreadable files beyond which the source is refused.
        quarantine: a file to which unreadable ones are written, one JSON line each; those that it lists already are
            left out unread.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise DataError("folder/images", expected="a folder of images", got=f"{str(path)!r}, which is not a folder")
    folder, split_by_identity = _folder_of(root, split)
    by_class = {c: _images(c) for c in sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))}
    by_class = {c: files for c, files in by_class.items() if files}
    _check_classes(folder, by_class)
    classes = _class_names(root, folder, [c.name for c in by_class])
    files = [file for members in by_class.values() for file in members]
    labels = torch.tensor([classes.index(c.name) for c, members in by_class.items() for _ in members])
    names = [file.relative_to(root).as_posix() for file in files]
    notes = []
    rows = torch.arange(len(files))
    if split_by_identity:
        out = held_out(stable_ids(names), test_share)
        rows = rows[out if split in HELD_OUT else ~out]
        notes.append(f"split {split!r}: {len(rows):,} of {len(files):,} images, by identity, {test_share:.0%} held out")
    level = ("headers" if len(rows) <= CHECKED else "none") if check == "auto" else check
    bad = unreadable([files[i] for i in rows.tolist()], level, known=read_quarantine(quarantine))
    keep = torch.tensor([files[i] not in bad for i in rows.tolist()], dtype=torch.bool)
    report_failures("folder/images", {str(f): why for f, why in bad.items()}, len(rows), max_failures, quarantine)
    if bad:
        notes.append(f"{len(bad):,} unreadable images left out" + (f", listed in {quarantine}" if quarantine else ""))
    if level == "none" and check == "auto":
        notes.append(f"more than {CHECKED:,} files: not checked; `mmcon doctor --data {path}` does")
    chosen = rows[keep].tolist()
    _check_every_class_has_rows(folder, classes, labels[rows[keep]], split)
    return FileSource(
        [files[i] for i in chosen],
        handle=open_image,
        names=[names[i] for i in chosen],
        labels=labels[rows[keep]],
        classes=classes,
        name=f"{root.name} ({split})",
        notes=notes,
    )


def splits_in(root: Path) -> list[str]:
    """The splits that a folder has as sub-folders: train, and whichever names of a held-out part are there."""
    return [name for name in ("train", *HELD_OUT) if (root / name).is_dir()]


def _folder_of(root: Path, split: str) -> tuple[Path, bool]:
    """The folder of a split's classes, and whether the split is still to be made by identity."""
    there = splits_in(root)
    if "train" not in there:
        if split in ("train", *HELD_OUT):
            return root, True
        raise DataError("folder/images", expected="split 'train' or 'test' of a flat folder", got=repr(split))
    if len(there) == 1 and split in ("train", *HELD_OUT):
        return root / "train", True
    if (root / split).is_dir():
        return root / split, False
    if split in HELD_OUT:
        return root / there[1], False
    raise DataError("folder/images", expected=f"a split among {there}", got=repr(split), fix=f"see {root}")


def _images(folder: Path) -> list[Path]:
    return sorted(f for f in folder.rglob("*") if f.suffix.lower() in SUFFIXES and not f.name.startswith("."))


def _class_names(root: Path, folder: Path, names: list[str]) -> list[str]:
    """The classes of the training split count in every split, so that a held-out part may lack some."""
    train = root / "train"
    if folder in (train, root):
        return names
    known = sorted(c.name for c in train.iterdir() if c.is_dir() and not c.name.startswith(".") and _images(c))
    unknown = sorted(set(names) - set(known))
    if unknown:
        fix = "give them training images, or take them out"
        raise DataError("folder/images", expected=f"the classes of {train}", got=f"{unknown[:5]} in {folder}", fix=fix)
    return known


def _check_classes(folder: Path, by_class: Mapping[Path, list[Path]]) -> None:
    if len(by_class) >= 2:
        return
    layout = f"{folder}/CLASS/image.jpg, one folder a class, or train/ and val/ with such"
    loose = len(_images(folder)) - sum(map(len, by_class.values()))
    if not by_class:
        suffixes = Counter(f.suffix.lower() for f in folder.rglob("*") if f.is_file())
        got = f"no images in sub-folders; {loose:,} lie loose; files by suffix: {dict(suffixes.most_common(4))}"
        raise DataError(
            "folder/images", expected="images in folders by class", got=got, fix=f"lay them out as {layout}"
        )
    (only,) = by_class
    raise DataError(
        "folder/images",
        expected="at least two classes",
        got=f"one, {only.name!r}, with {len(by_class[only]):,} images",
        fix=f"lay them out as {layout}; without labels, use a manifest and --objective simclr",
    )


def _check_every_class_has_rows(folder: Path, classes: list[str], labels: Tensor, split: str) -> None:
    counts = torch.bincount(labels, minlength=len(classes))
    empty = [name for name, count in zip(classes, counts.tolist(), strict=True) if not count]
    if empty and split == "train":
        raise DataError(
            "folder/images",
            expected="a readable image of every class",
            got=f"none of {empty[:5]} in {folder}",
            fix="bring more images of them, take the classes out, or lower test_share",
        )


# --- unreadable files ------------------------------------------------------------------------------------------------


def unreadable(files: Sequence[Path], level: str, known: Iterable[str] = ()) -> dict[Path, str]:
    """Which image files cannot be read, and why.

    Args:
        files: to look at.
        level: "headers", "pixels" (decodes, so finds truncated files too) or "none".
        known: files that are listed as unreadable already.
    """
    listed = set(known)
    bad = {file: "listed in the quarantine file" for file in files if str(file) in listed}
    if level == "none":
        return bad

    def look(file: Path) -> str | None:
        try:
            handle = ImageHandle(file)
            _ = handle.facts if level == "headers" else handle.decode()
        except (DataError, OSError) as error:
            return str(error).partition("\n")[0]
        return None

    rest = [file for file in files if file not in bad]
    with ThreadPoolExecutor(max_workers=8) as pool:
        bad |= {file: why for file, why in zip(rest, pool.map(look, rest), strict=True) if why is not None}
    return bad


def read_quarantine(file: str | Path | None) -> list[str]:
    """The files that a quarantine file lists."""
    if file is None or not Path(file).is_file():
        return []
    return [json.loads(line)["file"] for line in Path(file).read_text(encoding="utf-8").splitlines() if line.strip()]


def report_failures(
    where: str, failures: Mapping[str, str], total: int, max_failures: float, quarantine: str | Path | None
) -> None:
    """Write unreadable files to the quarantine file, and refuse a source of which too large a share is unreadable."""
    if not failures:
        return
    if quarantine is not None:
        listed = set(read_quarantine(quarantine))
        Path(quarantine).parent.mkdir(parents=True, exist_ok=True)
        with Path(quarantine).open("a", encoding="utf-8") as out:
            for name, why in failures.items():
                if name not in listed:
                    out.write(json.dumps({"file": name, "reason": why}, ensure_ascii=False) + "\n")
    if len(failures) > max_failures * total:
        name, why = next(iter(failures.items()))
        raise DataError(
            where,
            expected=f"at most {max_failures:.1%} unreadable files",
            got=f"{len(failures):,} of {total:,}, such as {name}: {why}",
            fix="mend or remove them"
            + (f" (listed in {quarantine})" if quarantine else "")
            + ", or raise max_failures",
        )
