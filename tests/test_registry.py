"""The registry: registered components, invalid names and options, and plug-ins of third parties."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mmcon
from mmcon import registry
from mmcon.errors import DuplicateNameError, InputError, MmconError, UnknownNameError
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


def test_views_of_any_modality_are_listed_with_every_modality():
    mmcon.register_view("test/any", modality="any")(Identity)
    mmcon.register_view("test/sound", modality="audio")(Identity)
    assert "test/any" in mmcon.list_views("image")
    assert "test/sound" not in mmcon.list_views("image")
    assert {"test/any", "test/sound"} <= set(mmcon.list_views())
    assert mmcon.list_views("image") == sorted(mmcon.list_views("image"))


def test_samplers_are_listed_with_all_views_and_with_those_of_text():
    samplers = mmcon.list_samplers()
    assert "sampler/class-aware" in samplers
    for modality in (None, "text"):
        assert mmcon.list_views(modality)[-len(samplers) :] == samplers
    assert not set(samplers) & set(mmcon.list_views("image"))
    assert mmcon.describe_view("sampler/class-aware").startswith("sampler/class-aware  (sampler, any; from")
    assert mmcon.describe_sampler("sampler/class-aware") == mmcon.describe_view("sampler/class-aware")


def test_a_name_of_another_kind_is_recognized():
    with pytest.raises(UnknownNameError, match=r"it is a sampler: mmcon.create_sampler\('sampler/class-aware'"):
        mmcon.create_view("sampler/class-aware")
    with pytest.raises(UnknownNameError, match=r"it is a view: mmcon.create_view\('image/simclr'"):
        mmcon.create_sampler("image/simclr")


@pytest.mark.parametrize(
    ("kind", "missing"),
    [
        ("view", "image/simclrs"),
        ("sampler", "sampler/uniforms"),
        ("source", "samples/fashions"),
        ("encoder", "mmcon/resnet-tinys"),
        ("encoder", "text/embedding-ba"),
        ("encoder", "transformers/audi"),
    ],
)
def test_every_listed_name_is_described(kind, missing):
    names = getattr(mmcon, f"list_{kind}s")()
    assert len(names) >= 5
    for name in names:
        described = getattr(mmcon, f"describe_{kind}")(name)
        assert described.startswith(f"{name}  (")
        assert described.splitlines()[1], f"{name} has no docstring"
    with pytest.raises(UnknownNameError, match="did you mean"):
        getattr(mmcon, f"describe_{kind}")(missing)


def test_components_are_created_by_name():
    sampler = mmcon.create_sampler("sampler/uniform", labels=torch.arange(8), batch_size=4, seed=0)
    assert len(sampler.batch(0)) == 4
    assert len(mmcon.create_source("samples/fashion", split="test")) == 2000
    assert mmcon.create_encoder("mmcon/resnet-tiny", image_size=28).feature_dim == 128
    assert {"resnet50", "mmcon/resnet-tiny"} <= set(mmcon.list_encoders("image"))
    assert "resnet50" in mmcon.list_encoders()
    assert "resnet50" not in mmcon.list_encoders("audio")


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


def distribution(folder, name, entry_points):
    """Make a folder look like one in which a distribution is installed."""
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[mmcon.plugins]\n{entry_points}\n")


def test_a_third_partys_package_arrives_by_its_entry_point(python):
    run = python(PLUGIN, path=[Path(__file__).parent / "plugin"])
    assert run.returncode == 0, run.stderr
    assert "acme/invert  (view, image; from acme_views)" in run.stdout


BROKEN = """
import warnings
import mmcon
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for look_up in (mmcon.list_views, mmcon.list_encoders, lambda: mmcon.describe_view("image/simclr")):
        look_up()
print(*(f"{w.category.__name__}: {w.message}" for w in caught), sep="\\n")
assert {"acme/dim", "image/simclr"} <= set(mmcon.list_views())
try:
    mmcon.create_view("broken/view")
except mmcon.errors.UnknownNameError as error:
    print(error)
