"""Configuration of a run: the settings that all recipes share, a YAML file over their defaults, flags over both."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import tyro
import yaml
from torch import nn

from mmcon.errors import ConfigError, DataError
from mmcon.files import read_yaml, temporary_folder
from mmcon.models.shared_spaces import SharedSpace
from mmcon.sources.base import Source, Subset
from mmcon.sources.factory import create_source
from mmcon.sources.few_labels import few_labels
from mmcon.training.config_values import check_flags, from_mapping
from mmcon.training.default_rates import default_head
from mmcon.training.presets import preset_file, presets_of

__all__ = ["ImageRunConfig", "RunConfig", "RunSettings", "from_mapping", "parse"]

#: Steps of the range test of the learning rate.
RANGE_TEST_STEPS = 100

#: Objectives of recipes that do not compare embeddings by `mmcon.Objective`, which alone takes `truncate`.
WITHOUT_TRUNCATION = ("cross-entropy", "max-margin", "triplet", "byol", "simsiam", "regression")

C = TypeVar("C")
R = TypeVar("R", bound="RunConfig")

# Settings that may change between a run and its continuation, since they do not change what a step computes.
SAFE_CHANGES = frozenset(
    {"output_dir", "resume", "restart", "force", "max_steps", "workers", "log_every", "checkpoint_every", "keep",
     "trackers", "diagnostics", "profile", "compile", "engine", "config", "on_nonfinite", "max_skips", "keep_best"}
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Settings of `mmcon.Run`: length, logging, checkpoints, and how a step is executed."""

    epochs: int = 1
    """passes over the data; the schedule is made for all of them"""
    max_steps: int | None = None
    """stop after this many steps in total; the schedule stays that of --epochs"""
    accumulate: int = 1
    """batches whose gradients are averaged before an optimizer step; negatives still come from one batch (use gradient
    caching for more)"""
    clip_norm: float | None = None
    """clip the norm of the gradients to this value"""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """what a loss or gradient that is not finite does: stop the run, or skip the step"""
    max_skips: int = 10
    """stop after more skipped steps in a row than this"""
    log_every: int = 10
    """steps between two lines of metrics.jsonl"""
    checkpoint_every: int | None = None
    """steps between two checkpoints; default: one per epoch"""
    keep: int = 2
    """how many of the newest checkpoints are kept"""
    trackers: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["--report-to"])] = ()
    """trackers of Accelerate that receive the metrics too, such as tensorboard"""
    diagnostics: bool = False
    """log what the loss does: similarities, the parts of the gradient, and the InfoNCE bound where it holds"""
    force: bool = False
    """resume although settings or data changed that alter what is computed"""
    restart: bool = False
    """with --resume: if all checkpoints of the folder are damaged, start anew in a folder beside it (NAME-restart)"""
    workers: int | None = None
    """processes that prepare batches, 0: the training process does; default: 0, or on a GPU, where the data are files,
    by cores and shared memory, and printed"""
    engine: Literal["ddp", "fsdp2"] = "ddp"
    """on several ranks, keep a full copy of the weights (ddp) or a shard of them (fsdp2) on each"""
    sync_batch_norm: bool = False
    """batch norms use the statistics of the global batch"""
    compile: bool = False
    """compile the encoders with torch.compile: minutes at first, then faster steps"""
    profile: bool = False
    """profile a few early steps: a table and a trace in the run folder"""

    def __post_init__(self) -> None:
        if self.on_nonfinite not in ("stop", "skip"):
            raise ConfigError("--on-nonfinite", expected="stop or skip", got=repr(self.on_nonfinite))
        if self.engine not in ("ddp", "fsdp2"):
            raise ConfigError("--engine", expected="ddp or fsdp2", got=repr(self.engine))
        if self.accumulate < 1:
            raise ConfigError("--accumulate", expected="1 batch or more", got=str(self.accumulate))


