"""Sounds as a source: folders of recordings, manifests, and the bundled prompts spoken in three languages.

    train = create_source("samples/speech", split="train")
    train = sound_folder("recordings/", split="train")               # a sub-folder a class; or train/ and test/
    train = sound_table("calls.csv", split="train", columns=("speaker",))
    train = sound_dataset("owner/name", split="train")               # of the datasets library

Rate and channels are part of a source's contract (`AudioFormat`): whatever the files are, handles give that. A file
that turns out unreadable is quarantined by the loader when it is met: its rows are left out, counted and named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from mmcon.errors import DataError
from mmcon.media import AudioFormat, AudioHandle
from mmcon.media.audio_files import CONTAINERS, SUFFIXES
from mmcon.random import stable_ids
from mmcon.registry import register_source
from mmcon.sources import bundled
from mmcon.sources.base import HELD_OUT, Source, held_out
from mmcon.sources.hub import TableSource, load_table
from mmcon.sources.manifests import read_table


@final
class SoundSource(Source):
    """Sounds as rows; a header is read once, when it is first asked for.

    Args:
        sounds: the handles; ids come from their names.
        named: columns of texts, such as prompt and language: each becomes a column of whole numbers, and `names` keeps
            what they stand for.
        options: as for Source.
    """

    def __init__(
        self, sounds: Sequence[AudioHandle], named: Mapping[str, Sequence[str]] | None = None, **options: Any
    ) -> None:
        self.sounds = list(sounds)
        self.names: dict[str, list[str]] = {}
        columns = dict(options.pop("columns", None) or {})
        for name, texts in (named or {}).items():
            self.names[name] = sorted(set(texts))
            at = {text: i for i, text in enumerate(self.names[name])}
            columns[name] = torch.tensor([at[text] for text in texts])
        super().__init__(ids=stable_ids(s.id for s in self.sounds), modality="audio", columns=columns, **options)

    def open(self, rows: Tensor | Sequence[int]) -> list[AudioHandle]:
        """The handles of the rows."""
        positions: list[int] = torch.as_tensor(rows).tolist()
        return [self.sounds[row] for row in positions]


def _classes(texts: Sequence[str]) -> tuple[Tensor, tuple[str, ...]]:
    classes = tuple(sorted(set(texts)))
    at = {text: i for i, text in enumerate(classes)}
    return torch.tensor([at[text] for text in texts]), classes


@register_source("folder/sounds", modality="audio")
def sound_folder(
    path: str | Path,
    split: str = "train",
    *,
    rate_hz: int = 16_000,
    channels: int = 1,
    test_share: float = 0.1,
    on_non_finite: str = "error",
    on_short: str = "error",
) -> SoundSource:
    """A folder of recordings: its sub-folders are the classes, or are train/ and test/ with such in them.

    Without train/ and test/, rows are split by their own names, so that files that come later move none. Sub-folders of
    any depth are searched; files right in the folder make a source without labels. Rates and channel counts may differ.

    Args:
        path: the folder.
        split: "train", or what the held-out folder is called.
        rate_hz: what every file is resampled to.
        channels: 1 mixes down.
        test_share: how much is held out where there are no folders for it.
        on_non_finite: NaN samples are an "error" (the file is quarantined), or "zero".
        on_short: so is a file that breaks off before its header says.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise DataError("folder/sounds", expected="a folder", got=f"{str(path)!r}", fix="check --data")
    audio_format = AudioFormat(rate_hz, channels, on_non_finite, on_short)  # pyright: ignore[reportArgumentType]
    aliases = HELD_OUT if split in HELD_OUT else (split,)
    own = next((root / name for name in aliases if (root / name).is_dir()), None)
    has_splits = own is not None and (root / "train").is_dir()
    base = own if has_splits and own is not None else root
    files = sorted(f for f in base.rglob("*") if f.suffix.lower() in SUFFIXES + CONTAINERS and f.is_file())
    if not files:
        raise DataError(
            "folder/sounds",
            expected=f"sounds ({', '.join((*SUFFIXES, *CONTAINERS))})",
            got=f"none below {str(base)!r}",
            fix="check --data",
        )
    names = [f.relative_to(base).as_posix() for f in files]
    notes = []
    if not has_splits:
        keep = _part(names, split, test_share)
        notes.append(f"split {split!r}: {len(keep):,} of {len(files):,} files by name, {test_share:.0%} held out")
    else:
        keep = list(range(len(files)))
    inner = [name.partition("/")[0] if "/" in name else "" for name in names]
    labels, classes = _classes(inner)
    labelled = all(inner) and len(classes) > 1
    return SoundSource(
        [AudioHandle(files[i], audio_format=audio_format, id=names[i]) for i in keep],
        labels=labels[keep] if labelled else None,
        classes=classes if labelled else (),
        name=f"{root.name} ({split})",
        notes=notes,
    )


