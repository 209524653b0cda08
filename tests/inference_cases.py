"""Small untrained models of each modality, saved with their preprocessing, and files to encode."""

import torch

import mmcon
from mmcon.inference import save_model
from mmcon.sources.base import TensorSource
from mmcon.sources.text import TextSource


def image_model(folder, *, size=16, channels=3, classes=None):
    """A saved model of images; the folder."""
    torch.manual_seed(0)
    encoder = mmcon.create_encoder("mmcon/resnet-tiny", image_size=size, in_channels=channels, width=8)
    model = mmcon.ContrastiveModel({"image": encoder}, {"shared": mmcon.SharedSpace(dim=8)})
    source = TensorSource(torch.zeros(1, channels, size, size, dtype=torch.uint8))
    view = mmcon.create_view("image/plain", size=size)
    return save_model(model, folder, views={"image": [view]}, source=source)


def image_text_model(folder, *, size=16):
    """A saved model of images and texts in one space; the folder."""
    torch.manual_seed(0)
    encoders = {
        "image": mmcon.create_encoder("mmcon/resnet-tiny", image_size=size, width=8),
        "text": mmcon.create_encoder("text/embedding-bag", modality="text", vocabulary=64, feature_dim=16),
    }
    model = mmcon.ContrastiveModel(encoders, {"shared": mmcon.SharedSpace(dim=8)})
    images = TensorSource(torch.zeros(2, 3, size, size, dtype=torch.uint8))
    texts = TextSource({"name": ["a cat", "a dog"]})
    texts.ids = images.ids
    choose = mmcon.create_view("any/instance", random=False), mmcon.create_view("text/column", column="name")
    tokens = mmcon.create_view("text/tokens", vocabulary=64, max_tokens=8)
    views = {"image": [mmcon.create_view("image/plain", size=size)], "text": [mmcon.Chain(*choose, tokens)]}
    return save_model(model, folder, views=views, source=mmcon.JoinedSource(images, texts))


def save_pictures(folder, n=5, *, side=24):
    """PNG files of noise, in folders of two classes; their paths."""
    from PIL import Image

    for label in "ab":
        (folder / label).mkdir(parents=True, exist_ok=True)
    pixels = torch.randint(256, (n, side, side + 6, 3), generator=torch.Generator().manual_seed(0)).byte().numpy()
    paths = [folder / "ab"[i % 2] / f"{i}.png" for i in range(n)]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image).save(path)
    return paths
