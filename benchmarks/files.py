"""From image files to a batch of SimCLR views, beside albumentations with OpenCV, torchvision v2 and DALI, in one run.

    uv run --with albumentations --with nvidia-dali-cuda120 python benchmarks/files.py
    uv run --with albumentations python benchmarks/files.py --busy       # beside one busy program for each core
    uv run python benchmarks/files.py --format png --peers               # a format, beside its decoders alone

448 photographs of 500 × 375 pixels (parts of two that come with scikit-learn, in JPEG and WebP of quality 90, or PNG);
two views of each at 224 px: random resized crop, flip, color jitter, grayscale, blur. All tools are interleaved, the
median of the wall time (on a shared machine of the processor time of one thread, `--cpu-time`) counts, and decoders
alone are the floor: torchvision's, Pillow's, and mmcon's handle, which reads the header too and checks it. Threads: of
mmcon and DALI their own, of albumentations and torchvision a pool of as many threads, one image at a time. A peer that
is not installed is left out. Without numba (`uv run --extra fast`), mmcon takes twice as long for color and blur.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mmcon.batch import ViewBatch
from mmcon.loading.loader import ViewLoader
from mmcon.media import ImageHandle
from mmcon.registry import create_view
from mmcon.samplers.uniform import UniformSampler
from mmcon.sources.factory import create_source

SIZE, JITTER = 224, (0.8, 0.8, 0.8, 0.2)


def write_photographs(folder: Path, count: int, suffix: str = "jpg") -> list[Path]:
    """Parts of two photographs at one size."""
    from sklearn.datasets import load_sample_images

    photographs, draw = load_sample_images().images, np.random.default_rng(0)
    files = []
    for number in range(count):
        photograph = Image.fromarray(photographs[number % 2])
        width, height = (int(side * draw.uniform(0.6, 1)) for side in photograph.size)
        left, top = draw.integers(0, photograph.width - width + 1), draw.integers(0, photograph.height - height + 1)
        files.append(folder / f"photograph-{number % 2}" / f"{number:04}.{suffix}")
        files[-1].parent.mkdir(exist_ok=True)
        part = photograph.resize((500, 375), Image.Resampling.LANCZOS, box=(left, top, left + width, top + height))
        part.save(files[-1], quality=90)
    return files


def ours(folder: Path, batch_size: int) -> Callable[[], int]:
    batches = endless(our_loader(folder, batch_size, workers=0))
    return lambda: len(next(batches).views["image"][0])


def our_loader(folder: Path, batch_size: int, workers: int) -> ViewLoader:
    source = create_source(str(folder), modality="image", split="train")
    view, sampler = create_view("image/simclr", size=SIZE), UniformSampler(source.ids, batch_size=batch_size, seed=0)
    return ViewLoader(source, {"image": [view, view]}, sampler, seed=0, workers=workers)


def endless(loader: ViewLoader) -> Iterator[ViewBatch]:
    """The batches of all epochs; workers stay."""
    while True:
        yield from loader


def with_workers(folder: Path, batch_size: int, workers: int, batches: int) -> dict[str, float]:
    """Milliseconds a sample: wall time, and processor time of the training process and of all workers."""
    before = {child.pid for child in multiprocessing.active_children()}
    stream = endless(our_loader(folder, batch_size, workers))
    for _ in range(2 * workers + 2):  # what was fetched ahead
        next(stream)
    pids = [child.pid for child in multiprocessing.active_children() if child.pid not in before]

    def clocks() -> tuple[float, float, float]:
        return time.perf_counter(), time.process_time(), sum(processor_seconds(pid) for pid in pids if pid)

    began = clocks()
    for _ in range(batches):
        next(stream)
    return {
        name: 1e3 * (end - start) / (batches * batch_size)
        for name, start, end in zip(("wall", "main", "workers"), began, clocks(), strict=True)
    }


def processor_seconds(process: int) -> float:
    """What a process has used so far (Linux)."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def each_file(transform: Callable[[Path], torch.Tensor], files: list[Path], batch: int, threads: int) -> Callable:
    """A batch of two views of each file by a function of one file."""
    pool, turn = ThreadPoolExecutor(threads), iter(range(10**9))

    def run() -> int:
        start = next(turn) * batch % len(files)
        some = [files[(start + i) % len(files)] for i in range(batch)]
        return len(torch.stack(list(pool.map(transform, [*some, *some]))))

    return run


def albumentations(files: list[Path], batch: int, threads: int) -> Callable[[], int]:
    import albumentations as A
    import cv2

    cv2.setNumThreads(1)
    chain = A.Compose(
        [
            A.RandomResizedCrop(size=(SIZE, SIZE), scale=(0.08, 1.0), interpolation=cv2.INTER_CUBIC),
            A.HorizontalFlip(p=0.5),
            A.ColorJitter((0.2, 1.8), (0.2, 1.8), (0.2, 1.8), (-0.2, 0.2), p=0.8),
            A.ToGray(p=0.2),
            A.GaussianBlur(blur_limit=(23, 23), sigma_limit=(0.1, 2.0), p=0.5),
        ]
    )

    def transform(file: Path) -> torch.Tensor:
        image = cv2.cvtColor(cv2.imread(str(file)), cv2.COLOR_BGR2RGB)
        return torch.from_numpy(chain(image=image)["image"]).permute(2, 0, 1).to(torch.float32).div_(255)

    return each_file(transform, files, batch, threads)


def torchvision_v2(files: list[Path], batch: int, threads: int) -> Callable[[], int]:
    from torchvision.transforms import v2

    chain = v2.Compose(
        [
            v2.RandomResizedCrop(SIZE, (0.08, 1.0), interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.RandomApply([v2.ColorJitter(*JITTER)], 0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(23, (0.1, 2.0))], 0.5),
        ]
    )
    return each_file(lambda file: chain(by_torchvision(file)), files, batch, threads)


