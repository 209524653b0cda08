"""Fingerprints of sources: a resumed run compares them, to notice data that changed since its checkpoint.

A fingerprint has the number of samples and hashes of their ids, their labels, their further columns, and the sizes of
their files or their texts, in order. It opens no media file. Sizes and texts are those of all samples, or of 100,000
evenly spaced ones, so that it is cheap for large data.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from mmcon.random import stable_ids
from mmcon.sources.file_states import file_states

# Asking for the sizes of so many files takes less than a second on a local disk.
MEASURED = 100_000
_HASHED = 2**20
_MEANING = {
    "ids": "other samples or another order",
    "labels": "other labels",
    "columns": "other values in further columns",
    "contents": "files of other sizes, or other texts",
}


def fingerprint_of(
    ids: Int[Tensor, " n"],
    labels: Int[Tensor, " n"] | None,
    content_marks: Callable[[Int[Tensor, " m"]], Sequence[int] | None],
    members: Mapping[str, Any] | None = None,
) -> dict[str, int | str]:
    """The fingerprint of samples: `samples` (their number), and hashes: `ids`, `labels`, `columns`, and `contents`.

    Args:
        ids: the ids of the samples.
        labels: their labels, if any.
        content_marks: a function from indices to a number for each sample that changes with its content (see
            `Source.content_marks`), or to None if there is none.
        members: sources of the samples by modality, for their further columns. Matrices of fractions are left out:
            features of a network, which is run again on resume, may differ in their last bits.
    """
    n = len(ids)
    rows = torch.arange(n) if n <= MEASURED else torch.arange(MEASURED) * n // MEASURED
    marks = content_marks(rows)
    found: dict[str, int | str] = {"samples": n, "ids": _digest(ids)}
    if labels is not None:
        found["labels"] = _digest(labels)
    columns = {f"{name}.{key}": col for name, member in (members or {}).items() for key, col in member.columns.items()}
    compared = {k: v for k, v in columns.items() if v is not labels and (v.dim() == 1 or not v.is_floating_point())}
    described = "".join(f"{name} {_digest(compared[name])}\n" for name in sorted(compared))
    found["columns"] = hashlib.blake2b(described.encode(), digest_size=16).hexdigest()
    if marks is not None:
        found["contents"] = _digest(torch.tensor(marks, dtype=torch.int64))
    return found


def fingerprint_changes(before: Mapping[str, int | str], now: Mapping[str, int | str]) -> list[str]:
    """The differences of two fingerprints, a phrase each; none for equal data."""
    # Earlier versions hashed no columns, and other contents (no texts, one file of a group) under other names.
    compared = [name for name in _MEANING if name in before or name in ("ids", "labels")]
    changes = [_MEANING[name] for name in compared if before.get(name) != now.get(name)]
    if before.get("samples") != now.get("samples"):
        changes.insert(0, f"{now.get('samples', 0):,} samples instead of {before.get('samples', 0):,}")
    return changes


def file_sizes(items: Sequence[Any], root: Path) -> list[int]:
    """The size of each item's file in bytes; -1 where there is no file.

    Args:
        items: paths, bytes, (archive, offset, size), mappings with `bytes` or `path`, or handles on these.
        root: the folder that paths are relative to.
    """
    held = [_size_or_path(item, str(root)) for item in items]
    measured = iter(file_states(path for path in held if isinstance(path, str))[:, 0].tolist())
    return [next(measured) if isinstance(size, str) else size for size in held]


def text_marks(texts: Sequence[Any]) -> list[int]:
    """A hash of each text, of 64 bits; of a tuple of texts, one hash."""
    return stable_ids("\0".join(map(str, text)) if isinstance(text, tuple) else str(text) for text in texts).tolist()


def _size_or_path(item: Any, root: str) -> int | str:
    """The size of an item that is in memory or in an archive (-1: neither), else the path of its file."""
    if isinstance(item, Mapping):
        item = item["bytes"] if item.get("bytes") is not None else item.get("path")
    if isinstance(item, tuple) and len(item) == 3 and isinstance(item[2], int):
        return item[2]
    if isinstance(item, bytes):
        return len(item)
    if isinstance(item, str | Path):
        return os.path.join(root, item)
    inner = (getattr(item, name, None) for name in ("source", "file", "video"))
    # The path of a handle has the root already.
    return next((_size_or_path(held, "") for held in inner if held is not None), -1)


def _digest(values: Shaped[Tensor, "n ..."]) -> str:
    kind, hasher = torch.float64 if values.is_floating_point() else torch.int64, hashlib.blake2b(digest_size=16)
    for part in values.detach().cpu().reshape(-1).split(_HASHED):  # in parts: a column of bytes would grow eightfold
        hasher.update(part.to(kind).numpy().tobytes())
    return hasher.hexdigest()
