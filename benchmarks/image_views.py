"""How fast the SimCLR views of images are, beside torchvision v2, kornia and albumentations, in one run on one thread.

    OMP_NUM_THREADS=1 uv run --with kornia --with albumentations python benchmarks/image_views.py

Every tool makes the same chain (random resized crop, flip, color jitter with hue, grayscale, blur at 224 px) with its
own fastest setting among those below, from bytes in memory to a stacked float batch in [0, 1]. Runs of all tools are
interleaved, each is repeated, and the median processor time is reported. A peer that is not installed is left out.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mmcon.random import keys
from mmcon.registry import create_view
from mmcon.views import meta_of


@dataclass(frozen=True)
class Setting:
    """One size of the comparison."""

    source: int
    size: int
    batch: int
    strength: float
    blur: bool


SETTINGS = (Setting(32, 32, 512, 0.5, False), Setting(256, 224, 64, 1.0, True))


def ours(s: Setting, x: Tensor) -> Iterator[tuple[str, Callable[[], object]]]:
    view = create_view("image/simclr", size=s.size, strength=s.strength, blur=s.blur)
    step = iter(range(10**9))

    def run() -> object:
        return view(x, keys(seed=0, epoch=next(step), sample=torch.arange(len(x))))

    yield "mmcon", run
    # Photos lie in memory with their channels together when they come from a decoder.
    together = x.contiguous(memory_format=torch.channels_last)
    yield "mmcon, channels last", lambda: view(together, keys(seed=0, epoch=next(step), sample=torch.arange(len(x))))
    meta = meta_of(x, "image")
    yield "mmcon, drawing alone", lambda: view.draw(keys(seed=0, epoch=next(step), sample=torch.arange(len(x))), meta)


def torchvision_v2(s: Setting, x: Tensor) -> Iterator[tuple[str, Callable[[], object]]]:
    from torchvision.transforms import v2

    to_float = v2.ToDtype(torch.float32, scale=True)
    j = 0.8 * s.strength
    rest = [
        v2.RandomApply([v2.ColorJitter(j, j, j, j / 4)], 0.8),
        v2.RandomGrayscale(0.2),
        *([v2.RandomApply([v2.GaussianBlur(23, (0.1, 2.0))], 0.5)] if s.blur else []),
    ]
    bicubic = v2.InterpolationMode.BICUBIC
    first = [
        v2.RandomResizedCrop(s.size, (0.08, 1.0), interpolation=bicubic, antialias=True),
        v2.RandomHorizontalFlip(),
    ]
    chains = {
        "bytes": v2.Compose([*first, *rest, to_float]),
        "float after the crop": v2.Compose([*first, to_float, *rest]),
        "float": v2.Compose([to_float, *first, *rest]),
    }
    for name, chain in chains.items():
        yield f"torchvision v2, {name}", lambda chain=chain: torch.stack([chain(image) for image in x])
    together = list(x.contiguous(memory_format=torch.channels_last))
    chain = chains["float after the crop"]
    yield "torchvision v2, channels last", lambda: torch.stack([chain(image) for image in together])


def kornia_batched(s: Setting, x: Tensor) -> Iterator[tuple[str, Callable[[], object]]]:
    import kornia.augmentation as K

    j = 0.8 * s.strength
    for cropping in ("slice", "resample"):
        chain = K.AugmentationSequential(
            K.RandomResizedCrop((s.size, s.size), scale=(0.08, 1.0), resample="bicubic", cropping_mode=cropping),
            K.RandomHorizontalFlip(),
            K.ColorJitter(j, j, j, j / 4, p=0.8),
            K.RandomGrayscale(p=0.2),
            *([K.RandomGaussianBlur((23, 23), (0.1, 2.0), p=0.5)] if s.blur else []),
        )
        yield f"kornia, {cropping}", lambda chain=chain: chain(x.to(torch.float32).div_(255))


def albumentations_each(s: Setting, x: Tensor) -> Iterator[tuple[str, Callable[[], object]]]:
    import albumentations as A
    import cv2

    cv2.setNumThreads(1)
    j = 0.8 * s.strength
    chain = A.Compose(
        [
            A.RandomResizedCrop(size=(s.size, s.size), scale=(0.08, 1.0), interpolation=cv2.INTER_CUBIC),
            A.HorizontalFlip(p=0.5),
            A.ColorJitter((1 - j, 1 + j), (1 - j, 1 + j), (1 - j, 1 + j), (-j / 4, j / 4), p=0.8),
            A.ToGray(p=0.2),
            *([A.GaussianBlur(blur_limit=(23, 23), sigma_limit=(0.1, 2.0), p=0.5)] if s.blur else []),
        ]
    )
    images = [np.ascontiguousarray(image) for image in x.permute(0, 2, 3, 1).numpy()]

    def run() -> object:
        made = np.stack([chain(image=image)["image"] for image in images])
        return torch.from_numpy(made).permute(0, 3, 1, 2).to(torch.float32).div_(255)

    yield "albumentations", run


def contestants(s: Setting, x: Tensor) -> Iterator[tuple[str, Callable[[], object]]]:
    for tool in (ours, torchvision_v2, kornia_batched, albumentations_each):
        try:
            yield from tool(s, x)
        except ImportError as missing:
            print(f"left out: {missing}")


def measure(s: Setting, repeats: int) -> dict[str, float]:
    """Processor time in µs a sample, the median of interleaved repeats (a shared machine's clock is less steady)."""
    g = torch.Generator().manual_seed(0)
    coarse = torch.rand(s.batch, 3, s.source // 8, s.source // 8, generator=g)
    x = (torch.nn.functional.interpolate(coarse, (s.source, s.source), mode="bilinear") * 255).to(torch.uint8)
    runs = dict(contestants(s, x))
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            begin = time.process_time()
            run()
            if repeat:
                times[name].append((time.process_time() - begin) / s.batch * 1e6)
    return {name: statistics.median(values) for name, values in times.items()}


def table(s: Setting, seen: dict[str, float]) -> str:
    """The figures as Markdown; ratios are of each tool's time to ours."""
    best = min(t for name, t in seen.items() if name in ("mmcon", "mmcon, channels last"))
    lines = [
        f"{s.source} px to {s.size} px, batches of {s.batch}:",
        "",
        "| setting | µs a sample | times ours |",
        "|---|---|---|",
    ]
    lines += [f"| {name} | {t:.1f} | {t / best:.2f} |" for name, t in sorted(seen.items(), key=lambda item: item[1])]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    print(
        f"{platform.processor() or platform.machine()}, one thread, torch {torch.__version__}, medians of {repeats}\n"
    )
    for setting in SETTINGS:
        print(table(setting, measure(setting, repeats)), "\n")


if __name__ == "__main__":
    main()
