"""Write a bundled set: rows to parquet, its card to JSON; and order names by their hashes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

ENCODED = ("image", "noto", "twemoji", "audio", "video")


def rank(name: str) -> int:
    """The hash of a name, by which a builder orders names where it takes a subset of them."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def split(names: list[str], test_share: float) -> dict[str, str]:
    """By name, "train" or "test": the given share that ranks first is the test split."""
    ordered = sorted(names, key=lambda name: rank(f"split {name}"))
    test = set(ordered[: round(test_share * len(ordered))])
    return {name: "test" if name in test else "train" for name in names}


def write_rows(rows: list[dict[str, Any]], file: Path, schema: pa.Schema | None = None) -> None:
    """Rows to one parquet file; columns of encoded bytes are stored as they are, the others compressed."""
    table = pa.Table.from_pylist(rows, schema=schema)
    # Lists are stored under the path of their leaves.
    leaves = [f"{field.name}.list.element" if pa.types.is_list(field.type) else field.name for field in table.schema]
    pq.write_table(
        table,
        file,
        compression={name: "none" if name in ENCODED else "zstd" for name in leaves},
        use_dictionary=[name for name in leaves if name not in ENCODED],
        write_statistics=False,
        row_group_size=2048,
    )


def write_card(folder: Path, **card: Any) -> None:
    """The card of a set: title, license, source, columns, and the counts of its splits."""
    text = json.dumps(card, indent=2, ensure_ascii=False) + "\n"
    (folder / "card.json").write_text(text, encoding="utf-8")
