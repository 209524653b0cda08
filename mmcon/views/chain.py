"""Chains of view generators: a per-sample stage (before collate) and a batched stage (after collate)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from threading import Lock
from typing import Any, final

import torch
from jaxtyping import Float32, Shaped
from torch import Tensor

from mmcon.errors import InputError
from mmcon.portable_math import one_thread
from mmcon.random import Keys
from mmcon.views.buffers import empty_buffer, keep_freed_memory
from mmcon.views.generator import Meta, Params, ViewGenerator, in_scope
from mmcon.views.params import select_samples
from mmcon.views.thread_pool import map_parts

# On a CPU the batched children run on chunks of about this many numbers, which stay in the cache.
NUMBERS_PER_CHUNK = 1 << 21

Children = Sequence[tuple[str, ViewGenerator]]


@final
class Chain(ViewGenerator):
    """A sequence of view generators, applied in order.

    Each child draws from a child key of its own name, so an added generator does not change the draws of the others.
    Repeated names are numbered (`flip`, `flip.2`). Each draw gets the sizes that the previous child returns from
    `output_meta`. An inner chain is flattened.

    >>> chain = Chain(("crop", RandomResizedCrop(size=96)), ("flip", Flip()))

    Args:
        generators: in order; a (name, generator) pair sets the name, by default the registered name or the class name.
        name: the registered name of the chain.

    Attributes:
        parts: the generators as they were given, before inner chains were flattened.
    """

    def __init__(self, *generators: ViewGenerator | tuple[str, ViewGenerator], name: str = "") -> None:
        self.name, self.parts = name, generators
        self._children = tuple(_numbered(_flattened(generators)))
        modalities = {child.modality for _, child in self._children} - {"any"}
        self._modality = modalities.pop() if len(modalities) == 1 else "any"
        batched = [i for i, (_, child) in enumerate(self._children) if not child.ragged]
        self._first_batched = batched[0] if batched else len(self._children)
        late = [name for name, child in self._children[self._first_batched :] if child.undecoded_only]
        if late:
            raise InputError(
                f"Chain {name!r}",
                expected="generators that take undecoded samples before those that take a batch",
                got=f"{late} after {self._children[self._first_batched][0]!r}",
                fix="move them to the front",
            )

    @property
    def modality(self) -> str:  # type: ignore[override]
        """The one modality of the children, or "any"."""
        return self._modality

    @property
    def ragged(self) -> bool:  # type: ignore[override]
        """Whether the first child takes undecoded samples."""
        return self._first_batched > 0

    @property
    def preserves_labels(self) -> bool:  # type: ignore[override]
        """Whether all children preserve labels."""
        return all(child.preserves_labels for _, child in self._children)

    def children(self) -> tuple[tuple[str, ViewGenerator], ...]:
        """The generators in order, by name."""
        return self._children

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw for every child, from its own child key and the sizes of its input.

        The modality is the first name of the key's path, so that two modalities of a sample share no draws.
        """
        params: Params = {}
        for name, child in self._children:
            params[name] = child.draw(in_scope(keys, child.scope).child(self._modality).child(name), meta)
            meta = child.output_meta(meta, params[name])
        return params

    def output_meta(self, meta: Meta, params: Params) -> Meta:
        """Facts of the views after the last child."""
        for name, child in self._children:
            meta = child.output_meta(meta, params[name])
        return meta

    def columns(self, meta: Meta, params: Params) -> dict[str, Shaped[Tensor, "b ..."]]:
        """The columns of all children; a later child replaces a column of the same name."""
        columns: dict[str, Tensor] = {}
        for name, child in self._children:
            columns |= child.columns(meta, params[name])
            meta = child.output_meta(meta, params[name])
        return columns

    def apply(self, batch: Any, params: Params) -> Any:
        """Run the per-sample stage, collate, and run the batched stage."""
        return self.apply_batched(collate(self.apply_ragged(batch, params)), params)

    def apply_ragged(self, samples: Any, params: Params) -> Any:
        """The per-sample stage: the leading ragged children, which decode samples."""
        for name, child in self._children[: self._first_batched]:
            samples = child.apply(samples, params[name])
        return samples

    def apply_batched(self, batch: Any, params: Params) -> Any:
        """The batched stage: the other children, on a collated batch; on a CPU in chunks that stay in the cache.

        A view does not depend on the rest of the batch, so chunks do not change the result. Several threads take a
        chunk at a time (see `map_parts`), unless a child uses global random states.
        """
        children = self._children[self._first_batched :]
        independent = all(child.scope in ("sample", "clip", "batch") for _, child in children)
        if len(children) < 2 or not independent or not isinstance(batch, Tensor) or batch.device.type != "cpu":
            return _run(children, batch, params)
        keep_freed_memory()
        rows_of_chunks = _chunks(len(batch), batch[:1].numel())
        if all(child.copy_into is not None for _, child in children):
            return self._in_place(children, batch, params, rows_of_chunks)
        if len(rows_of_chunks) == 1:
            with one_thread():
                return _run(children, batch, params)
        out, creating = [], Lock()

        def run(rows: slice, own_params: Params) -> bool:
            views = _run(children, batch[rows], own_params)
            if not isinstance(views, Tensor):
                return False
            with creating:
                if not out:
                    out.append(empty_buffer((len(batch), *views.shape[1:]), views.dtype))
            out[0][rows] = views
            return True

        stacks = _map_chunks(children, params, rows_of_chunks, run)
        return out[0] if all(stacks) else _run(children, batch, params)

    def _in_place(
        self, children: Children, batch: Shaped[Tensor, "b ..."], params: Params, rows_of_chunks: list[slice]
    ) -> Float32[Tensor, "b ..."]:
        out, first = empty_buffer(batch.shape), children[0][1]
        copy_into, one_pass, where = first.copy_into, first.one_pass, self.name or children[0][0]
        generators = [child for _, child in children]
        assert copy_into is not None

        def run(rows: slice, own_params: Params) -> None:
            own, done = out[rows], 0
            if one_pass is not None:
                done = one_pass(generators, batch[rows], own, [own_params[name] for name, _ in children], where)
            if not done:
                copy_into(batch[rows], own, where)
            for name, child in children[done:]:
                child.apply_(own, own_params[name])

        _map_chunks(children, params, rows_of_chunks, run)
        return out

    def __repr__(self) -> str:
        return f"Chain({', '.join(f'{name}={child!r}' for name, child in self._children)})"


