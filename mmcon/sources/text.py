"""Sources of texts: from lists in memory, and the bundled names of emoji in six languages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, final

import torch
from torch import Tensor

from mmcon.errors import DataError
from mmcon.media.text import TextHandle
from mmcon.random import stable_ids
from mmcon.registry import register_source
from mmcon.sources import bundled
from mmcon.sources.base import Source, held_out

LANGUAGES = ("en", "de", "fr", "es", "ja", "ar")


@final
class TextSource(Source):
    """Texts in memory, in one column or in several that say the same (translations, title and body).

    Empty texts, and values that are not text, are refused with the number of the first: they would all be alike.

    Args:
        texts: `n` strings; or by column `n` strings each.
        ids: `n` names of the samples; by default the texts of the first column, where they differ, else the numbers.
        options: as for Source, such as labels and classes.
    """

    def __init__(
        self, texts: Sequence[str] | Mapping[str, Sequence[str]], *, ids: Sequence[str] | None = None, **options: Any
    ) -> None:
        columns = dict(texts) if isinstance(texts, Mapping) else {"text": texts}
        name = str(options.get("name", "TextSource"))
        _check_texts(name, columns)
        self.texts = {column: list(values) for column, values in columns.items()}
        first = next(iter(self.texts.values()))
        known = list(ids) if ids is not None else first if len(set(first)) == len(first) else range(len(first))
        super().__init__(ids=stable_ids(known), modality="text", **options)

    def open(self, rows: Tensor | Sequence[int]) -> list[TextHandle]:
        """The rows as handles, the columns as versions."""
        names, columns = tuple(self.texts), list(self.texts.values())
        positions = torch.as_tensor(rows).tolist()
        return [TextHandle(tuple(c[i] for c in columns), names, id=f"{self.name}[{i}]") for i in positions]

    def column(self, name: str) -> TextSource:
        """The same samples with one column alone."""
        if name not in self.texts:
            raise DataError(self.name, expected=f"a column among {list(self.texts)}", got=repr(name))
        plain = TextSource({name: self.texts[name]}, name=f"{self.name}, {name}")
        plain.ids, plain.columns, plain.classes, plain.facts = self.ids, self.columns, self.classes, self.facts
        return plain


def _check_texts(name: str, columns: Mapping[str, Sequence[str]]) -> None:
    lengths = {column: len(values) for column, values in columns.items()}
    if not columns or len(set(lengths.values())) > 1:
        raise DataError(name, expected="columns of one length", got=str(lengths), fix="one text a row in every column")
    for column, values in columns.items():
        wrong = [i for i, text in enumerate(values) if not isinstance(text, str) or not text.strip()]
        if wrong:
            raise DataError(
                f"{name}, column {column!r}",
                expected="a text that is not empty in every row",
                got=f"{len(wrong)} of {len(values)} rows without, the first: row {wrong[0]} ({values[wrong[0]]!r})",
                fix="leave these rows out",
            )


def number_classes(names: Sequence[Any], *, where: str = "labels") -> tuple[Tensor, tuple[str, ...]]:
    """Class numbers and class names of labels that are all of one type; missing and mixed ones are refused."""
    kinds = {type(name).__name__ for name in names}
    if len(kinds) != 1 or kinds & {"NoneType", "float"}:
        raise DataError(
            where,
            expected="a label for every row, all of one type (text or whole numbers)",
            got=f"types {sorted(kinds)}",
            fix="leave rows without a label out, and write all labels alike",
        )
    classes = sorted(set(names))
    number = {name: i for i, name in enumerate(classes)}
    return torch.tensor([number[name] for name in names]), tuple(map(str, classes))


@register_source("samples/emoji-names", modality="text")
def emoji_names(
    split: Literal["train", "test"] = "train",
    languages: Sequence[str] = LANGUAGES,
    labels: Literal["group", "subgroup"] = "group",
) -> TextSource:
    """Names of emoji, bundled: parallel in six languages, labelled by group or subgroup; no concept in two splits."""
    import pyarrow.parquet as parquet

    both = {part: parquet.read_table(bundled.path("emoji", part)) for part in ("train", "test")}
    _, classes = number_classes([name for table in both.values() for name in table[labels].to_pylist()])
    table = both[split]
    return TextSource(
        {language: table[f"name_{language}"].to_pylist() for language in languages},
        ids=[f"emoji/{name}" for name in table["id"].to_pylist()],
        labels=torch.tensor([classes.index(name) for name in table[labels].to_pylist()]),
        classes=classes,
        name=f"samples/emoji-names ({split})",
    )


def read_texts(
    path: str, *, columns: Sequence[str], label: str, held_out_share: float = 0.2
) -> tuple[TextSource, TextSource]:
    """Training and test texts of a table (.csv, .jsonl, .parquet), split by the identity of the first column's text.

    Args:
        path: the table.
        columns: those that hold text.
        label: the column of class names; where the table has none, there are no labels.
        held_out_share: how much is for the test.

    Raises:
        DataError: the table or a column is missing, a text is empty, or labels are missing or of mixed types.
    """
    table = _read_table(path)
    missing = [column for column in columns if column not in table.column_names]
    if missing:
        raise DataError(path, expected=f"columns {missing}", got=f"columns {table.column_names}", fix="--columns")
    texts = {column: table[column].to_pylist() for column in columns}
    _check_texts(path, texts)
    labels, classes = (None, ())
    if label in table.column_names:
        labels, classes = number_classes(table[label].to_pylist(), where=f"{path}, column {label!r}")
    # Rows with the same text fall on the same side; an occurrence number tells them apart.
    first = texts[columns[0]]
    out = held_out(stable_ids(first), held_out_share)
    seen: Counter[str] = Counter()
    ids = []
    for text in first:
        ids.append(f"{text}#{seen[text]}")
        seen[text] += 1
    sources = []
    for part, rows in (("train", torch.nonzero(~out)[:, 0]), ("test", torch.nonzero(out)[:, 0])):
        sources.append(
            TextSource(
                {column: [values[i] for i in rows.tolist()] for column, values in texts.items()},
                ids=[ids[i] for i in rows.tolist()],
                labels=None if labels is None else labels[rows],
                classes=classes,
                name=f"{path} ({part})",
            )
        )
    return sources[0], sources[1]


def _read_table(path: str) -> Any:
    import pyarrow.csv
    import pyarrow.json
    import pyarrow.parquet

    readers = {
        ".csv": pyarrow.csv.read_csv,
        ".jsonl": pyarrow.json.read_json,
        ".parquet": pyarrow.parquet.read_table,
    }
    reader = readers.get(Path(path).suffix)
    if reader is None or not Path(path).is_file():
        raise DataError("read_texts", expected="a file .csv, .jsonl or .parquet", got=repr(path), fix="check --data")
    return reader(path)
