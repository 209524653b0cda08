"""Tables as people have them: encodings, delimiters, empty cells; and one error, with line and column, for the rest."""

import json

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from mmcon.errors import DataError
from mmcon.sources.factory import create_source, source_name
from mmcon.sources.listing import TableOptions
from mmcon.sources.table_files import read_table
from mmcon.sources.tables import list_table

ROWS = [["a.png", "très", "1"], ["b.png", "peu", "20"]]
COLUMNS = {"path": ["a.png", "b.png"], "label": ["très", "peu"], "size": [1, 20]}


def text_of(delimiter=",", end="\n"):
    return end.join(delimiter.join(row) for row in [["path", "label", "size"], *ROWS]) + end


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"], ids=lambda name: name
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["unix", "windows", "old mac"])
def test_every_encoding_of_text_is_read(tmp_path, encoding, end):
    (tmp_path / "list.csv").write_bytes(text_of(end=end).encode(encoding))
    table = read_table(tmp_path / "list.csv")
    assert table.columns == COLUMNS
    assert table.notes == (("read as Windows-1252, since it is not UTF-8",) if encoding == "cp1252" else ())
    assert read_table(tmp_path / "list.csv", head=True).columns == COLUMNS


@pytest.mark.parametrize(("suffix", "usual"), [("csv", ","), ("CSV", ","), ("tsv", "\t")])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_found(tmp_path, suffix, usual, delimiter):
    (tmp_path / f"list.{suffix}").write_text(text_of(delimiter))
    table = read_table(tmp_path / f"list.{suffix}")
    assert table.columns == COLUMNS
    assert table.notes == (() if delimiter == usual else (f"cells are separated by {delimiter!r}",))


@pytest.mark.parametrize(
    ("text", "columns", "notes"),
    [
        ("path, label\n a.png ,  cat \n", {"path": ["a.png"], "label": ["cat"]}, ()),
        ('path, label\n"a, b.png", "cat"\n', {"path": ["a, b.png"], "label": ["cat"]}, ()),
        ('path,label\n"a\nb.png",cat\n\n', {"path": ["a\nb.png"], "label": ["cat"]}, ()),
        ("path,label,\na.png,cat,\nb.png,dog\n", {"path": ["a.png", "b.png"], "label": ["cat", "dog"]}, ()),
        ("path,label\na.png,cat,,\n", {"path": ["a.png"], "label": ["cat"]}, ()),
        (
            ",path,label\n0,a.png,\n,,\n  \n1,b.png,x\n",
            {"column 1": [0, 1], "path": ["a.png", "b.png"], "label": [None, "x"]},
            ("2 empty rows left out",),
        ),
        ("path,size\na.png,007\nb.png,12\n", {"path": ["a.png", "b.png"], "size": ["007", "12"]}, ()),
        ("path;seconds\na.png;0,5\n", {"path": ["a.png"], "seconds": ["0,5"]}, ("cells are separated by ';'",)),
    ],
)
def test_cells_of_csv(tmp_path, text, columns, notes):
    (tmp_path / "list.csv").write_text(text)
    table = read_table(tmp_path / "list.csv")
    assert table.columns == columns
    assert table.notes == notes


def test_quotation_marks_in_a_table_with_tabs(tmp_path):
    (tmp_path / "list.tsv").write_text('text\tlabel\n"Hello" he said\t1\n5" disk\t0\n')
    table = read_table(tmp_path / "list.tsv")
    assert table.columns == {"text": ['"Hello" he said', '5" disk'], "label": [1, 0]}
    assert table.notes == ("quotation marks are a part of the cells",)


