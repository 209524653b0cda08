"""A new plug-in passes the laws as it is; `mmcon conform` names what does not."""

import importlib
import importlib.util
import json
import sys
import tomllib

import pytest
import torch

import mmcon
from mmcon.cli import main
from mmcon.errors import InputError, UnknownNameError
from mmcon.testing import conform
from mmcon.testing.plugin_files import write_plugin


@pytest.fixture
def plugin(tmp_path, monkeypatch, own_registry):
    """The files of a new plug-in, imported as its entry point would be."""
    files = write_plugin("bird-calls", tmp_path / "plugin")
    monkeypatch.syspath_prepend(str(tmp_path / "plugin"))
    monkeypatch.delitem(sys.modules, "bird_calls", raising=False)
    importlib.import_module("bird_calls")
    yield files
    sys.modules.pop("bird_calls", None)


def test_a_new_plugin_passes_the_laws_and_its_own_tests(plugin, capsys):
    assert main(["conform", "bird-calls", "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert {(r["kind"], r["name"]) for r in results} == {
        ("view", "bird-calls/tint"),
        ("encoder", "bird-calls/conv"),
        ("sampler", "bird-calls/neighbors"),
        ("source", "bird-calls/stripes"),
    }
    spec = importlib.util.spec_from_file_location("test_bird_calls", plugin[3])
    tests = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tests)
    names = [name for name in vars(tests) if name.startswith("test_")]
    assert len(names) == 5
    for name in names:
        getattr(tests, name)()
    project = tomllib.loads(plugin[0].read_text())["project"]
    assert project["name"] == "bird-calls"
    assert project["entry-points"] == {"mmcon.plugins": {"bird_calls": "bird_calls"}}


def same(x, generator):
    """The image itself; here, since workers pickle views."""
    return x


def test_a_violated_law_a_failure_and_the_rest_are_shown(own_registry, capsys):
    @mmcon.register_view("test/jitter", modality="image")
    class Jitter(mmcon.ViewGenerator):
        def draw(self, keys, meta):
            return {}

        def apply(self, batch, params):
            return batch + torch.rand(())

    @mmcon.register_encoder("test/empty", modality="image")
    def empty():
        raise RuntimeError("no weights")

    mmcon.register_view("test/same", modality="image")(same)

    assert main(["conform", "test"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["FAIL", "view", "test/jitter"]
    assert "Jitter() violates the law" in lines[1]
    assert lines[2].split() == ["ok", "view", "test/same"]
    assert lines[3].split() == ["FAIL", "encoder", "test/empty"]
    assert "RuntimeError: no weights" in lines[4]


@pytest.mark.parametrize(
    "name", ["text/typos", "text/simcse", "text/token-dropout", "audio/gain", "audio/spec-augment"]
)
def test_views_get_the_input_that_the_views_before_them_leave(name):
    assert [str(result) for result in conform(name)] == [f"ok    view     {name}"]


def test_unknown_names_and_options_raise_before_anything_is_checked():
    with pytest.raises(UnknownNameError, match=r"uv pip install -e(.|\n)*did you mean 'sampler"):
        list(conform("smapler"))
    with pytest.raises(InputError, match=r"'widht'(.|\n)*did you mean 'width'"):
        list(conform("mmcon/resnet-tiny", options={"widht": 8}))


@pytest.mark.parametrize(("name", "message"), [
    ("Bird Calls", "words joined by -"),
    ("class", "words joined by -"),
    ("sampler", "the name of registered components"),
    ("json", "the name of an installed module"),
])  # fmt: skip
def test_names_that_cannot_be_those_of_a_package_are_refused(name, message, tmp_path):
    with pytest.raises(InputError, match=message):
        write_plugin(name, tmp_path / "plugin")
    assert not (tmp_path / "plugin").exists()


def test_a_folder_with_files_is_left_as_it_is(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["new-plugin", "bird-calls", "--to", str(tmp_path)]) == 2
    assert "a folder that is new or empty" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]
    assert main(["new-plugin", "bird-calls", "--to", str(tmp_path / "new")]) == 0
    assert "next: uv pip install -e" in capsys.readouterr().out