"""


def test_a_plugin_that_fails_is_reported_once_and_disables_no_other(python, tmp_path):
    (tmp_path / "broken_views.py").write_text("import a_module_that_is_not_there\n")
    distribution(tmp_path, "broken-views", "broken = broken_views")
    run = python(BROKEN, path=[tmp_path, Path(__file__).parent / "plugin"])
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("PluginWarning") == 1
    warned = run.stdout.splitlines()[0]
    assert "'broken = broken_views' failed to load" in warned
    assert "ModuleNotFoundError: No module named 'a_module_that_is_not_there'" in warned
    assert "Entry point 'broken = broken_views' failed to load" in run.stdout
    # Without a filter, Python prints the warning.
    assert "PluginWarning" in python("import mmcon; mmcon.list_views()", path=[tmp_path]).stderr


def test_a_plugin_that_takes_a_built_in_name_is_the_one_that_fails(python, tmp_path):
    (tmp_path / "aaa.py").write_text(
        "import mmcon\n@mmcon.register_view('image/simclr', modality='image')\nclass Mine(mmcon.ViewGenerator): ...\n"
    )
    distribution(tmp_path, "aaa", "aaa = aaa")
    run = python("import mmcon; print(mmcon.create_view('image/simclr'), len(mmcon.list_views()))", path=[tmp_path])
    assert run.returncode == 0, run.stderr
    assert "'aaa = aaa' failed to load" in run.stderr
    assert "DuplicateNameError: register_view('image/simclr')" in run.stderr
    assert int(run.stdout.split()[-1]) == len(set(built_in_names()))


def built_in_names():
    """The names of the package, without those that other tests registered in this process."""
    found = [entry for kind in ("view", "sampler") for entry in registry.entries(kind)]
    return [entry.name for entry in found if entry.origin.partition(".")[0] in ("mmcon", "mmcon_views")]


@pytest.mark.parametrize(("entry_points", "reported"), [
    ("image_views = mmcon_views.gone", "PluginError: entry point image_views = mmcon_views.gone"),
    ("", "got none: the package is imported from a source tree that is not installed"),
])  # fmt: skip
def test_a_built_in_plugin_that_fails_is_an_error(python, tmp_path, entry_points, reported):
    """An error at each look-up, not at the first alone; the last one is not caught."""
    distribution(tmp_path, "mmcon", entry_points)
    run = python(FAILING, path=[tmp_path])
    assert run.returncode == 1
    assert run.stderr.count(reported) == 3
    assert run.stderr.count("pip install -e .") == 3


FAILING = """
import sys, mmcon
for look_up in (mmcon.list_views, lambda: mmcon.create_view("image/simclr")):
    try:
        look_up()
    except mmcon.errors.MmconError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
mmcon.list_sources()
"""


@pytest.mark.parametrize("names", [
    ("views.py", "tests/__init__.py", "recipes/__init__.py", "recipes/mine.py", "image.py", "registry.py"),
    ("views/__init__.py", "tests/test_a.py"),  # a package beside, and no module of the same name; a namespace package
])  # fmt: skip
def test_a_users_modules_hide_no_built_in_component(tmp_path, names):
    """A script's own folder comes first on the import path, so its modules win over those of installed packages."""
    code = "import mmcon\nmmcon.create_view('image/simclr')\nprint(*mmcon.list_views())\n"
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("def index(request): ...\n")
        module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        code = f"import {module}\nassert {module}.index\n{code}"
    (tmp_path / "use.py").write_text(code)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = subprocess.run([sys.executable, "use.py"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == built_in_names()


def test_every_listed_view_is_created_or_says_what_it_needs():
    for name in mmcon.list_views():
        try:
            mmcon.create_view(name)
        except MmconError as error:
            assert "required options" in str(error) or f"mmcon.create_sampler({name!r}" in str(error)  # noqa: PT017


def test_a_missing_option_is_named_with_the_call_that_has_it():
    with pytest.raises(
        InputError, match=r"required options \['mask_id'\](.|\n)*create_view\('text/span-mask', mask_id="
    ):
        mmcon.create_view("text/span-mask")
