"""Feature maps of encoders of all libraries, and detectors and segmenters on them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import mmcon
from mmcon.errors import InputError, UnknownNameError
from mmcon.models.detection import create_detector, create_segmenter, image_encoder
from mmcon.models.fine_tuning import freeze_batch_norms
from mmcon.models.image import ImageEncoder

IMAGES = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def small(**options):
    torch.manual_seed(0)
    return mmcon.create_encoder("mmcon/resnet-tiny", width=8, **options)


@pytest.mark.parametrize(
    ("name", "strides", "channels"),
    [
        ("mmcon/resnet-tiny", [2, 4, 8], [32, 64, 128]),
        ("resnet18", [2, 4, 8, 16, 32], [64, 64, 128, 256, 512]),
        ("mobilenet_v3_small", [2, 4, 8, 16, 32], None),
        ("timm/resnet18", [2, 4, 8, 16, 32], [64, 64, 128, 256, 512]),
    ],
)
def test_the_last_map_of_each_resolution_comes_first_the_finest(name, strides, channels):
    encoder = mmcon.create_encoder(name).eval()
    with torch.no_grad():
        maps = encoder.feature_maps(IMAGES)
        features = encoder(IMAGES)
    assert [64 / m.shape[2] for m in maps] == [96 / m.shape[3] for m in maps] == strides
    if channels is not None:
        assert [m.shape[1] for m in maps] == channels
        # These networks pool the last map, so that the maps are those of the features.
        torch.testing.assert_close(maps[-1].mean((2, 3)), features)


def test_maps_of_torchvision_are_those_of_its_own_extractor():
    from torchvision.models._utils import IntermediateLayerGetter

    encoder = mmcon.create_encoder("resnet18").eval()
    layers = IntermediateLayerGetter(encoder.network, {f"layer{i}": str(i) for i in range(1, 5)})
    with torch.no_grad():
        theirs = layers((IMAGES - encoder.mean) / encoder.std)
        for own, other in zip(encoder.feature_maps(IMAGES)[1:], theirs.values(), strict=True):
            torch.testing.assert_close(own, other)


def test_a_transformer_has_one_map():
    encoder = mmcon.create_encoder("timm/vit_tiny_patch16_224", image_size=32, depth=1).eval()
    (only,) = encoder.feature_maps(torch.rand(2, 3, 32, 32))
    assert only.shape == (2, 192, 2, 2)


def test_a_network_of_transformers_has_the_maps_of_its_hidden_states(tmp_path):
    from transformers import ResNetConfig, ResNetModel, ViTConfig, ViTModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    vit = ViTModel(ViTConfig(**sizes, image_size=32, patch_size=8), add_pooling_layer=False)
    resnet = ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"))
    for name, model, shapes in (("vit", vit, [(16, 4, 4)]), ("resnet", resnet, [(8, 8, 8), (16, 4, 4)])):
        model.save_pretrained(tmp_path / name)
        encoder = mmcon.create_encoder(str(tmp_path / name), pretrained=True).eval()
        maps = encoder.feature_maps(torch.rand(2, 3, 32, 32))
        assert [tuple(m.shape[1:]) for m in maps] == shapes


class ChannelsLast(nn.Module):
    """The layout of torchvision's Swin."""

    def forward(self, x):
        return x.permute(0, 2, 3, 1)


@pytest.mark.parametrize(
    "layers", [[nn.Conv2d(3, 8, 3, 2, 1), ChannelsLast()], [nn.Flatten(), nn.Linear(3 * 64 * 64, 4)]]
)
def test_networks_without_maps_are_refused_with_the_fix(layers):
    encoder = ImageEncoder(nn.Sequential(*layers), feature_dim=4, mean=[0.5] * 3, std=[0.5] * 3)
    with pytest.raises(InputError, match="timm"):
        encoder.feature_maps(torch.rand(2, 3, 64, 64))


@pytest.mark.parametrize("kind", ["faster-rcnn", "retinanet"])
def test_a_detector_trains_its_encoder_and_finds_boxes(kind):
    encoder = small(in_channels=1)
    few = {"box_batch_size_per_image": 8, "rpn_post_nms_top_n_train": 20} if kind == "faster-rcnn" else {}
    detector = create_detector(encoder, classes=2, kind=kind, image_size=64, width=8, **few)
    images = list(torch.rand(2, 1, 64, 64))  # gray, as the encoder's
    targets = [{"boxes": torch.tensor([[8.0, 8.0, 40.0, 40.0]]), "labels": torch.tensor([2])}] * 2
    sum(detector(images, targets).values()).backward()
    assert float(encoder.network[0].weight.grad.abs().sum()) > 0
    # Anchors are as large, in strides, as published for COCO: from 32 pixels at stride 4, or 8.
    assert detector.backbone.strides[:3] == (2, 4, 8)
    anchors = detector.rpn.anchor_generator if kind == "faster-rcnn" else detector.anchor_generator
    assert anchors.sizes[2][0] == (64 if kind == "faster-rcnn" else 32)
    with torch.no_grad():
        found = detector.eval()(images)
    assert all({"boxes", "labels", "scores"} <= set(own) and bool((own["labels"] > 0).all()) for own in found)


def test_a_detector_on_an_encoder_of_one_size_resizes_and_returns_boxes_of_the_original():
    encoder = mmcon.create_encoder("timm/vit_tiny_patch16_224", image_size=64, depth=1)
    detector = create_detector(encoder, classes=1, width=8, image_size=512).eval()
    with torch.no_grad():
        found = detector([torch.rand(3, 40, 50)])
    assert float(found[0]["boxes"].max() if len(found[0]["boxes"]) else 0) <= 50


@pytest.mark.parametrize("kind", ["fcn", "deeplab"])
def test_a_segmenter_has_a_logit_for_every_pixel_and_class(kind):
    segmenter = create_segmenter(small(), classes=5, kind=kind, image_size=32)
    logits = segmenter(torch.rand(2, 3, 32, 40))["out"]
    assert logits.shape == (2, 5, 32, 40)
    logits.square().mean().backward()
    assert float(segmenter.backbone.encoder.network[0].weight.grad.abs().sum()) > 0


def test_the_encoder_of_a_model_is_found_or_refused():
    encoder = small()
    model = mmcon.ContrastiveModel({"image": encoder}, {})
    assert image_encoder(model) is image_encoder(encoder) is encoder
    with pytest.raises(InputError, match="one encoder of images"):
        image_encoder(mmcon.ContrastiveModel({"image": [small(), small()]}, {}))
    with pytest.raises(InputError, match="feature_maps"):
        image_encoder(nn.Linear(2, 2))
    with pytest.raises(UnknownNameError, match="retinanet"):
        create_detector(encoder, classes=1, kind="retina-net")
    with pytest.raises(UnknownNameError, match="deeplab"):
        create_segmenter(encoder, classes=1, kind="deeplabv3")


def test_frozen_batch_norms_keep_weights_and_statistics_in_training():
    encoder = freeze_batch_norms(small()).train()
    norms = [m for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)]
    before = norms[0].running_mean.clone()
    encoder(torch.rand(4, 3, 16, 16)).sum().backward()
    assert torch.equal(norms[0].running_mean, before)
    assert all(p.grad is None for norm in norms for p in norm.parameters())
    assert encoder.network[0].weight.grad is not None