@register_source("manifest/sounds", modality="audio")
def sound_table(
    path: str | Path,
    split: str = "train",
    *,
    audio_column: str = "audio",
    label_column: str | None = "label",
    columns: Sequence[str] = ("prompt", "language", "speaker"),
    rate_hz: int = 16_000,
    channels: int = 1,
    test_share: float = 0.1,
    on_non_finite: str = "error",
    on_short: str = "error",
) -> SoundSource:
    """A manifest of recordings (csv, tsv, jsonl, parquet): paths beside it, or bytes in a parquet file.

    Rows are split by the column `split` where there is one; else by the column `prompt` (so that no prompt is on both
    sides) or by name.

    Args:
        path: the table.
        split: which rows.
        audio_column: paths relative to the table, bytes, or mappings with `bytes` or `path`.
        label_column: the class of a row, text or number; None for none.
        columns: further columns of texts to keep, where the table has them.
        rate_hz: what every file is resampled to.
        channels: 1 mixes down.
        test_share: how much is held out where the table does not say.
        on_non_finite: NaN samples are an "error" (the file is quarantined), or "zero".
        on_short: so is a file that breaks off before its header says.
    """
    table = Path(path).expanduser()
    records = _records(table)
    if not records or audio_column not in records[0]:
        got = f"columns {sorted(records[0])}" if records else "no rows"
        raise DataError(
            f"manifest {table.name!r}", expected=f"rows with a column {audio_column!r}", got=got, fix="audio_column=…"
        )
    names = [
        str(r.get("id") or (r[audio_column] if isinstance(r[audio_column], str) else i)) for i, r in enumerate(records)
    ]
    if "split" in records[0]:
        wanted = set(HELD_OUT) if split in HELD_OUT else {split}
        keep = [i for i, r in enumerate(records) if str(r["split"]) in wanted]
    else:
        by = [str(r["prompt"]) for r in records] if "prompt" in records[0] else names
        keep = _part(by, split, test_share)
    audio_format = AudioFormat(rate_hz, channels, on_non_finite, on_short)  # pyright: ignore[reportArgumentType]
    if not keep:
        there = sorted({str(r["split"]) for r in records}) if "split" in records[0] else "none by name"
        raise DataError(
            f"manifest {table.name!r}",
            expected=f"rows of split {split!r}",
            got=str(there),
            fix="say in a column `split` which rows are held out, or raise test_share",
        )
    for i in keep:
        if not records[i][audio_column]:
            raise DataError(f"manifest {table.name!r}, row {i + 1}", expected="a path or bytes", got="an empty cell")
    labels, classes = None, ()
    if label_column is not None and label_column in records[0]:
        labels, classes = _classes([str(r[label_column]) for r in records])
    return SoundSource(
        [
            AudioHandle(_cell(records[i][audio_column], table.parent), audio_format=audio_format, id=names[i])
            for i in keep
        ],
        {c: [str(records[i][c]) for i in keep] for c in columns if c in records[0]},
        labels=None if labels is None else labels[keep],
        classes=classes,
        name=f"{table.name} ({split})",
    )


@final
class DatasetSounds(Source):
    """Sounds in a table of the datasets library, memory-mapped and brought to one contract.

    Args:
        table: the rows.
        contract: what every sound is brought to.
        columns: further columns of texts to keep, where the table has them.
    """

    def __init__(self, table: TableSource, *, audio_format: AudioFormat, columns: Sequence[str]) -> None:
        self.table, self.audio_format = table, audio_format
        kept = [name for name in columns if name in table.all_columns.column_names]
        numbered = {name: _classes([str(text) for text in table.all_columns[name][:]]) for name in kept}
        self.names = {name: list(texts) for name, (_, texts) in numbered.items()}
        super().__init__(
            ids=table.ids,
            modality="audio",
            labels=table.labels,
            classes=table.classes,
            columns={name: numbers for name, (numbers, _) in numbered.items()},
            name=table.name,
            notes=table.notes,
        )

    def open(self, rows: Tensor | Sequence[int]) -> list[AudioHandle]:
        """The handles of the rows."""
        return [
            AudioHandle(sound.source, audio_format=self.audio_format, id=sound.id) for sound in self.table.open(rows)
        ]


