"""Keyed draws: known answers, even spread, independence, and the same bits everywhere."""

import hashlib
import os
import subprocess
import sys

import pytest
import scipy.special
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset

from mmcon import portable_math
from mmcon import random as keyed_random
from mmcon.errors import InputError
from mmcon.random import FIELDS, Keys, keys, name_hash, stable_id, stable_ids

MASK, GOLDEN = 2**64 - 1, 0x9E3779B97F4A7C15
whole = st.integers(-(2**63), 2**63 - 1)
text = st.text(max_size=12)


# --- the same thing in Python's own integers ---


def mix(z):
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def absorb(state, word):
    return mix(((state ^ (word & MASK)) + GOLDEN) & MASK)


def hashed(name):
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def plain_bits(fields, path, name, count, dropped=()):
    state = hashed("mmcon")
    for field, value in zip(FIELDS, fields, strict=True):
        state = absorb(state, hashed(f"without {field}") if field in dropped else value)
    for child in (*path, name):
        state = absorb(state, hashed(child))
    return [mix((state + i * GOLDEN) & MASK) for i in range(1, count + 1)]


def unsigned(bits):
    return [int(b) & MASK for b in bits.flatten()]


def test_mixing_is_splitmix64():
    # The published outputs of SplitMix64 from the state 1234567.
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    states = torch.arange(1, 6) * keyed_random._GOLDEN + 1234567
    assert unsigned(keyed_random._mix64(states)) == known
    assert [mix((1234567 + i * GOLDEN) & MASK) for i in range(1, 6)] == known


def test_names_are_hashed_by_blake2b():
    # `printf crop | b2sum -l 64` prints 81fd9696215d20e7; read little-endian, signed.
    digest = bytes.fromhex("81fd9696215d20e7")
    assert name_hash("crop") == name_hash(b"crop") == int.from_bytes(digest, "little", signed=True)
    assert name_hash("crop") == -0x18DFA2DE6969027F
    assert stable_id("crop") == name_hash("crop")
    assert stable_id(42) == 42
    assert stable_ids(["a", 7, b"a"]).tolist() == [name_hash("a"), 7, name_hash("a")]


