"""The laws of registered components, built-in or third-party.

    from mmcon.testing import check_view
    check_view(mmcon.create_view("my/view"), samples)      # raises LawBroken, naming the law

A law is a property that users rely on: a view does not depend on its batch, parameters can be logged and replayed, the
global random state does not change. The scope of a generator determines its laws.
"""

from __future__ import annotations

import copy
import pickle
import random as python_random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from mmcon.batch import count_rows, tree_map
from mmcon.loading.mixup_partners import apply_mixing, mixing_child
from mmcon.random import Keys, keys, stable_ids
from mmcon.samplers.base import BatchSampler
from mmcon.views import (
    Params,
    ViewGenerator,
    as_chain,
    check_params,
    collate,
    meta_of,
    params_from_json,
    params_to_json,
    select_samples,
)

THREADS = (1, 2, 4)
"""The numbers of intra-op threads with which views must have the same bits."""


class LawBroken(AssertionError):
    """A component violates a law; the message names the component, the law and the observed behavior."""

    def __init__(self, component: Any, law: str, observed: str) -> None:
        super().__init__(f"{component!r} violates the law {law!r}: {observed}")


def check_view(view: ViewGenerator, samples: Any, *, seeds: Sequence[int] = (0, 1)) -> None:
    """Check a view generator against every law of its scope.

    Args:
        view: the generator or chain.
        samples: at least three valid inputs: a stacked tensor, a mapping of tensors, or a list of samples.
        seeds: the seeds of the draws.

    Raises:
        LawBroken: a law does not hold.
    """
    n = count_rows(samples) if isinstance(samples, Tensor | Mapping) else len(samples)
    if n < 3:
        raise ValueError(f"check_view needs at least 3 samples, got {n}")
    for seed in seeds:
        table = keys(seed=seed, epoch=1, sample=stable_ids(f"sample {i}" for i in range(n)), view=1, step=5)
        params = _draws_are_functions_of_keys(view, samples, table)
        _params_are_data(view, params, n)
        if seed == seeds[0]:
            _thread_independence(view, samples, params, n)
        if any(part.scope == "stateful" for _, part in view.children()):
            continue  # its views depend on earlier batches, as the scope declares
        if mixing_child(view) is not None:
            _partner_independence(view, samples, params, n)
            continue
        _apply_is_a_function(view, samples, params)
        _batch_independence(view, samples, params, n)
        _in_place_equals_out_of_place(view, samples, params)
        _sizes_are_as_declared(view, samples, params)
    _pickles(view)


def check_sampler(make: Callable[..., BatchSampler], *, epochs: int = 2) -> None:
    """Check a batch sampler against its laws.

    Args:
        make: builds the sampler for a seed, `make(seed=0)`.
        epochs: the number of epochs to check.

    Raises:
        LawBroken: a law does not hold.
    """
    sampler, same, other = make(seed=0), make(seed=0), make(seed=1)
    steps = range(epochs * sampler.steps_per_epoch)
    batches = [sampler.batch(step) for step in steps]
    for step in reversed(steps):
        if not bitwise_equal(same.batch(step).indices, batches[step].indices):
            raise LawBroken(sampler, "state is the step", f"batch {step} differs in reverse order of the steps")
    for batch in batches:
        if len(batch) != sampler.batch_size:
            raise LawBroken(
                sampler, "whole batches", f"step {batch.step} has {len(batch)} of {sampler.batch_size} rows"
            )
        for world_size in (1, 2, 3):
            joined = torch.cat([batch.shard(p, world_size).indices for p in range(world_size)])
            if not bitwise_equal(joined, batch.indices):
                raise LawBroken(sampler, "shards make the batch", f"{world_size} processes")
    for epoch in range(epochs):
        of_epoch = batches[epoch * sampler.steps_per_epoch : (epoch + 1) * sampler.steps_per_epoch]
        rows = torch.stack([torch.cat([b.indices for b in of_epoch]), torch.cat([b.occurrence for b in of_epoch])], 1)
        if len(rows.unique(dim=0)) < len(rows):
            raise LawBroken(sampler, "occurrences are unique", f"epoch {epoch} has a sample twice with one occurrence")
    if all(bitwise_equal(other.batch(step).indices, batches[step].indices) for step in steps):
        raise LawBroken(sampler, "seeds matter", "another seed gives the same batches")