def dali(files: list[Path], batch: int, threads: int) -> Callable[[], int]:
    """DALI's pipeline on the CPU, without the prefetching of batches while other tools are timed."""
    from nvidia.dali import fn, pipeline_def, types

    def between(low: float, high: float) -> Any:
        return fn.random.uniform(range=[low, high])

    options = {"batch_size": batch, "num_threads": threads, "device_id": None, "prefetch_queue_depth": 1}

    @pipeline_def(enable_conditionals=True, exec_async=False, exec_pipelined=False, **options)
    def chain() -> Any:
        encoded, _ = fn.readers.file(files=[str(file) for file in files])
        image, views = fn.decoders.image(encoded, device="cpu", output_type=types.RGB), []
        for _ in range(2):
            crop = {"size": (SIZE, SIZE), "random_area": [0.08, 1.0], "interp_type": types.INTERP_CUBIC}
            view = fn.random_resized_crop(image, antialias=True, **crop)
            if fn.random.coin_flip(probability=0.8):
                factors = {name: between(0.2, 1.8) for name in ("brightness", "contrast", "saturation")}
                view = fn.color_twist(view, hue=between(-72, 72), **factors)
            if fn.random.coin_flip(probability=0.2):
                view = fn.saturation(view, saturation=0.0)
            if fn.random.coin_flip(probability=0.5):
                view = fn.gaussian_blur(view, sigma=between(0.1, 2.0), window_size=23)
            flipped = {"mirror": fn.random.coin_flip(), "mean": [0.0] * 3, "std": [255.0] * 3, "dtype": types.FLOAT}
            views.append(fn.crop_mirror_normalize(view, output_layout="CHW", **flipped))
        return tuple(views)

    pipeline = chain()
    pipeline.build()
    return lambda: sum(len(np.asarray(views.as_tensor())) for views in pipeline.run())


def decoder(decode: Callable[[Path], torch.Tensor]) -> Callable[[list[Path], int, int], Callable[[], int]]:
    """A floor: each file decoded once for its two views."""

    def peer(files: list[Path], batch: int, threads: int) -> Callable[[], int]:
        run = each_file(decode, files, batch, threads)
        return lambda: 2 * run()  # `each_file` takes each file twice, as for two views

    return peer


def by_torchvision(file: Path) -> torch.Tensor:
    from torchvision.io import ImageReadMode, decode_image, read_file

    return decode_image(read_file(str(file)), mode=ImageReadMode.RGB)


def by_pillow(file: Path) -> torch.Tensor:
    with Image.open(file) as image:
        return torch.from_numpy(np.array(image.convert("RGB")))


PEERS: dict[str, Callable[[list[Path], int, int], Callable[[], int]]] = {
    "albumentations": albumentations,
    "torchvision v2": torchvision_v2,
    "DALI": dali,
    "decoding alone, torchvision": decoder(by_torchvision),
    "decoding alone, Pillow": decoder(by_pillow),
    "decoding alone, mmcon": decoder(lambda file: ImageHandle(file).decode()),
}


@contextlib.contextmanager
def busy_programs(count: int) -> Iterator[None]:
    """Programs that each keep a core busy."""
    programs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


def measure(runs: dict[str, Callable[[], int]], repeats: int, clock: Callable[[], float]) -> dict[str, float]:
    """Source samples a second, by the median time of interleaved repeats."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            began = clock()
            views = run()
            if repeat:
                seconds[name].append((clock() - began) / (views / 2))
    return {name: 1 / statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--busy", action="store_true", help="beside one busy program for each core")
    parser.add_argument("--cpu-time", action="store_true", help="processor time of one thread, for a shared machine")
    parser.add_argument("--format", choices=("jpg", "png", "webp"), default="jpg", help="of the files")
    parser.add_argument("--peers", nargs="*", default=list(PEERS), help="which peers; decoders stay")
    options = parser.parse_args()
    clock = time.process_time if options.cpu_time else time.perf_counter
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as scratch:
        files = write_photographs(Path(scratch), 448, options.format)
        print(
            f"{cores} cores, torch {torch.__version__}, batches of {options.batch_size} samples, two views each",
            flush=True,
        )
        print("| threads | tool | samples a second | of ours |\n|---|---|---|---|", flush=True)
        for threads in dict.fromkeys((1, 1 if options.cpu_time else cores)):
            torch.set_num_threads(threads)
            runs = {"mmcon": ours(Path(scratch), options.batch_size)}
            for name, peer in PEERS.items():
                if name in options.peers or name.startswith("decoding"):
                    with contextlib.suppress(ImportError):
                        runs[name] = peer(files, options.batch_size, threads)
            with busy_programs(cores if options.busy else 0):
                seen = measure(runs, options.repeats, clock)
            for name, rate in seen.items():
                print(f"| {threads} | {name} | {rate:.0f} | {rate / seen['mmcon']:.2f} |", flush=True)
        print("\n| workers | ms a sample | training process, ms | workers, ms | bound, ms |\n|---|---|---|---|---|")
        torch.set_num_threads(1)
        for workers in range(1, cores + 1):
            with busy_programs(cores if options.busy else 0):
                ms = with_workers(Path(scratch), options.batch_size, workers, 4 * options.repeats)
            bound = max(ms["main"], ms["workers"] / workers)
            numbers = (ms["wall"], ms["main"], ms["workers"], bound)
            print(f"| {workers} | " + " | ".join(f"{number:.3f}" for number in numbers) + " |", flush=True)


if __name__ == "__main__":
    main()
