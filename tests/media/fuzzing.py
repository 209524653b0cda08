"""Mutated files of every format that is decoded, in a process of their own: `fuzz(folder, formats, numbers)`.

A mutation is a function of the format and its number. Repeat one with `python tests/media/fuzzing.py FORMAT NUMBER`.
A decoder may succeed or raise DataError. Everything else is returned as a failure, with its format and number: another
exception, the death of the process, more than `SECONDS` for a file, and more than `MEMORY_BYTES` of memory.
"""

from __future__ import annotations

import faulthandler
import io
import os
import random
import resource
import select
import subprocess
import sys
import tempfile
from pathlib import Path

import av
import numpy as np
import soundfile
from PIL import Image

SECONDS, MEMORY_BYTES = 5.0, 1 << 30
EXTREMES = (0, 1, 2, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


# --- one small file of each format -----------------------------------------------------------------------------------


def image(form, mode="RGB", **options):
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 4), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(out, form, **options)
    return out.getvalue()


def animation(form):
    frames = [Image.new("RGB", (32, 24), (40 * i, 90, 0)) for i in range(5)]
    out = io.BytesIO()
    frames[0].save(out, form, save_all=True, append_images=frames[1:], duration=100)
    return out.getvalue()


def sound(form, subtype=None):
    out = io.BytesIO()
    tone = 0.5 * np.sin(np.arange(1_600) / 9)
    soundfile.write(out, np.stack([tone, -tone], 1), 8_000, format=form, subtype=subtype)
    return out.getvalue()


def container(form, codec, kind="video"):
    out = io.BytesIO()
    with av.open(out, "w", format=form) as file:
        if kind == "audio":
            stream = file.add_stream(codec, rate=48_000 if codec == "libopus" else 8_000, layout="mono")
            samples = (9_000 * np.sin(np.arange(9_600) / 9)).astype(np.int16)[None]
            frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            frame.sample_rate = stream.rate
            frames = [frame]
        else:
            stream = file.add_stream(codec, rate=10)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p" if codec == "mjpeg" else "yuv420p"
            pictures = [np.full((48, 64, 3), 25 * i, dtype=np.uint8) for i in range(8)]
            frames = [av.VideoFrame.from_ndarray(picture, format="rgb24") for picture in pictures]
        for frame in frames:
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return out.getvalue()


FORMATS = {
    "jpg": lambda: image("JPEG"), "progressive.jpg": lambda: image("JPEG", progressive=True),
    "png": lambda: image("PNG", "RGBA"), "gif": lambda: image("GIF", "P"), "webp": lambda: image("WEBP"),
    "bmp": lambda: image("BMP"), "tiff": lambda: image("TIFF", compression="tiff_lzw"),
    "avif": lambda: image("AVIF"), "jp2": lambda: image("JPEG2000"),
    "wav": lambda: sound("WAV"), "float.wav": lambda: sound("WAV", "FLOAT"), "gsm.wav": lambda: sound_gsm(),
    "flac": lambda: sound("FLAC"), "ogg": lambda: sound("OGG"), "mp3": lambda: sound("MP3"),
    "aiff": lambda: sound("AIFF"), "au": lambda: sound("AU"), "caf": lambda: sound("CAF"), "w64": lambda: sound("W64"),
    "opus": lambda: container("ogg", "libopus", "audio"), "m4a": lambda: container("mp4", "aac", "audio"),
    "mp4": lambda: container("mp4", "libx264"), "mov": lambda: container("mov", "mjpeg"),
    "mkv": lambda: container("matroska", "libx264"), "webm": lambda: container("webm", "libvpx"),
    "avi": lambda: container("avi", "mpeg4"), "ts": lambda: container("mpegts", "mpeg2video"),
    "flv": lambda: container("flv", "flv"), "animated.gif": lambda: animation("GIF"),
    "animated.webp": lambda: animation("WEBP"),
}  # fmt: skip