@given(st.tuples(whole, whole, whole, whole, whole), st.lists(text, max_size=3), text, st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_draws_equal_plain_integer_arithmetic(fields, path, name, count):
    table = keys(**dict(zip(FIELDS, fields, strict=True)))
    for child in path:
        table = table.child(child)
    assert unsigned(table.bits(name, count)) == plain_bits(fields, path, name, count)


@given(st.sets(st.sampled_from(FIELDS), min_size=1))
@settings(max_examples=20, deadline=None)
def test_a_dropped_field_absorbs_a_tag(dropped):
    table = keys(seed=1, epoch=2, sample=3, occurrence=4, view=5).drop(*dropped).child("a")
    assert unsigned(table.bits("b", 3)) == plain_bits((1, 2, 3, 4, 5), ["a"], "b", 3, dropped)


def test_draws_have_not_changed():
    """A changed value here is a breaking change: it goes under "Changes draws" in the changelog."""
    k = keys(seed=1, epoch=2, sample=[3, -4], view=5, occurrence=6, step=7).child("crop")
    assert k.bits("bits").tolist() == KNOWN["bits"]
    assert k.uniform("area", 0.08, 1.0).tolist() == KNOWN["uniform"]
    assert k.normal("noise", 1.0, 2.0).tolist() == KNOWN["normal"]
    assert k.log_uniform("ratio", 0.75, 4 / 3).tolist() == KNOWN["log_uniform"]
    assert k.integers("top", 0, 100, shape=(2,)).tolist() == KNOWN["integers"]
    assert k.bernoulli("flip", 0.5, shape=(4,)).tolist() == KNOWN["bernoulli"]
    assert k.choice("op", [1.0, 2.0, 3.0], shape=(4,)).tolist() == KNOWN["choice"]
    assert k.permutation("order", 5).tolist() == KNOWN["permutation"]
    assert k.for_batch().bits("sigma").tolist() == KNOWN["for_batch"]


KNOWN = {
    "bits": [4142016544999557375, 4338605255831084210],
    "uniform": [0.6432079738326864, 0.2968653722854789],
    "normal": [2.079648553900742, 1.4322517282815181],
    "log_uniform": [0.8519054703945764, 1.3098123706962697],
    "integers": [[76, 28], [19, 98]],
    "bernoulli": [[True, False, True, False], [False, False, True, False]],
    "choice": [[2, 2, 1, 1], [2, 1, 0, 2]],
    "permutation": [[0, 3, 4, 2, 1], [3, 1, 0, 2, 4]],
    "for_batch": [9219047801893924946, 9219047801893924946],
}


# --- functions without a library's logarithm ---


def test_logarithm_and_exponential_are_accurate():
    x = torch.cat([torch.logspace(-300, 300, 20001, dtype=torch.float64), torch.linspace(0.5, 2, 20001).double()])
    exact = torch.from_numpy(scipy.special.xlogy(1.0, x.numpy()))
    near_one = exact.abs() < 0.5
    assert ((portable_math.log(x) - exact).abs() / exact.abs().clamp(min=1e-3)).max() < 1e-14
    assert (portable_math.log(x) - exact)[near_one].abs().max() < 2e-16
    y = torch.linspace(-700, 700, 40001, dtype=torch.float64)
    assert (portable_math.exp(y) / torch.exp(y) - 1).abs().max() < 1e-13
    assert portable_math.exp(torch.zeros(1, dtype=torch.float64)).item() == 1
    assert portable_math.log(torch.ones(1, dtype=torch.float64)).item() == 0


def test_the_largest_bits_give_a_finite_normal(monkeypatch):
    for bits in (-1, 0):  # all bits set, and none
        monkeypatch.setattr(keyed_random.Keys, "bits", lambda self, *_, b=bits: torch.full((4,), b, dtype=torch.int64))
        drawn = keys(seed=0, sample=torch.arange(4)).normal("z")
        assert bool(drawn.isfinite().all())
        assert bool((drawn.abs() > 8).all())


def test_normal_quantile_is_scipys():
    p = torch.cat(
        [torch.logspace(-300, -0.31, 20001, dtype=torch.float64), torch.linspace(1e-9, 1, 20001)[:-1].double()]
    )
    exact = torch.from_numpy(scipy.special.ndtri(p.numpy()))
    torch.testing.assert_close(portable_math.normal_quantile(p), exact, rtol=1e-13, atol=1e-14)
    assert portable_math.normal_quantile(torch.tensor([0.5], dtype=torch.float64)).item() == 0
    smallest = torch.tensor([2.0**-54], dtype=torch.float64)
    assert portable_math.normal_quantile(smallest).item() == pytest.approx(scipy.special.ndtri(2.0**-54), rel=1e-13)


# --- spread ---

N = 50_000


@pytest.mark.parametrize("field", FIELDS)
def test_neighbouring_keys_draw_evenly(field):
    """Counting through any one field gives uniforms: a chi-square over 256 bins, and Kolmogorov and Smirnov's test."""
    u = keys(**{field: range(N)}).uniform("x").numpy()
    counts = torch.bincount(torch.from_numpy((u * 256).astype("int64")), minlength=256)
    assert len(counts) == 256
    assert scipy.stats.chisquare(counts.numpy()).pvalue > 1e-3
    assert scipy.stats.kstest(u, "uniform").pvalue > 1e-3


def test_distributions_are_those_asked_for():
    k = keys(sample=range(N))
    assert scipy.stats.kstest(k.normal("z", 3.0, 2.0).numpy(), "norm", args=(3, 2)).pvalue > 1e-3
    ratio = k.log_uniform("ratio", 0.25, 4.0)
    assert 0.25 <= ratio.min() < ratio.max() <= 4.0
    assert scipy.stats.kstest(torch.log2(ratio).numpy(), "uniform", args=(-2, 4)).pvalue > 1e-3
    dice = torch.bincount(k.integers("dice", 1, 7))
    assert dice[0] == 0
    assert scipy.stats.chisquare(dice[1:].numpy()).pvalue > 1e-3
    ops = torch.bincount(k.choice("op", [1, 0, 2, 5]), minlength=4)
    assert ops[1] == 0
    assert scipy.stats.chisquare(ops[[0, 2, 3]].numpy(), N * torch.tensor([1, 2, 5]).numpy() / 8).pvalue > 1e-3
    assert k.bernoulli("coin", 0.3).double().mean() == pytest.approx(0.3, abs=4 * (0.21 / N) ** 0.5)


def test_permutations_are_even():
    """All 24 orders of four come equally often."""
    orders = keys(sample=range(24_000)).permutation("order", 4)
    assert torch.equal(orders.sort(1).values, torch.arange(4).expand(24_000, 4))
    codes = (orders * torch.tensor([64, 16, 4, 1])).sum(1).unique(return_counts=True)[1]
    assert len(codes) == 24
    assert scipy.stats.chisquare(codes.numpy()).pvalue > 1e-3


# --- independence ---


def correlated(a, b):
    """How far the correlation lies from 0, in standard errors."""
    return abs(torch.corrcoef(torch.stack([a, b]))[0, 1].item()) * len(a) ** 0.5


NEIGHBOURS = {
    **{f"next {field}": (lambda k, f=field: (k, keys_with(k, f, 1))) for field in FIELDS},
    "another child": lambda k: (k.child("flip"), k.child("flip.2")),
    "child and grandchild": lambda k: (k.child("flip"), k.child("flip").child("flip")),
    "child order": lambda k: (k.child("a").child("b"), k.child("b").child("a")),
    "a dropped field": lambda k: (k, k.drop("view")),
    "the batch's": lambda k: (k[:1].for_batch(), Keys(k.fields[:1], step=1).for_batch()),
}


def keys_with(k, field, shift):
    fields = k.fields.clone()
    fields[:, FIELDS.index(field)] += shift
    return Keys(fields, step=k.step)


@pytest.mark.parametrize("pair", NEIGHBOURS)
def test_neighbours_are_independent(pair):
    a, b = NEIGHBOURS[pair](keys(seed=5, sample=range(N), view=1, step=0))
    shape = () if len(a) > 1 else (N,)
    u, v = (k.uniform("x", shape=shape).flatten() for k in (a, b))
    for f in (lambda x: x, lambda x: (x - 0.5).abs(), lambda x: (x * 16) % 1):
        assert correlated(f(u), f(v)) < 4
    # Jointly: the pairs fill an 8 × 8 grid evenly.
    cells = torch.bincount((u * 8).long() * 8 + (v * 8).long(), minlength=64)
    assert scipy.stats.chisquare(cells.numpy()).pvalue > 1e-3


def test_draws_of_one_key_are_independent():
    u = keys(sample=range(N)).uniform("x", shape=(4,))
    for i, j in ((0, 1), (1, 2), (0, 3)):
        assert correlated(u[:, i], u[:, j]) < 4
    named = keys(sample=range(N))
    assert correlated(named.uniform("x"), named.uniform("y")) < 4
    long = keys(seed=3).uniform("x", shape=(N,))[0]
    for lag in (1, 2, 7, 64):
        assert correlated(long[:-lag], long[lag:]) < 4


@pytest.mark.parametrize("field", FIELDS)
def test_one_bit_of_a_field_flips_half_of_the_bits(field):
    base = keys(seed=9, epoch=1, sample=range(1000), view=1)
    ones = torch.arange(64)
    for bit in (0, 1, 7, 31, 62):
        other = base.fields.clone()
        other[:, FIELDS.index(field)] ^= 1 << bit
        changed = base.bits("x") ^ Keys(other).bits("x")
        flips = ((changed[:, None] >> ones) & 1).double().mean(0)
        # 1000 trials a bit: 5 standard errors of .0158 each; all 64 bits together 5 of .002.
        assert (flips - 0.5).abs().max() < 0.08
        assert abs(flips.mean().item() - 0.5) < 0.01


def test_swapped_fields_do_not_collide():
    """Added fields would collide 9 times in 10 here: 10^5 keys, and as many different words."""
    grid = torch.cartesian_prod(*[torch.arange(10)] * 5)
    words = Keys(grid).bits("x")
    assert len(words.unique()) == len(grid)
    assert len(torch.cat([words, keys(sample=range(10)).child("x").bits("x")]).unique()) == len(grid) + 10


# --- the same bits everywhere ---


def everything(table: Keys) -> torch.Tensor:
    """Every kind of draw, `n k` as raw words."""
    k = table.child("crop")
    floats = [k.uniform("u", 0.1, 3.0, shape=(3,)), k.normal("n", shape=(5,)), k.log_uniform("l", 0.2, 7.0, shape=(3,))]
    words = [k.bits("b", 2), k.integers("i", 0, 1000, shape=(3,)), k.choice("c", [0.1, 0.2, 0.7], shape=(3,))]
    flags = [k.bernoulli("p", 0.3, shape=(3,)).long(), k.permutation("o", 6)]
    return torch.cat([*(f.view(torch.int64) for f in floats), *words, *flags], dim=1)


def table_of(n=37):
    return keys(seed=1, epoch=2, sample=stable_ids(f"image {i}" for i in range(n)), view=torch.arange(n) % 3, step=4)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12))
