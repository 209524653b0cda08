"""Files from elsewhere run no code: models, checkpoints, configurations and data from a stranger are only read."""

import ast
import json
import pickle
from pathlib import Path

import pytest
import yaml

import mmcon
from mmcon.cli.options import parse_options
from mmcon.errors import MmconError
from mmcon.training.config import RunConfig, parse

ROOT = Path(__file__).parents[1]
SOURCES = [path for folder in ("mmcon", "views", "recipes") for path in sorted((ROOT / folder).rglob("*.py"))]
CODE = "import pathlib\npathlib.Path({mark!r}).touch()\nclass Config: pass\nclass Model: pass\n"


def calls():
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                yield path, ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}


def test_every_loading_of_a_model_refuses_remote_code():
    found = [(path, name, words) for path, name, words in calls() if name.startswith("Auto") and ".from_" in name]
    assert len(found) > 8
    for path, name, words in found:
        assert words.get("trust_remote_code") == "False", f"{path}: {name}"


def test_every_reader_is_one_of_plain_values():
    """torch.load reads tensors and plain values alone; YAML is read in one place; nothing else unpickles."""
    for path, name, words in calls():
        if name == "torch.load":
            assert words.get("weights_only") == "True", path
        assert name != "yaml.load" or (path.name == "files.py" and words["Loader"] == "_PlainLoader"), path
        assert name not in ("yaml.safe_load", "yaml.full_load", "yaml.unsafe_load", "eval", "exec"), f"{path}: {name}"
        assert name != "pickle.loads" or path.parent.name == "testing", path  # of what a law itself pickled
        assert name != "pickle.load", path
        assert name not in ("np.load", "numpy.load") or words.get("allow_pickle") in (None, "False"), path


@pytest.fixture
def remote_code(tmp_path):
    """A model folder whose configuration names code beside it, and the file that this code would make."""
    folder, mark = tmp_path / "model", tmp_path / "ran"
    folder.mkdir()
    (folder / "code.py").write_text(CODE.format(mark=str(mark)))
    names = {"AutoConfig": "code.Config", "AutoModel": "code.Model", "AutoTokenizer": ["code.Model", None]}
    text = json.dumps({"model_type": "stranger", "auto_map": names, "architectures": ["Model"]})
    for name in ("config.json", "tokenizer_config.json", "preprocessor_config.json"):
        (folder / name).write_text(text)
    return folder, mark


@pytest.mark.parametrize("modality", ["image", "audio", "text", "video"])
def test_a_model_folder_with_code_is_refused_with_one_error(remote_code, modality, monkeypatch):
    folder, mark = remote_code
    monkeypatch.setattr("builtins.input", lambda *text: pytest.fail("a question on standard input"))
    names = {"audio": "transformers/audio", "text": "text/transformer", "video": "transformers/video"}
    options = {} if modality == "image" else {"path" if modality == "text" else "model": str(folder)}
    with pytest.raises(MmconError):
        mmcon.create_encoder(names.get(modality, str(folder)), pretrained=True, **options)
    assert not mark.exists()


def test_a_tokenizer_with_code_is_refused_with_one_error(remote_code, monkeypatch):
    folder, mark = remote_code
    monkeypatch.setattr("builtins.input", lambda *text: pytest.fail("a question on standard input"))
    with pytest.raises(MmconError):
        mmcon.create_view("text/tokens", tokenizer=str(folder))(
            ["a text"], mmcon.keys(seed=0, epoch=0, sample=[0], view=0)
        )
    assert not mark.exists()


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_a_pickle_in_place_of_weights_is_refused_with_one_error(tmp_path):
    mark = tmp_path / "ran"
    folder = tmp_path / "model"
    mmcon.ContrastiveModel(
        {"image": mmcon.create_encoder("mmcon/resnet-tiny")}, {"shared": mmcon.SharedSpace(dim=4, head="linear")}
    ).save_pretrained(folder)
    (folder / "model.safetensors").write_bytes(pickle.dumps(Evil(mark)))
    with pytest.raises(MmconError, match=r"model\.safetensors"):
        mmcon.ContrastiveModel.from_pretrained(folder)
    assert not mark.exists()


@pytest.mark.parametrize("text", ["seed: !!python/object/apply:pathlib.Path.touch [x]", "seed: &a [*a]"])
def test_a_configuration_with_tags_or_aliases_is_refused(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(MmconError, match=r"--config: expected a YAML file(.|\n)*config\.yaml"):
        parse(RunConfig, args=["--config", str(tmp_path / "config.yaml")])
    with pytest.raises(MmconError, match="--option"):
        parse_options(["size=" + text.removeprefix("seed: ")])
    assert yaml.safe_load("a: 1") == {"a": 1}


def test_options_of_the_command_line_are_plain_values():
    assert parse_options(["size=3", "area=[0.5, 1]", "name=x=y"]) == {"size": 3, "area": [0.5, 1], "name": "x=y"}