@dataclass(frozen=True, kw_only=True)
class RunConfig(RunSettings):
    """The flags of every recipe; a recipe's `Config` extends it by data, objective, model, and its own defaults."""

    output_dir: Path | None = None
    """the run folder; default: a new one under runs/"""
    seed: int = 0
    seeds: tuple[int, ...] = ()
    """one run per seed: figures of each, means and intervals (needs --output-dir)"""
    resume: bool = False
    """continue from the newest valid checkpoint in the output folder, or start"""
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    cpu: bool = False
    """use the CPU even if there is a GPU"""
    tiny: bool = False
    """smoke test: one epoch of a few steps"""
    batch_size: int = 128
    """samples per step, over all ranks"""
    clip_norm: float | None = 10.0
    """clip the norm of the gradients to this value; None: never"""
    label_fraction: float | None = None
    """train on this fraction of each class, at least one sample; of data without labels, on this fraction of all"""
    labels_per_class: int | None = None
    """train on this many samples of each class"""
    projection_dim: int = 128
    """width of the embeddings, after the projection head"""
    truncate_dims: tuple[int, ...] = ()
    """train the first of so many dimensions of the embeddings too (Matryoshka), such as 16 32 64"""
    projection_head: Literal["linear", "mlp", "mlp-batch-norm"] | None = None
    """default: mlp for small and for pretrained encoders, mlp-batch-norm for others"""
    optimizer: Literal["sgd", "lars", "adamw"] = "adamw"
    learning_rate: float | None = None
    """the peak, for this batch size; default: by encoder, optimizer and batch size, and printed"""
    find_learning_rate: bool = False
    """range test: train a few steps with a rising learning rate, suggest one, and end"""
    weight_decay: float = 1e-4
    decay_norm_and_bias: bool = False
    """decay (and under LARS, adapt) norms and biases too"""
    schedule: Literal["cosine", "step", "polynomial", "constant"] = "cosine"
    warmup_share: float | None = None
    """fraction of the steps in which the learning rate rises; default: .1, and at least 20 steps or half of the run"""
    warmup_epochs: float | None = None
    """the same in epochs"""

    tuned_rate: ClassVar[float] = 4e-3
    """the learning rate of AdamW for a small encoder at the recipe's own batch size"""

    def labeled_subset(self, train: Source) -> Source:
        """The training split, or what the flags of few labels keep of it, drawn by the seed."""
        if self.label_fraction is None and self.labels_per_class is None:
            return train
        return few_labels(train, per_class=self.labels_per_class, share=self.label_fraction, seed=self.seed)

    def fit_batch_size(self: R, samples: int, log: Callable[[str], None], *, ranks: int = 1) -> R:
        """The configuration with a batch size for a training split of fewer samples than one batch has.

        An epoch has two steps, of as many samples as the ranks divide; the default learning rate follows.
        """
        if not 0 < samples < self.batch_size:
            return self
        size = max(samples // 2, min(samples, 2))
        size = max(size - size % ranks, min(samples, ranks))
        few = f"{samples:,} training samples, fewer than the batch size of {self.batch_size}"
        log(f"batches of {size}: there are {few}")
        return replace(self, batch_size=size)

    def shared_space(self, *encoders: nn.Module, **options: Any) -> SharedSpace:
        """The shared space of some encoders, by the flags of the projection head; options are those of SharedSpace.

        Raises:
            ConfigError: `--truncate-dims` that the space lacks, or with an objective that compares no embeddings.
        """
        objective = getattr(self, "objective", "")
        if self.truncate_dims and objective in WITHOUT_TRUNCATION:
            raise ConfigError("--truncate-dims", expected="a contrastive objective", got=objective)
        if not all(1 <= dim < self.projection_dim for dim in self.truncate_dims):
            expected = f"dimensions from 1 to {self.projection_dim - 1}, below --projection-dim"
            raise ConfigError("--truncate-dims", expected=expected, got=" ".join(map(str, self.truncate_dims)))
        head = self.projection_head or default_head(encoders)
        return SharedSpace(dim=self.projection_dim, head=head, **options)

    def apply_tiny(self: R, *, max_steps: int, **changes: Any) -> R:
        """The configuration of a `--tiny` run: one epoch, at most `max_steps` steps, and the given changes.

        That of `--find-learning-rate` has the steps of the range test, in a temporary folder. Without either flag the
        configuration itself is returned.
        """
        config = self
        if self.tiny:
            steps = min(self.max_steps or max_steps, max_steps)
            config = replace(self, epochs=1, max_steps=steps, log_every=1, **changes)
        if self.find_learning_rate:
            folder = temporary_folder("range-test-")
            steps = RANGE_TEST_STEPS - RANGE_TEST_STEPS % self.accumulate
            test = {"epochs": RANGE_TEST_STEPS, "max_steps": steps, "log_every": 1, "checkpoint_every": steps}
            config = replace(config, output_dir=folder, resume=False, **test)
        return config


@dataclass(frozen=True, kw_only=True)
class ImageRunConfig(RunConfig):
    """The flags of recipes that train on images of one source."""

    data: str
    """the images"""
    image_column: str | None = None
    """image column of a table (hub, parquet, manifest); default: guessed, and printed"""
    label_column: str | None = None
    max_unreadable: float = 0.1
    """largest fraction of unreadable images that is skipped (and listed in quarantine.jsonl)"""
    image_size: int | None = None
    """side of the views in pixels; default: 28 for bundled images, 224 for others"""

    def open_splits(self, quarantine: Path, *, tiny_step: int = 1) -> tuple[Source, Source]:
        """The training and the test split.

        Args:
            quarantine: the file that lists unreadable images.
            tiny_step: with `--tiny`, only one image of so many is kept.
        """
        options = {"media_column": self.image_column, "label_column": self.label_column}
        options |= {"max_failures": self.max_unreadable, "quarantine": quarantine}
        splits = [create_source(self.data, split=split, optional=options) for split in ("train", "test")]
        if self.tiny:
            splits = [Subset(split, range(0, len(split), tiny_step)) for split in splits]
        return splits[0], splits[1]

    @property
    def side(self) -> int:
        """The side of the views in pixels."""
        return self.image_size or (28 if self.data.startswith("samples/") else 224)


def parse(
    kind: type[C], *, description: str = "", args: Sequence[str] | None = None, recipe: str | Path | None = None
) -> C:
    """Read a configuration: defaults, then `--preset NAME`, then `--config file.yaml`, then the other flags.

    Args:
        kind: a dataclass.
        description: the first text of the help.
        args: the words of the command line. Default: those of the program.
        recipe: the file of the recipe, for the presets that `--preset` names.

    Raises:
        ConfigError: a file is missing or has an unknown key or a value of another type, or a flag is unknown.
    """
    words = list(sys.argv[1:] if args is None else args)
    preset, path = _take_option(words, "--preset") if recipe else None, _take_option(words, "--config")
    files = ([str(preset_file(recipe, preset))] if recipe and preset else []) + ([path] if path else [])
    values: dict[str, Any] = {}
    for file in files:
        for name, value in _read(Path(file)).items():
            before = values.get(name)
            both = isinstance(before, Mapping) and isinstance(value, Mapping)
            values[name] = {**before, **value} if both else value  # type: ignore[dict-item]
    default = from_mapping(kind, values, where=" + ".join(files)) if files else None
    if recipe:
        description += "\n\n--config FILE.yaml reads settings from a file."
        if names := ", ".join(presets_of(recipe)):
            description += f" --preset NAME reads published settings: {names}."
    check_flags(kind, words)
    chosen = tyro.cli(kind, description=description, args=words, default=default)
    assert chosen is not None
    return chosen


def to_yaml(config: Any) -> str:
    """A configuration as YAML, which `--config` reads back."""
    return yaml.safe_dump(as_plain(config), sort_keys=False)


def as_plain(config: Any) -> dict[str, Any]:
    """A configuration as plain values: paths as text, tuples as lists."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, tuple | list):
            return [plain(v) for v in value]
        return str(value) if isinstance(value, Path) else value

    return plain(dataclasses.asdict(config) if dataclasses.is_dataclass(config) else dict(config))  # type: ignore[call-overload]


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The settings that differ, by name: (before, now)."""
    names = sorted(set(old) | set(new))
    return {name: (old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)}


def check_changes(old: Mapping[str, Any], new: Mapping[str, Any], *, force: bool = False) -> dict[str, tuple[Any, Any]]:
    """Compare the configuration of a run with that of its continuation.

    Returns:
        All differences, by name: (before, now).

    Raises:
        ConfigError: a difference changes what a step computes, and `force` is not set.
    """
    changed = differences(old, new)
    unsafe = {name: pair for name, pair in changed.items() if name not in SAFE_CHANGES}
    if unsafe and not force:
        shown = ", ".join(f"{name}: {was!r} -> {now!r}" for name, (was, now) in unsafe.items())
        raise ConfigError(
            "--resume",
            expected="the settings that the run began with",
            got=shown,
            fix="pass the old settings, choose another --output-dir, or add --force",
        )
    return changed


def _take_option(words: list[str], name: str) -> str | None:
    """Remove `name VALUE` or `name=VALUE` from the words and return the value."""
    for i, word in enumerate(words):
        if word == name and i + 1 < len(words):
            value = words[i + 1]
            del words[i : i + 2]
            return value
        if word.startswith(name + "="):
            del words[i]
            return word.partition("=")[2]
    return None


def _read(path: Path) -> Mapping[str, Any]:
    try:
        values = read_yaml(path.read_text(), where=str(path)) or {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("--config", expected="a YAML file", got=f"{path}: {error}") from error
    except DataError as error:
        raise ConfigError("--config", expected=f"a YAML file, {error.expected}", got=f"{path}: {error.got}") from error
    if not isinstance(values, Mapping):
        raise ConfigError("--config", expected="a YAML mapping of settings", got=f"{type(values).__name__} in {path}")
    return values
