"""Configurations: defaults, a YAML file over them, the command line over both."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from mmcon.errors import ConfigError
from mmcon.training.config import as_plain, check_changes, differences, from_mapping, parse, to_yaml


@dataclass(frozen=True, kw_only=True)
class Config:
    """A small one."""

    data: str = "samples/fashion"
    output_dir: Path = Path("runs/x")
    objective: Literal["supcon", "simclr"] = "supcon"
    temperature: float = 0.1
    sizes: tuple[int, ...] = (1, 2)
    max_steps: int | None = None
    resume: bool = False


def test_defaults_file_and_flags_stand_over_one_another(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("temperature: 0.5\nobjective: simclr\nsizes: [3, 4, 5]\n")
    assert parse(Config, args=[]) == Config()
    assert parse(Config, args=["--config", str(file)]) == Config(temperature=0.5, objective="simclr", sizes=(3, 4, 5))
    chosen = parse(Config, args=["--temperature", "0.7", f"--config={file}", "--resume", "--max-steps", "9"])
    assert chosen == Config(temperature=0.7, objective="simclr", sizes=(3, 4, 5), resume=True, max_steps=9)


def test_what_is_written_is_read_back(tmp_path):
    config = Config(temperature=0.3, output_dir=Path("somewhere"), sizes=(7,))
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config))
    again = parse(Config, args=["--config", str(file)])
    assert as_plain(again) == as_plain(config)
    assert as_plain(config)["output_dir"] == "somewhere"
    assert as_plain(config)["sizes"] == [7]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("temprature: 0.5\n", r"keys of Config; got 'temprature'(.|\n)*did you mean 'temperature'"),
        ("- a\n- b\n", "a YAML mapping of settings; got list"),
        ("a: [\n", "a YAML file"),
    ],
)
def test_a_bad_file_is_named(tmp_path, content, message):
    file = tmp_path / "bad.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=message):
        parse(Config, args=["--config", str(file)])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"a YAML file; got .*gone.yaml"):
        parse(Config, args=["--config", str(tmp_path / "gone.yaml")])


def test_a_mapping_becomes_a_configuration():
    assert from_mapping(Config, {"sizes": [1]}).sizes == (1,)


def test_differences_are_shown_and_unsafe_ones_refused():
    old = as_plain(Config())
    safe = {**old, "max_steps": 5, "resume": True, "output_dir": "elsewhere"}
    assert differences(old, safe) == {
        "max_steps": (None, 5),
        "resume": (False, True),
        "output_dir": ("runs/x", "elsewhere"),
    }
    assert set(check_changes(old, safe)) == {"max_steps", "resume", "output_dir"}
    unsafe = {**safe, "temperature": 0.5, "data": "photos"}
    with pytest.raises(
        ConfigError, match=r"data: 'samples/fashion' -> 'photos', temperature: 0.1 -> 0.5(.|\n)*--force"
    ):
        check_changes(old, unsafe)
    assert set(check_changes(old, unsafe, force=True)) == {"max_steps", "resume", "output_dir", "data", "temperature"}
