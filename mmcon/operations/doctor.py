"""The checks of `mmcon doctor`: whether a run can use this machine and these data.

Every check performs the operation itself: it decodes a file to check a decoder, and forms a process group to check one.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from mmcon.errors import DataError, MmconError
from mmcon.sources.base import Source
from mmcon.sources.factory import create_source

#: Files that are shown of those that cannot be read.
SHOWN = 50
_MARKS = {"good": "ok  ", "note": "note", "bad": "BAD "}


@dataclass(frozen=True)
class Finding:
    """The result of a check.

    Attributes:
        level: good, note (works with a limitation) or bad (fails).
        subject: the checked component.
        message: the result, and a fix if there is one.
    """

    level: Literal["good", "note", "bad"]
    subject: str
    message: str

    def __str__(self) -> str:
        return f"{_MARKS[self.level]}  {self.subject}: {self.message}"


def environment() -> Iterator[Finding]:
    """Check versions, decoders, plug-ins, disk, shared memory and process groups."""
    yield from _versions()
    for name, decode in (("images", _decode_image), ("audio", _decode_audio), ("video", _decode_video)):
        yield _run_check(f"decoding {name}", decode)
    yield _torchcodec()
    yield from _plugins()
    yield _space("disk", Path.cwd(), wanted_gib=5.0)
    if Path("/dev/shm").is_dir():
        yield _space("shared memory (worker processes pass batches through it)", Path("/dev/shm"), wanted_gib=1.0)
    yield _gpu()
    yield _gloo()


def chaos() -> Iterator[Finding]:
    """Inject each fault of the suite on this machine, in a temporary folder, and report how the run recovered."""
    from mmcon.operations.fault_injection import FAULTS

    began, processor_before = time.monotonic(), _processor_seconds()
    for name, fault in FAULTS.items():

        def inject(fault: Callable[[Path], str] = fault) -> str:
            with tempfile.TemporaryDirectory() as folder:
                return fault(Path(folder))

        yield _run_check(f"fault: {name}", inject)
    seconds, processor = time.monotonic() - began, _processor_seconds() - processor_before
    yield Finding("good", "faults", f"{len(FAULTS)} in {seconds:.0f} s, with {processor:.0f} s of processor time")


def _processor_seconds() -> float:
    """The processor time of this process and of the processes that it started and that ended."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def data(
    name: str, *, options: Mapping[str, Any] | None = None, everything: bool = False, most: int = 2000
) -> Iterator[Finding]:
    """Check a source as a recipe opens it: its layout, its classes and splits, and whether its files decode.

    Args:
        name: a folder or the name of a source.
        options: of `create_source`, such as `modality`, `label_column` and `max_failures`.
        everything: decode all samples rather than at most `most`, evenly spaced.
        most: the largest number of samples to decode otherwise.
    """
    options = dict(options or {})
    try:
        source = create_source(name, split="train", **options)
    except MmconError as error:
        how = "options of the source are flags here: --option label_column=NAME, --option max_failures=0.2"
        yield Finding("bad", f"data {name}", f"{error}\n  ({how})")
        return
    yield Finding("good", "data", source.describe())
    yield from _classes(source)
    yield from _files(source, 1 if everything else max(1, len(source) // most))
    try:
        test = create_source(name, split="test", **options)
    except MmconError as error:
        yield Finding("note", "held-out split", str(error).partition("\n")[0])
        return
    yield _held_out(source, test)
    yield from _files(test, 1 if everything else max(1, len(test) // most), of="held-out ")


def _files(source: Source, step: int, *, of: str = "") -> Iterator[Finding]:
    """Decode every `step`-th sample."""
    indices = range(0, len(source), step)
    for modality, member in source.members.items():
        faults = [fault for index in indices if (fault := _fault(member, index))]
        shown = "".join(f"\n      {fault}" for fault in faults[:SHOWN])
        more = f"\n      and {len(faults) - SHOWN:,} more" if len(faults) > SHOWN else ""
        level = "bad" if len(faults) == len(indices) else "note" if faults else "good"
        counts = f"{len(faults):,} of {len(indices):,} decoded samples cannot be read"
        yield Finding(level, f"{of}{modality} files", counts + shown + more)


# The published sizes of ImageNet-1k's splits: an incomplete copy has fewer samples.
_IMAGENET = {"classes": 1000, "train": 1_281_167, "val": 50_000}


def _classes(source: Source) -> Iterator[Finding]:
    """Check the number of samples of each class, and whether a copy of ImageNet is complete."""
    if source.labels is None:
        return
    counts = torch.bincount(source.labels, minlength=len(source.classes))
    fewest = int(counts.argmin())
    message = f"{len(counts)} classes of {int(counts.min())} ({source.classes[fewest]}) to {int(counts.max())} samples"
    enough = len(counts) >= 2 and int(counts.min()) >= 2
    yield Finding("good" if enough else "note", "classes", message)
    if len(counts) == _IMAGENET["classes"]:
        whole = len(source) == _IMAGENET["train"]
        message = f"{len(source):,} samples of 1,000 classes; ImageNet-1k has {_IMAGENET['train']:,}"
        yield Finding("good" if whole else "note", "ImageNet", message)


def _held_out(train: Source, test: Source) -> Finding:
    """Check that the test split shares no sample with the training split, and has all of its classes."""
    shared = int(torch.isin(test.ids, train.ids).sum())
    level = "bad" if shared else "good"
    message = f"{len(test):,} samples" + (f", {shared:,} of which are training samples too" if shared else "")
    lacking = len(set(range(len(train.classes))) - set(test.labels.tolist())) if test.labels is not None else 0
    if lacking and not shared:
        level, message = "note", f"{message}, without any of {lacking} of {len(train.classes)} classes"
    if len(train.classes) == _IMAGENET["classes"] and len(test) != _IMAGENET["val"]:
        level, message = "bad" if shared else "note", f"{message}; ImageNet-1k's has {_IMAGENET['val']:,}"
    return Finding(level, "held-out split", "\n  ".join([message, *test.notes]))


def _fault(source: Source, index: int) -> str:
    """The first line of the error that a sample raises, or nothing."""
    present = source.present(torch.tensor([index]))
    if present is not None and not bool(present[0]):
        return ""
    try:
        sample = source.open([index])[0]
        if hasattr(sample, "decode"):
            sample.decode()
    except (DataError, OSError) as error:
        return str(error).partition("\n")[0]
    return ""


def _versions() -> Iterator[Finding]:
    import torchaudio
    import torchvision

    packages = {"torch": torch, "torchvision": torchvision, "torchaudio": torchaudio}
    message = ", ".join(f"{name} {package.__version__}" for name, package in packages.items())
    yield Finding("good", "versions", f"Python {sys.version.split()[0]}, {message}")
    # The suffix after the plus sign, such as cu128 or cpu, is the same for all builds of one index.
    builds = {package.__version__.partition("+")[2] or "unmarked" for package in packages.values()}
    if len(builds) == 1:
        yield Finding("good", "builds", f"all {builds.pop()}")
    else:
        fix = "install all three from one index: mixed builds fail on import or in an operation"
        yield Finding("bad", "builds", f"mixed ({', '.join(sorted(builds))}); {fix}")


def _run_check(subject: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding("good", subject, check())
    except Exception as error:  # libraries raise errors of any type; each is a finding
        return Finding("bad", subject, f"{type(error).__name__}: {error}")


def _decode_image() -> str:
    from PIL import Image, __version__

    file = io.BytesIO()
    Image.new("RGB", (32, 16), (200, 30, 30)).save(file, format="JPEG")
    assert Image.open(file).convert("RGB").size == (32, 16)
    return f"a JPEG, by Pillow {__version__}"


def _decode_audio() -> str:
    import numpy as np
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, np.zeros(800, dtype=np.float32), 8000, format="FLAC")
    file.seek(0)
    assert soundfile.read(file)[0].shape == (800,)
    return f"a FLAC file, by soundfile {soundfile.__version__}"


def _decode_video() -> str:
    import av
    import numpy as np

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((16, 32, 3), dtype=np.uint8), format="rgb24")
        container.mux([*stream.encode(frame), *stream.encode(None)])
    file.seek(0)
    with av.open(file) as container:
        assert sum(1 for _ in container.decode(video=0)) == 1  # pyright: ignore[reportAttributeAccessIssue]
    missing = [codec for codec in ("h264", "vp9", "av1") if codec not in av.codecs_available]
    return f"an MP4 file, by PyAV {av.__version__}" + (f" (without {', '.join(missing)})" if missing else "")


def _torchcodec() -> Finding:
    """Check TorchCodec by a decoder: without the FFmpeg libraries it imports, and fails at the first decoder."""
    try:
        import numpy as np
        import soundfile
        from torchcodec.decoders import AudioDecoder  # pyright: ignore[reportMissingImports]

        file = io.BytesIO()
        soundfile.write(file, np.zeros(800, dtype=np.float32), 8000, format="WAV")
        AudioDecoder(file.getvalue())
    except Exception as error:  # RuntimeError, ImportError or OSError, by the cause
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return Finding("good", "TorchCodec (optional)", f"not usable here, and not needed: {first[:80]}")
    return Finding("good", "TorchCodec (optional)", "usable")


def _plugins() -> Iterator[Finding]:
    from mmcon.registry import list_views, load_plugins

    try:
        failed = load_plugins()
    except MmconError as error:
        yield Finding("bad", "plug-ins", str(error))
        return
    yield Finding("good", "view generators and samplers", f"{len(list_views())} registered")
    for point, error in failed.items():
        yield Finding("bad", f"plug-in {point}", repr(error))


def _space(subject: str, path: Path, *, wanted_gib: float) -> Finding:
    free = shutil.disk_usage(path).free / 2**30
    enough = free >= wanted_gib
    return Finding(
        "good" if enough else "note", subject, f"{free:.1f} GiB free" + ("" if enough else ", which is little")
    )


def _gpu() -> Finding:
    if not torch.cuda.is_available():
        return Finding("note", "GPU", "none: everything runs, slowly, on the CPU")
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    bf16 = "with" if torch.cuda.is_bf16_supported() else "without"
    return Finding("good", "GPU", f"{', '.join(names)}, {bf16} bfloat16")


# Run in its own process, which the check ends if a firewall blocks it.
_GROUP = """
import sys, torch, torch.distributed as d
d.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=0, world_size=1)
x = torch.ones(2); d.all_reduce(x); assert x.tolist() == [1, 1]
print("gloo" + (", NCCL is there too" if d.is_nccl_available() else ""))
d.destroy_process_group()
"""


def _gloo() -> Finding:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", _GROUP, str(Path(folder) / "store")]
        try:
            run = subprocess.run(command, capture_output=True, text=True, timeout=120)
        except subprocess.TimeoutExpired:
            return Finding("bad", "process groups", "none was formed in two minutes; see GLOO_SOCKET_IFNAME")
    if run.returncode:
        return Finding("bad", "process groups", (run.stderr.strip().splitlines() or ["failed"])[-1])
    return Finding("good", "process groups", run.stdout.strip())