@register_source("hub/sounds", modality="audio")
def sound_dataset(
    path: str | Path,
    split: str = "train",
    *,
    columns: Sequence[str] = ("prompt", "language", "speaker"),
    rate_hz: int = 16_000,
    channels: int = 1,
    test_share: float = 0.1,
    on_non_finite: str = "error",
    on_short: str = "error",
    **options: Any,
) -> DatasetSounds:
    """Sounds that `datasets.load_dataset` opens: a hub name, or a folder of parquet files.

    Data with a training split alone are split by the column `prompt` where there is one, else by identity.

    Args:
        path: the name or the folder.
        split: "train", "test" (also found as validation), or another that the data have.
        columns: further columns of texts to keep, where the table has them.
        rate_hz: what every sound is resampled to.
        channels: 1 mixes down.
        test_share: how much is held out where the data do not say.
        on_non_finite: NaN samples are an "error" (the sample is quarantined), or "zero".
        on_short: so is a sound that breaks off before its header says.
        options: as for the source "hub": config, revision, media_column, label_column, ….
    """
    table = load_table(path, split, modality="audio", together="prompt", test_share=test_share, **options)
    audio_format = AudioFormat(rate_hz, channels, on_non_finite, on_short)  # pyright: ignore[reportArgumentType]
    return DatasetSounds(table, audio_format=audio_format, columns=columns)


@register_source("samples/speech", modality="audio")
def speech(split: str = "train", *, rate_hz: int = 8_000) -> SoundSource:
    """The bundled prompts in English, Spanish and French; classes are prompts, and no prompt is in both splits.

    Each language is one voice and one recording chain: telling them apart is not language identification.
    """
    part = "test" if split in HELD_OUT else split
    records = _records(bundled.path("speech", part))
    labels, classes = _classes([r["prompt"] for r in records])
    audio_format = AudioFormat(rate_hz=rate_hz)
    return SoundSource(
        [AudioHandle(_cell(r["audio"], Path()), audio_format=audio_format, id=f"speech/{r['id']}") for r in records],
        {name: [r[name] for r in records] for name in ("prompt", "language")},
        labels=labels,
        classes=classes,
        name=f"samples/speech ({part})",
    )


def open_source(data: str, split: str, *, rate_hz: int, **options: Any) -> Source:
    """A source by what `--data` says: samples/speech, a folder, a manifest, or a name for the datasets library."""
    if data == "samples/speech":
        return speech(split, rate_hz=rate_hz)
    path = Path(data).expanduser()
    if path.suffix in (".csv", ".tsv", ".jsonl", ".parquet"):
        return sound_table(data, split, rate_hz=rate_hz, **options)
    if path.is_dir() and not any(path.glob("*.parquet")) and not any(path.glob("*/*.parquet")):
        return sound_folder(data, split, rate_hz=rate_hz, **options)
    if path.is_dir() or "/" in data:
        return sound_dataset(data, split, rate_hz=rate_hz, **options)
    raise DataError(
        f"sounds {data!r}",
        expected="samples/speech, a folder, a manifest (.csv, .tsv, .jsonl, .parquet), or owner/name of a data set",
        got="nothing of this name",
        fix="check --data",
    )


def _part(names: Sequence[str], split: str, test_share: float) -> list[int]:
    """The positions of a split by name, where the data have none of their own."""
    out = held_out(stable_ids(names), test_share)
    return (out if split in HELD_OUT else ~out).nonzero()[:, 0].tolist()


def _cell(cell: Any, root: Path) -> Path | bytes:
    if isinstance(cell, Mapping):
        cell = cell.get("bytes") or cell.get("path")
    return cell if isinstance(cell, bytes) else root / str(cell)


def _records(table: Path) -> list[dict[str, Any]]:
    columns = read_table(table)
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