def sound_gsm():
    out = io.BytesIO()
    soundfile.write(out, 0.5 * np.sin(np.arange(1_600) / 9), 8_000, format="WAV", subtype="GSM610")
    return out.getvalue()


def modality_of(form):
    names = list(FORMATS)
    at = names.index(form)
    return "image" if at < names.index("wav") else "audio" if at < names.index("mp4") else "video"


# --- mutations -------------------------------------------------------------------------------------------------------


def mutated(data: bytes, other: bytes, form: str, number: int) -> bytes:
    """The n-th mutation of a file; the first ones are an empty file, a text, and spliced files."""
    draw = random.Random(f"{form}/{number}")
    if number < 4:
        half = len(data) // 2
        return (b"", b"<html>404</html>" * 60, data[:half] + other[half:], other[: len(other) // 3] + data)[number]
    content = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        if content:
            MUTATIONS[draw.randrange(len(MUTATIONS))](content, draw)
    return bytes(content)


def flip_bits(content, draw):
    for _ in range(draw.randint(1, 8)):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)


def set_bytes(content, draw):
    for _ in range(draw.randint(1, 12)):
        content[draw.randrange(len(content))] = draw.randrange(256)


def cut(content, draw):
    del content[draw.randrange(len(content)) :]


def span_of(content, draw):
    start = draw.randrange(len(content))
    return start, start + draw.randint(1, max(1, len(content) // 4))


def delete(content, draw):
    start, stop = span_of(content, draw)
    del content[start:stop]


def duplicate(content, draw):
    start, stop = span_of(content, draw)
    content[start:start] = content[start:stop] * draw.choice((1, 1, 3))


def clear(content, draw):
    start, stop = span_of(content, draw)
    content[start:stop] = bytes(len(content[start:stop]))


def set_field(content, draw):
    """A field of 1, 2, 4 or 8 bytes, mostly in the header, gets an extreme value."""
    size = draw.choice((1, 2, 2, 4, 4, 4, 8))
    at = draw.randrange(min(len(content), draw.choice((64, 256, len(content)))))
    value = draw.choice(EXTREMES) & ((1 << 8 * size) - 1)
    content[at : at + size] = value.to_bytes(size, draw.choice(("little", "big")))[: len(content) - at]


MUTATIONS = (flip_bits, set_bytes, cut, delete, duplicate, clear, set_field, set_field, set_field)


# --- the process that decodes ----------------------------------------------------------------------------------------


def read(path: Path, modality: str) -> None:
    """Both stages of a file, as views use them: the header, everything, and a part."""
    from mmcon.media import AudioFormat, AudioHandle, ImageHandle, open_video

    if modality == "image":
        photo = ImageHandle(path)
        height, width = photo.facts["height"], photo.facts["width"]
        photo.decode()
        photo.decode(region=(height // 4, width // 4, max(1, height // 2), max(1, width // 2)), size=(8, 8))
    elif modality == "audio":
        recording = AudioHandle(path, audio_format=AudioFormat(rate_hz=8_000))
        length = recording.facts["length"]
        recording.decode()
        recording.decode(length // 3, length // 3)
    else:
        video = open_video(path)
        seconds = video.facts["duration_seconds"]
        video.decode()
        video.decode([seconds / 3, 2 * seconds / 3], shorter_side=16)


def peak_bytes(above: int = 0) -> int:
    """The most memory that this program has had, or a larger number that is not above a limit.

    ru_maxrss is read at a tenth of the cost, and begins at what the process that started this one had.
    """
    most, status = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10, Path("/proc/self/status")
    if most > above and status.exists():
        return next(int(line.split()[1]) << 10 for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return most


def work(folder: Path, cases: list[tuple[str, int]], report: int) -> None:
    """Decode mutated files; before each, its position in the list is reported, and a failure after it."""
    from mmcon.errors import DataError

    faulthandler.enable()
    av.logging.set_level(None)
    files = {form: (folder / form).read_bytes() for form in FORMATS}
    others = dict(zip(files, [*list(files.values())[1:], files["jpg"]], strict=True))
    path = folder / f"mutant-{os.getpid()}"
    read_first = {modality_of(form): form for form in FORMATS}
    for modality, form in read_first.items():  # imports
        (path := path.with_suffix(f".{form.split('.')[-1]}")).write_bytes(files[form])
        read(path, modality)
    base = peak_bytes()
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    if pages:  # a file that asks for more than the machine has must not take it
        limit = pages * resource.getpagesize() + 3 * MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    os.write(report, b"ready\n")
    peak = max(base, MEMORY_BYTES)
    for position, (form, number) in enumerate(cases):
        os.write(report, b"%d\n" % position)
        path = path.with_suffix(f".{form.split('.')[-1]}")
        path.write_bytes(mutated(files[form], others[form], form, number))
        try:
            read(path, modality_of(form))
        except DataError:
            pass
        except BaseException as error:
            os.write(report, f"{position} {type(error).__name__}: {str(error)[:200]!r}\n".encode())
        reached = peak_bytes(above=peak)
        if reached > peak:
            os.write(report, f"{position} {reached >> 20} MiB of memory\n".encode())
            peak = reached
    os.write(report, b"done\n")


def fuzz(folder: Path, formats: list[str], numbers: range) -> list[str]:
    """Decode mutations of each format, by their numbers, and return the failures."""
    for form, make in FORMATS.items():
        (folder / form).write_bytes(make())
    cases = [(form, number) for form in formats for number in numbers]
    failures: list[str] = []
    while cases:
        done, found = _watch(folder, cases)
        failures += found
        cases = cases[done:]
    return failures


def _watch(folder: Path, cases: list[tuple[str, int]]) -> tuple[int, list[str]]:
    """Start the process, and return how many cases it finished or died of, and the failures among them."""
    receive, send = os.pipe()
    (folder / "cases").write_text("\n".join(f"{form} {number}" for form, number in cases))
    with tempfile.TemporaryFile() as errors:
        command = [sys.executable, __file__, "--work", str(folder), str(send)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, pass_fds=[send], stdout=errors, stderr=errors, env=environment)
        os.close(send)
        failures, position, text, seconds = [], 0, b"", 120.0  # imports may take long
        while True:
            if not select.select([receive], [], [], seconds)[0]:
                process.kill()
                failures.append(f"{_name(cases[position])}: no end within {seconds:g} s")
                break
            if not (received := os.read(receive, 1 << 16)):
                process.wait()
                errors.seek(0)
                output = errors.read()[-1500:].decode(errors="replace")
                failures.append(f"{_name(cases[position])}: the process ended with {process.returncode}\n{output}")
                break
            *lines, text = (text + received).split(b"\n")
            for line in lines:
                first, _, failure = line.decode(errors="replace").partition(" ")
                position = int(first) if first.isdigit() else position
                failures += [f"{_name(cases[position])}: {failure}"] if failure else []
            seconds = SECONDS
            if lines and lines[-1] == b"done":
                process.wait()
                os.close(receive)
                return len(cases), failures
        process.wait()
        os.close(receive)
        return position + 1, failures


def _name(case: tuple[str, int]) -> str:
    return f"{case[0]} {case[1]}"


if __name__ == "__main__":
    if sys.argv[1] == "--work":
        own = Path(sys.argv[2])
        listed = [line.split() for line in (own / "cases").read_text().splitlines()]
        work(own, [(form, int(number)) for form, number in listed], int(sys.argv[3]))
    else:
        chosen, number = sys.argv[1], int(sys.argv[2])
        forms = list(FORMATS)
        data, other = FORMATS[chosen](), FORMATS[forms[(forms.index(chosen) + 1) % len(forms)]]()
        with tempfile.TemporaryDirectory() as scratch:
            mutant = Path(scratch) / f"mutant.{chosen.split('.')[-1]}"
            mutant.write_bytes(mutated(data, other, chosen, number))
            read(mutant, modality_of(chosen))
