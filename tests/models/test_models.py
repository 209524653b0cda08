"""Encoders by name, shared spaces, and saving: shapes, normalisation, order of rows, and clear refusals."""

import copy

import pytest
import torch
from torch import nn

from mmcon.batch import Index, ViewBatch
from mmcon.errors import CheckpointError, ConfigError, DataError, InputError, UnknownNameError
from mmcon.models.batch_norm import GlobalBatchNorm, synchronize_batch_norm
from mmcon.models.contrastive_model import ContrastiveModel
from mmcon.models.encoders import create_encoder, list_encoders
from mmcon.models.image import ImageEncoder
from mmcon.models.image_torchvision import _remove_classifier
from mmcon.models.shared_spaces import SharedSpace
from mmcon.registry import register_encoder


def images(n=4, c=1, side=28, seed=0):
    return torch.rand(n, c, side, side, generator=torch.Generator().manual_seed(seed))


def batch_of(**parts):
    """A batch whose modalities have one view a part."""
    index = {}
    for modality, views in parts.items():
        rows = [(s, v) for v, part in enumerate(views) for s in range(len(part))]
        sample, view = (torch.tensor(column) for column in zip(*rows, strict=True))
        index[modality] = Index({"sample": sample, "view": view})
    return ViewBatch({m: tuple(p) for m, p in parts.items()}, index)


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    return create_encoder("mmcon/resnet-tiny", in_channels=1).eval()


@pytest.mark.parametrize(
    ("name", "options", "width"),
    [
        ("resnet18", {"image_size": 28}, 512),
        ("mobilenet_v3_small", {}, 576 + 448),
        ("timm/test_resnet", {"image_size": 32}, None),
        ("timm/test_vit", {"image_size": 64}, None),
        ("timm/test_convnext", {"in_channels": 1}, None),
    ],
)
def test_encoders_of_libraries(name, options, width):
    torch.manual_seed(0)
    encoder = create_encoder(name, **options).eval()
    side = encoder.image_size or 64
    with torch.no_grad():
        features = encoder(images(2, side=side))
    assert features.shape == (2, encoder.feature_dim)
    assert width in (None, encoder.feature_dim)
    assert features.std() > 0
    assert encoder.image_size == options.get("image_size", encoder.image_size)


def test_small_images_get_a_stem_that_keeps_resolution():
    small = create_encoder("resnet18", image_size=32).network
    assert (small.conv1.stride, isinstance(small.maxpool, nn.Identity)) == ((1, 1), True)
    large = create_encoder("resnet18", image_size=224).network
    assert (large.conv1.stride, isinstance(large.maxpool, nn.MaxPool2d)) == ((2, 2), True)
    assert create_encoder("resnet18", image_size=32, small_images=False).network.conv1.stride == (2, 2)
    with pytest.raises(InputError, match="begins with a convolution of stride 2"):
        create_encoder("squeezenet1_1", small_images=True)


@pytest.mark.parametrize(
    "name",
    ["mobilenet_v3_small", "mnasnet0_5", "shufflenet_v2_x0_5", "regnet_y_400mf", "timm/tf_mobilenetv3_small_075"],
)
def test_convolutional_networks_keep_the_resolution_of_small_images_in_their_first_layers(name):
    encoder, sides = create_encoder(name, image_size=28), []
    assert encoder.small_images
    assert encoder.training
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d) and module.groups == 1:
            module.register_forward_hook(lambda module, inputs, output: sides.append(output.shape[-1]))
    with torch.no_grad():
        encoder(images(2, c=3, side=28))
    assert (sides[0], max(sides[-3:])) == (28, 4)


@pytest.mark.parametrize(
    ("name", "published", "stated", "kept"),
    [
        ("shufflenet_v2_x0_5", False, True, True),
        ("shufflenet_v2_x0_5", False, None, False),  # saved by an earlier version, which knew ResNet's stem alone
        ("resnet18", False, None, True),
        ("resnet18", True, None, False),
    ],
)
def test_a_saved_model_keeps_its_first_layers(tmp_path, name, published, stated, kept):
    encoder = create_encoder(name, image_size=32, small_images=kept)
    encoder.made_from |= {"pretrained": published, "small_images": stated}
    model = ContrastiveModel({"image": encoder}, {"shared": SharedSpace(dim=4)})
    model.save_pretrained(tmp_path)
    loaded = ContrastiveModel.from_pretrained(tmp_path)
    assert loaded.encoders["image"].small_images == kept
    x = images(2, c=3, side=32)
    torch.testing.assert_close(loaded.features(x, "image"), model.features(x, "image"))


