"""Every registered image view goes through the laws of its scope, without being named here."""

import pytest
import torch

import mmcon
from mmcon.registry import lookup
from mmcon.testing import check_view
from mmcon.views import meta_of

IMAGES = torch.randint(0, 256, (4, 3, 72, 80), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
NAMES = [name for name in mmcon.list_views("image") if name.startswith("image/")]


@pytest.mark.parametrize("name", NAMES)
def test_laws(name):
    taken = lookup("view", name).options
    view = mmcon.create_view(name, **({"size": 32} if "size" in taken else {}))
    assert meta_of(IMAGES, "image")["height"].tolist() == [72] * 4
    batch = IMAGES if view.ragged else IMAGES.float() / 255
    check_view(view, batch, seeds=(0,))
