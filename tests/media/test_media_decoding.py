"""The rule that every decoder follows: regular files only, and a DataError with the name for any exception."""

import os
import socket
import struct
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from mmcon.errors import DataError, InputError
from mmcon.media import decoding
from mmcon.media.decoding import decoder_errors, file_size


@pytest.mark.parametrize(
    "error",
    [struct.error("unpack"), IndexError(), RuntimeError("native"), ZeroDivisionError("by zero"), MemoryError(),
     RecursionError("deep"), AttributeError("'NoneType'"), OSError("cut"), UnicodeDecodeError("utf", b"x", 0, 1, "no")],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_any_exception_of_a_decoder_names_the_sample(error):
    message = rf"a/b\.jpg: expected a readable file; got {type(error).__name__}"
    with pytest.raises(DataError, match=message) as raised, decoder_errors("a/b.jpg"):
        raise error
    assert raised.value.__cause__ is error


def test_errors_of_the_package_and_the_end_of_the_program_pass_through():
    with pytest.raises(InputError, match="mine"), decoder_errors("x"):
        raise InputError("mine", expected="a", got="b")
    with pytest.raises(KeyboardInterrupt), decoder_errors("x"):
        raise KeyboardInterrupt


def test_only_regular_files_are_opened(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"12345")
    assert file_size(tmp_path / "photo.jpg", "photo") == 5
    os.mkfifo(tmp_path / "fifo.jpg")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "device.jpg").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket.jpg"))
        for name, kind in {
            "fifo.jpg": "a FIFO",
            "device.jpg": "a device",
            "socket.jpg": "a socket",
            "": "a folder",
            "loop.jpg": "OSError",
            "gone.jpg": "none at",
            "null\0.jpg": "ValueError",
        }.items():
            with pytest.raises(DataError, match=rf"the sample: expected a (regular )?file; got {kind}"):
                file_size(tmp_path / name, "the sample")


def test_the_beginning_of_a_decoding_is_recorded_until_it_ends():
    began = np.zeros(1)
    decoding.record_decoding(began)
    try:
        with decoder_errors("x"):
            first = began[0]
            assert first > 0
            with decoder_errors("inner"):
                assert began[0] == first
            decoding.restart_time_limit()
            assert began[0] >= first
        assert began[0] == 0
        with pytest.raises(DataError), decoder_errors("x"):
            raise RuntimeError
        assert began[0] == 0
    finally:
        decoding.record_decoding(None)


def test_filters_of_warnings_are_changed_in_the_main_thread_alone():
    before = list(warnings.filters)

    def filters():
        with decoding.pillow_is_quiet():
            return list(warnings.filters)

    assert filters() != before
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(filters).result() == before
    assert list(warnings.filters) == before