def test_a_new_model_states_that_it_keeps_the_resolution():
    assert create_encoder("shufflenet_v2_x0_5", image_size=32).made_from["small_images"] is True
    assert create_encoder("shufflenet_v2_x0_5", image_size=128).made_from["small_images"] is None
    fixed = create_encoder("timm/levit_128s", image_size=32)  # its layers are made for the divided resolution
    assert not fixed.small_images


@pytest.mark.parametrize("name", ["squeezenet1_1", "googlenet"])
def test_networks_without_a_plain_last_layer_give_features_in_training_too(name):
    encoder = create_encoder(name, image_size=64).train()
    features = encoder(images(2, c=3, side=64))
    assert features.shape == (2, encoder.feature_dim)
    features.sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


def test_normalisation_is_the_encoders_own():
    encoder = ImageEncoder(nn.Flatten(), feature_dim=12, mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.25))
    x = images(2, c=3, side=2)
    expected = (x - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor([0.5, 0.5, 0.25]).view(3, 1, 1)
    torch.testing.assert_close(encoder(x), expected.flatten(1))


def test_one_channel_is_repeated():
    torch.manual_seed(0)
    encoder = create_encoder("mmcon/resnet-tiny").eval()
    x = images(2)
    torch.testing.assert_close(encoder(x), encoder(x.expand(-1, 3, -1, -1)))


def test_resnet_tiny_is_small():
    encoder = create_encoder("mmcon/resnet-tiny", in_channels=1, image_size=28)
    assert 7e4 < sum(p.numel() for p in encoder.parameters()) < 4e5


def test_vision_models_of_transformers_from_a_folder(tmp_path):
    from transformers import ResNetConfig, ViTConfig, ViTImageProcessor, ViTModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    model = ViTModel(ViTConfig(image_size=32, patch_size=8, **sizes)).eval()
    model.save_pretrained(tmp_path / "vit")
    ViTImageProcessor(image_mean=[0.1] * 3, image_std=[0.3] * 3, size={"height": 32, "width": 32}).save_pretrained(
        tmp_path / "vit"
    )
    encoder = create_encoder(str(tmp_path / "vit"), pretrained=True).eval()
    x = images(2, c=3, side=32)
    with torch.no_grad():
        expected = model(pixel_values=(x - 0.1) / 0.3).last_hidden_state[:, 0]
        torch.testing.assert_close(encoder(x), expected)
    assert (encoder.image_size, encoder.feature_dim) == (32, 16)
    with pytest.raises(InputError, match="32 × 32"):
        encoder(images(2, c=3, side=28))

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    config.save_pretrained(tmp_path / "resnet")
    fresh = create_encoder(str(tmp_path / "resnet"), in_channels=1)
    assert fresh(images(2, c=1, side=32)).shape == (2, 16)


def test_hub_names_without_a_network(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="local folder") as caught:
        create_encoder("nobody/nothing")
    assert "download it once" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "near"),
    [("resnet19", "'resnet18'"), ("timm/resnt18", "'timm/resnet18'"), ("mmcon/resnet-tin", "'mmcon/resnet-tiny'")],
)
def test_unknown_names(name, near):
    with pytest.raises(UnknownNameError, match=near):
        create_encoder(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("runs/frist", "no folder 'frist' in runs(.|\n)*did you mean 'first'|known are first"),
        ("./gone", "no folder 'gone'"),
        ("/nowhere/at/all", "no folder /nowhere/at"),
        ("runs/first/weights.pt", "the file runs/first/weights.pt(.|\n)*give its folder: runs/first"),
    ],
)
@pytest.mark.parametrize("modality", ["image", "audio", "text"])
def test_a_path_without_a_folder_is_not_looked_for_on_the_hub(name, message, modality, tmp_path, monkeypatch):
    (tmp_path / "runs" / "first").mkdir(parents=True)
    (tmp_path / "runs" / "first" / "weights.pt").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        create_encoder(name, modality=modality)


def test_networks_without_a_usable_feature():
    with pytest.raises(InputError, match="linear classifier"):
        _remove_classifier(nn.Sequential(nn.Linear(2, 2)), "mine", keep_dropout=False)
    maps = ImageEncoder(nn.Conv2d(3, 4, 3), feature_dim=4, mean=[0.5] * 3, std=[0.5] * 3)
    with pytest.raises(InputError, match="one vector an image"):
        maps(images(2, c=3))


