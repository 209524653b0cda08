"""The SimCLR chain at 224 px on a GPU, beside kornia, torchvision v2, and a ResNet-50 training step.

    uv run --with kornia python benchmarks/gpu/image_views.py
    uv run python benchmarks/gpu/image_views.py --choices       # of what is not part of mmcon: CUDA graphs, nvJPEG

From a stacked batch of bytes on the device to float views. torchvision v2 draws once for a whole batch, so that it does
less: all images of a batch have the same crop. mmcon appears three times: with drawing on the host in the same thread,
with parameters drawn before, as by worker processes, and without the crop, which workers make from files.

The choices are times alone: the graph repeats the parameters that were recorded, and pixels of nvJPEG differ from those
of a host by rounding. Files have 500 × 375 pixels; workers decode the row of one core times the number of cores.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg, encode_jpeg

from mmcon.random import keys
from mmcon.registry import create_view
from mmcon.views import as_chain, meta_of

DEVICE = torch.device("cuda")
SIZE = 224
#: What takes so long that three calls suffice.
SLOW = ("torchvision v2, image by image", "decoding, one core")


def seconds(run: Callable[[], object], repeats: int = 10) -> float:
    """The median time of a call, after three calls to warm up; the device's queue is empty before and after."""
    spent = []
    for number in range(repeats + 3):
        wait()
        began = time.perf_counter()
        run()
        wait()
        if number >= 3:
            spent.append(time.perf_counter() - began)
    return statistics.median(spent)


def wait() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def ours(x: Tensor) -> Iterator[tuple[str, Callable[[], object]]]:
    chain = as_chain(create_view("image/simclr", size=SIZE, blur=True))
    meta, epochs = meta_of(x, "image"), iter(range(10**9))

    def drawn() -> dict:
        return chain.draw(keys(seed=0, epoch=next(epochs), sample=torch.arange(len(x))), meta)

    yield "mmcon, drawing included", lambda: chain.apply(x, drawn())
    params = drawn()
    yield "mmcon", lambda: chain.apply(x, params)
    cropped = (chain.apply_ragged(x, params) * 255).to(torch.uint8)
    yield "mmcon, after the crop", lambda: chain.apply_batched(cropped, params)
    for name, child in chain.children():
        single = x if name == "crop" else cropped
        yield f"mmcon, {name} alone", lambda child=child, single=single, own=params[name]: child.apply(single, own)


def recorded(x: Tensor) -> Iterator[tuple[str, Callable[[], object]]]:
    """The chain after the crop, launch by launch and as a CUDA graph."""
    chain = as_chain(create_view("image/simclr", size=SIZE, blur=True))
    params = chain.draw(keys(seed=0, sample=torch.arange(len(x))), meta_of(x, "image"))
    cropped = (chain.apply_ragged(x, params) * 255).to(torch.uint8)
    yield "mmcon, after the crop", lambda: chain.apply_batched(cropped, params)
    if DEVICE.type != "cuda":
        return
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        chain.apply_batched(cropped, params)
    yield "the same, one CUDA graph", graph.replay


def from_files(x: Tensor) -> Iterator[tuple[str, Callable[[], object]]]:
    """Decoding by one core of the host and by nvJPEG, and the views after it."""
    coarse = torch.rand(16, 3, 24, 32, generator=torch.Generator().manual_seed(0))
    photos = torch.nn.functional.interpolate(coarse, (375, 500), mode="bicubic").clamp(0, 1)
    files = [encode_jpeg(photo, quality=85) for photo in (photos * 255).to(torch.uint8)]
    files = [files[number % 16] for number in range(len(x))]
    yield "decoding, one core", lambda: [decode_jpeg(file) for file in files]

    def decoded() -> Tensor:
        return torch.stack(decode_jpeg(files, ImageReadMode.RGB, device=DEVICE))  # pyright: ignore[reportArgumentType]

    by = "nvJPEG" if DEVICE.type == "cuda" else "one core, as a list"
    yield f"decoding, {by}", decoded
    chain = as_chain(create_view("image/simclr", size=SIZE, blur=True))
    params = chain.draw(keys(seed=0, sample=torch.arange(len(x))), meta_of(decoded(), "image"))
    yield f"files to views, {by}", lambda: chain.apply(decoded(), params)


def kornia_batched(x: Tensor) -> Iterator[tuple[str, Callable[[], object]]]:
    import kornia.augmentation as K

    for cropping in ("slice", "resample"):
        chain = K.AugmentationSequential(
            K.RandomResizedCrop((SIZE, SIZE), scale=(0.08, 1.0), resample="bicubic", cropping_mode=cropping),
            K.RandomHorizontalFlip(),
            K.ColorJitter(0.8, 0.8, 0.8, 0.2, p=0.8),
            K.RandomGrayscale(p=0.2),
            K.RandomGaussianBlur((23, 23), (0.1, 2.0), p=0.5),
        )
        yield f"kornia, {cropping}", lambda chain=chain: chain(x.to(torch.float32).div_(255))


def torchvision_batched(x: Tensor) -> Iterator[tuple[str, Callable[[], object]]]:
    from torchvision.transforms import v2

    chain = v2.Compose(
        [
            v2.RandomResizedCrop(SIZE, (0.08, 1.0), interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], 0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(23, (0.1, 2.0))], 0.5),
        ]
    )
    yield "torchvision v2, one draw a batch", lambda: chain(x)
    # One draw an image, as mmcon and kornia make them, needs a call an image.
    yield "torchvision v2, image by image", lambda: torch.stack([chain(image) for image in x])


def training(x: Tensor) -> Iterator[tuple[str, Callable[[], object]]]:
    """A ResNet-50 step in bfloat16, channels last, with SGD."""
    import torchvision

    model = torchvision.models.resnet50().to(DEVICE).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    views = torch.rand(len(x), 3, SIZE, SIZE, device=DEVICE).contiguous(memory_format=torch.channels_last)
    y = torch.zeros(len(x), dtype=torch.int64, device=DEVICE)

    def run() -> None:
        with torch.autocast(DEVICE.type, torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(model(views), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    yield "a ResNet-50 training step", run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--choices", action="store_true", help="CUDA graphs and nvJPEG")
    options = parser.parse_args()
    global DEVICE
    DEVICE = torch.device(options.device)
    if DEVICE.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("this benchmark needs a GPU")
    batch = options.batch_size
    g = torch.Generator().manual_seed(0)
    coarse = torch.rand(batch, 3, 32, 32, generator=g)
    x = (torch.nn.functional.interpolate(coarse, (256, 256), mode="bilinear") * 255).to(torch.uint8).to(DEVICE)
    name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "CPU"
    print(f"{name}, batches of {batch}, 256 px to {SIZE} px\n\n| | images a second | ms |\n|---|---|---|")
    tools = (recorded, from_files) if options.choices else (ours, training, kornia_batched, torchvision_batched)
    for tool in tools:
        try:
            for label, run in tool(x):
                spent = seconds(run, 3 if label in SLOW else 10)
                print(f"| {label} | {batch / spent:,.0f} | {spent * 1e3:.2f} |", flush=True)
        except (ImportError, RuntimeError) as reason:
            print(f"| {tool.__name__}: left out, {str(reason).splitlines()[0]} | | |")


if __name__ == "__main__":
    main()