@pytest.mark.parametrize(
    ("name", "content", "where", "got"),
    [
        ("a.csv", b"path,label\na.png,1\nb.png,1, blurred\n", "line 3, after column 'label'", "3 cells in line 3"),
        ("a.csv", b"path,label\n\n\na.png\n", "line 4, column 'label'", "1 cells in line 4"),
        ("a.csv", b'path,label\n"x\ny",1\nb.png\n', "line 4, column 'label'", "1 cells"),
        ("a.csv", b"path,label,path\na,1,b\n", "line 1", "'path' twice"),
        ("a.csv", b'path,label\na.png,"' + b"x" * 200_000, "line 2, column 'label'", "longer than the limit"),
        ("a.csv", b"path,label\na.png," + b"x" * 200_000, "line 2, column 'label'", "longer than the limit"),
        ("a.csv", b'path,label\n"a.png,1\nb.png,2\n', "line 2, column 'path'", "unexpected end of data"),
        ("a.csv", b'path,label\n"a" b.png,1\n', "line 2, column 'path'", "expected after"),
        ("a.csv", b"path,label\n\x81\x8d,1\n", "a.csv", "none of these"),
        ("a.csv", bytes(range(256)), "a.csv", "none of these"),
        ("a.csv", b"", "a.csv", "none"),
        ("a.csv", b"path,label\n", "a.csv", "none"),
        ("a.xlsx", b"PK", "a.xlsx", "'.xlsx'"),
        ("a.json", b"[" * 100_000, "line 1", "too many levels"),
        ("a.jsonl", b'{"path": "a"}\n' + b'{"a":' * 100_000, "line 2", "too many levels"),
        ("a.jsonl", b'{"path": "a"}\n{"path": "b"', "line 2, character 13", "delimiter"),
        ("a.json", b'[{"path": "a"},\n {"path"}]', "line 2, character 9", "delimiter"),
        ("a.json", b'[{"path": "a"}, 3]', "object 2", "3"),
        ("a.jsonl", b"3\n", "line 1", "3"),
        ("a.jsonl", b'{"path": ' + b"9" * 5000 + b"}", "line 1", "digits"),
        ("a.parquet", b"PAR1" + b"\0" * 100 + b"PAR1", "a.parquet", "thrift"),
        ("a.parquet", b"", "a.parquet", "Arrow"),
    ],
)
def test_one_error_names_the_file_the_line_and_the_column(tmp_path, name, content, where, got):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_table(tmp_path / name)
    assert str(tmp_path / name) in caught.value.where
    assert where in caught.value.where
    assert got in caught.value.got


def test_a_parquet_file_that_was_cut(tmp_path):
    parquet.write_table(pa.table({"path": ["a"] * 1000, "label": list(range(1000))}), tmp_path / "a.parquet")
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="expected a parquet file"):
        read_table(tmp_path / "a.parquet")


def test_json_is_read_by_its_content_whatever_its_suffix(tmp_path):
    rows = [{"path": "a", "label": 1}, {"path": "b"}]
    for name, text in (("list.json", "\n".join(map(json.dumps, rows))), ("list.jsonl", json.dumps(rows, indent=2))):
        (tmp_path / name).write_text(text)
        assert read_table(tmp_path / name).columns == {"path": ["a", "b"], "label": [1, None]}


@pytest.mark.parametrize(
    ("columns", "modality"),
    [
        ({"path": ["a.mp4", "b.mkv"], "score": [1, 2]}, "video"),
        ({"file": ["a.flac", "b.wav"]}, "audio"),
        ({"path": ["a.jpg", "b.jpg"], "caption": ["x", "y"]}, "image"),
        ({"Audio": ["a", "b"]}, "audio"),
        ({"sentence": ["x", "y"], "label": ["a", "b"]}, "text"),
        ({"path": ["frames/1", "frames/2"], "frames_per_second": [25, 25]}, "video"),
        ({"path": ["1", "2"]}, "image"),
        ({"image": [b"1", b"2"], "text": ["x", "y"]}, "image"),
    ],
)
@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_the_modality_of_a_table_is_guessed(tmp_path, columns, modality, suffix):
    table, path = pa.table(columns), tmp_path / f"list.{suffix}"
    if suffix == "parquet":
        parquet.write_table(table, path)
    elif suffix == "jsonl":
        path.write_text("\n".join(json.dumps(row, default=str) for row in table.to_pylist()))
    else:
        rows = [table.column_names, *zip(*columns.values(), strict=True)]
        path.write_text("\n".join(",".join(map(str, row)) for row in rows))
    assert source_name(str(path)) == f"table/{modality}"


def test_media_that_are_named_by_numbers_are_text(tmp_path):
    (tmp_path / "list.csv").write_text("path,title\n" + "".join(f"{i},{i + 5}\n" for i in range(1, 5)))
    videos = list_table(tmp_path / "list.csv", split="all", modality="video", options=TableOptions())
    assert videos.cells == videos.names == ["1", "2", "3", "4"]
    options = TableOptions(text_columns=("title", "path"))
    texts = list_table(tmp_path / "list.csv", split="all", modality="text", options=options)
    assert texts.cells == [("6", "1"), ("7", "2"), ("8", "3"), ("9", "4")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group_column": "patent"}, "a group column 'patent'.*did you mean 'patient'"),
        ({"split_column": "part"}, r"a split column 'part'; got columns \['path', 'patient', 'label'\]"),
        ({"media_column": "pth"}, "did you mean 'path'"),
        ({"id_column": "key"}, r"got columns \['path', 'patient', 'label'\]"),
    ],
)
def test_a_wrong_column_is_named_with_those_that_are_there(tmp_path, options, message):
    (tmp_path / "list.csv").write_text("path,patient,label\na.png,1,x\nb.png,2,y\n")
    with pytest.raises(DataError, match=f"(?s){message}"):
        create_source(tmp_path / "list.csv", modality="image", **options)
