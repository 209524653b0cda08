"""Atomic replacement of files, JSON lines that were cut off, and YAML: old content or new, and clear errors."""

import ast
import errno
import os
import resource
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmcon.errors import DataError, StorageError
from mmcon.files import (
    append_line,
    create_folder,
    read_json,
    read_lines,
    read_yaml,
    replace_by,
    replace_file,
    temporary_folder,
)


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path):
    path = replace_file(tmp_path / "a.txt", "old")
    replace_file(path, b"new")
    replace_file(path, lambda file: file.write(b"newest"))
    assert path.read_bytes() == b"newest"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("interruption", [OSError(28, "No space left on device"), KeyboardInterrupt(), RuntimeError()])
def test_an_interrupted_write_leaves_the_old_content(tmp_path, interruption):
    path = replace_file(tmp_path / "a.txt", "old")

    def half(file):
        file.write(b"ne")
        file.flush()
        raise interruption

    with pytest.raises(StorageError if isinstance(interruption, OSError) else type(interruption)):
        replace_file(path, half)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def little_space():
    """The limit on the size of files stands for a full disk: the system itself refuses to write more than 100 bytes."""
    handler, before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_disk_with_too_little_space_leaves_the_old_content(tmp_path, little_space):
    path = replace_file(tmp_path / "a.txt", "old")
    little_space()
    with pytest.raises(StorageError, match=r"a\.txt: expected .* free space; got .*File too large"):
        replace_file(path, "x" * 1000)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_tensors_that_do_not_fit_leave_the_old_ones(tmp_path, little_space):
    """Of a library that opens the file itself, and raises errors of its own."""
    path = replace_by(tmp_path / "a.safetensors", lambda file: save_file({"x": torch.ones(2)}, file))
    little_space()
    with pytest.raises(StorageError, match=r"a\.safetensors: expected .* free space; got .*File too large"):
        replace_by(path, lambda file: save_file({"x": torch.ones(1000)}, file))
    assert load_file(path)["x"].tolist() == [1, 1]
    assert list(tmp_path.iterdir()) == [path]


def test_a_disk_that_cannot_flush_folders_is_written_to(tmp_path, monkeypatch):
    """As some network disks; another error of flushing is one."""
    flush, codes = os.fsync, [errno.EINVAL, errno.EIO]

    def fsync(handle):
        if os.path.isdir(f"/proc/self/fd/{handle}"):
            raise OSError(codes[0], os.strerror(codes[0]))
        flush(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    assert replace_file(tmp_path / "a", "new").read_text() == "new"
    del codes[0]
    with pytest.raises(StorageError, match="Input/output error"):
        replace_file(tmp_path / "a", "newer")


@pytest.mark.parametrize("text", ["", '{"top1": 0.', "null", "[1]", "[" * 100_000, "\udcff"])
def test_a_damaged_file_of_json_has_no_values_and_is_told(tmp_path, text, caplog):
    (tmp_path / "a.json").write_text(text, errors="surrogateescape")
    assert read_json(tmp_path / "a.json") == read_json(tmp_path / "none.json") == {}
    assert caplog.text.count("a.json is damaged, and is not used") == 1
    (tmp_path / "a.json").write_text('{"top1": 0.5}')
    assert read_json(tmp_path / "a.json") == {"top1": 0.5}


def test_a_folder_that_is_gone_is_named(tmp_path):
    for write in (lambda path: replace_file(path, "x"), lambda path: append_line(path, {})):
        with pytest.raises(StorageError, match=r"gone/a\.json(.|\n)*deleted or moved"):
            write(tmp_path / "gone" / "a.json")


def test_a_line_after_one_that_was_cut_off_is_whole(tmp_path):
    path = tmp_path / "lines.jsonl"
    append_line(path, {"step": 1})
    with path.open("a") as file:
        file.write('{"step": 2, "lo')
    append_line(path, {"step": 3, "text": "é"})
    assert read_lines(path) == ([{"step": 1}, {"step": 3, "text": "é"}], ['{"step": 2, "lo'])


@pytest.mark.parametrize("damaged", ["null", "3", "[]", "{", '{"a": ', "[" * 100_000, "\x00\x01", "\udcff"])
def test_lines_that_are_no_mappings_are_returned_beside_the_others(tmp_path, damaged):
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"a": 1}\n' + damaged.encode(errors="surrogateescape") + b'\n\n{"a": 2}\n')
    lines, rest = read_lines(path)
    assert lines == [{"a": 1}, {"a": 2}]
    assert len(rest) == 1


