"""Object detection with a trained encoder: Faster R-CNN or RetinaNet, fine-tuned on images with boxes in COCO format.

    uv run accelerate launch recipes/detection_transfer.py                    # made shapes, a random encoder
    uv run accelerate launch recipes/detection_transfer.py --model runs/imagenet_supcon --data coco
    uv run accelerate launch recipes/detection_transfer.py --model timm/resnet50 --data coco --detector retinanet
    uv run accelerate launch recipes/detection_transfer.py --encoder resnet50 --data coco     # the baseline

The encoder's feature maps feed a feature pyramid; encoder, pyramid and heads are trained together. The average
precision on the held-out images is computed by pycocotools. To see what the encoder's training is worth, run the recipe
without `--model`: the same detector from random weights, with the same budget.

After Lin et al. 2017, "Feature Pyramid Networks for Object Detection" and "Focal Loss for Dense Object Detection".
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Shaped
from safetensors.torch import save_file
from torch import Tensor, nn

import mmcon
from mmcon.batch import ViewBatch
from mmcon.errors import ConfigError
from mmcon.evaluation.detection import DetectionResult, evaluate_detections
from mmcon.files import replace_by, replace_file
from mmcon.loading.loader import one_pass
from mmcon.models.detection import create_detector, image_encoder
from mmcon.models.fine_tuning import freeze_batch_norms, set_trainable
from mmcon.samplers.uniform import UniformSampler
from mmcon.sources.base import Source, Subset
from mmcon.sources.coco import BoxTable, open_boxes
from mmcon.sources.made_shapes import write_shapes
from mmcon.training.config import RunConfig
from mmcon.training.optim import create_optimizer_and_schedule

SHAPES = "samples/shapes"
# Of images of few pixels and few objects, fewer regions are proposed and classified than torchvision's thousands.
FEW_REGIONS = {"rpn_pre_nms_top_n_train": 200, "rpn_post_nms_top_n_train": 100, "box_batch_size_per_image": 32}
FEW_REGIONS |= {"rpn_pre_nms_top_n_test": 200, "rpn_post_nms_top_n_test": 50, "box_detections_per_img": 20}


@dataclass(frozen=True, kw_only=True)
class Config(RunConfig):
    """What to train, on what, and for how long."""

    data: str = SHAPES
    """images with boxes that are made (samples/shapes), or a folder in COCO format: train.json and val.json, in it or
    in annotations/ (instances_train2017.json), with the images in folders of the same names"""
    model: str | None = None
    """the encoder: a run folder, a saved model, timm/NAME or another name that mmcon.load takes; default: --encoder"""
    encoder: str = "mmcon/resnet-tiny"
    """without --model: an encoder by name, with random weights"""
    trainable: str = "full"
    """what of the encoder is trained: full, frozen, or patterns of parameter names"""
    norms: Literal["auto", "frozen", "trained"] = "auto"
    """the batch norms of the encoder; auto: frozen with --model, as usual for small batches"""
    detector: Literal["faster-rcnn", "retinanet"] = "faster-rcnn"
    image_size: int | None = None
    """side to which images are stretched; default: 96 for made shapes, 512 for others"""
    pyramid_width: int | None = None
    """channels of the feature pyramid; default: 64 for made shapes, 256 for others"""
    train_images: int = 2000
    """of made shapes"""
    batch_size: int = 16
    epochs: int = 12
    tuned_rate: ClassVar[float] = 2e-3

    @property
    def side(self) -> int:
        """The side of the images in pixels."""
        return self.image_size or (96 if self.data == SHAPES else 512)

    @property
    def width(self) -> int:
        """The channels of the feature pyramid."""
        return self.pyramid_width or (64 if self.data == SHAPES else 256)


def main(config: Config) -> None:
    """Train, then evaluate."""
    if config.tiny:
        config = replace(config, batch_size=min(config.batch_size, 8), train_images=min(config.train_images, 240))
    config = config.apply_tiny(max_steps=30)
    run = mmcon.Run.from_config(config, name=f"detection_{config.detector}", find_unused_parameters=True)

    # Data: images with stable ids; their boxes are in a table, and the index of a batch has the rows.
    train, boxes = open_split(config, run, "train")
    test, test_boxes = open_split(config, run, "test")
    train = config.labeled_subset(train)
    run.print(f"train {train.describe()}\ntest  {test.describe()}")
    if test_boxes.classes != boxes.classes:
        raise ConfigError("--data", expected=f"categories {boxes.classes} in both splits", got=str(test_boxes.classes))
    views = {"image": [mmcon.create_view("image/resize", size=config.side, stretch=True)]}
    sampler = UniformSampler(train.ids, batch_size=min(config.batch_size, len(train)), seed=config.seed)
    loader = run.loader(train, views, sampler)

    # Model: the encoder, a feature pyramid, and the heads of the detector.
    encoder = open_encoder(config)
    about: dict[str, Any] = {"kind": config.detector, "classes": len(boxes.classes), "image_size": config.side}
    about["width"] = config.width
    few: dict[str, Any] = FEW_REGIONS if config.data == SHAPES and config.detector == "faster-rcnn" else {}
    detector = create_detector(encoder, **about, **few)
    optimizer, schedule = create_optimizer_and_schedule(config, [detector], steps_per_epoch=len(loader))
    trained = run.prepare(detector, optimizer, schedule)

    for batch in run.batches(loader):
        images, targets = flipped(batch, boxes, config)
        losses = trained(images, targets)
        run.note(**{name.removeprefix("loss_"): float(value.detach()) for name, value in losses.items()})
        run.step(torch.stack([*losses.values()]).sum() * bool(batch.index["image"].n))

    # Evaluation: average precision on the held-out images.
    detector = run.full_model(detector)
    if not run.is_main:
        return run.close()
    weights = {name: value.contiguous() for name, value in detector.state_dict().items()}
    described = {key: str(value) for key, value in about.items()}
    replace_by(run.folder / "detector.safetensors", lambda file: save_file(weights, file, metadata=described))
    failures: dict[int, str] = {}
    result = evaluate(detector, test, test_boxes, views, config, run.device, failures)
    run.print(result.table())
    figure = result.plot()
    replace_file(run.folder / "average_precision.png", lambda file: figure.savefig(file, dpi=150, format="png"))
    run.finish(result.to_json() | {"unreadable_test_images": len(failures)})


# --- data, encoder and evaluation ------------------------------------------------------------------------------------


def open_split(config: Config, run: mmcon.Run, split: str) -> tuple[Source, BoxTable]:
    """The images of a split and their boxes; with `--tiny`, few of them."""
    if config.data != SHAPES:
        source, boxes = open_boxes(config.data, split=split)
        return (Subset(source, range(0, len(source), -(-len(source) // 240))) if config.tiny else source), boxes
    images = config.train_images if split == "train" else max(60, config.train_images // 4)
    with run.accelerator.main_process_first():
        if run.is_main:
            write_shapes(run.folder / "shapes", images=images, split=split, side=config.side, seed=config.seed)
    return open_boxes(run.folder / "shapes", split=split)


def open_encoder(config: Config) -> nn.Module:
    """The encoder of a trained model, or one with random weights, and which of its parameters are trained."""
    if config.model is None:
        encoder = mmcon.create_encoder(config.encoder, image_size=config.side)
    else:
        encoder = image_encoder(mmcon.load(config.model))
    if config.norms == "frozen" or (config.norms == "auto" and config.model is not None):
        freeze_batch_norms(encoder)
    return set_trainable(encoder.train(), config.trainable)


def flipped(batch: ViewBatch, boxes: BoxTable, config: Config) -> tuple[list[Any], list[dict[str, Any]]]:
    """The images of a batch and their boxes, each image mirrored with probability one half, drawn by its key."""
    index, images = batch.index["image"], batch.views["image"][0]
    if not len(images):  # a rank that can read no image of its shard takes part with a blank one, which counts nothing
        target = {"boxes": images.new_zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64, device=images.device)}
        return [images.new_zeros(images.shape[1:])], [target]
    fields: dict[str, Any] = {name: index[name].cpu() for name in ("epoch", "sample", "occurrence")}
    flips = mmcon.keys(seed=config.seed, **fields).child("detection").bernoulli("flip", 0.5)
    images = torch.where(flips.to(images.device)[:, None, None, None], images.flip(-1), images)
    targets = boxes.targets(index["row"].cpu(), size=config.side)
    for flip, target in zip(flips.tolist(), targets, strict=True):
        if flip:
            x0, y0, x1, y1 = target["boxes"].unbind(1)
            target["boxes"] = torch.stack([config.side - x1, y0, config.side - x0, y1], 1)
    return [*images], [{name: value.to(images.device) for name, value in target.items()} for target in targets]


@torch.inference_mode()
def evaluate(
    detector: Any,
    test: Source,
    boxes: BoxTable,
    views: Any,
    config: Config,
    device: torch.device,
    failures: dict[int, str],
) -> DetectionResult:
    """The average precision on all images of a source; why some are left out goes to `failures`."""
    detector.eval()
    found: dict[int, dict[str, Shaped[Tensor, "..."]]] = {}
    options: dict[str, Any] = {"batch_size": config.batch_size, "workers": config.workers or 0, "device": device}
    for batch in one_pass(test, views, failures=failures, **options):
        rows = batch.index["image"]["row"].tolist()
        for row, own in zip(rows, detector([*batch.views["image"][0]]), strict=True):
            own = {name: value.cpu() for name, value in own.items()}
            found[row] = own | {"boxes": boxes.to_pixels(row, own["boxes"], size=config.side)}
    return evaluate_detections(found, boxes)


if __name__ == "__main__":
    mmcon.run_recipe(main, Config)
