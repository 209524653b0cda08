"""Reading csv, tsv, jsonl, json and parquet as columns of cells; what cannot be read is named by file, line and column.

- *Encoding*: UTF-8 and UTF-16, with or without a byte-order mark; other text is read as Windows-1252, with a note.
- *Cells of csv*: separated by commas, semicolons, tabs or bars, found by the first lines; spaces around a cell do not
  count, an empty cell is None, and a column of whole numbers becomes integers. Empty rows are left out, with a note.
- *Cells of other formats* keep their types.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from mmcon.errors import DataError
from mmcon.media.decoding import decoder_errors
from mmcon.sources.labels import whole_numbers

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_PROBED_BYTES, _PROBED_ROWS = 1 << 16, 20


@dataclass(frozen=True)
class Table:
    """The rows of a table.

    Attributes:
        where: the file, for messages.
        columns: the cells by the name of their column.
        lines: the line of each row in a file of text; None for parquet.
        notes: what was guessed or left out.
    """

    where: str
    columns: dict[str, list[Any]]
    lines: Sequence[int] | None = None
    notes: tuple[str, ...] = ()

    def place(self, row: int) -> str:
        """The place of a row in the file, for messages."""
        return f"row {row + 1}" if self.lines is None else f"line {self.lines[row]}"


def read_table(path: str | Path, *, head: bool = False) -> Table:
    """Read a table.

    Args:
        path: the file.
        head: read only the first rows, without the columns of bytes.

    Raises:
        DataError: the file does not exist, has another format, or contains a line that cannot be read.
    """
    file, where = Path(path).expanduser(), f"table {str(path)!r}"
    if not file.is_file():
        raise DataError(where, expected="a table", got="a path that is not a file", fix="check the path")
    suffix = file.suffix.lower()
    if suffix not in SUFFIXES:
        fix = "save it as one of these"
        raise DataError(where, expected=f"one of {', '.join(SUFFIXES)}", got=repr(file.suffix), fix=fix)
    if suffix == ".parquet":
        with decoder_errors(where, expected="a parquet file", fix="write the file again"):
            table = Table(where, _parquet(file, head))
    else:
        with decoder_errors(where, fix="check the file"), file.open("rb") as opened:
            data = opened.read(_PROBED_BYTES if head else -1)
        text, notes = _decode(where, data, whole=not head)
        if head and len(data) == _PROBED_BYTES:
            text = text[: max(text.rfind("\n"), text.rfind("\r")) + 1]
        lines = io.StringIO(text, newline="")
        table = _json(where, text, lines) if "json" in suffix else _csv(where, text, suffix, notes)
    if not next(iter(table.columns.values()), None):
        raise DataError(where, expected="at least one row", got="none", fix="check the file")
    return table


def _parquet(file: Path, head: bool) -> dict[str, list[Any]]:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    with parquet.ParquetFile(file) as opened:
        if not head:
            return opened.read().to_pydict()
        media = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_nested)
        light = [field.name for field in opened.schema_arrow if not any(kind(field.type) for kind in media)]
        read = next(opened.iter_batches(batch_size=_PROBED_ROWS, columns=light), None)
        found = {} if read is None else read.to_pydict()
        return {name: found.get(name, [None]) for name in opened.schema_arrow.names}


def _decode(where: str, data: bytes, *, whole: bool) -> tuple[str, tuple[str, ...]]:
    """The text of a file, and a note if its encoding was guessed."""
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    start = data[:4096]
    if encoding == "utf-8" and start.count(0) > len(start) / 4:  # UTF-16 without a mark: half of the bytes are zeros
        encoding = "utf-16-le" if start[1::2].count(0) > start[::2].count(0) else "utf-16-be"
    for name in (encoding, "cp1252") if encoding == "utf-8" else (encoding,):
        try:
            text = codecs.getincrementaldecoder(name)().decode(data, final=whole)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            return text, () if name == encoding else ("read as Windows-1252, since it is not UTF-8",)
    got, fix = "bytes that are none of these", "save it as UTF-8"
    raise DataError(where, expected="text in UTF-8, UTF-16 or Windows-1252", got=got, fix=fix)


def _json(where: str, text: str, lines: io.StringIO) -> Table:
    """Parse a list of objects, or an object in each line."""
    is_list = text.lstrip()[:1] == "["
    records, numbers = [], []
    for number, line in [(1, text)] if is_list else enumerate(lines, 1):
        if line.strip():
            try:
                read = json.loads(line.rstrip())
            except json.JSONDecodeError as error:
                at = f"line {number + error.lineno - 1}, character {error.colno}"
                raise DataError(f"{where}, {at}", expected="JSON", got=error.msg, fix="correct the line") from None
            except (RecursionError, ValueError) as error:  # nested too deeply, or a number of thousands of digits
                got = "too many levels" if isinstance(error, RecursionError) else str(error)
                raise DataError(f"{where}, line {number}", expected="an object of cells", got=got) from None
            records += read if is_list else [read]
            numbers += range(1, len(read) + 1) if is_list else [number]
    odd = next((i for i, record in enumerate(records) if not isinstance(record, dict)), None)
    if odd is not None:
        at = f"object {numbers[odd]}" if is_list else f"line {numbers[odd]}"
        fix = 'write rows as {"path": "a.jpg", "label": "cat"}'
        raise DataError(f"{where}, {at}", expected="an object of JSON", got=str(records[odd])[:80], fix=fix)
    names = dict.fromkeys(name for record in records for name in record)
    columns = {name: [record.get(name) for record in records] for name in names}
    return Table(where, columns, None if is_list else numbers)


def _csv(where: str, text: str, suffix: str, notes: tuple[str, ...]) -> Table:
    usual = "\t" if suffix == ".tsv" else ","
    delimiter = _delimiter(text[:_PROBED_BYTES], usual)
    if delimiter != usual:
        notes += (f"cells are separated by {delimiter!r}",)
    rows, lines = [], []
    try:
        for line, row in _rows(where, text, delimiter, csv.QUOTE_MINIMAL):
            rows.append(row)
            lines.append(line)
    except DataError:
        if delimiter != "\t":
            raise
        # Tables with tabs often have quotation marks that are a part of the text.
        lines, rows = map(list, zip(*_rows(where, text, delimiter, csv.QUOTE_NONE), strict=True))
        notes += ("quotation marks are a part of the cells",)
    header = [name.strip() or f"column {i + 1}" for i, name in enumerate(rows[0] if rows else ())]
    twice = next((name for i, name in enumerate(header) if name in header[:i]), None)
    if twice is not None:
        raise DataError(f"{where}, line {lines[0]}", expected="column names that differ", got=f"{twice!r} twice")
    full = [i for i, row in enumerate(rows) if i and any(row)]
    if len(full) < len(rows) - 1:
        notes += (f"{len(rows) - 1 - len(full):,} empty rows left out",)
    columns = zip(*(rows[i] for i in full), strict=True) if full else [()] * len(header)
    cells = [whole_numbers([cell.strip() or None for cell in column]) for column in columns]
    return Table(where, dict(zip(header, cells, strict=True)), [lines[i] for i in full], notes)


def _rows(where: str, text: str, delimiter: str, quoting: Literal[0, 3]) -> Iterator[tuple[int, tuple[str, ...]]]:
    """The lines and the cells of the rows, the names of the columns first; all rows have the same number of cells.

    Raises:
        DataError: a row has too few or too many cells, or its quotation marks do not match.
    """
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True, skipinitialspace=True
    )
    header: list[str] | None = None
    line = 1
    try:
        for row in reader:
            if header is None and row:
                # A delimiter after the last name, or after the last cell, makes no column.
                header = row[: max((i + 1 for i, name in enumerate(row) if name.strip()), default=0)]
            if row and header is not None:
                # A tuple of texts is not tracked by the garbage collector, which would go through a million lists.
                yield line, tuple(row if len(row) == len(header) else _fit(where, line, row, header))
            line = reader.line_num + 1
    except csv.Error as error:
        column = _quoted_column(text, line, delimiter, header or [])
        reason = f"{error}".replace("field larger than field limit", "a cell longer than the limit")
        fix = "close the quotation mark of the cell, and double those inside it; save longer cells as parquet"
        at = f"{where}, line {line}{column}"
        raise DataError(at, expected="cells with matching quotation marks", got=reason, fix=fix) from None


def _fit(where: str, line: int, row: list[str], header: list[str]) -> list[str]:
    """The row without empty cells after its end; raise DataError if it has another number of cells."""
    extra = row[len(header) :]
    if not any(row):
        return [""] * len(header)
    if len(row) >= len(header) and not any(extra):
        return row[: len(header)]
    if extra:
        at, fix = f"after column {header[-1]!r}", "quote cells that hold the delimiter"
    else:
        at, fix = f"column {header[len(row)]!r}", "add the cell; it may be empty"
    expected, got = f"{len(header)} cells a line", f"{len(row)} cells in line {line}"
    raise DataError(f"{where}, line {line}, {at}", expected=expected, got=got, fix=fix)


def _delimiter(text: str, usual: str) -> str:
    """The delimiter with which the first rows have the same number of cells, two or more; else the usual one."""
    for delimiter in dict.fromkeys((usual, ",", ";", "\t", "|")):
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
        try:
            widths = [len(row) for row in islice(reader, _PROBED_ROWS) if row]
        except csv.Error:
            return usual
        # The last row may have been cut.
        if widths and widths[0] > 1 and len(set(widths[:-1] or widths)) == 1:
            return delimiter
    return usual


def _quoted_column(text: str, line: int, delimiter: str, header: list[str]) -> str:
    """The name of the column that has the first quotation mark, or the longest cell, of a line."""
    found = next(islice(io.StringIO(text, newline=""), line - 1, None), "").split(delimiter)
    quoted = next(
        (i for i, cell in enumerate(found) if '"' in cell), max(range(len(found)), key=lambda i: len(found[i]))
    )
    return f", column {header[quoted].strip()!r}" if quoted < len(header) else ""
