"""View generators and chains: named draws, two stages, adapters, and parameters as data."""

import pickle
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcon_views.shared_draws import SharedByViews
from torchvision.transforms import v2

from mmcon.errors import InputError
from mmcon.random import keys
from mmcon.registry import create_view
from mmcon.testing import LawBroken, check_view, unchanged_global_randomness
from mmcon.views import (
    Chain,
    FunctionView,
    Identity,
    ViewGenerator,
    check_params,
    collate,
    describe_sample,
    empty_buffer,
    in_scope,
    meta_of,
    params_from_json,
    params_to_json,
    seeded,
    select_samples,
)


class Shift(ViewGenerator):
    """Adds a drawn number; batched."""

    modality = "image"

    def draw(self, keys, meta):
        return {"by": keys.uniform("by")}

    def apply(self, batch, params):
        return batch + params["by"].to(batch.dtype).view(-1, 1, 1, 1)


def copy_doubles(batch, out, where):
    out.copy_(batch)


class ShiftInPlace(Shift):
    """The same, where the batch may be written over."""

    copy_into = staticmethod(copy_doubles)

    def apply_(self, batch, params):
        batch.add_(params["by"].to(batch.dtype).view(-1, 1, 1, 1))


class Sigma(Shift):
    """One number for the whole global batch."""

    scope = "batch"


class Cut(ViewGenerator):
    """Brings any width to `size` at a drawn place; ragged."""

    modality, ragged = "image", True

    def __init__(self, *, size=4):
        self.size = size

    def draw(self, keys, meta):
        return {"left": keys.integers("left", 0, meta["width"] - self.size + 1)}

    def apply(self, batch, params):
        return [x[..., left : left + self.size] for x, left in zip(batch, params["left"].tolist(), strict=True)]

    def output_meta(self, meta, params):
        return {**meta, "width": torch.full_like(meta["width"], self.size)}


class Opened(ViewGenerator):
    """Decodes handles, so it can only stand first."""

    modality, ragged, undecoded_only = "image", True, True

    def draw(self, keys, meta):
        return {}

    def apply(self, batch, params):
        return [sample.decode() for sample in batch]


def table(n=5, **fields):
    return keys(seed=1, epoch=2, sample=range(n), view=1, step=3, **fields)


def images(n=5, same=False):
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(1, 3, 8 if same else 6 + i, generator=generator) for i in range(n)]


def test_a_chain_names_and_numbers_its_parts():
    chain = Chain(Shift(), ("first", Shift()), Shift(), Chain(Shift(), ("again", Shift()), name="inner"), Cut())
    assert [name for name, _ in chain.children()] == ["Shift", "first", "Shift.2", "Shift.3", "again", "Cut"]
    assert Chain(("color", Chain(Shift(), Shift()))).children()[1][0] == "color/Shift.2"


def test_adding_a_part_shifts_no_other_draws():
    short = Chain(("a", Shift()), ("b", Shift())).draw(table(), {})
    long = Chain(("new", Shift()), ("a", Shift()), ("other", Shift()), ("b", Shift())).draw(table(), {})
    assert torch.equal(short["a"]["by"], long["a"]["by"])
    assert torch.equal(short["b"]["by"], long["b"]["by"])
    assert len(torch.cat([part["by"] for part in long.values()]).unique()) == 20


def test_sizes_are_handed_on_to_the_next_draw():
    chain = Chain(("wide", Cut(size=5)), ("narrow", Cut(size=3)))
    meta = meta_of(images(), "image")
    assert meta["width"].tolist() == [6, 7, 8, 9, 10]
    params = chain.draw(table(), meta)
    assert int(params["narrow"]["left"].max()) <= 2
    assert chain.output_meta(meta, params)["width"].tolist() == [3] * 5


def test_the_ragged_prefix_runs_by_sample_and_the_rest_in_a_batch():
    chain, samples = Chain(Cut(), Shift()), images()
    params = chain.draw(table(), meta_of(samples, "image"))
    between = chain.apply_ragged(samples, params)
    assert isinstance(between, list)
    views = chain.apply_batched(collate(between), params)
    assert views.shape == (5, 1, 3, 4)
    for i, (sample, left, by) in enumerate(zip(samples, params["Cut"]["left"], params["Shift"]["by"], strict=True)):
        torch.testing.assert_close(views[i], sample[..., left : left + 4] + by.float())
    assert torch.equal(chain.apply(samples, params), views)
    assert torch.equal(chain(samples, table()), views)


