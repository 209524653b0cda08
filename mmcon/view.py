"""View generators: random functions of samples, written as ordinary functions of keys.

A generator is two functions. `draw` turns keys into parameters that can be read, logged and replayed; `apply` is
deterministic. Neither knows of workers, processes or batches, so one sample alone and the same sample in a batch of
thousands get the same view.

A chain draws the parameters of all its parts at once, from what the headers say (sizes, lengths, rates); its leading
*ragged* parts then run sample by sample where the data are decoded, and the rest runs batched, on the device.
"""

from __future__ import annotations

import inspect
import json
import random as python_random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal, final

import numpy as np
import torch
from torch import Tensor

from mmcon.errors import InputError
from mmcon.random import Keys

# On a CPU a chain takes about this many numbers through all its batched parts at a time.
IN_CACHE = 1 << 21

Scope = Literal["sample", "clip", "batch", "partner", "stateful"]
SCOPES: tuple[Scope, ...] = ("sample", "clip", "batch", "partner", "stateful")

# What is known of each sample before it is decoded: named columns with leading axis b, such as height and width.
Meta = dict[str, Tensor]
# What was drawn: nested dicts of tensors with leading axis b.
Params = dict[str, Any]

# Facts that can be read off a stacked tensor, by modality: name -> axis.
SHAPE_FACTS: dict[str, dict[str, int]] = {
    "image": {"channels": -3, "height": -2, "width": -1},
    "audio": {"length": -1},
    "video": {"frames": -4, "channels": -3, "height": -2, "width": -1},
}