def test_images_that_do_not_fit(tiny):
    with pytest.raises(InputError, match=r"in_channels=3"):
        tiny(images(c=3))
    with pytest.raises(InputError, match=r"torch\.uint8"):
        tiny(torch.zeros(2, 1, 28, 28, dtype=torch.uint8))


@pytest.mark.parametrize("training", [True, False])
def test_images_from_0_to_255_are_refused(training):
    encoder = create_encoder("mmcon/resnet-tiny", in_channels=1).train(training)
    with pytest.raises(InputError, match=r"pixels in \[0, 1\]; got a pixel of 25\d(.|\n)*divide by 255"):
        encoder(255 * images())
    model = ContrastiveModel({"image": encoder})
    for call in (model.features, model.embed):
        with pytest.raises(InputError, match="divide by 255"):
            call(255 * images())
        with pytest.raises(InputError, match=r"torch\.uint8(.|\n)*divide integers by 255"):
            call((255 * images()).to(torch.uint8))
    encoder(3 * images() - 2)  # standardized channels


@pytest.mark.parametrize(
    ("name", "options"), [("mmcon/resnet-tiny", {"image_size": 28}), ("resnet18", {"image_size": 28})]
)
def test_an_encoder_is_exported_and_vectorized(name, options):
    torch.manual_seed(0)
    encoder = create_encoder(name, **options).eval()
    x = images(4, c=3)
    with torch.no_grad():
        program = torch.export.export(encoder, (x[:2],), dynamic_shapes=({0: torch.export.Dim("n", min=2)},))
        torch.testing.assert_close(program.module()(x), encoder(x))
        torch.testing.assert_close(torch.vmap(lambda image: encoder(image[None])[0])(x), encoder(x))


def test_registered_encoders(own_registry):
    @register_encoder("test/mean-colour", modality="image")
    class MeanColour(nn.Module):
        def __init__(self, in_channels: int = 3):
            super().__init__()
            self.feature_dim = in_channels

        def forward(self, views):
            return views.mean((2, 3))

    @register_encoder("test/no-width", modality="image")
    def no_width():
        return nn.Identity()

    encoder = create_encoder("test/mean-colour", in_channels=2, image_size=28)
    assert encoder(images(3, c=2)).shape == (3, 2)
    assert "test/mean-colour" in list_encoders()
    with pytest.raises(InputError, match="feature_dim"):
        create_encoder("test/no-width")
    with pytest.raises(InputError, match="pretrained"):
        create_encoder("test/mean-colour", pretrained=True)
    with pytest.raises(InputError, match="'audio'"):
        create_encoder("test/mean-colour", modality="audio")


# --- shared spaces ---------------------------------------------------------------------------------------------------


def test_unit_embeddings_in_the_order_of_rows(tiny):
    model = ContrastiveModel({"image": tiny}, {"shared": SharedSpace(dim=16)}).eval()
    first, second = images(4, seed=1), images(4, seed=2)
    together = model(batch_of(image=[first, second]))["shared"]["image"]
    apart = [model(batch_of(image=[part]))["shared"]["image"] for part in (first, second)]
    assert together.shape == (8, 16)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(8))
    torch.testing.assert_close(together, torch.cat(apart))
    crops = model(batch_of(image=[first, images(4, side=16), second]))["shared"]["image"]
    torch.testing.assert_close(crops[8:], apart[1])


def test_features_come_before_the_head(tiny):
    model = ContrastiveModel({"image": tiny}).eval()
    x = images()
    torch.testing.assert_close(model.features(x), tiny(x))
    torch.testing.assert_close(model.features(batch_of(image=[x]), "image"), tiny(x))
    torch.testing.assert_close(model.features(batch_of(image=[x]))["image"], tiny(x))
    with pytest.raises(InputError, match="'sound'"):
        model.features(x, "sound")