def test_chains_obey_the_laws():
    for view in (Chain(Cut(), Shift()), Identity(), Chain(Identity(), Shift(), Shift())):
        check_view(view, torch.stack(images(same=True)))
    check_view(Chain(Cut(), Shift()), images())


def test_a_chain_in_place_makes_the_bits_that_its_parts_make_one_after_another():
    batch = torch.rand(70, 1, 200, 200)  # more than is taken at a time
    table = keys(seed=0, sample=range(70))
    over, anew = Chain(ShiftInPlace(), ShiftInPlace()), Chain(("ShiftInPlace", Shift()), ("ShiftInPlace", Shift()))
    before = batch.clone()
    assert torch.equal(over(batch, table), anew(batch, table))
    assert torch.equal(batch, before)
    check_view(over, batch[:4])


@pytest.mark.parametrize("shape", [(3, 5), (3, 1 << 20)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_room_is_ordinary_memory(shape, dtype):
    rooms = [empty_buffer(shape, dtype) for _ in range(3)]
    for number, room in enumerate(rooms):
        room.fill_(number)
    assert [(int(room.min()), int(room.max())) for room in rooms] == [(0, 0), (1, 1), (2, 2)]
    assert all(room.shape == shape and room.dtype == dtype and room.is_contiguous() for room in rooms)
    assert torch.equal(pickle.loads(pickle.dumps(rooms[2])), rooms[2])


def test_the_laws_catch_who_breaks_them():
    class Counts(Shift):
        drawn = 0

        def draw(self, keys, meta):
            type(self).drawn += 1
            return {"by": keys.uniform("by") + self.drawn}

    class LooksAtTheBatch(Shift):
        def apply(self, batch, params):
            return batch - batch.mean()

    class DrawsByPosition(Shift):
        def draw(self, keys, meta):
            return {"by": torch.arange(len(keys)).double()}

    class Global(Shift):
        def draw(self, keys, meta):
            torch.rand(1)
            return super().draw(keys, meta)

    class WritesToItsInput(Shift):
        def apply(self, batch, params):
            return batch.add_(1)

    class AnotherInPlace(ShiftInPlace):
        def apply_(self, batch, params):
            batch.add_(1)

    samples = torch.stack(images(same=True))
    for broken, law in (
        (AnotherInPlace(), "in place equals out of place"),
        (Counts(), "draw is a function"),
        (DrawsByPosition(), "draws do not depend on the batch"),
        (Global(), "no global randomness"),
        (LooksAtTheBatch(), "batch independence"),
        (WritesToItsInput(), "apply changes nothing|apply is a function"),
    ):
        with pytest.raises(LawBroken, match=law):
            check_view(broken, samples.clone())


def test_scope_decides_which_keys_are_seen():
    assert in_scope(table(), "batch").uniform("x").unique().numel() == 1
    assert in_scope(table(), "sample").uniform("x").unique().numel() == 5
    drawn = Chain(Sigma(), Shift()).draw(table(), {})
    assert drawn["Sigma"]["by"].unique().numel() == 1
    assert drawn["Shift"]["by"].unique().numel() == 5


def test_what_is_drawn_once_a_batch_stays_so_where_views_share_it():
    view = Chain(("sigma", SharedByViews(Sigma())))
    first, second = (view.draw(keys(seed=0, sample=range(5), view=0, step=step), {})["sigma"]["by"] for step in (1, 2))
    assert first.unique().numel() == second.unique().numel() == 1
    assert first[0] != second[0]


# --- plain functions and third parties ---


def noisy(x, generator):
    return x + torch.rand(x.shape, generator=generator)


def globally_noisy(x):
    return x + torch.rand(()) + np.random.rand() + random.random()  # noqa: NPY002


@pytest.mark.parametrize(
    "function", [noisy, globally_noisy, v2.RandomResizedCrop(8), v2.ColorJitter(0.5, 0.5, 0.5, 0.1)]
)
def test_a_function_of_one_sample_becomes_a_generator(function):
    view = FunctionView(function, modality="image")
    samples = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    check_view(view, samples)
    drawn = view(samples[:1].expand(4, 3, 8, 8), table(4))
    assert len({tuple(row.flatten().tolist()) for row in drawn}) == 4


def test_global_states_are_put_back_even_after_an_error():
    with unchanged_global_randomness("seeded", "seeding"), seeded(3):
        first = (torch.rand(1).item(), np.random.rand(), random.random())  # noqa: NPY002
    with seeded(3):
        assert first == (torch.rand(1).item(), np.random.rand(), random.random())  # noqa: NPY002

    def fails(x):
        torch.rand(1)
        raise ZeroDivisionError

    view = FunctionView(fails, modality="image")
    state = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError):
        view(torch.zeros(2, 3, 4, 4), table(2))
    assert torch.equal(torch.get_rng_state(), state)


# --- parameters as data ---

numbers = st.lists(st.floats(allow_nan=False), min_size=3, max_size=3).map(
    lambda v: torch.tensor(v, dtype=torch.float64)
)
flags = st.lists(st.booleans(), min_size=3, max_size=3).map(torch.tensor)
whole = st.lists(st.integers(-(2**63), 2**63 - 1), min_size=3, max_size=3).map(torch.tensor)
trees = st.recursive(
    numbers | flags | whole, lambda inner: st.dictionaries(st.text(max_size=4), inner, max_size=3), max_leaves=6
)


@given(st.dictionaries(st.text(max_size=4), trees, max_size=3))
@settings(max_examples=40, deadline=None)
def test_parameters_survive_json_bit_by_bit(params):
    def equal(a, b):
        if isinstance(a, torch.Tensor):
            return a.dtype == b.dtype and torch.equal(a, b)
        return set(a) == set(b) and all(equal(a[name], b[name]) for name in a)

    again = params_from_json(params_to_json(params))
    assert equal(params, again)
    check_params("tree", again, 3)


def test_rows_of_parameters():
    params = {"a": {"x": torch.arange(6).view(3, 2)}, "flip": torch.tensor([True, False, True])}
    assert describe_sample(params, 1) == {"a": {"x": [2, 3]}, "flip": False}
    assert select_samples(params, [2])["a"]["x"].tolist() == [[4, 5]]


def test_facts_are_read_from_headers_shapes_or_columns():
    class Handle:
        def __init__(self):
            self.facts = {"height": 3, "rate": 8000.0}

    assert meta_of([Handle(), Handle()], "image")["rate"].tolist() == [8000.0, 8000.0]
    assert {k: v.tolist() for k, v in meta_of(torch.zeros(2, 3, 4, 5), "image").items()} == {
        "channels": [3, 3],
        "height": [4, 4],
        "width": [5, 5],
    }
    assert meta_of({"signal": torch.zeros(2, 1, 9), "length": torch.tensor([9, 4])}, "audio")["length"].tolist() == [
        9,
        4,
    ]
    assert meta_of([], "image") == {}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: collate(images()),
            r"samples of one shape; got shapes \[\(1, 3, 6\)(.|\n)*image/random-resized-crop",
        ),
        (lambda: Chain(Shift(), Opened(), name="late"), r"Chain 'late'(.|\n)*\['Opened'\] after 'Shift'(.|\n)*front"),
        (
            lambda: check_params("v", {"a": torch.zeros(2)}, 3),
            r"params.a as a CPU tensor with leading axis 3; got \(2,\)",
        ),
        (lambda: check_params("v", {"a": {"b": 1.0}}, 3), "params.a.b .*got float"),
        (lambda: Sigma()(torch.zeros(2, 1, 2, 2), keys(sample=[1, 2])), "keys that know the global step"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_a_function_may_change_the_size_of_each_sample():
    def crop(image, generator):
        return image[:, : int(torch.randint(1, 9, (), generator=generator))]

    view = FunctionView(crop, modality="image")
    table = keys(seed=0, sample=torch.arange(6))
    images = torch.rand(6, 1, 8, 8)
    together = view(images, table)
    assert len({tuple(part.shape) for part in together}) > 1
    alone = [view(images[i : i + 1], table[i : i + 1])[0] for i in range(6)]
    for one, whole in zip(alone, together, strict=True):
        assert torch.equal(one, whole)


def test_options_may_be_called_name_or_kind():
    with pytest.raises(InputError, match="kind"):
        create_view("image/simclr", kind="color")
    with pytest.raises(InputError, match="name"):
        create_view("image/simclr", **{"name": "color"})
