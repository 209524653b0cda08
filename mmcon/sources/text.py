"""Text sources: texts in one column, or in parallel columns (translations, title and body)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from jaxtyping import Int
from torch import Tensor

from mmcon.errors import DataError
from mmcon.media.text import TextHandle, check_is_list
from mmcon.random import stable_ids
from mmcon.sources.base import DatasetSource, Positions, Source
from mmcon.sources.fingerprint import text_marks
from mmcon.sources.listing import Listing, handle_opener


@final
class TextSource(Source):
    """Texts in memory, in one column or in parallel columns (translations, title and body).

    Empty texts and values that are not text raise DataError: equal texts would all be positives of one another.

    Args:
        texts: `n` strings; or by column `n` strings each.
        ids: `n` names of the samples; by default the texts of the first column if they all differ, else the indices.
        options: as for Source, such as labels and classes.
    """

    def __init__(
        self, texts: Sequence[str] | Mapping[str, Sequence[str]], *, ids: Sequence[str] | None = None, **options: Any
    ) -> None:
        columns = dict(texts) if isinstance(texts, Mapping) else {"text": texts}
        _check_texts(str(options.get("name", "TextSource")), columns)
        self.texts = {column: list(values) for column, values in columns.items()}
        first = next(iter(self.texts.values()))
        known = list(ids) if ids is not None else first if len(set(first)) == len(first) else range(len(first))
        super().__init__(ids=stable_ids(known), modality="text", **options)

    def open(self, rows: Positions) -> list[TextHandle]:
        """Open samples as handles, with the columns as versions."""
        names, columns = tuple(self.texts), list(self.texts.values())
        positions = torch.as_tensor(rows).tolist()
        return [TextHandle(tuple(c[i] for c in columns), names, id=f"{self.name}[{i}]") for i in positions]

    def content_marks(self, rows: Int[Tensor, " m"]) -> list[int]:
        """A hash of each text, since names may stay while texts change."""
        columns = list(self.texts.values())
        return text_marks([tuple(column[row] for column in columns) for row in rows.tolist()])

    def column(self, name: str) -> TextSource:
        """The same samples with a single column."""
        if name not in self.texts:
            raise DataError(self.name, expected=f"a column among {list(self.texts)}", got=repr(name))
        plain = TextSource({name: self.texts[name]}, name=f"{self.name}, {name}")
        plain.ids, plain.columns, plain.classes, plain.facts = self.ids, self.columns, self.classes, self.facts
        return plain


def text_source(listing: Listing) -> TextSource | DatasetSource:
    """Open a listing as texts: in memory for a table, else read when they are needed."""
    cells, columns = listing.cells, listing.versions
    if not listing.is_lazy:
        texts = {name: [cell[i] for cell in cells] for i, name in enumerate(columns)}
        return TextSource(texts, ids=listing.names, **listing.options)
    opener = handle_opener("text", versions=columns)
    return DatasetSource(cells, handle=opener, names=listing.names, modality="text", **listing.options)


def _check_texts(name: str, columns: Mapping[str, Sequence[str]]) -> None:
    lengths = {column: len(values) for column, values in columns.items()}
    if not columns or len(set(lengths.values())) > 1:
        fix = "one text a sample in every column"
        raise DataError(name, expected="columns of one length", got=str(lengths), fix=fix)
    for column, values in columns.items():
        check_is_list(f"{name}, column {column!r}", values)
        wrong = [i for i, text in enumerate(values) if not isinstance(text, str) or not text.strip()]
        if wrong:
            raise DataError(
                f"{name}, column {column!r}",
                expected="a text that is not empty in every row",
                got=f"{len(wrong)} of {len(values)} rows without, the first: row {wrong[0]} ({values[wrong[0]]!r})",
                fix="leave these rows out",
            )
