"""A run folder with everything that the run page shows, made without training."""

import json

import torch
import yaml

import mmcon
from mmcon.batch import Index
from mmcon.evaluation.features import Features
from mmcon.evaluation.shown_samples import save_samples
from mmcon.loading.loader import ViewLoader
from mmcon.samplers.uniform import UniformSampler
from mmcon.sources.base import TensorSource
from mmcon.training.shown_views import save_views

#: Names that would end an element, an attribute or a script, if they were not escaped.
ODD_NAMES = ("</script><script>alert(1)</script>", '"><img src=x onerror=alert(2)>', "a & b", "plain")


def images(n=24, side=16, classes=ODD_NAMES):
    """Images of the classes in turn, each class of its own gray, and a little noise."""
    labels = torch.arange(n) % len(classes)
    noise = torch.randint(0, 20, (n, 3, side, side), generator=torch.Generator().manual_seed(0))
    pixels = (labels[:, None, None, None] * (200 // len(classes)) + noise).to(torch.uint8)
    return TensorSource(pixels, labels=labels, classes=classes, name="made")


def features_of(source, values):
    return Features(values, Index({"sample": source.ids, "label": source.labels}))


def made_run(folder, *, source=None):
    """The folder of a finished run of images."""
    source = source or images()
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        {"step": step, "epoch": step // 4, "loss": 3 - step / 10, "learning_rate": 1e-3, "temperature/shared": 0.1,
         "loss/shared/image>text": 2.0, "loss/shared/text>image": 1.5, "waiting_for_data": 0.1, "views": 0.2,
         "forward": 0.3, "backward": 0.3, "optimizer": 0.1, "views_per_second": 100 + step, "unreadable_samples": 0}
        for step in range(1, 12)
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config.yaml").write_text(yaml.safe_dump({"objective": "supcon", "encoder": "<b>tiny</b>"}))
    program = ["python", "recipes/imagenet_supcon.py", "--data", "my photos"]
    about = {"program": program, "directory": "/tmp", "seed": 3, "source": "made <i>", "versions": {"torch": "2"}}
    (folder / "run.json").write_text(json.dumps(about))
    by_class = {name: 0.5 + i / 100 for i, name in enumerate(source.classes)}
    results = {"linear_probe": {"top1": 0.8, "top5": 0.9}, "linear_probe_top1_interval": [0.7, 0.9]}
    results |= {"random_encoder": {"linear_probe_top1": 0.6}, "linear_probe_top1_by_class": by_class}
    (folder / "results.json").write_text(json.dumps(results | {"warnings": ["few <images>"]}))
    view = mmcon.create_view("image/simclr", size=16)
    sampler = UniformSampler(source.ids, batch_size=4, seed=3)
    loader = ViewLoader(source, {"image": [view, view]}, sampler, seed=3)
    save_views(folder, loader, next(iter(loader)))
    trained = torch.nn.functional.adaptive_avg_pool2d(source.values.float(), 4).flatten(1) - 90
    noise = torch.randn(len(source), 8, generator=torch.Generator().manual_seed(1))
    encoders = {"trained encoder": trained, "random encoder": noise}
    save_samples(folder, source, {name: {"image": features_of(source, x)} for name, x in encoders.items()})
    return folder
