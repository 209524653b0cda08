"""Thousands of damaged files of every format: DataError or success, no crash, no hang, no flood of memory."""

import fuzzing
import pytest
from fuzzing import FORMATS, fuzz, modality_of

SHORT, LONG = range(200), range(5_000)
# Variants of formats, which only the slow tests have.
VARIANTS = {"progressive.jpg", "jp2", "gsm.wav", "w64", "caf", "mov", "flv", "animated.webp"}


def check(folder, formats, numbers):
    failures = fuzz(folder, formats, numbers)
    assert not failures, f"{len(failures)} failures (tests/media/fuzzing.py FORMAT NUMBER):\n" + "\n".join(failures)


def test_damaged_files_of_every_format_raise_nothing_but_data_errors(tmp_path):
    check(tmp_path, [form for form in FORMATS if form not in VARIANTS], SHORT)


@pytest.mark.slow
@pytest.mark.parametrize("modality", ["image", "audio", "video"])
def test_many_damaged_files_raise_nothing_but_data_errors(modality, tmp_path):
    check(tmp_path, [form for form in FORMATS if modality_of(form) == modality], LONG)


@pytest.mark.slow
def test_a_crash_a_hang_an_exception_and_a_flood_of_memory_are_reported(tmp_path, monkeypatch):
    """The process runs this program with another `read`, which fails at the first byte of the file."""
    program = tmp_path / "program.py"
    program.write_text(
        "import ctypes, sys, time\n"
        f"sys.path.insert(0, {str(fuzzing.Path(fuzzing.__file__).parent)!r})\n"
        "import fuzzing\n"
        "from pathlib import Path\n"
        "held = []\n"
        "def read(path, modality):\n"
        "    kind = path.read_bytes()[:1]\n"
        "    if kind == b'c': ctypes.string_at(0)\n"
        "    if kind == b'h': time.sleep(60)\n"
        "    if kind == b'e': raise IndexError('beyond')\n"
        "    if kind == b'm': held.append(bytes(b'x' * (1 << 30)))\n"
        "fuzzing.read = read\n"
        "fuzzing.mutated = lambda data, other, form, number: b'-c-h-e-m-'[number : number + 1]\n"
        "listed = [line.split() for line in (Path(sys.argv[2]) / 'cases').read_text().splitlines()]\n"
        "fuzzing.work(Path(sys.argv[2]), [(form, int(number)) for form, number in listed], int(sys.argv[3]))\n"
    )
    monkeypatch.setattr(fuzzing, "__file__", str(program))
    monkeypatch.setattr(fuzzing, "SECONDS", 4.0)  # the flood takes a second or more
    crash, hang, exception, memory = fuzz(tmp_path, ["png"], range(9))
    assert crash.startswith("png 1: the process ended with -11")
    assert "Segmentation fault" in crash
    assert hang == "png 3: no end within 4 s"
    assert exception == "png 5: IndexError: 'beyond'"
    assert memory.startswith("png 7: ")
    assert memory.endswith("MiB of memory")
