"""Tar shards in the format of webdataset, with random access: the samples of archives on a disk.

The headers of all shards are read once. Reading a sample then costs one seek. Stream archives that are on a network or
too many to scan (`mmcon.sources.streaming`).
"""

from __future__ import annotations

import glob
import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmcon.errors import DataError
from mmcon.sources.files import SUFFIXES
from mmcon.sources.labels import encode_labels, whole_numbers
from mmcon.sources.listing import LabelOptions, Listing, printable, read_member, split_listing
from mmcon.sources.splits import is_held_out, is_train, match_split
from mmcon.sources.tables import MEDIA, NONE

# A member of an archive: the path of the archive, the offset of the bytes, and their number.
Member = tuple[str, int, int]


def list_shards(
    path: str | Path,
    *,
    split: str = "train",
    modality: str = "image",
    options: LabelOptions,
) -> Listing:
    """List tar shards: members of one name and different suffixes are one sample.

    Args:
        path: a folder of shards, one shard, or a pattern with * or {000..009}.
        split: in a folder, the shards whose names begin with a spelling of it. If no shard names a split, samples are
            split by a hash of their ids.
        modality: the modality of the media; the suffix identifies their member.
        options: the label, the classes, and the held-out share if shards do not name their split.
    """
    where = f"shards {str(path)!r}"
    files, by_identity = _shards(where, str(path), split)
    samples = [sample for file in files for sample in _samples_of(where, file)]
    suffixes = Counter(suffix for _, members in samples for suffix in members)
    # A sample may have several members of its modality, such as an image and its mask: the first known suffix is read.
    known = dict.fromkeys((*MEDIA.get(modality, (modality,)), *(s[1:] for s in SUFFIXES.get(modality, ()))))
    media = [next((suffix for suffix in known if suffix in members), None) for _, members in samples]
    found = Counter(suffix for suffix in media if suffix is not None)
    if not found:
        expected, fix = f"members with a suffix of {modality} media", "check the modality and the shards"
        raise DataError(where, expected=expected, got=f"suffixes {sorted(suffixes)}", fix=fix)
    complete = [(*sample, suffix) for sample, suffix in zip(samples, media, strict=True) if suffix is not None]
    label = options.label_column or ("cls" if "cls" in suffixes else NONE)
    labels, names = None, tuple(options.classes or ())
    if label != NONE:
        cells = whole_numbers([_label(where, name, members, label) for name, members, _ in complete])
        labels, names = encode_labels(
            f"{where}, member {label!r}", cells, options.classes, place=lambda i: f"sample {complete[i][0]!r}"
        )
    shown = ", ".join(f".{suffix}" if len(found) == 1 else f".{suffix} {n:,}" for suffix, n in found.most_common())
    notes = [f"{len(files)} shards; media: {shown}; label: {label}"]
    if len(complete) < len(samples):
        others = Counter(
            suffix for (_, members), s in zip(samples, media, strict=True) if s is None for suffix in members
        )
        notes.append(
            f"{len(samples) - len(complete):,} samples without {modality} media left out; "
            f"their members: {', '.join(f'.{suffix} {n:,}' for suffix, n in others.most_common(5))}"
        )
    listing = Listing(
        where,
        f"{printable(Path(str(path)).name)} ({split})",
        modality,
        [printable(name) for name, _, _ in complete],
        [members[suffix] for _, members, suffix in complete],
        labels,
        names,
        notes=tuple(notes),
    )
    return split_listing(listing, split, options) if by_identity else listing


def expand_pattern(pattern: str) -> list[str]:
    """The paths that match a pattern with {000..009} or *."""
    braces = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if braces:
        low, high = braces.groups()
        numbers = [str(i).zfill(len(low)) for i in range(int(low), int(high) + 1)]
        return [p for n in numbers for p in expand_pattern(pattern[: braces.start()] + n + pattern[braces.end() :])]
    return sorted(glob.glob(pattern)) if "*" in pattern else [pattern]


def _shards(where: str, path: str, split: str) -> tuple[list[Path], bool]:
    """The archives of a split, and whether samples must be split by a hash of their ids."""
    if not Path(path).is_dir():
        files = [Path(p).expanduser() for p in expand_pattern(path)]
        absent = [str(f) for f in files if not f.is_file()]
        if absent or not files:
            raise DataError(where, expected="tar files", got=f"{absent[:3] or 'none'} not there", fix="check the path")
        return files, False
    files = sorted(Path(path).glob("*.tar"))
    prefixes = [split if f.name.startswith(split) else _first_word(f.stem) for f in files]
    chosen = match_split(prefixes, split)
    if chosen is not None:
        return [file for file, prefix in zip(files, prefixes, strict=True) if prefix == chosen], False
    if not files or any(is_train(prefix) or is_held_out(prefix) for prefix in prefixes):
        got, fix = f"{[f.name for f in files[:4]]}", "check the split"
        raise DataError(where, expected=f"tar files of split {split!r}", got=got, fix=fix)
    return files, True


def _first_word(stem: str) -> str:
    """The prefix of a shard's name that may name a split, such as `train` or `training_set`."""
    found = re.match(r"[^\W\d_]+([-_ ]set(?![^\W\d_]))?", stem)
    return found.group() if found else ""


def _samples_of(where: str, file: Path) -> Iterator[tuple[str, dict[str, Member]]]:
    """The samples of an archive: the name of each, and its members by suffix."""
    samples: dict[str, dict[str, Member]] = {}
    try:
        # "r:" raises on compressed archives, since only members of an uncompressed one have offsets to seek to.
        with tarfile.open(file, "r:") as archive:
            for member in archive:
                if member.isfile():
                    folder, _, base = member.name.rpartition("/")
                    key, _, suffix = base.partition(".")
                    found = (str(file), member.offset_data, member.size)
                    samples.setdefault(f"{folder}/{key}" if folder else key, {})[suffix.lower()] = found
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        fix = "unpack compressed archives, and replace damaged ones"
        raise DataError(where, expected="an uncompressed tar archive", got=f"{file}: {error}", fix=fix) from error
    return iter(samples.items())


def _label(where: str, sample: str, members: dict[str, Member], label: str) -> Any:
    suffix, _, name = label.partition(":")
    if suffix not in members:
        got, fix = f"members {sorted(members)}", "name it with label_column"
        at = f"{where}, sample {sample!r}"
        raise DataError(at, expected=f"a member .{suffix} in every sample", got=got, fix=fix)
    try:
        text = read_member(members[suffix]).decode("utf-8-sig")
        return json.loads(text)[name] if name else text.strip()
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        at, got = f"{where}, sample {sample!r}, member .{suffix}", f"{type(error).__name__}: {error}"
        expected = f"JSON with a field {name!r}" if name else "a label as text"
        raise DataError(at, expected=expected, got=got, fix="correct the member, or name another") from error
