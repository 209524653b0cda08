"""Configurations: defaults, a YAML file over them, the command line over both."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from mmcon.errors import ConfigError
from mmcon.training.config import RunConfig, as_plain, check_changes, differences, from_mapping, parse, to_yaml


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


def test_dimensions_to_cut_to_are_checked_before_the_run():
    class Flags(RunConfig):
        objective = "supcon"

    assert Flags(truncate_dims=(8, 16), projection_dim=32).shared_space().dim == 32
    with pytest.raises(ConfigError, match="dimensions from 1 to 31, below --projection-dim; got 8 32"):
        Flags(truncate_dims=(8, 32), projection_dim=32).shared_space()
    Flags.objective = "cross-entropy"
    with pytest.raises(ConfigError, match="a contrastive objective; got cross-entropy"):
        Flags(truncate_dims=(8,)).shared_space()


@pytest.mark.parametrize(
    ("samples", "ranks", "size"),
    [
        (1000, 1, 64),
        (64, 1, 64),
        (63, 1, 31),
        (63, 4, 28),
        (40, 3, 18),
        (16, 8, 8),
        (5, 1, 2),
        (3, 1, 2),
        (1, 1, 1),
        (5, 4, 4),
    ],
)
def test_a_batch_is_smaller_than_few_samples(samples, ranks, size):
    lines = []
    config = RunConfig(batch_size=64).fit_batch_size(samples, lines.append, ranks=ranks)
    assert config.batch_size == size
    assert size == 64 or samples < max(4, 2 * ranks) or samples // size >= 2  # steps an epoch
    assert lines == ([] if size == 64 else [f"batches of {size}: there are {samples} training samples, fewer than the "
                                            "batch size of 64"])  # fmt: skip


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


@dataclass(frozen=True, kw_only=True)
class Nested:
    """A configuration inside another."""

    rate: float = 0.1
    steps: int = 1


@dataclass(frozen=True, kw_only=True)
class Outer:
    """Values of every type."""

    precision: Literal["no", "bf16"] = "no"
    rate: float | None = None
    folder: Path | None = None
    sizes: tuple[int, ...] = ()
    name: str = "x"
    options: Mapping[str, float] = field(default_factory=dict)
    inner: Nested = field(default_factory=Nested)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rate": "fast"}, r"rate: a number or null; got 'fast' \(str\)"),
        ({"rate": True}, r"rate: a number or null; got True \(bool\)"),
        ({"precision": False}, r"precision: 'no' or 'bf16'; got False(.|\n)*quote the word"),
        ({"precision": "bf15"}, r"precision: 'no' or 'bf16'; got 'bf15'"),
        ({"sizes": 3}, r"sizes: a list, each a whole number; got 3(.|\n)*\[a, b\]"),
        ({"sizes": [1, "2"]}, r"sizes: a list, each a whole number; got \[1, '2'\]"),
        ({"folder": 5}, r"folder: a path or null; got 5"),
        ({"name": None}, r"name: text; got None"),
        ({"options": [1]}, r"options: Mapping; got \[1\]"),
        ({"inner": 3}, r"inner: a mapping, the keys of Nested; got 3"),
        ({"inner": {"steps": 2.5}}, r"inner.steps: a whole number; got 2.5"),
        ({"inner": {"step": 2}}, r"keys of Nested; got 'inner.step'(.|\n)*'steps'"),
    ],
)
def test_a_value_of_another_type_is_named_with_its_key(values, message):
    with pytest.raises(ConfigError, match=message):
        from_mapping(Outer, values)


def test_values_are_converted_by_the_type_of_their_key():
    values = {"rate": "1e-3", "folder": "a/b", "sizes": [1, 2], "options": {"a": 1.0}, "inner": {"rate": 1}}
    expected = Outer(rate=0.001, folder=Path("a/b"), sizes=(1, 2), options={"a": 1.0}, inner=Nested(rate=1.0))
    assert from_mapping(Outer, values) == expected
    assert from_mapping(Outer, {"rate": None}).rate is None


@pytest.mark.parametrize(
    ("word", "near"),
    [("--temprature", "'--temperature'"), ("--max_step=3", "'--max-steps'"), ("--no-resum", "'--no-resume'")],
)
def test_an_unknown_flag_is_named_with_the_nearest(word, near):
    with pytest.raises(ConfigError, match=f"got {word}(.|\n)*did you mean {near}") as caught:
        parse(Config, args=["--objective", "simclr", word])
    assert len(str(caught.value).splitlines()) == 2


def test_flags_of_an_inner_configuration_are_known():
    assert parse(Outer, args=["--inner.rate", "0.5", "--sizes", "1", "2"]).inner == Nested(rate=0.5)
    with pytest.raises(ConfigError, match=r"'--inner\.rate'"):
        parse(Outer, args=["--inner.rat", "0.5"])


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