# --- the laws of views -----------------------------------------------------------------------------------------------


def _draws_are_functions_of_keys(view: ViewGenerator, samples: Any, table: Keys) -> Params:
    """Draws are bitwise the same in any split of the batch, twice in a row, and change no global random state."""
    chain, meta = as_chain(view), meta_of(samples, view.modality)
    with unchanged_global_randomness(view, "draw"):
        params = chain.draw(table, meta)
    if not bitwise_equal(chain.draw(table, meta), params):
        raise LawBroken(view, "draw is a function", "a second draw with the same keys has other parameters")
    for part in (slice(0, 1), slice(1, None), torch.tensor([2, 0])):
        split = chain.draw(table[part], select_samples(meta, part))
        if not bitwise_equal(split, select_samples(params, part)):
            raise LawBroken(
                view, "draws do not depend on the batch", f"samples {part} have other parameters without the rest"
            )
    return params


def _params_are_data(view: ViewGenerator, params: Params, n: int) -> None:
    """Parameters are CPU tensors with one row per sample, and equal bit by bit after a round trip through JSON."""
    check_params(repr(view), params, n)
    if not bitwise_equal(params_from_json(params_to_json(params)), params):
        raise LawBroken(view, "parameters are data", "they differ after a round trip through JSON")


def _apply_is_a_function(view: ViewGenerator, samples: Any, params: Params) -> None:
    """Applying twice gives the same bits, and changes neither samples, parameters nor the global random state."""
    before = copy.deepcopy(samples), copy.deepcopy(params)
    with unchanged_global_randomness(view, "apply"):
        views = collate(as_chain(view).apply(samples, params))
    if not bitwise_equal(collate(as_chain(view).apply(samples, params)), views):
        raise LawBroken(view, "apply is a function", "a second call with the same parameters returns other views")
    tensors = isinstance(samples, Tensor | Mapping) or all(isinstance(s, Tensor) for s in samples)
    if (tensors and not bitwise_equal(samples, before[0])) or not bitwise_equal(params, before[1]):
        raise LawBroken(view, "apply changes nothing", "the samples or the parameters were modified")


def _thread_independence(view: ViewGenerator, samples: Any, params: Params, n: int) -> None:
    """Views have the same bits with 1, 2 and 4 intra-op threads, as worker processes have one and a run has many."""
    before = torch.get_num_threads()
    made = []
    try:
        for threads in THREADS:
            torch.set_num_threads(threads)
            chain = as_chain(copy.deepcopy(view))  # a stateful view remembers the samples
            if mixing_child(chain) is None:
                made.append(collate(chain.apply(samples, params)))
            else:
                unmixed = collate(chain.apply_ragged(samples, params))
                made.append(apply_mixing(chain, unmixed, params, torch.arange(n).roll(1)))
    finally:
        torch.set_num_threads(before)
    for threads, views in zip(THREADS[1:], made[1:], strict=True):
        if not bitwise_equal(views, made[0]):
            raise LawBroken(view, "thread independence", f"the views with {threads} threads differ from those with one")


def _batch_independence(view: ViewGenerator, samples: Any, params: Params, n: int) -> None:
    """The view of a sample has the same bits alone as in the batch."""
    chain = as_chain(view)
    together = collate(chain.apply(samples, params))
    for row in range(n):
        one = slice(row, row + 1)
        alone = collate(chain.apply(_rows(samples, one), select_samples(params, one)))
        if not bitwise_equal(alone, _rows(together, one)):
            raise LawBroken(view, "batch independence", f"sample {row} differs")


