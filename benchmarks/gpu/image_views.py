"""The SimCLR chain at 224 px on a GPU, beside a ResNet-50 training step: how many times faster views are than needed.

    uv run python benchmarks/gpu/image_views.py

`measure` is a function, so that one script can call several of these in one go.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from mmcon.random import keys
from mmcon.registry import create_view
from mmcon.views import as_chain, meta_of


def seconds(run: Callable[[], object], repeats: int = 10) -> float:
    """The median time of a call on the device, after three calls to warm up."""
    for _ in range(3):
        run()
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(times)


def views_run(x: Tensor, size: int) -> Callable[[], object]:
    """The whole chain, drawing included, on a stacked batch of bytes on the device."""
    chain = as_chain(create_view("image/simclr", size=size, blur=True))
    meta = meta_of(x, "image")
    epoch = iter(range(10**9))

    def run() -> Tensor:
        params = chain.draw(keys(seed=0, epoch=next(epoch), sample=torch.arange(len(x))), meta)
        return chain.apply(x, params)

    return run


def training_run(batch: int, size: int) -> Callable[[], object]:
    """A ResNet-50 step in bfloat16, channels last, with SGD."""
    import torchvision

    model = torchvision.models.resnet50().cuda().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    x = torch.rand(batch, 3, size, size, device="cuda").contiguous(memory_format=torch.channels_last)
    y = torch.zeros(batch, dtype=torch.int64, device="cuda")

    def run() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def measure(batch: int = 256, source: int = 256, size: int = 224) -> dict[str, float]:
    """Images a second of the views and of the training step, and their ratio."""
    x = torch.randint(0, 256, (batch, 3, source, source), dtype=torch.uint8, device="cuda")
    views = batch / seconds(views_run(x, size))
    training = batch / seconds(training_run(batch, size))
    return {"views_per_second": views, "training_images_per_second": training, "ratio": views / training}


def main() -> None:
    if not torch.cuda.is_available():
        raise SystemExit("this benchmark needs a GPU")
    print(torch.cuda.get_device_name(), json.dumps(measure(), indent=2))


if __name__ == "__main__":
    main()