def test_features_and_embeddings_do_not_depend_on_the_mode_or_the_batch(tiny):
    model = ContrastiveModel({"image": tiny}, {"shared": SharedSpace(dim=16)}).train()
    model.heads.eval()  # the mode of each submodule is restored
    modes, state = [m.training for m in model.modules()], copy.deepcopy(model.state_dict())
    x = images(8)
    batch = batch_of(image=[x])
    features, embeddings = model.features(x, "image"), model.embed(x)["shared"]
    torch.testing.assert_close(features[:2], model.features(x[:2], "image"))
    torch.testing.assert_close(embeddings[:2], model.embed(batch, "image")["shared"][:2])
    assert [m.training for m in model.modules()] == modes
    torch.testing.assert_close(model.state_dict(), state)
    torch.testing.assert_close(features, tiny.eval()(x))
    torch.testing.assert_close(embeddings, model.eval()(batch)["shared"]["image"])
    assert not any((features.requires_grad, embeddings.requires_grad, features.is_inference()))
    nn.Linear(128, 2)(features).sum().backward()  # a probe can be trained on them
    with pytest.raises(InputError, match="'sound'"):
        model.embed(x, "sound")


def test_heads():
    encoder = create_encoder("mmcon/precomputed-features", feature_dim=6, modality="any")
    model = ContrastiveModel(
        {"a": encoder},
        {"line": SharedSpace(dim=2, head="linear", unit_features=True), "bend": SharedSpace(dim=3, hidden_dim=5)},
    )
    x = images(4, c=1, side=6)[:, 0, 0]
    out = model(batch_of(a=[x]))
    assert {name: tuple(space["a"].shape) for name, space in out.items()} == {"line": (4, 2), "bend": (4, 3)}
    scaled = model(batch_of(a=[3 * x]))
    torch.testing.assert_close(scaled["line"]["a"], out["line"]["a"])  # features of length one have no scale
    assert not torch.allclose(scaled["bend"]["a"], out["bend"]["a"])


def test_several_modalities_some_missing(tiny):
    words = create_encoder("mmcon/precomputed-features", feature_dim=6, modality="any")
    spaces = {"all": SharedSpace(dim=8), "seen": SharedSpace(dim=4, modalities=("image",))}
    model = ContrastiveModel({"image": tiny, "text": words}, spaces)
    both = model(batch_of(image=[images()], text=[torch.ones(3, 6)]))
    assert {s: {m: tuple(e.shape) for m, e in ms.items()} for s, ms in both.items()} == {
        "all": {"image": (4, 8), "text": (3, 8)},
        "seen": {"image": (4, 4)},
    }
    assert set(model(batch_of(text=[torch.ones(3, 6)]))["all"]) == {"text"}


def test_an_encoder_for_each_view():
    light, colour = (create_encoder("mmcon/resnet-tiny", in_channels=c).eval() for c in (1, 2))
    model = ContrastiveModel({"image": [light, colour]}, {"shared": SharedSpace(dim=8)}).eval()
    x, y = images(3, c=1), images(3, c=2)
    out = model(batch_of(image=[x, y]))["shared"]["image"]
    heads = model.heads["shared"]
    torch.testing.assert_close(out, torch.cat([heads["image:0"](light(x)), heads["image:1"](colour(y))]))
    torch.testing.assert_close(model.features((x, y), "image"), torch.cat([light(x), colour(y)]))
    with pytest.raises(InputError, match="views below 2"):
        model(batch_of(image=[x, y, x]))
    # Views that one generator made stand in one part, and are told apart by the index.
    twins = ContrastiveModel({"image": [light, create_encoder("mmcon/resnet-tiny", in_channels=1).eval()]}).eval()
    whole = ViewBatch({"image": (torch.cat([x, x]),)}, {"image": Index({"view": torch.tensor([0] * 3 + [1] * 3)})})
    assert not torch.allclose(*twins(whole)["shared"]["image"].chunk(2))


def test_models_that_do_not_fit_are_refused(tiny):
    with pytest.raises(ConfigError, match="feature_dim"):
        ContrastiveModel({"image": nn.Identity()})
    with pytest.raises(ConfigError, match=r"\['sound'\]"):
        ContrastiveModel({"image": tiny}, {"s": SharedSpace(modalities=("sound",))})
    with pytest.raises(ConfigError, match="dim=0"):
        SharedSpace(dim=0)
    tiny.feature_dim = 7
    with pytest.raises(InputError, match=r"\(4, 7\)"):
        ContrastiveModel({"image": tiny})(batch_of(image=[images()]))