@settings(max_examples=15, deadline=None)
def test_draws_do_not_depend_on_the_split(sizes):
    table = table_of()
    at, parts = 0, []
    while at < len(table):
        size = sizes[len(parts) % len(sizes)]
        parts.append(everything(table[at : at + size]))
        at += size
    assert torch.equal(torch.cat(parts), everything(table))


def test_ragged_draws_are_the_first_words_of_even_ones():
    table, counts = table_of(5), torch.tensor([3, 0, 1, 7, 2])
    even = table.bits("x", 7)
    assert torch.equal(table.ragged_bits("x", counts), torch.cat([even[i, :c] for i, c in enumerate(counts.tolist())]))


def test_rows_keep_their_draws_when_picked_in_any_way():
    table, whole_table = table_of(), everything(table_of())
    assert torch.equal(everything(table[5]), whole_table[5:6])
    assert torch.equal(everything(table[-1]), whole_table[-1:])
    assert torch.equal(everything(table[[7, 0, 7]]), whole_table[[7, 0, 7]])
    assert torch.equal(everything(table[torch.arange(37) % 2 == 0]), whole_table[::2])


class Draws(Dataset):
    def __len__(self):
        return 37

    def __getitem__(self, i):
        return everything(table_of()[i])[0]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_draws_do_not_depend_on_workers(workers):
    got = torch.cat(list(DataLoader(Draws(), batch_size=5, num_workers=workers)))
    assert torch.equal(got, everything(table_of()))