def test_a_file_that_is_not_there_has_no_lines(tmp_path):
    assert read_lines(tmp_path / "none.jsonl") == ([], [])


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (BOMB, "found an alias"),
        ("a: &a [*a]", "found an alias"),
        ("!!python/object/apply:os.system ['touch /tmp/no']", "could not determine a constructor"),
        ("a: [1, 2", "line"),
        ("[" * 5000, "nested too deeply"),
        ("2026-13-45", "month"),
        ("a: \x00", "special characters"),
    ],
    ids=["alias bomb", "cycle", "tag", "cut off", "deep", "date", "control character"],
)
def test_yaml_of_anything_but_plain_values_is_refused_at_once(text, told):
    begin = time.monotonic()
    with pytest.raises(DataError, match=rf"somewhere: expected YAML of plain values(.|\n)*{told}"):
        read_yaml(text, where="somewhere")
    assert time.monotonic() - begin < 5


def test_plain_yaml_is_read():
    assert read_yaml("a: [1, 0.5, true, null, text]\nb: {c: 2}", where="x") == {
        "a": [1, 0.5, True, None, "text"],
        "b": {"c": 2},
    }
    assert read_yaml("", where="x") is None


def test_the_temporary_name_is_that_of_the_process(tmp_path):
    seen = []
    replace_file(tmp_path / "a", lambda file: seen.append(os.path.basename(file.name)))
    assert seen == [f".a.{os.getpid()}"]


def test_a_folder_that_cannot_be_created_is_one_error(tmp_path):
    create_folder(tmp_path / "a" / "b")
    create_folder(tmp_path / "a" / "b")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"a folder that is there, or can be created; got .*file"):
        create_folder(tmp_path / "file" / "quarantine")


def test_a_temporary_folder_is_not_there_yet():
    first, second = (temporary_folder("test-") for _ in range(2))
    assert first != second
    assert first.parent.is_dir()
    assert not first.exists()


#: Functions that write a file at its final name, unless a `replace_…` calls them.
WRITERS = {"write_text", "write_bytes", "savefig", "save_file", "write_table", "dump", "export_chrome_trace"}
MODES = {repr(mode + kind) for mode in ("w", "a", "x") for kind in ("", "b", "t")}
#: Modules whose files are no part of a run folder.
ELSEWHERE = {
    "training/replay.py": "the output folder of a replay",
    "training/view_files.py": "the output folder of a replay",
}


def test_files_of_a_run_folder_are_replaced_and_not_overwritten():
    root = Path(__file__).parents[1]
    folders = [root / "mmcon" / "training", root / "mmcon" / "evaluation", root / "recipes"]
    paths = [path for folder in folders for path in folder.rglob("*.py")]
    for path in [*paths, root / "mmcon" / "models" / "saving.py"]:
        if "/".join(path.parts[-2:]) in ELSEWHERE:
            continue
        tree = ast.parse(path.read_text())
        passed = {id(inner) for node in ast.walk(tree) if isinstance(node, ast.Lambda) for inner in ast.walk(node)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and id(node) not in passed:
                name = ast.unparse(node.func).rpartition(".")[2]
                given = [*node.args, *(keyword.value for keyword in node.keywords)] if name == "open" else []
                assert name not in WRITERS, f"{path}:{node.lineno}: {name}"
                assert not {ast.unparse(value) for value in given} & MODES, f"{path}:{node.lineno}: {name}"