def test_save_and_load(tiny, tmp_path):
    model = ContrastiveModel({"image": tiny}, {"shared": SharedSpace(dim=16, modalities=("image",))}).eval()
    batch = batch_of(image=[images()])
    model.save_pretrained(tmp_path / "model")
    again = ContrastiveModel.from_pretrained(tmp_path / "model")
    assert not any(module.training for module in again.modules())
    assert torch.equal(again(batch)["shared"]["image"], model(batch)["shared"]["image"])
    assert again.spaces == model.spaces
    assert sorted(f.name for f in (tmp_path / "model").iterdir()) == ["config.json", "model.safetensors"]


def test_save_and_load_shared_and_separate_encoders(tiny, tmp_path):
    model = ContrastiveModel({"left": tiny, "right": tiny, "both": [tiny, create_encoder("mmcon/resnet-tiny")]})
    model.save_pretrained(tmp_path)
    again = ContrastiveModel.from_pretrained(tmp_path)
    assert again.encoders["left"] is again.encoders["right"] is again.encoders["both:0"]
    assert torch.equal(again.encoders["right"].network[0].weight, tiny.network[0].weight)


def test_encoders_that_were_not_made_by_name(tmp_path):
    def build():
        return ImageEncoder(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), feature_dim=3, mean=[0.5], std=[0.5])

    torch.manual_seed(0)
    model = ContrastiveModel({"image": build()})
    model.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="'image', which was not"):
        ContrastiveModel.from_pretrained(tmp_path)
    again = ContrastiveModel.from_pretrained(tmp_path, encoders={"image": build()})
    x = images(2, side=2)
    assert torch.equal(again.features(x), model.features(x))


def test_checkpoints_that_do_not_fit(tiny, tmp_path):
    folder = ContrastiveModel({"image": tiny}).save_pretrained(tmp_path)
    wider = create_encoder("mmcon/resnet-tiny", in_channels=3)
    with pytest.raises(CheckpointError, match=r"network\.0\.weight: model \(\d+, 3, 3, 3\), saved \(\d+, 1, 3, 3\)"):
        ContrastiveModel.from_pretrained(folder, encoders={"image": wider})
    deeper = create_encoder("mmcon/resnet-tiny", in_channels=1, depth=3)
    with pytest.raises(CheckpointError, match=r"that differ:(\n    encoders\..*){8}\n    and \d+ more"):
        ContrastiveModel.from_pretrained(folder, encoders={"image": deeper})
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"a complete model\.safetensors"):
        ContrastiveModel.from_pretrained(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json"):
        ContrastiveModel.from_pretrained(folder)


def test_gradients_reach_every_parameter(tiny):
    model = ContrastiveModel({"image": tiny}).train()
    model(batch_of(image=[images()]))["shared"]["image"].sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_batch_norms_are_replaced_in_place_under_their_names():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm2d(4, momentum=None)))
    before, parameters = copy.deepcopy(model), list(model.parameters())
    assert synchronize_batch_norm(model) is model
    assert [type(part) for part in (model[1], model[2][0])] == [GlobalBatchNorm] * 2
    assert all(now is was for now, was in zip(model.parameters(), parameters, strict=True))
    assert list(model.state_dict()) == list(before.state_dict())
    x = torch.randn(3, 1, 6, 6)
    torch.testing.assert_close(model(x), before(x))
    torch.testing.assert_close(model.state_dict(), before.state_dict())


def test_a_batch_norm_that_does_more_is_refused():
    class NormAndActivation(nn.BatchNorm2d):
        pass

    with pytest.raises(ConfigError, match="NormAndActivation"):
        synchronize_batch_norm(nn.Sequential(NormAndActivation(4)))


def test_on_a_gpu_batch_norms_become_torchs():
    assert type(synchronize_batch_norm(nn.Sequential(nn.BatchNorm1d(4)), "cuda")[0]) is nn.SyncBatchNorm


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "googlenet"])
def test_random_features_are_without_the_dropout_of_the_classifier(name):
    torch.manual_seed(0)
    options = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    encoder = create_encoder(name, image_size=64, **options)
    views = torch.rand(1, 3, 64, 64).repeat(4, 1, 1, 1)
    features = encoder.train()(views)
    torch.testing.assert_close(features, features[:1].expand_as(features))
    assert encoder.network.get_submodule("dropout" if name == "googlenet" else "classifier") is not None
    asked = create_encoder("mobilenet_v3_small", dropout=0.5)
    assert [m.p for m in asked.modules() if isinstance(m, torch.nn.Dropout)] == [0.5]


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "mnasnet0_5", "timm/mobilenetv3_small_050"])
def test_inverted_residual_blocks_start_as_their_shortcuts(name):
    network = create_encoder(name).network.eval()
    flags = ("use_res_connect", "apply_residual", "has_skip")
    blocks = [m for m in network.modules() if any(getattr(m, flag, False) is True for flag in flags)]
    assert len(blocks) > 4
    first = next(m for m in blocks[0].modules() if isinstance(m, torch.nn.Conv2d))
    x = torch.rand(2, first.in_channels, 8, 8)
    assert torch.equal(blocks[0](x), x)