@pytest.mark.slow
@pytest.mark.parametrize("environment", [{"OMP_NUM_THREADS": "1", "ATEN_CPU_CAPABILITY": "default"}, {}])
def test_draws_do_not_depend_on_the_process_nor_its_vector_width(environment):
    program = (
        "import sys, hashlib; sys.path.insert(0, sys.argv[1])\n"
        "from test_random import everything, table_of\n"
        "print(hashlib.sha256(everything(table_of(997)).numpy().tobytes()).hexdigest())"
    )
    here = os.path.dirname(__file__)
    run = subprocess.run(
        [sys.executable, "-c", program, here], env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == hashlib.sha256(everything(table_of(997)).numpy().tobytes()).hexdigest()


def test_draws_touch_no_global_state():
    before = torch.get_rng_state()
    everything(table_of())
    assert torch.equal(torch.get_rng_state(), before)


# --- keys as things ---


@pytest.mark.parametrize(
    "make",
    [
        lambda: keys(seed=1, epoch=2, sample=3, occurrence=4, view=5),
        lambda: keys(seed=-1, sample=-(2**63)).child("it's").child("crop.2"),
        lambda: keys(seed=1, sample=2, view=3).drop("view", "epoch").child("a"),
        lambda: keys(seed=1, sample=2, step=9).child("a"),
        lambda: keys(seed=1, sample=2, step=9).child("a").for_batch().child("b"),
        lambda: keys(seed=1, sample=2, step=9).drop("view").for_batch(),
    ],
)
def test_description_makes_the_same_key(make):
    key = make()
    again = eval(key.describe(), {"keys": keys})
    assert again.describe() == key.describe()
    assert torch.equal(everything(again), everything(key))


def test_a_table_shows_its_first_rows():
    shown = repr(keys(sample=range(5)))
    assert shown.startswith("Keys(n=5: keys(seed=0, epoch=0, sample=0,")
    assert "sample=2" in shown
    assert "sample=3" not in shown


def test_dropped_fields_are_shared():
    table = keys(seed=1, sample=[1, 1, 2], view=[0, 1, 0])
    clip = table.drop("view").uniform("x")
    assert clip[0] == clip[1] != clip[2]
    assert table.drop("view", "sample").drop("view").uniform("x").unique().numel() == 1
    assert torch.equal(table.drop("view").drop("epoch").bits("x"), table.drop("epoch", "view").bits("x"))


def test_batch_keys_follow_seed_and_step_alone():
    a = keys(seed=1, epoch=3, sample=[1, 2], view=[0, 1], step=10).child("blur").for_batch()
    b = keys(seed=1, epoch=4, sample=[8, 9], step=10).child("blur").for_batch()
    assert a.uniform("sigma").unique().numel() == 1
    assert torch.equal(a.uniform("sigma"), b.uniform("sigma"))
    for other in (keys(seed=2, sample=1, step=10), keys(seed=1, sample=1, step=11)):
        assert other.child("blur").for_batch().uniform("sigma")[0] != a.uniform("sigma")[0]


def test_single_numbers_are_repeated():
    table = keys(seed=1, sample=[4, 5, 6], view=torch.tensor([0, 1, 0], dtype=torch.int8))
    assert table.fields.tolist() == [[1, 0, 4, 0, 0], [1, 0, 5, 0, 1], [1, 0, 6, 0, 0]]
    assert len(keys(seed=1)) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: keys(seed=torch.tensor(1.5)), r"seed as a whole number .*; got torch.float32"),
        (lambda: keys(view=torch.tensor(True)), "view as a whole number"),
        (lambda: keys(sample=torch.tensor([[1]])), r"got torch.int64 of shape \(1, 1\)"),
        (lambda: keys(sample=[1, 2], view=[1, 2, 3]), r"one length .*'sample': 2, 'view': 3"),
        (lambda: keys().drop("rank"), r"fields among .*; got \['rank'\]"),
        (lambda: keys().child("a").drop("view"), "drop fields before naming children"),
        (lambda: keys().for_batch(), r"step=None.*\n.*step=global_step"),
        (lambda: keys().integers("x", 3, 3), r"low < high; got low=3, high=3.*\n.*Key: keys\(seed=0"),
        (lambda: keys().choice("x", []), "weights >= 0 with a positive sum"),
        (lambda: keys().choice("x", [1, -1]), r"got \[1, -1\]"),
        (lambda: keys().log_uniform("x", 0.0, 1.0), "0 < low <= high"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()
