"""Clips a second: decoding spans of a real H.264 file, and changing a batch of clips, against plain loops of the peers.

    uv run python benchmarks/video.py                        # the bundled clip
    uv run python benchmarks/video.py --input walk.mp4

Each figure is the median of several rounds, alternating between contestants, in seconds of CPU, all threads together,
so that what else the machine does is not counted; what is drawn differs from round to round. decord and TorchCodec join
where they are installed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import av
import numpy as np
import torch
from mmcon_views.video.per_clip import PerClip
from torch import Tensor
from torchvision.transforms import v2

import mmcon
from mmcon.errors import MmconError
from mmcon.media.video import scaled_size
from mmcon.media.video_files import FrameCache, open_video
from mmcon.sources import bundled

FRAMES, SIDE = 16, 112


def median_seconds(contestants: Mapping[str, Callable[[int], object]], *, rounds: int) -> dict[str, float]:
    """CPU seconds of each contestant, the median of some rounds; each gets the number of the round."""
    found: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(-1, rounds):  # the first is for caches and pages, and is not counted
        for name, work in contestants.items():
            start = time.process_time()
            work(turn)
            if turn >= 0:
                found[name].append(time.process_time() - start)
    return {name: statistics.median(took) for name, took in found.items()}


def plain_pyav(path: Path, times: list[float]) -> Tensor:
    """What one writes first: decode from the start, keep the frames that are wanted, then resize."""
    frames, wanted = [], list(times)
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            while wanted and frame.time is not None and frame.time >= wanted[0]:
                frames.append(torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1))
                wanted.pop(0)
            if not wanted:
                break
    while len(frames) < len(times):
        frames.append(frames[-1])
    return v2.functional.resize(torch.stack(frames), [SIDE], antialias=True)


def seeking_pyav(path: Path, times: list[float]) -> Tensor:
    """The same with a seek."""
    frames, wanted = [], list(times)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.time_base is not None
        container.seek(int(times[0] / stream.time_base), stream=stream)
        for frame in container.decode(stream):
            while wanted and frame.time is not None and frame.time >= wanted[0]:
                frames.append(torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1))
                wanted.pop(0)
            if not wanted:
                break
    while len(frames) < len(times):
        frames.append(frames[-1])
    return v2.functional.resize(torch.stack(frames), [SIDE], antialias=True)


def decoders(path: Path) -> dict[str, Callable[[list[float]], Tensor]]:
    clip, cached = open_video(path), open_video(path, cache=FrameCache(4 << 30))
    found: dict[str, Callable[[list[float]], Tensor]] = {
        "mmcon": lambda times: clip.decode(times, shorter_side=SIDE),
        "mmcon, frames cached": lambda times: cached.decode(times, shorter_side=SIDE),
        "plain PyAV loop": lambda times: plain_pyav(path, times),
        "PyAV loop with a seek": lambda times: seeking_pyav(path, times),
    }
    try:
        import decord  # pyright: ignore[reportMissingImports]

        height, width = scaled_size(clip.header.height, clip.header.width, SIDE)

        def by_decord(times: list[float]) -> Tensor:
            reader = decord.VideoReader(str(path), num_threads=1, width=width, height=height)
            rows = np.clip((np.array(times) * reader.get_avg_fps()).astype(int), 0, len(reader) - 1)
            return torch.from_numpy(reader.get_batch(rows).asnumpy()).permute(0, 3, 1, 2)

        found["decord, scaling as it decodes"] = by_decord
    except ImportError:
        print("decord is not installed: left out")
    try:
        other = open_video(path, decoder="torchcodec")
        other.decode([0.0])
        from torchcodec.decoders import VideoDecoder  # pyright: ignore[reportMissingImports]

        def by_torchcodec(times: list[float]) -> Tensor:
            frames = VideoDecoder(str(path), seek_mode="approximate").get_frames_played_at(times).data
            return v2.functional.resize(frames, [SIDE], antialias=True)

        found["mmcon by TorchCodec"] = lambda times: other.decode(times, shorter_side=SIDE)
        found["TorchCodec, resize"] = by_torchcodec
    except MmconError:
        print("TorchCodec cannot be constructed here: left out")
    return found


def decoding(path: Path, rounds: int) -> None:
    header = open_video(path).header
    starts = torch.linspace(0, max(0.0, header.duration_seconds - FRAMES * 0.08), 6).tolist()
    spans = [[start + 0.08 * i for i in range(FRAMES)] for start in starts]
    contestants = {n: (lambda _, f=f: [f(times) for times in spans]) for n, f in decoders(path).items()}
    seconds = median_seconds(contestants, rounds=rounds)
    print(f"\n{path.name}: {header.width}×{header.height}, clips of {FRAMES} frames at {SIDE} px")
    for name, took in seconds.items():
        print(
            f"  {name:30} {len(spans) / took:8.1f} clips/s   ×{seconds['plain PyAV loop'] / took:.2f} of the plain loop"
        )


def augmenting(rounds: int) -> None:
    clips = torch.rand(16, FRAMES, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    parts = {
        "flip": (mmcon.create_view("image/flip"), v2.RandomHorizontalFlip()),
        "gray": (mmcon.create_view("image/grayscale", p=0.2), v2.RandomGrayscale(0.2)),
        "jitter": (
            mmcon.create_view("image/color-jitter", brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, p=0.8),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8),
        ),
        "crop": (
            mmcon.create_view("image/random-resized-crop", size=SIDE, area=(0.3, 1.0)),
            v2.RandomResizedCrop(SIDE, scale=(0.3, 1.0), antialias=True),
        ),
    }
    print(f"\n16 clips of {FRAMES} × {SIDE}×{SIDE} float32, drawn once a clip")
    for name, (ours, theirs) in parts.items():
        view = PerClip(ours)
        took = median_seconds(
            {
                "ours": lambda turn, view=view: view(clips, mmcon.keys(seed=turn + 1, sample=torch.arange(16))),
                "theirs": lambda _, theirs=theirs: torch.stack([theirs(clip) for clip in clips]),
            },
            rounds=8 * rounds,
        )
        rate = 16 / took["ours"]
        print(f"  {name:8} mmcon {rate:8.1f} clips/s   torchvision v2 {16 / took['theirs']:8.1f}   "
              f"×{took['theirs'] / took['ours']:.2f}")  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, default=next(iter(bundled.path("clip").glob("*.mp4"))))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    decoding(options.input, options.rounds)
    augmenting(options.rounds)
