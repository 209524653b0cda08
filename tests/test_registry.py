"""Names: what is registered, what is refused, and what third parties bring."""

from pathlib import Path

import pytest
import torch

import mmcon
from mmcon import registry
from mmcon.errors import DuplicateNameError, InputError, UnknownNameError
from mmcon.testing import check_view
from mmcon.views import FunctionView, Identity

pytestmark = pytest.mark.usefixtures("own_registry")


class Noise(mmcon.ViewGenerator):
    """Add noise."""

    modality = "image"

    def __init__(self, *, std=0.1):
        self.std = std

    def draw(self, keys, meta):
        return {"noise": keys.normal("noise", std=self.std)}

    def apply(self, batch, params):
        return batch + params["noise"].to(batch.dtype).view(-1, 1, 1, 1)


def dim(x, generator):
    """Dim it."""
    return x * torch.rand((), generator=generator)


def test_a_class_a_factory_and_a_function_can_be_registered():
    mmcon.register_view("test/class", modality="image")(Noise)

    @mmcon.register_view("test/factory", modality="image")
    def twice(std=0.3):
        """Add noise twice."""
        return mmcon.views.Chain(Noise(std=std), Noise(std=std))

    mmcon.register_view("test/function", modality="image")(dim)
    samples = torch.rand(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    for name in ("test/class", "test/factory", "test/function"):
        view = mmcon.create_view(name)
        assert view.name == name
        assert name in mmcon.list_views("image")
        assert name not in mmcon.list_views("audio")
        check_view(view, samples)
    assert mmcon.create_view("test/class", std=0.7).std == 0.7
    assert isinstance(mmcon.create_view("test/function"), FunctionView)
    assert Noise.__name__ == "Noise"  # the decorator gives back what it decorates
    assert dim(torch.ones(1), torch.Generator().manual_seed(0)) < 1


def test_description_names_options_and_origin():
    @mmcon.register_view("test/described", modality="image")
    def make(size=224, *, crop: float):
        """Crop to a size.

        More about it.
        """
        return Identity()

    described = mmcon.describe_view("test/described")
    for part in ("test/described  (view, image; from test_registry)", "Crop to a size.", "size = 224", "  crop"):
        assert part in described
    assert registry.lookup("view", "test/described").summary == "Crop to a size."


def test_views_for_any_modality_stand_with_every_modality():
    mmcon.register_view("test/any", modality="any")(Identity)
    mmcon.register_view("test/sound", modality="audio")(Identity)
    assert "test/any" in mmcon.list_views("image")
    assert "test/sound" not in mmcon.list_views("image")
    assert {"test/any", "test/sound"} <= set(mmcon.list_views())
    assert mmcon.list_views("image") == sorted(mmcon.list_views("image"), key=lambda n: (n.startswith("sampler"), n))


def test_a_taken_name_is_refused():
    mmcon.register_view("test/one", modality="image")(Identity)
    with pytest.raises(DuplicateNameError, match=r"'test/one', registered by mmcon.views(.|\n)*choose another name"):
        mmcon.register_view("test/one", modality="audio")(Identity)
    mmcon.register_encoder("test/one", modality="image")(torch.nn.Identity)  # another kind has names of its own


def test_an_unknown_name_shows_the_nearest():
    mmcon.register_view("test/simclr", modality="image")(Identity)
    with pytest.raises(UnknownNameError, match=r"'test/simclr2'(.|\n)*did you mean (.|\n)*'test/simclr'"):
        mmcon.create_view("test/simclr2")
    with pytest.raises(UnknownNameError, match="registered sampler"):
        registry.create("sampler", "sampler/unifrom")
    with pytest.raises(UnknownNameError, match="sampler/uniform"):
        registry.create("sampler", "sampler/unifrom")


def test_an_unknown_option_shows_those_that_there_are():
    @mmcon.register_view("test/options", modality="image")
    def make(strength=1.0, size=32):
        return Identity()

    with pytest.raises(InputError, match=r"\['size', 'strength'\]; got \['strenght'\](.|\n)*did you mean 'strength'"):
        mmcon.create_view("test/options", strenght=0.5)

    @mmcon.register_view("test/open", modality="image")
    def forwards(**options):
        return make(**options)

    assert isinstance(mmcon.create_view("test/open", size=3), Identity)


PLUGIN = """
import mmcon, torch
from mmcon.registry import create
from mmcon.testing import check_view
assert {"acme/invert", "acme/dim"} <= set(mmcon.list_views("image")), mmcon.list_views()
samples = torch.rand(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))
for name in ("acme/invert", "acme/dim"):
    check_view(mmcon.create_view(name), samples)
assert create("encoder", "acme/mean")(samples).shape == (4, 3)
assert mmcon.create_view("acme/invert", p=1.0).p == 1.0
print(mmcon.describe_view("acme/invert"))
"""


def test_a_third_partys_package_arrives_by_its_entry_point(python):
    run = python(PLUGIN, path=[Path(__file__).parent / "plugin"])
    assert run.returncode == 0, run.stderr
    assert "acme/invert  (view, image; from acme_views)" in run.stdout


BROKEN = """
import mmcon
assert "acme/dim" in mmcon.list_views()
try:
    mmcon.create_view("broken/view")
except mmcon.errors.UnknownNameError as error:
    print(error)
"""


def test_a_broken_package_takes_no_other_down_and_is_named(python, tmp_path):
    (tmp_path / "broken_views.py").write_text("import a_module_that_is_not_there\n")
    info = tmp_path / "broken_views-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-views\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mmcon.plugins]\nbroken = broken_views\n")
    run = python("import mmcon.registry, mmcon.errors\n" + BROKEN, path=[tmp_path, Path(__file__).parent / "plugin"])
    assert run.returncode == 0, run.stderr
    assert "Entry point 'broken = broken_views' failed to load" in run.stdout
    assert "a_module_that_is_not_there" in run.stdout
