"""Image chains in one compiled pass: equal to their generators one by one, alone as in a batch, with any threads."""

import logging

import pytest
import torch
from mmcon_views.image import one_pass, resample
from mmcon_views.image.blur import Blur
from mmcon_views.image.color import ColorJitter, Grayscale, Solarize
from mmcon_views.image.crop import RandomResizedCrop
from mmcon_views.image.flip import Flip

from mmcon.random import keys
from mmcon.views import Chain, meta_of

pytest.importorskip("numba")

# One chain holds all: a flip first and later, all orders of a jitter, both kinds of blur borders in turn.
CHAINS = {
    "reflected": [Flip(), ColorJitter(), Grayscale(p=0.3), Blur(sigma=(0.1, 2.0), kernel=23), Solarize(p=0.5), Flip()],
    "constant": [ColorJitter(p=1.0), Blur(sigma=(0.3, 1.5), kernel=9, p=1.0, outside=0.25), Flip(), ColorJitter()],
    "two blurs": [Blur(p=1.0, kernel=5), Grayscale(), Blur(p=1.0, kernel=3), Flip()],
}
LAYOUTS = ("bytes", "interleaved bytes", "floats")


def photos(layout, n=24, height=29, width=35):
    """Noise over slopes, with black, white and gray pixels."""
    x = torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(0))
    x = (x + torch.linspace(0, 1, width)) / 2
    x[:, :, :4], x[:, :, 4:8] = 0.0, 1.0
    x[:, :, 8:12] = x[:, :1, 8:12]
    if layout == "floats":
        return x
    x = (x * 255).round().to(torch.uint8)
    return x.contiguous(memory_format=torch.channels_last) if layout == "interleaved bytes" else x


def views_of(chain, x, rows=slice(None)):
    table = keys(seed=1, epoch=2, sample=torch.arange(len(x)))
    return chain(x[rows], table[rows])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_in_one_pass_equals_its_generators_one_by_one(monkeypatch, name, layout):
    chain, x = Chain(*CHAINS[name]), photos(layout)
    fast = views_of(chain, x)
    monkeypatch.setattr(one_pass, "compiled_loops", lambda: None)
    assert not torch.equal(fast, views_of(chain, x))  # the pass was compiled, and rounds otherwise
    torch.testing.assert_close(fast, views_of(chain, x), rtol=0, atol=3e-6)
    assert float(fast.min()) >= 0
    assert float(fast.max()) <= 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_alone_equals_in_a_batch_with_any_number_of_threads(layout):
    chain, x, before = Chain(*CHAINS["reflected"]), photos(layout), torch.get_num_threads()
    together = views_of(chain, x)
    for rows in (slice(0, 1), slice(7, 9), slice(23, 24)):
        assert torch.equal(views_of(chain, x, rows), together[rows])
    try:
        torch.set_num_threads(3)
        assert torch.equal(views_of(chain, x), together)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("layout", LAYOUTS[:2])
def test_each_byte_becomes_its_float_and_a_flip_mirrors_it(layout):
    x = torch.arange(256, dtype=torch.uint8).view(1, 1, 8, 32).repeat(1, 3, 1, 1)
    x = x.contiguous(memory_format=torch.channels_last) if layout == "interleaved bytes" else x
    chain = Chain(Flip(p=1.0), Grayscale(p=0.0))
    assert torch.equal(views_of(chain, x), x.flip(-1).to(torch.float32) / 255)
    assert torch.equal(views_of(Chain(Grayscale(p=0.0), Flip(p=1.0)), x), x.flip(-1).to(torch.float32) / 255)


def test_brightness_and_the_mean_of_a_contrast_by_hand():
    """Values .2 and .6 in halves: brightness 1.5 gives .3 and .9, whose gray has the mean .9999 · .6, since weights of
    gray sum to .9999; contrast .5 gives half of .3 and .9, plus .29997."""
    x = torch.full((1, 3, 4, 4), 0.2)
    x[..., 2:] = 0.6
    chain = Chain(ColorJitter(), Grayscale(p=0.0))
    params = chain.draw(keys(seed=0, epoch=0, sample=[0]), meta_of(x, "image"))
    jitter = {"apply": torch.tensor([True]), "order": torch.tensor([[0, 2, 1, 3]])}
    jitter |= {name: torch.tensor([f]) for name, f in (("brightness", 1.5), ("contrast", 0.5), ("saturation", 1.0))}
    jitter["hue"] = torch.zeros(1)
    name = next(iter(params))
    made = chain.apply_batched(x, params | {name: jitter})
    torch.testing.assert_close(made[0, 0, 0], torch.tensor([0.44997, 0.44997, 0.74997, 0.74997]), rtol=0, atol=1e-6)


def test_gray_images_other_generators_and_no_generator_are_left_to_the_chain():
    out = torch.full((2, 1, 4, 4), 7.0)
    assert one_pass.one_pass([Flip()], torch.zeros(2, 1, 4, 4), out, [{"flip": torch.tensor([True, False])}], "") == 0
    assert one_pass.one_pass([], torch.zeros(2, 3, 4, 4), out, [], "") == 0
    assert bool((out == 7.0).all())


def test_a_numba_that_does_not_work_is_told_once_and_views_are_computed_without_it(monkeypatch, caplog):
    monkeypatch.setitem(__import__("sys").modules, "mmcon_views.image.cpu_kernels", None)  # its import fails
    import mmcon_views.image as package

    monkeypatch.delattr(package, "cpu_kernels", raising=False)
    one_pass.compiled_loops.cache_clear()
    chain, x = Chain(*CHAINS["constant"]), photos("bytes", n=2)
    try:
        with caplog.at_level(logging.WARNING):
            views_of(chain, x), views_of(chain, x)
        assert [record.name for record in caplog.records] == ["mmcon_views.image.one_pass"]
        assert "without numba" in caplog.text
    finally:
        one_pass.compiled_loops.cache_clear()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_compiled_resampling_equals_that_of_torch_and_alone_equals_in_a_batch(monkeypatch, interpolation, layout):
    crop, x = RandomResizedCrop(size=(24, 31), area=(0.01, 1.0), interpolation=interpolation), photos(layout)
    fast = views_of(crop, x)
    for rows in (slice(0, 1), slice(7, 9)):
        assert torch.equal(views_of(crop, x, rows), fast[rows])
    monkeypatch.setattr(resample, "compiled_loops", lambda: None)
    torch.testing.assert_close(fast, views_of(crop, x), rtol=0, atol=1e-6)
    assert float(fast.min()) >= 0
    assert float(fast.max()) == 1
