"""What `mmcon doctor` looks at: whether this machine and these data will do, before a long run finds out.

Every check tries the thing itself: a decoder is judged by decoding, a process group by forming one.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from mmcon.errors import DataError, MmconError
from mmcon.sources.base import Source
from mmcon.sources.factory import create_source

_MARKS = {"good": "ok  ", "note": "note", "bad": "BAD "}


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        level: good, note (works, but know this) or bad (will not work).
        what: the thing that was checked.
        told: what was found, and what to do about it.
    """

    level: Literal["good", "note", "bad"]
    what: str
    told: str

    def __str__(self) -> str:
        return f"{_MARKS[self.level]}  {self.what}: {self.told}"


def environment() -> Iterator[Finding]:
    """Check versions, decoders, plug-ins, disk, shared memory and process groups."""
    yield from _versions()
    for name, decode in (("images", _decode_image), ("sounds", _decode_sound), ("video", _decode_video)):
        yield _tried(f"decoding {name}", decode)
    yield _torchcodec()
    yield from _plugins()
    yield _space("disk", Path.cwd(), wanted_gib=5.0)
    if Path("/dev/shm").is_dir():
        yield _space("shared memory (worker processes pass batches through it)", Path("/dev/shm"), wanted_gib=1.0)
    yield _gpu()
    yield _gloo()


def chaos() -> Iterator[Finding]:
    """Make each fault of the suite on this machine, in a folder for the moment, and tell what became of the run."""
    from mmcon.operations.fault_injection import FAULTS

    for name, fault in FAULTS.items():

        def tried(fault: Callable[[Path], str] = fault) -> str:
            with tempfile.TemporaryDirectory() as folder:
                return fault(Path(folder))

        yield _tried(f"fault: {name}", tried)


def data(name: str, *, everything: bool = False, most: int = 2000) -> Iterator[Finding]:
    """Check a source: its layout, its classes and splits, and whether its files decode.

    Args:
        name: a folder or the name of a source.
        everything: decode all rows rather than at most `most`, evenly chosen.
        most: see above.
    """
    try:
        source = create_source(name, split="train")
    except MmconError as error:
        yield Finding("bad", f"data {name}", str(error))
        return
    yield Finding("good", "data", source.describe())
    yield from _classes(source)
    yield from _held_out(name, source)
    rows = range(0, len(source), 1 if everything else max(1, len(source) // most))
    for modality, member in source.members.items():
        faults = [fault for row in rows if (fault := _fault(member, row))]
        shown = "".join(f"\n      {fault}" for fault in faults[:10])
        level = "bad" if len(faults) == len(rows) else "note" if faults else "good"
        yield Finding(level, f"{modality} files", f"{len(faults)} of {len(rows)} looked at cannot be read{shown}")


# The published sizes of ImageNet-1k's parts, by which an incomplete copy is known.
_IMAGENET = {"classes": 1000, "train": 1_281_167, "val": 50_000}


def _classes(source: Source) -> Iterator[Finding]:
    """How the labels fall, and whether a copy of ImageNet is whole."""
    if source.labels is None:
        return
    counts = torch.bincount(source.labels, minlength=len(source.classes))
    fewest = int(counts.argmin())
    told = f"{len(counts)} classes of {int(counts.min())} ({source.classes[fewest]}) to {int(counts.max())} rows"
    enough = len(counts) >= 2 and int(counts.min()) >= 2
    yield Finding("good" if enough else "note", "classes", told)
    if len(counts) == _IMAGENET["classes"]:
        whole = len(source) == _IMAGENET["train"]
        told = f"{len(source):,} rows of 1,000 classes; ImageNet-1k has {_IMAGENET['train']:,}"
        yield Finding("good" if whole else "note", "ImageNet", told)


def _held_out(name: str, train: Source) -> Iterator[Finding]:
    """Whether there is a part to test on, that shares no row with the training part."""
    try:
        test = create_source(name, split="test")
    except MmconError as error:
        yield Finding("note", "held-out part", str(error).partition("\n")[0])
        return
    shared = int(torch.isin(test.ids, train.ids).sum())
    level = "bad" if shared else "good"
    told = f"{len(test):,} rows" + (f", {shared:,} of which are training rows too" if shared else "")
    lacking = len(set(range(len(train.classes))) - set(test.labels.tolist())) if test.labels is not None else 0
    if lacking and not shared:
        level, told = "note", f"{told}, without any of {lacking} of {len(train.classes)} classes"
    if len(train.classes) == _IMAGENET["classes"] and len(test) != _IMAGENET["val"]:
        level, told = "bad" if shared else "note", f"{told}; ImageNet-1k's has {_IMAGENET['val']:,}"
    yield Finding(level, "held-out part", told)


def _fault(source: Source, row: int) -> str:
    present = source.present(torch.tensor([row]))
    if present is not None and not bool(present[0]):
        return ""
    try:
        sample = source.open([row])[0]
        if hasattr(sample, "decode"):
            sample.decode()
    except (DataError, OSError) as error:
        return str(error).partition("\n")[0]
    return ""


def _versions() -> Iterator[Finding]:
    import torchaudio
    import torchvision

    parts = {"torch": torch, "torchvision": torchvision, "torchaudio": torchaudio}
    told = ", ".join(f"{name} {part.__version__}" for name, part in parts.items())
    yield Finding("good", "versions", f"Python {sys.version.split()[0]}, {told}")
    # The part after the plus sign, such as cu128 or cpu; builds of one index have the same.
    builds = {part.__version__.partition("+")[2] or "unmarked" for part in parts.values()}
    if len(builds) == 1:
        yield Finding("good", "builds", f"all {builds.pop()}")
    else:
        fix = "install all three from one index: mixed builds fail on import or in an operation"
        yield Finding("bad", "builds", f"mixed ({', '.join(sorted(builds))}); {fix}")


def _tried(what: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding("good", what, check())
    except Exception as error:  # whatever a library raises is the finding
        return Finding("bad", what, f"{type(error).__name__}: {error}")


def _decode_image() -> str:
    from PIL import Image, __version__

    file = io.BytesIO()
    Image.new("RGB", (32, 16), (200, 30, 30)).save(file, format="JPEG")
    assert Image.open(file).convert("RGB").size == (32, 16)
    return f"a JPEG, by Pillow {__version__}"


def _decode_sound() -> str:
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
    """TorchCodec may import and yet fail without a system's FFmpeg: only a decoder that was built counts."""
    try:
        import numpy as np
        import soundfile
        from torchcodec.decoders import AudioDecoder  # pyright: ignore[reportMissingImports]

        file = io.BytesIO()
        soundfile.write(file, np.zeros(800, dtype=np.float32), 8000, format="WAV")
        AudioDecoder(file.getvalue())
    except Exception as error:  # RuntimeError, ImportError, OSError: all mean that it is not there
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


def _space(what: str, path: Path, *, wanted_gib: float) -> Finding:
    free = shutil.disk_usage(path).free / 2**30
    enough = free >= wanted_gib
    return Finding("good" if enough else "note", what, f"{free:.1f} GiB free" + ("" if enough else ", which is little"))


def _gpu() -> Finding:
    if not torch.cuda.is_available():
        return Finding("note", "GPU", "none: everything runs, slowly, on the CPU")
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    bf16 = "with" if torch.cuda.is_bf16_supported() else "without"
    return Finding("good", "GPU", f"{', '.join(names)}, {bf16} bfloat16")


# In a process of its own, which the check can end if a firewall lets it hang.
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