class ViewGenerator(ABC):
    """A random function of samples.

    A subclass implements `draw` and `apply`; one that changes sizes or lengths also implements `leaves`.

    Attributes:
        modality: the modality that it takes, or "any".
        scope: what its draws depend on: "sample" all fields of the key; "clip" one draw for all frames of a view;
            "batch" the seed and the global step; "partner" also other samples of the global batch; "stateful" a
            memory that lives in the training process.
        ragged: whether it takes samples of differing sizes, undecoded ones among them (then `apply` gets a sequence
            of samples, or a stacked tensor where sizes agree), rather than only a stacked batch.
        keeps_meaning: whether what a sample shows is still true of its view; False of one that runs time backwards.
    """

    modality: ClassVar[str] = "any"
    scope: ClassVar[Scope] = "sample"
    ragged: ClassVar[bool] = False
    keeps_meaning: ClassVar[bool] = True
    #: The name under which the registry made it; the class's name otherwise.
    name: str = ""

    @abstractmethod
    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Turn `b` keys, and what is known of the samples, into parameters with leading axis `b`."""

    @abstractmethod
    def apply(self, batch: Any, params: Params) -> Any:
        """Make the views: a function of the samples and the parameters alone."""

    def leaves(self, meta: Meta, params: Params) -> Meta:
        """What is known of the views that `apply` will make; by default what was known before."""
        return meta

    def columns(self, meta: Meta, params: Params) -> dict[str, Tensor]:
        """Columns for the index table of the batch, such as the `time` (seconds) of a span; by default none."""
        return {}

    def parts(self) -> tuple[tuple[str, ViewGenerator], ...]:
        """The generators in order, by name; a single generator is its own only part."""
        return ((self.name or type(self).__name__, self),)

    def apply_ragged(self, samples: Any, params: Params) -> Any:
        """The stage where samples are decoded, sample by sample where their sizes differ."""
        return self.apply(samples, params) if self.ragged else samples

    def apply_batched(self, batch: Any, params: Params) -> Any:
        """The stage on a stacked batch, on the device."""
        return batch if self.ragged else self.apply(batch, params)

    @final
    def __call__(self, batch: Any, keys: Keys) -> Any:
        """Draw and apply in one go."""
        return self.apply(batch, self.draw(in_scope(keys, self.scope), meta_of(batch, self.modality)))

    def __repr__(self) -> str:
        settings = ", ".join(f"{k}={v!r}" for k, v in vars(self).items() if not k.startswith("_") and k != "name")
        return f"{type(self).__name__}({settings})"


def in_scope(keys: Keys, scope: Scope) -> Keys:
    """The keys as a generator of this scope may see them."""
    return keys.for_batch() if scope == "batch" else keys


def meta_of(batch: Any, modality: str) -> Meta:
    """Read what is known of samples: from their headers, from a mapping's one-dimensional columns, or off a shape.

    Args:
        batch: a sequence of samples (handles with a `facts` mapping of numbers, or tensors), a stacked tensor, or a
            mapping of tensors with leading axis `b`.
        modality: names the axes of a tensor's shape.
    """
    if isinstance(batch, Tensor):
        axes = SHAPE_FACTS.get(modality, {})
        known = {name: batch.shape[axis] for name, axis in axes.items() if batch.dim() > -axis}
        return {name: torch.full((len(batch),), size) for name, size in known.items()}
    if isinstance(batch, Mapping):
        return {
            name: column.cpu() for name, column in batch.items() if isinstance(column, Tensor) and column.dim() == 1
        }
    facts = [_facts(sample, modality) for sample in batch]
    if not facts:
        return {}
    shared = [name for name in facts[0] if all(name in f for f in facts)]
    return {name: torch.tensor([f[name] for f in facts]) for name in shared}


def _facts(sample: Any, modality: str) -> Mapping[str, int | float]:
    if isinstance(sample, Tensor):
        return {name: sample.shape[a] for name, a in SHAPE_FACTS.get(modality, {}).items() if sample.dim() >= -a}
    return getattr(sample, "facts", {})


# --- chains ----------------------------------------------------------------------------------------------------------


@final
class Chain(ViewGenerator):
    """Generators one after another.

    Each part draws from the child key of its own name (repeats are numbered: `flip`, `flip.2`), so that adding a part
    shifts no other's draws, and is told the sizes that the part before it leaves.

    Args:
        generators: the parts in order, or (name, generator) pairs where the names are to be chosen.
    """

    def __init__(self, *generators: ViewGenerator | tuple[str, ViewGenerator], name: str = "") -> None:
        self.name = name
        named: list[tuple[str, ViewGenerator]] = []
        for item in generators:
            given, generator = (
                item if isinstance(item, tuple) else (item.parts()[0][0] if not isinstance(item, Chain) else "", item)
            )
            for inner, part in generator.parts():
                inside = f"{given}/{inner}" if given else inner
                named.append((inside if isinstance(generator, Chain) else given, part))
        self._parts = tuple(_numbered(named))
        modalities = {part.modality for _, part in self._parts} - {"any"}
        self._first_batched = next((i for i, (_, part) in enumerate(self._parts) if not part.ragged), len(self._parts))
        late = [inner for inner, part in self._parts[self._first_batched :] if part.ragged and not _batchable(part)]
        if late:
            raise InputError(
                f"Chain {name!r}",
                expected="generators that take undecoded samples before those that take a batch",
                got=f"{late} after {self._parts[self._first_batched][0]!r}",
                fix="move them to the front",
            )
        self._modality = modalities.pop() if len(modalities) == 1 else "any"

    @property
    def modality(self) -> str:  # type: ignore[override]
        """The modality of the parts."""
        return self._modality

    @property
    def ragged(self) -> bool:  # type: ignore[override]
        """Whether the first part takes undecoded samples."""
        return self._first_batched > 0

    @property
    def keeps_meaning(self) -> bool:  # type: ignore[override]
        """Whether all parts do."""
        return all(part.keeps_meaning for _, part in self._parts)

    def parts(self) -> tuple[tuple[str, ViewGenerator], ...]:
        """The parts in order, by name; a chain inside a chain is laid flat."""
        return self._parts

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw for every part, each from its own child key and the sizes that it will meet.

        The modality stands at the root of the path, so that two modalities of a sample share no draws.
        """
        params: Params = {}
        for name, part in self._parts:
            params[name] = part.draw(in_scope(keys, part.scope).child(self._modality).child(name), meta)
            meta = part.leaves(meta, params[name])
        return params

    def leaves(self, meta: Meta, params: Params) -> Meta:
        """What is known after the last part."""
        for name, part in self._parts:
            meta = part.leaves(meta, params[name])
        return meta

    def columns(self, meta: Meta, params: Params) -> dict[str, Tensor]:
        """The columns of all parts; a later part's replaces an earlier one's of the same name."""
        columns: dict[str, Tensor] = {}
        for name, part in self._parts:
            columns |= part.columns(meta, params[name])
            meta = part.leaves(meta, params[name])
        return columns

    def apply(self, batch: Any, params: Params) -> Any:
        """Both stages, one after the other."""
        return self.apply_batched(stack(self.apply_ragged(batch, params)), params)

    def apply_ragged(self, samples: Any, params: Params) -> Any:
        """The leading ragged parts, where the samples are decoded."""
        for name, part in self._parts[: self._first_batched]:
            samples = part.apply(samples, params[name])
        return samples

    def apply_batched(self, batch: Any, params: Params) -> Any:
        """The rest, on a stacked batch; on a CPU a few samples at a time, so that all passes stay in the cache.

        A sample's view does not depend on its batch, so the result is the same.
        """
        parts = self._parts[self._first_batched :]
        free = all(part.scope in ("sample", "clip", "batch") for _, part in parts)
        if len(parts) < 2 or not free or not isinstance(batch, Tensor) or batch.device.type != "cpu":
            return self._run(parts, batch, params)
        few = max(1, IN_CACHE // max(1, batch[:1].numel()))
        if few >= len(batch):
            return self._run(parts, batch, params)
        done = []
        for start in range(0, len(batch), few):
            rows = slice(start, start + few)
            done.append(self._run(parts, batch[rows], {name: take_rows(params[name], rows) for name, _ in parts}))
        return torch.cat(done) if isinstance(done[0], Tensor) else self._run(parts, batch, params)

    @staticmethod
    def _run(parts: Sequence[tuple[str, ViewGenerator]], batch: Any, params: Params) -> Any:
        for name, part in parts:
            batch = part.apply(batch, params[name])
        return batch

    def __repr__(self) -> str:
        return f"Chain({', '.join(f'{name}={part!r}' for name, part in self._parts)})"


def as_chain(generator: ViewGenerator) -> Chain:
    """A generator as a chain (of one part, where it isn't one)."""
    return generator if isinstance(generator, Chain) else Chain(generator, name=generator.name)


def _numbered(named: list[tuple[str, ViewGenerator]]) -> Iterator[tuple[str, ViewGenerator]]:
    seen: dict[str, int] = {}
    for name, part in named:
        seen[name] = seen.get(name, 0) + 1
        yield (name if seen[name] == 1 else f"{name}.{seen[name]}"), part


def _batchable(part: ViewGenerator) -> bool:
    """Whether a ragged generator also takes a stacked tensor; one that decodes cannot."""
    return getattr(part, "decodes", False) is False


def stack(samples: Any) -> Any:
    """Decode what is still undecoded and stack samples of one shape; what is stacked already passes through."""
    if not isinstance(samples, list | tuple):
        return samples
    decoded: list[Any] = [s if isinstance(s, Tensor | Mapping) else s.decode() for s in samples]
    if isinstance(decoded[0], Mapping):
        return {name: stack([d[name] for d in decoded]) for name in decoded[0]}
    shapes = {tuple(d.shape) for d in decoded}
    if len(shapes) > 1:
        raise InputError(
            "stack",
            expected="samples of one shape",
            got=f"shapes {sorted(shapes)[:4]}",
            fix="begin the chain with a generator that brings them to one size, such as image/random-resized-crop",
        )
    return torch.stack(decoded)


# --- generators that every modality shares ---------------------------------------------------------------------------


@final
class Identity(ViewGenerator):
    """The sample itself: nothing is drawn and nothing is changed."""

    ragged: ClassVar[bool] = True

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw nothing."""
        return {}

    def apply(self, batch: Any, params: Params) -> Any:
        """Return the samples as they came."""
        return batch


@final
class FunctionView(ViewGenerator):
    """A plain function of one sample as a view generator.

    Args:
        function: `f(x, generator)`, which takes its randomness from the torch.Generator; or a third-party callable
            `f(x)` that uses the global random states of torch, NumPy and Python: these are seeded before each call
            and put back after it. Either gets one sample and returns a tensor, whose
            size may differ from sample to sample.
        modality: what it takes.
    """

    ragged: ClassVar[bool] = True

    def __init__(self, function: Callable[..., Any], *, modality: str = "any", name: str = "") -> None:
        self.function = function
        self.name = name or getattr(function, "__name__", type(function).__name__)
        self._modality = modality
        self._takes_generator = takes_generator(function)

    @property
    def modality(self) -> str:  # type: ignore[override]
        """What the function takes."""
        return self._modality

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw one seed a sample, `b` int64."""
        return {"seed": keys.bits("seed")}

    def apply(self, batch: Any, params: Params) -> Any:
        """Call the function sample by sample, each with its own seed."""
        samples = batch if isinstance(batch, Tensor) else [s.decode() if hasattr(s, "decode") else s for s in batch]
        out = [self._call(sample, int(seed)) for sample, seed in zip(samples, params["seed"], strict=True)]
        alike = len({tuple(sample.shape) for sample in out}) == 1
        return stack(out) if isinstance(batch, Tensor) and alike else out

    def _call(self, sample: Any, seed: int) -> Any:
        if self._takes_generator:
            return self.function(sample, torch.Generator().manual_seed(seed))
        with seeded(seed):
            return self.function(sample)


def takes_generator(function: Callable[..., Any]) -> bool:
    """Whether a callable's second parameter is `generator`."""
    try:
        parameters = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return False
    return len(parameters) >= 2 and parameters[1] == "generator"


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global random states of torch (CPU), NumPy and Python, and put them back afterwards."""
    states = torch.get_rng_state(), np.random.get_state(), python_random.getstate()  # noqa: NPY002 (it is what others use)
    try:
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        python_random.seed(seed)
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        python_random.setstate(states[2])


# --- parameters as data ----------------------------------------------------------------------------------------------


def take_rows(params: Any, rows: Any) -> Any:
    """The parameters of some samples: every tensor indexed along its leading axis."""
    if isinstance(params, Tensor):
        return params[rows]
    return {name: take_rows(branch, rows) for name, branch in params.items()}


def params_to_json(params: Params) -> str:
    """Write parameters as JSON; float64 survives exactly."""

    def plain(node: Any) -> Any:
        if isinstance(node, Tensor):
            return {
                "dtype": str(node.dtype).removeprefix("torch."),
                "shape": list(node.shape),
                "values": node.flatten().tolist(),
            }
        return {name: plain(branch) for name, branch in node.items()}

    return json.dumps(plain(params))


def params_from_json(text: str) -> Params:
    """Read parameters that `params_to_json` wrote."""

    def rebuild(node: dict[str, Any]) -> Any:
        if set(node) == {"dtype", "shape", "values"}:
            return torch.tensor(node["values"], dtype=getattr(torch, node["dtype"])).view(node["shape"])
        return {name: rebuild(branch) for name, branch in node.items()}

    return rebuild(json.loads(text))


def describe_row(params: Params, row: int) -> dict[str, Any]:
    """One sample's parameters as plain numbers, for a person to read."""

    def plain(node: Any) -> Any:
        return (
            node[row].tolist() if isinstance(node, Tensor) else {name: plain(branch) for name, branch in node.items()}
        )

    return plain(params)


def check_params(name: str, params: Params, rows: Sequence[Any] | int) -> None:
    """Refuse parameters that are not nested dicts of CPU tensors with one row a sample."""
    n = rows if isinstance(rows, int) else len(rows)

    def visit(path: str, node: Any) -> None:
        if isinstance(node, Mapping):
            for key, branch in node.items():
                visit(f"{path}.{key}", branch)
        elif not isinstance(node, Tensor) or node.device.type != "cpu" or node.dim() < 1 or len(node) != n:
            got = f"{tuple(node.shape)} on {node.device}" if isinstance(node, Tensor) else type(node).__name__
            raise InputError(name, expected=f"{path} as a CPU tensor with leading axis {n}", got=got)

    visit("params", params)