def _partner_independence(view: ViewGenerator, samples: Any, params: Params, n: int) -> None:
    """A mixed view has the same bits with its partner alone as in the batch, and partners are in the batch."""
    chain, positions = as_chain(view), torch.arange(n)
    mixing = mixing_child(chain)
    assert mixing is not None
    partners = mixing.generator.partners(mixing.own_params(params), positions, n)
    if not bool(((partners >= 0) & (partners < n)).all()):
        raise LawBroken(view, "partners are in the batch", f"of {n} samples, {partners.tolist()}")
    unmixed = collate(chain.apply_ragged(samples, params))
    together = apply_mixing(chain, unmixed, params, partners)
    if not bitwise_equal(apply_mixing(chain, unmixed, params, partners), together):
        raise LawBroken(view, "apply is a function", "a second call with the same parameters returns other views")
    for row in range(n):
        two = torch.tensor([row, int(partners[row])])
        alone = apply_mixing(chain, _rows(unmixed, two), select_samples(params, two), torch.tensor([1]))
        if not bitwise_equal(alone, _rows(together, slice(row, row + 1))):
            raise LawBroken(view, "partner independence", f"sample {row} differs without the rest of the batch")


def _in_place_equals_out_of_place(view: ViewGenerator, samples: Any, params: Params) -> None:
    """`apply_` returns the same bits as `apply`."""
    chain = as_chain(view)
    batch = collate(chain.apply_ragged(samples, params))
    for name, part in chain.children():
        if part.ragged:
            continue
        made = part.apply(batch, params[name])
        if part.copy_into is not None:
            in_place, expected = torch.empty(batch.shape), torch.empty(batch.shape)
            part.copy_into(batch, in_place, name)
            part.apply_(in_place, params[name])
            part.copy_into(made, expected, name)
            if not bitwise_equal(in_place, expected):
                raise LawBroken(view, "in place equals out of place", f"{name} gave other views in place")
        batch = made


def _sizes_are_as_declared(view: ViewGenerator, samples: Any, params: Params) -> None:
    """`output_meta` matches the sizes of the views."""
    declared = as_chain(view).output_meta(meta_of(samples, view.modality), params)
    found = meta_of(collate(as_chain(view).apply(samples, params)), view.modality)
    for name in set(declared) & set(found):
        if not bitwise_equal(declared[name].double(), found[name].double()):
            raise LawBroken(view, "sizes are as declared", f"{name}: declared {declared[name]}, found {found[name]}")


def _pickles(view: ViewGenerator) -> None:
    try:
        pickle.loads(pickle.dumps(view))
    except Exception as error:
        raise LawBroken(view, "pickles for workers", f"it does not pickle: {error!r}") from error


@contextmanager
def unchanged_global_randomness(component: Any, doing: str) -> Iterator[None]:
    """Raise LawBroken if the block changes the global random state of torch, NumPy or Python."""
    before = _global_randomness()
    yield
    after = _global_randomness()
    changed = [name for name in before if before[name] != after[name]]
    if changed:
        raise LawBroken(component, "no global randomness", f"{doing} changed the state of {', '.join(changed)}")


def _global_randomness() -> dict[str, Any]:
    numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002 (the law is about this state)
    return {
        "torch": torch.get_rng_state().tolist(),
        "NumPy": str(numpy_state["state"]["key"].tolist()) + str(numpy_state["state"]["pos"]),  # type: ignore[index,call-overload]
        "Python": python_random.getstate(),
    }


def _rows(batch: Any, rows: slice | Int[Tensor, " r"]) -> Any:
    if isinstance(batch, Tensor | Mapping):
        return tree_map(lambda x: x[rows], batch)
    return batch[rows]


def bitwise_equal(a: Any, b: Any) -> bool:
    """Bitwise equality of nested tensors: NaN equals NaN, and types and shapes count."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and bool(torch.all((a == b) | (a.isnan() & b.isnan())))
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return set(a) == set(b) and all(bitwise_equal(a[name], b[name]) for name in a)
    if isinstance(a, Sequence) and isinstance(b, Sequence) and not isinstance(a, str):
        return len(a) == len(b) and all(bitwise_equal(x, y) for x, y in zip(a, b, strict=True))
    return a == b