def test_running_statistics_of_random_weights_follow_a_short_training():
    """Evaluation normalizes by them: after 100 batches they are nearly those of a batch, not those of the start."""
    torch.manual_seed(0)
    encoder = create_encoder("mnasnet0_5", image_size=32)  # of torchvision with a momentum of .0003
    x = images(8, 3, 32)
    with torch.no_grad():
        for _ in range(100):  # the statistics of the start still count for .9¹⁰⁰ = 3e-5
            of_training = encoder(x)
        of_evaluation = encoder.eval()(x)
    # The running variance is the unbiased one, and the features of evaluation were those of no image, 0.9 apart.
    assert float((of_evaluation - of_training).norm() / of_training.norm()) < 0.2


@pytest.mark.parametrize(
    ("name", "modality", "options", "momentum"),
    [
        ("mobilenet_v3_small", "image", {}, 0.1),
        ("timm/mobilenetv3_small_050", "image", {"bn_momentum": 0.03}, 0.03),
        ("s3d", "video", {}, 0.1),
    ],
)
def test_the_momentum_of_batch_norms_with_random_weights(name, modality, options, momentum):
    encoder = create_encoder(name, modality=modality, **options)
    norms = [m for m in encoder.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    assert {norm.momentum for norm in norms} == {momentum}


def test_a_saved_encoder_of_published_weights_keeps_the_momentum_of_its_library(tmp_path):
    encoder = create_encoder("mobilenet_v3_small")
    encoder.made_from["pretrained"] = True  # as if its weights had been downloaded
    ContrastiveModel({"image": encoder}, {"shared": SharedSpace(dim=4)}).save_pretrained(tmp_path)
    norms = [m for m in ContrastiveModel.from_pretrained(tmp_path).modules() if isinstance(m, nn.BatchNorm2d)]
    assert {norm.momentum for norm in norms} == {0.01}


@register_encoder("around/a-network", modality="image")
class AroundANetwork(nn.Module):
    """It takes no `small_images`, and has a network that keeps the resolution."""

    def __init__(self, image_size: int = 32):
        super().__init__()
        self.network = create_encoder("resnet18", image_size=image_size)
        self.feature_dim = self.network.feature_dim

    def forward(self, views):
        return self.network(views)


def test_an_encoder_around_another_is_loaded_again(tmp_path):
    encoder = create_encoder("around/a-network", image_size=32)
    model = ContrastiveModel({"image": encoder}, {}).eval()
    model.save_pretrained(tmp_path)
    again, images = ContrastiveModel.from_pretrained(tmp_path), torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(again.features(images, "image"), model.features(images, "image"))


def test_published_weights_that_normalize_within_are_loaded_again(tmp_path, monkeypatch):
    """torchvision's GoogLeNet normalizes its input if its weights are published, and only then."""
    from torchvision import models

    get_model = models.get_model

    def published(name, weights=None, **options):
        defaults = {"transform_input": True, "aux_logits": False, "init_weights": False} if weights else {}
        return get_model(name, weights=None, **{**defaults, **options})

    monkeypatch.setattr(models, "get_model", published)
    model = ContrastiveModel({"image": create_encoder("googlenet", pretrained=True)}, {}).eval()
    model.save_pretrained(tmp_path)
    again, images = ContrastiveModel.from_pretrained(tmp_path), torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(again.features(images, "image"), model.features(images, "image"))


def test_a_file_of_the_working_directory_hides_no_network(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "resnet18").write_text("notes")
    assert create_encoder("resnet18", image_size=32).feature_dim == 512
    (tmp_path / "owner").mkdir()
    with pytest.raises(
        InputError, match=r"no folder 'model' in owner[\s\S]*of the hub, start where no folder is called owner"
    ):
        create_encoder("owner/model")
