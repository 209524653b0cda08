"""Detectors and segmenters of torchvision on the feature maps of an image encoder.

    model = mmcon.load("runs/imagenet_supcon")                     # or "timm/resnet50"; or an encoder itself
    detector = create_detector(image_encoder(model), classes=80)   # Faster R-CNN with a feature pyramid, or RetinaNet
    segmenter = create_segmenter(image_encoder(model), classes=21)

The encoder is trained with the detector, in place. It normalizes images itself, so all of them take images in [0, 1].
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.segmentation import FCN
from torchvision.models.segmentation.deeplabv3 import DeepLabHead
from torchvision.models.segmentation.fcn import FCNHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7
from torchvision.ops.poolers import initLevelMapper

from mmcon.errors import InputError, UnknownNameError, nearest
from mmcon.models.contrastive_model import ContrastiveModel
from mmcon.models.evaluation_mode import evaluation_mode

#: Sides of anchors in strides of their map, as published for COCO (32 pixels at stride 4, and at stride 8).
ANCHOR_STRIDES = {"faster-rcnn": (8.0,), "retinanet": (4.0, 4 * 2 ** (1 / 3), 4 * 2 ** (2 / 3))}
ASPECTS = (0.5, 1.0, 2.0)
_ROI_SIDE = 7


def image_encoder(model: Any) -> Any:
    """The image encoder of a loaded model or of a ContrastiveModel; an encoder is returned as it is.

    Raises:
        InputError: there is none, there is one for each view, or it has no method `feature_maps`.
    """
    inner = model if isinstance(model, nn.Module) else getattr(model, "model", None)
    encoder = inner
    if isinstance(inner, ContrastiveModel):
        towers = inner.towers.get("image", ())
        if len(towers) != 1:
            got = f"encoders of {sorted(inner.encoders)}"
            raise InputError("image_encoder", expected="a model with one encoder of images", got=got)
        encoder = inner.encoders[towers[0]]
    if not hasattr(encoder, "feature_maps"):
        raise InputError(
            "image_encoder",
            expected="an image encoder with a method `feature_maps`",
            got=type(encoder).__name__,
            fix="create_encoder makes one; feature_maps(images) returns maps `n d h w`, the finest first",
        )
    return encoder


@final
class FeaturePyramid(nn.Module):
    """A feature pyramid (Lin et al. 2017) on the coarsest maps of an encoder, as torchvision's detectors take it.

    Args:
        encoder: has the method `feature_maps`.
        image_size: the side of the images in pixels.
        width: channels of all levels.
        levels: the number of maps; an encoder with fewer gives all of them.
        extra: makes coarser levels from the coarsest map.

    Attributes:
        out_channels: the width.
        strides: of each level with the extra ones, in pixels.
    """

    def __init__(self, encoder: Any, *, image_size: int, width: int, levels: int, extra: nn.Module) -> None:
        super().__init__()
        self.encoder, self.levels, self.out_channels = encoder, levels, width
        probe = torch.zeros(2, _channels_of(encoder), image_size, image_size)
        with evaluation_mode(encoder), torch.no_grad():
            channels = [each.shape[1] for each in encoder.feature_maps(probe)[-levels:]]
            self.pyramid = FeaturePyramidNetwork(channels, width, extra)  # type: ignore[arg-type]
            self.strides = tuple(-(-image_size // each.shape[-1]) for each in self(probe).values())

    def forward(self, images: Float[Tensor, "n c h w"]) -> OrderedDict[str, Float[Tensor, "n d _h _w"]]:
        """The levels by name, from "0", the finest, on."""
        maps = self.encoder.feature_maps(images)[-self.levels :]
        return self.pyramid(OrderedDict((str(number), each) for number, each in enumerate(maps)))


def create_detector(
    encoder: Any,
    *,
    classes: int,
    kind: str = "faster-rcnn",
    image_size: int = 512,
    width: int = 256,
    levels: int | None = None,
    **options: Any,
) -> FasterRCNN | RetinaNet:
    """A detector of torchvision with a feature pyramid on an encoder.

    In training it maps images and targets (`boxes` x0 y0 x1 y1, `labels` from 1) to a dict of losses; in evaluation
    mode images to `boxes`, `labels` and `scores`. Images are a list of `c h w` in [0, 1].

    Args:
        encoder: has the method `feature_maps` (see `image_encoder`); it is part of the detector.
        classes: their number, without the background.
        kind: "faster-rcnn" (Ren et al. 2015, Lin et al. 2017) or "retinanet" (Lin et al. 2017).
        image_size: the side to which images are resized; the anchors follow from it and the strides.
        width: channels of the pyramid; the published one is 256.
        levels: maps of the pyramid; the published ones are 4 for Faster R-CNN and 3 for RetinaNet.
        options: of torchvision's class.

    Raises:
        InputError: the encoder has no maps, or takes only images of another size.
        UnknownNameError: there is no such kind.
    """
    if kind not in ANCHOR_STRIDES:
        raise UnknownNameError(
            "create_detector", expected="a kind of detector", got=repr(kind), fix=nearest(kind, [*ANCHOR_STRIDES])
        )
    encoder = image_encoder(encoder)
    fixed = getattr(encoder, "fixed_size", False)
    image_size = encoder.image_size if fixed else image_size
    extra = LastLevelMaxPool() if kind == "faster-rcnn" else LastLevelP6P7(width, width)
    levels = levels or (4 if kind == "faster-rcnn" else 3)
    pyramid = FeaturePyramid(encoder, image_size=image_size, width=width, levels=levels, extra=extra)
    sizes = tuple(tuple(round(stride * s) for s in ANCHOR_STRIDES[kind]) for stride in pyramid.strides)
    anchors = AnchorGenerator(sizes, (ASPECTS,) * len(sizes))  # type: ignore[arg-type]
    channels = _channels_of(encoder)
    common: dict[str, Any] = {"min_size": image_size, "max_size": image_size, "size_divisible": 1}
    common |= {"image_mean": [0.0] * channels, "image_std": [1.0] * channels}  # the encoder normalizes
    common |= {"fixed_size": (image_size, image_size)} if fixed else {}
    if kind == "retinanet":
        return RetinaNet(pyramid, classes + 1, anchor_generator=anchors, **common | options)
    names = [str(number) for number in range(len(pyramid.strides) - 1)]
    head = TwoMLPHead(width * _ROI_SIDE**2, 4 * width)
    regions = MultiScaleRoIAlign(featmap_names=names, output_size=_ROI_SIDE, sampling_ratio=2)
    # torchvision would round the strides to powers of two, and those of vision transformers may be 14.
    regions.scales = [1 / stride for stride in pyramid.strides[:-1]]
    levels_of = [round(math.log2(stride)) for stride in (pyramid.strides[0], pyramid.strides[-2])]
    regions.map_levels = initLevelMapper(levels_of[0], levels_of[1])
    heads = {"box_head": head, "box_predictor": FastRCNNPredictor(4 * width, classes + 1), "box_roi_pool": regions}
    return FasterRCNN(pyramid, rpn_anchor_generator=anchors, **common | heads | options)


def create_segmenter(encoder: Any, *, classes: int, kind: str = "fcn", level: int = -1, image_size: int = 224) -> FCN:
    """A segmentation network: a head of torchvision on one map of an encoder, resized to the images.

    It maps images `n c h w` in [0, 1] to {"out": logits `n classes h w`}.

    Args:
        encoder: has the method `feature_maps` (see `image_encoder`); it is part of the network.
        classes: their number, with the background.
        kind: "fcn" (Long et al. 2015) or "deeplab" (the head of DeepLabv3, Chen et al. 2017).
        level: the map among those of the encoder, of which the last is the coarsest.
        image_size: a side of images that the encoder takes, to find the width of the map.

    Raises:
        UnknownNameError: there is no such kind.
    """
    if kind not in ("fcn", "deeplab"):
        raise UnknownNameError(
            "create_segmenter", expected="a kind of head", got=repr(kind), fix=nearest(kind, ["fcn", "deeplab"])
        )
    body = _OneMap(image_encoder(encoder), level, image_size)
    head = FCNHead(body.out_channels, classes) if kind == "fcn" else DeepLabHead(body.out_channels, classes)
    return FCN(body, head)


@final
class _OneMap(nn.Module):
    """One map of an encoder under the name that torchvision's segmentation networks read."""

    def __init__(self, encoder: Any, level: int, image_size: int) -> None:
        super().__init__()
        self.encoder, self.level = encoder, level
        side = encoder.image_size if getattr(encoder, "fixed_size", False) else image_size
        with evaluation_mode(encoder), torch.no_grad():
            self.out_channels = self(torch.zeros(2, _channels_of(encoder), side, side))["out"].shape[1]

    def forward(self, images: Float[Tensor, "n c h w"]) -> dict[str, Float[Tensor, "n d _h _w"]]:
        return {"out": self.encoder.feature_maps(images)[self.level]}


def _channels_of(encoder: Any) -> int:
    return int(getattr(encoder, "in_channels", 3))
