"""View generators as callables of one sample: keys, epochs, workers, and the kinds of samples."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

import mmcon
from mmcon.errors import InputError
from mmcon.views.adapters import FunctionView

PHOTOS = torch.randint(0, 256, (6, 3, 20, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def simclr():
    return mmcon.create_view("image/simclr", size=16)


class Photos(Dataset):
    """Two views of each photo by one transform, as in two-crop training."""

    def __init__(self, transform):
        self.transform = transform

    def __len__(self):
        return len(PHOTOS)

    def __getitem__(self, index):
        return torch.stack([self.transform(PHOTOS[index]), self.transform(PHOTOS[index])])


def epochs(workers, *, persistent=False, set_epoch=True, seed=0):
    transform = simclr().as_transform(seed=seed)
    loader = DataLoader(
        Photos(transform),
        batch_size=2,
        num_workers=workers,
        persistent_workers=persistent,
        generator=torch.Generator().manual_seed(1),
        multiprocessing_context="fork" if workers else None,
    )
    found = []
    for epoch in range(2):
        if set_epoch:
            transform.set_epoch(epoch)
        found.append(torch.cat(list(loader)))
    return found


def test_one_sample_in_one_view_out():
    transform = simclr().as_transform(seed=3)
    view = transform(PHOTOS[0])
    assert view.shape == (3, 16, 16)
    assert torch.equal(view, simclr().as_transform(seed=3)(PHOTOS[0]))
    assert not torch.equal(view, simclr().as_transform(seed=4)(PHOTOS[0]))
    assert not torch.equal(view, simclr().as_transform(seed=3, view=1)(PHOTOS[0]))
    assert not torch.equal(view, transform(PHOTOS[0]))  # the second of two crops


def test_views_do_not_depend_on_the_workers_and_differ_between_epochs():
    alone = epochs(0)
    assert not torch.equal(*alone)
    assert not torch.equal(alone[0][:, 0], alone[0][:, 1])
    for found in (epochs(2), epochs(2, persistent=True)):
        assert all(torch.equal(a, b) for a, b in zip(alone, found, strict=True))


@pytest.mark.parametrize(("workers", "persistent"), [(0, False), (1, False), (1, True)])
def test_without_set_epoch_each_epoch_has_other_draws_and_a_run_repeats(workers, persistent):
    first, again = (epochs(workers, persistent=persistent, set_epoch=False) for _ in range(2))
    assert not torch.equal(*first)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_a_view_in_a_compose_takes_images_arrays_and_tensors():
    array = PHOTOS[0].permute(1, 2, 0).numpy()
    compose = v2.Compose([simclr().as_transform(seed=0), v2.Normalize([0.5], [0.5])])
    expected = v2.functional.normalize(simclr().as_transform(seed=0)(PHOTOS[0]), [0.5], [0.5])
    for sample in (PHOTOS[0], array, Image.fromarray(array)):
        assert torch.equal(v2.Compose([simclr().as_transform(seed=0), compose.transforms[1]])(sample), expected)
    gray = Image.fromarray(np.zeros((9, 9), np.uint8))
    assert mmcon.create_view("image/plain", size=4).as_transform(seed=0)(gray).shape == (1, 4, 4)


def test_an_image_of_16_bits_keeps_the_upper_8():
    levels = np.arange(81, dtype=np.uint8).reshape(9, 9)
    deep = Image.fromarray(levels.astype(np.uint16) * 256 + 7)
    assert deep.mode == "I;16"
    transform = mmcon.create_view("image/plain", size=9).as_transform(seed=0)
    torch.testing.assert_close(transform(deep), transform(levels[..., None]))


def test_plain_functions_and_mappings():
    noise = FunctionView(lambda x, generator: x + torch.rand((), generator=generator), modality="audio")
    transform = noise.as_transform(seed=0)
    assert transform(torch.zeros(1, 8)).shape == (1, 8)
    plain = mmcon.create_view("audio/plain", window_seconds=0.5, rate_hz=8000).as_transform(seed=0)
    assert plain(torch.zeros(1, 8000))["log_mel"].dim() == 3


def test_generators_that_need_a_batch_are_refused():
    with pytest.raises(InputError, match=r"mixup(.|\n)*partner(.|\n)*ViewLoader"):
        mmcon.create_view("image/mixup").as_transform(seed=0)
    with pytest.raises(InputError, match="an epoch of 0 or more"):
        simclr().as_transform(seed=0).set_epoch(-1)
