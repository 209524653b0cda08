"""From files of sound and of clips to a batch of views, beside their peers, in one run.

    uv run --with audiomentations --with decord --with kornia python benchmarks/media_files.py

Sound: recordings of 4 s at 16 kHz in FLAC, MP3 and WAV; two views of each: a window of 2 s, gain, noise, log-mel in 64
bands. The peers are soundfile + audiomentations + torchaudio, which read a file once for its two views (or only the
two windows, `windows`). Clips: a bundled H.264 film, two views of 8 frames at 112 px: crop, flip, color jitter,
grayscale, one draw for a clip. The peers are decord, which scales as it decodes, + kornia, and a loop of PyAV with a
seek, or TorchCodec, + torchvision v2.

One process, one thread, processor time, medians of interleaved batches. A peer that is not installed is left out.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from files import endless, measure
from torch import Tensor
from video import seeking_pyav

import mmcon
from mmcon.loading.loader import ViewLoader
from mmcon.media.video_files import open_video
from mmcon.samplers.uniform import UniformSampler
from mmcon.sources import bundled
from mmcon.sources.factory import create_source
from mmcon.views import Chain, ViewGenerator

RATE, SECONDS, WINDOW, BANDS = 16_000, 4, 2, 64
FRAMES, SIDE, AREA, JITTER = 8, 112, (0.3, 1.0), (0.4, 0.4, 0.4, 0.1)
BATCH = {"sound": 64, "clips": 8}


def write_recordings(folder: Path, kind: str, count: int) -> list[Path]:
    """Tones with overtones that rise and fall, over soft noise."""
    draw, files = np.random.default_rng(0), []
    clock = np.arange(RATE * SECONDS) / RATE
    for number in range(count):
        pitch = draw.uniform(90, 400) * (1 + 0.1 * np.sin(2 * np.pi * draw.uniform(0.5, 3) * clock))
        phase = 2 * np.pi * np.cumsum(pitch) / RATE
        tone = sum(np.sin(k * phase) / k for k in range(1, 9)) * np.sin(np.pi * draw.uniform(0.5, 4) * clock) ** 2
        files.append(folder / f"speaker-{number % 2}" / f"{number:04}.{kind}")
        files[-1].parent.mkdir(exist_ok=True, parents=True)
        soundfile.write(files[-1], 0.1 * tone + 0.003 * draw.standard_normal(len(clock)), RATE)
    return files


def copy_clips(folder: Path, count: int) -> list[Path]:
    film = next(iter(bundled.path("clip").glob("*.mp4")))
    folder.mkdir(parents=True)
    return [Path(shutil.copy(film, folder / f"{number:02}.mp4")) for number in range(count)]


def ours(folder: Path, modality: str, view: ViewGenerator, batch_size: int) -> Callable[[], int]:
    source = create_source(str(folder), modality=modality, split="all")
    sampler = UniformSampler(source.ids, batch_size=batch_size, seed=0)
    batches = endless(ViewLoader(source, {modality: [view, view]}, sampler, seed=0, workers=0))

    def run() -> int:
        values: Any = next(batches).views[modality][0]
        return len(values["log_mel"] if isinstance(values, dict) else values)

    return run


def sound_view() -> Chain:
    create = mmcon.create_view
    return Chain(
        create("audio/crop", window_seconds=WINDOW, rate_hz=RATE),
        create("audio/gain"),
        create("audio/noise", snr_db=(5.0, 40.0)),
        create("audio/log-mel", rate_hz=RATE, bands=BANDS),
    )


def clip_view() -> Chain:
    from mmcon_views.video.clip_sampler import random_clip
    from mmcon_views.video.per_clip import PerClip

    brightness, contrast, saturation, hue = JITTER
    jitter = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue, "p": 0.8}
    images = (
        mmcon.create_view("image/random-resized-crop", size=SIDE, area=AREA),
        mmcon.create_view("image/flip"),
        mmcon.create_view("image/color-jitter", **jitter),
        mmcon.create_view("image/grayscale", p=0.2),
    )
    return Chain(random_clip(frames=FRAMES, stride=2, shorter_side=decoding_side()), *map(PerClip, images))


def decoding_side() -> int:
    """The shorter side that has enough pixels for a crop of the mean area."""
    return round(SIDE / (sum(AREA) / 2) ** 0.5 + 0.5)


def in_turn(files: list[Path], size: int) -> Callable[[], list[Path]]:
    """A batch of files, each time the next ones."""
    turn = iter(range(10**9))

    def batch() -> list[Path]:
        start = next(turn) * size
        return [files[(start + i) % len(files)] for i in range(size)]

    return batch


def audiomentations(files: list[Path], *, windows: bool = False) -> Callable[[], int]:
    import audiomentations as peer
    from torchaudio.transforms import MelSpectrogram

    chain = peer.Compose([peer.Gain(p=1.0), peer.AddGaussianSNR(min_snr_db=5.0, max_snr_db=40.0, p=1.0)])
    mel = MelSpectrogram(RATE, 512, RATE // 40, RATE // 100, 60.0, RATE / 2, n_mels=BANDS)
    draw, batch = np.random.default_rng(0), in_turn(files, BATCH["sound"])

    def two_windows(file: Path) -> list[np.ndarray]:
        starts = draw.integers(0, RATE * (SECONDS - WINDOW), 2)
        if windows:
            return [soundfile.read(file, RATE * WINDOW, start, dtype="float32")[0] for start in starts]
        signal, _ = soundfile.read(file, dtype="float32")
        return [signal[start : start + RATE * WINDOW] for start in starts]

    def run() -> int:
        views = [chain(view, sample_rate=RATE) for file in batch() for view in two_windows(file)]
        return len(mel(torch.from_numpy(np.stack(views))).clamp(min=1e-5).log())

    return run


def clip_spans(files: list[Path]) -> Callable[[], list[tuple[Path, list[float]]]]:
    """The files of a batch twice, each with drawn times."""
    header, draw, batch = open_video(files[0]).header, np.random.default_rng(0), in_turn(files, BATCH["clips"])
    step = 2 / header.frames_per_second

    def spans() -> list[tuple[Path, list[float]]]:
        starts = draw.uniform(0, header.duration_seconds - (FRAMES + 1) * step, 2 * BATCH["clips"])
        return [(file, [s + i * step for i in range(FRAMES)]) for file, s in zip(batch() * 2, starts, strict=True)]

    return spans


def torchvision_chain() -> Callable[[Tensor], Tensor]:
    from torchvision.transforms import v2

    return v2.Compose(
        [
            v2.RandomResizedCrop(SIDE, AREA, antialias=True),
            v2.ToDtype(torch.float32, scale=True),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(*JITTER)], 0.8),
            v2.RandomGrayscale(0.2),
        ]
    )


def pyav_torchvision(files: list[Path]) -> Callable[[], int]:
    chain, spans = torchvision_chain(), clip_spans(files)
    return lambda: len(torch.stack([chain(seeking_pyav(file, times)) for file, times in spans()]))


def torchcodec_torchvision(files: list[Path]) -> Callable[[], int]:
    from torchcodec.decoders import VideoDecoder  # pyright: ignore[reportMissingImports]

    chain, spans = torchvision_chain(), clip_spans(files)

    def decode(file: Path, times: list[float]) -> Tensor:
        return VideoDecoder(str(file), seek_mode="approximate", num_ffmpeg_threads=1).get_frames_played_at(times).data

    return lambda: len(torch.stack([chain(decode(file, times)) for file, times in spans()]))


def decord_frames(files: list[Path]) -> Callable[[Path, list[float]], Tensor]:
    import decord  # pyright: ignore[reportMissingImports]

    header = open_video(files[0]).header
    scale = decoding_side() / min(header.height, header.width)
    width, height = round(header.width * scale), round(header.height * scale)

    def decode(file: Path, times: list[float]) -> Tensor:
        reader = decord.VideoReader(str(file), num_threads=1, width=width, height=height)
        rows = np.clip((np.array(times) * reader.get_avg_fps()).astype(int), 0, len(reader) - 1)
        return torch.from_numpy(reader.get_batch(rows).asnumpy()).permute(0, 3, 1, 2)

    return decode


def decord_torchvision(files: list[Path]) -> Callable[[], int]:
    decode, chain, spans = decord_frames(files), torchvision_chain(), clip_spans(files)
    return lambda: len(torch.stack([chain(decode(file, times)) for file, times in spans()]))


def decord_kornia(files: list[Path]) -> Callable[[], int]:
    import kornia.augmentation as peer  # pyright: ignore[reportMissingImports]

    decode, spans = decord_frames(files), clip_spans(files)
    chain = peer.VideoSequential(
        peer.RandomResizedCrop((SIDE, SIDE), AREA),
        peer.RandomHorizontalFlip(p=0.5),
        peer.ColorJitter(*JITTER, p=0.8),
        peer.RandomGrayscale(p=0.2),
        data_format="BTCHW",
        same_on_frame=True,
    )

    def run() -> int:
        clips = torch.stack([decode(file, times) for file, times in spans()])
        return len(chain(clips.to(torch.float32).div_(255)))

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--only", choices=("sound", "clips"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        work: dict[str, dict[str, Callable[[], Any]]] = {}
        for kind in ("flac", "mp3", "wav") if options.only != "clips" else ():
            folder = Path(scratch) / kind
            files = write_recordings(folder, kind, 128)
            work[kind] = {
                "mmcon": lambda folder=folder: ours(folder, "audio", sound_view(), BATCH["sound"]),
                "soundfile (whole), audiomentations, torchaudio": lambda files=files: audiomentations(files),
                "soundfile (windows), ...": lambda files=files: audiomentations(files, windows=True),
            }
        if options.only != "sound":
            clips = copy_clips(Path(scratch) / "clips", 16)
            work["clips"] = {"mmcon": lambda: ours(Path(scratch) / "clips", "video", clip_view(), BATCH["clips"])}
            for peer in (decord_kornia, decord_torchvision, torchcodec_torchvision, pyav_torchvision):
                work["clips"][peer.__name__] = lambda peer=peer: peer(clips)
        print(f"torch {torch.__version__}, one thread, processor time, two views a sample")
        print("| files | tool | samples a second | of ours |\n|---|---|---|---|", flush=True)
        for kind, makers in work.items():
            runs = {}
            for name, make in makers.items():
                with contextlib.suppress(ImportError, RuntimeError, OSError):  # a peer whose libraries do not load
                    runs[name] = make()
            seen = measure(runs, options.repeats, time.process_time)
            for name, rate in seen.items():
                print(f"| {kind} | {name} | {rate:.0f} | {rate / seen['mmcon']:.2f} |", flush=True)


if __name__ == "__main__":
    main()