def as_chain(generator: ViewGenerator) -> Chain:
    """Convert a generator to a chain; a generator that is not a chain becomes its only child."""
    return generator if isinstance(generator, Chain) else Chain(generator, name=generator.name)


def collate(samples: Any) -> Any:
    """Decode undecoded samples and stack samples of one shape; a collated batch is returned unchanged."""
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
            fix="begin the chain with a generator that gives all samples one size, such as image/random-resized-crop",
        )
    return torch.stack(decoded)


def _run(children: Children, batch: Any, params: Params) -> Any:
    for name, child in children:
        batch = child.apply(batch, params[name])
    return batch


def _chunks(count: int, numbers: int) -> list[slice]:
    """The rows of each chunk of a batch whose samples have so many numbers; of a large batch, one a thread at least."""
    # Smaller chunks would also split the images that share an order of color jitter into smaller groups.
    few = max(1, NUMBERS_PER_CHUNK // max(1, numbers))
    threads = torch.get_num_threads()
    if count * numbers > NUMBERS_PER_CHUNK // 4:
        few = -(-count // (threads * -(-count // (few * threads))))
    return [slice(start, start + few) for start in range(0, max(count, 1), few)]


def _map_chunks(
    children: Children, params: Params, rows_of_chunks: list[slice], function: Callable[[slice, Params], Any]
) -> list[Any]:
    """The results of a function of the rows and the parameters of each chunk."""

    def run(rows: slice) -> Any:
        return function(rows, {name: select_samples(params[name], rows) for name, _ in children})

    if any(child.single_thread for _, child in children):
        with one_thread():
            return [run(rows) for rows in rows_of_chunks]
    return map_parts(run, rows_of_chunks)


def _flattened(
    generators: Sequence[ViewGenerator | tuple[str, ViewGenerator]],
) -> Iterator[tuple[str, ViewGenerator]]:
    """Yield names and single generators; the children of a named inner chain get its name as a prefix."""
    for item in generators:
        if isinstance(item, ViewGenerator):
            yield from item.children()
        elif isinstance(item[1], Chain):
            prefix = f"{item[0]}/" if item[0] else ""
            yield from ((prefix + name, child) for name, child in item[1].children())
        else:
            yield item


def _numbered(named: Iterator[tuple[str, ViewGenerator]]) -> Iterator[tuple[str, ViewGenerator]]:
    seen: dict[str, int] = {}
    for name, child in named:
        seen[name] = seen.get(name, 0) + 1
        yield (name if seen[name] == 1 else f"{name}.{seen[name]}"), child
