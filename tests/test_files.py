"""Atomic replacement of files, JSON lines that were cut off, and YAML: old content or new, and clear errors."""

import os
import resource
import signal
import time

import pytest

from mmcon.errors import DataError, StorageError
from mmcon.files import append_line, create_folder, read_lines, read_yaml, replace_file, temporary_folder


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


def test_a_disk_with_too_little_space_leaves_the_old_content(tmp_path):
    """The limit on the size of files stands for a full disk: the system itself refuses to write."""
    path = replace_file(tmp_path / "a.txt", "old")
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(StorageError, match=r"a\.txt: expected .* free space; got .*File too large"):
            replace_file(path, "x" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


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
