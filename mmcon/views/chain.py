"""Generators one after another, and the border in a chain where samples are decoded and stacked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from mmcon.errors import InputError
from mmcon.random import Keys
from mmcon.views.buffers import empty_buffer, keep_freed_memory
from mmcon.views.generator import Meta, Params, ViewGenerator, in_scope
from mmcon.views.params import select_samples

# On a CPU a chain takes about this many numbers through all its batched parts at a time.
NUMBERS_PER_CHUNK = 1 << 21


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
                item
                if isinstance(item, tuple)
                else (item.children()[0][0] if not isinstance(item, Chain) else "", item)
            )
            for inner, part in generator.children():
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
    def preserves_labels(self) -> bool:  # type: ignore[override]
        """Whether all parts do."""
        return all(part.preserves_labels for _, part in self._parts)

    def children(self) -> tuple[tuple[str, ViewGenerator], ...]:
        """The parts in order, by name; a chain inside a chain is laid flat."""
        return self._parts

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw for every part, each from its own child key and the sizes that it will meet.

        The modality stands at the root of the path, so that two modalities of a sample share no draws.
        """
        params: Params = {}
        for name, part in self._parts:
            params[name] = part.draw(in_scope(keys, part.scope).child(self._modality).child(name), meta)
            meta = part.output_meta(meta, params[name])
        return params

    def output_meta(self, meta: Meta, params: Params) -> Meta:
        """What is known after the last part."""
        for name, part in self._parts:
            meta = part.output_meta(meta, params[name])
        return meta

    def columns(self, meta: Meta, params: Params) -> dict[str, Tensor]:
        """The columns of all parts; a later part's replaces an earlier one's of the same name."""
        columns: dict[str, Tensor] = {}
        for name, part in self._parts:
            columns |= part.columns(meta, params[name])
            meta = part.output_meta(meta, params[name])
        return columns

    def apply(self, batch: Any, params: Params) -> Any:
        """Both stages, one after the other."""
        return self.apply_batched(collate(self.apply_ragged(batch, params)), params)

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
        keep_freed_memory()
        few = max(1, NUMBERS_PER_CHUNK // max(1, batch[:1].numel()))
        if all(part.copy_into is not None for _, part in parts):
            return self._in_place(parts, batch, params, few)
        if few >= len(batch):
            return self._run(parts, batch, params)
        out: Tensor | None = None
        for rows, some in _some_at_a_time(parts, params, len(batch), few):
            made = self._run(parts, batch[rows], some)
            if not isinstance(made, Tensor):
                return self._run(parts, batch, params)
            if out is None:
                out = empty_buffer((len(batch), *made.shape[1:]), made.dtype)
            out[rows] = made
        return out

    def _in_place(self, parts: Sequence[tuple[str, ViewGenerator]], batch: Tensor, params: Params, few: int) -> Tensor:
        out, copy_into = empty_buffer(batch.shape), parts[0][1].copy_into
        assert copy_into is not None
        for rows, some in _some_at_a_time(parts, params, len(batch), few):
            own = out[rows]
            copy_into(batch[rows], own, self.name or parts[0][0])
            for name, part in parts:
                part.apply_(own, some[name])
        return out

    @staticmethod
    def _run(parts: Sequence[tuple[str, ViewGenerator]], batch: Any, params: Params) -> Any:
        for name, part in parts:
            batch = part.apply(batch, params[name])
        return batch

    def __repr__(self) -> str:
        return f"Chain({', '.join(f'{name}={part!r}' for name, part in self._parts)})"


def _some_at_a_time(
    parts: Sequence[tuple[str, ViewGenerator]], params: Params, count: int, few: int
) -> Iterator[tuple[slice, Params]]:
    for start in range(0, count, few):
        rows = slice(start, start + few)
        yield rows, {name: select_samples(params[name], rows) for name, _ in parts}


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


def collate(samples: Any) -> Any:
    """Decode what is still undecoded and stack samples of one shape; what is stacked already passes through."""
    if not isinstance(samples, list | tuple):
        return samples
    decoded: list[Any] = [s if isinstance(s, Tensor | Mapping) else s.decode() for s in samples]
    if isinstance(decoded[0], Mapping):
        return {name: collate([d[name] for d in decoded]) for name in decoded[0]}
    shapes = {tuple(d.shape) for d in decoded}
    if len(shapes) > 1:
        raise InputError(
            "collate",
            expected="samples of one shape",
            got=f"shapes {sorted(shapes)[:4]}",
            fix="begin the chain with a generator that brings them to one size, such as image/random-resized-crop",
        )
    return torch.stack(decoded)
