# pyright: reportArgumentType=false, reportReturnType=false
"""The kernels of `triton`, a module that is imported only where they run.

All kernels compute s = ⟨a_i, c_j⟩ · log2(e) / T tile by tile: rows enter the products as they are, the scale multiplies
in float32, and all exponentials and logarithms have base 2, which is what the hardware computes. Rows are padded with
zeros to whole blocks (`padded_rows`), so that loads need no mask. The blocks of a tile are chosen by measurement at the
first call (`triton.autotune`); other numbers of rows do not compile again. `no_type_check` keeps the import hook of
jaxtyping from wrapping kernels.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int, Shaped
from torch import Tensor

#: Rows are padded to a multiple of this, the largest block.
BLOCK = 256
LOG2_E = math.log2(math.e)


def _configurations(*sizes: tuple[int, int, int, int, int | None]) -> list[triton.Config]:
    """Blocks of rows and of columns, warps, stages of loads, and registers a thread; the first in the interpreter."""
    configurations = [
        triton.Config({"BLOCK_M": rows, "BLOCK_N": columns}, num_warps=warps, num_stages=stages, maxnreg=registers)
        for rows, columns, warps, stages, registers in sizes
    ]
    return configurations[:1] if os.environ.get("TRITON_INTERPRET") == "1" else configurations


# The first are the fastest on an H200 at a width of 128, the last fit rows of width 512. Two or three blocks fit on a
# multiprocessor of a Hopper GPU: while one multiplies, another computes exponentials.
PAIR_BLOCKS = _configurations((256, 64, 4, 2, None), (128, 64, 4, 2, None), (64, 32, 8, 2, None))
SUM_BLOCKS = _configurations((128, 64, 4, 3, None), (64, 32, 8, 2, None))
ROW_BLOCKS = _configurations((64, 128, 4, 2, None), (64, 32, 8, 2, None))


@triton.autotune(PAIR_BLOCKS, ["WIDTH"], reset_to_zero=["out"])
@triton.jit
@no_type_check
def _pair_sums(
    z, scale, out, n, span,
    WIDTH: tl.constexpr, EVEN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    axis = tl.arange(0, WIDTH)
    x = tl.load(z + rows[:, None].to(tl.int64) * WIDTH + axis[None, :])
    k = tl.load(scale)
    total = tl.zeros((BLOCK_M,), tl.float32)
    # Columns begin at the diagonal: each pair is visited once, and its exponential is added to both of its rows.
    begin = tl.program_id(0) * BLOCK_M + tl.program_id(1) * span
    for start in range(begin, tl.minimum(begin + span, n), BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        y = tl.load(z + columns[:, None].to(tl.int64) * WIDTH + axis[None, :])
        p = tl.exp2(tl.dot(x, tl.trans(y), input_precision="ieee") * k)
        if start < tl.program_id(0) * BLOCK_M + BLOCK_M:
            p = tl.where(rows[:, None] == columns[None, :], 0.0, p)
        if not EVEN:
            p = tl.where((rows[:, None] < n) & (columns[None, :] < n), p, 0.0)
        total += tl.sum(p, 1)
        # Tiles on the diagonal have both directions of their pairs.
        beyond = columns >= tl.program_id(0) * BLOCK_M + BLOCK_M
        tl.atomic_add(out + columns, tl.sum(p, 0), mask=beyond, sem="relaxed")
    tl.atomic_add(out + rows, total, sem="relaxed")


@triton.jit
@no_type_check
def _add_exponentials(highest, total, s):
    """Add 2^s to running sums in a row, which are total · 2^highest."""
    top = tl.maximum(highest, tl.max(s, 1))
    # An empty row has the maximum -inf; 0 is used instead, since inf - inf is NaN.
    base = tl.where(top == -float("inf"), 0.0, top)
    return top, total * tl.exp2(highest - base) + tl.sum(tl.exp2(s - base[:, None]), 1)


@triton.autotune(SUM_BLOCKS, ["WIDTH", "LABELS"])
@triton.jit
@no_type_check
def _log_sums(
    a, c, a_labels, c_labels, self_column, scale, out, m, padded, span,
    WIDTH: tl.constexpr, LABELS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    axis = tl.arange(0, WIDTH)
    x = tl.load(a + rows[:, None].to(tl.int64) * WIDTH + axis[None, :])
    own = tl.load(self_column + rows)
    k = tl.load(scale)
    label = tl.load(a_labels + rows)
    highest = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    positive_highest = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    positive_total = tl.zeros((BLOCK_M,), tl.float32)
    begin = tl.program_id(1) * span
    for start in range(begin, tl.minimum(begin + span, m), BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        y = tl.load(c + columns[:, None].to(tl.int64) * WIDTH + axis[None, :])
        s = tl.dot(x, tl.trans(y), input_precision="ieee") * k
        s = tl.where((columns[None, :] < m) & (columns[None, :] != own[:, None]), s, -float("inf"))
        if LABELS:
            same = label[:, None] == tl.load(c_labels + columns)[None, :]
            positives = tl.where(same, s, -float("inf"))
            positive_highest, positive_total = _add_exponentials(positive_highest, positive_total, positives)
            s = tl.where(same, -float("inf"), s)
        highest, total = _add_exponentials(highest, total, s)
    at = out + tl.program_id(1).to(tl.int64) * padded + rows
    tl.store(at, highest + tl.log2(total))
    if LABELS:
        tl.store(at + tl.num_programs(1).to(tl.int64) * padded, positive_highest + tl.log2(positive_total))


@triton.autotune(SUM_BLOCKS, ["WIDTH"])
@triton.jit
@no_type_check
def _positive_sums(
    a, c, a_labels, c_labels, self_column, log_sums, scale, out, m, padded, span,
    WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    axis = tl.arange(0, WIDTH)
    x = tl.load(a + rows[:, None].to(tl.int64) * WIDTH + axis[None, :])
    own = tl.load(self_column + rows)
    k = tl.load(scale)
    label = tl.load(a_labels + rows)
    log_sum = tl.load(log_sums + rows)
    losses = tl.zeros((BLOCK_M,), tl.float32)
    shares = tl.zeros((BLOCK_M,), tl.float32)
    begin = tl.program_id(1) * span
    for start in range(begin, tl.minimum(begin + span, m), BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        y = tl.load(c + columns[:, None].to(tl.int64) * WIDTH + axis[None, :])
        gap = log_sum[:, None] - tl.dot(x, tl.trans(y), input_precision="ieee") * k
        positive = label[:, None] == tl.load(c_labels + columns)[None, :]
        positive = positive & (columns[None, :] < m) & (columns[None, :] != own[:, None])
        # log2(1 + 2^gap) and 1 / (1 + 2^-gap), without an exponential that overflows.
        small = tl.exp2(-tl.abs(gap))
        loss = tl.maximum(gap, 0.0) + tl.log2(1.0 + small)
        losses += tl.sum(tl.where(positive, loss, 0.0), 1)
        shares += tl.sum(tl.where(positive, tl.where(gap > 0, 1.0, small) / (1.0 + small), 0.0), 1)
    at = out + tl.program_id(1).to(tl.int64) * padded + rows
    tl.store(at, losses)
    tl.store(at + tl.num_programs(1).to(tl.int64) * padded, shares)


@triton.jit
@no_type_check
def _of_similarities(
    s, same, weight, log_sum, positive_weight, positive_log_sum,
    NEGATIVES: tl.constexpr, IN: tl.constexpr, ONE: tl.constexpr,
):  # fmt: skip
    """The gradient of s, without terms that are constant in s, from the four numbers of each anchor."""
    g = weight * tl.exp2(s - log_sum)
    if NEGATIVES:
        g = tl.where(same, 0.0, g)
    if IN:
        g -= tl.where(same, positive_weight * tl.exp2(s - positive_log_sum), 0.0)
    if ONE:
        g -= tl.where(same, positive_weight / (1.0 + tl.exp2(s - log_sum)), 0.0)
    return g


@triton.autotune(ROW_BLOCKS, ["WIDTH", "OF_ROWS", "OF_COLUMNS", "SHARED", "LABELS"])
@triton.jit
@no_type_check
def _weighted_rows(
    a, c, a_labels, c_labels, self_index, a_numbers, c_numbers, scale, out, m, a_padded, c_padded, span,
    WIDTH: tl.constexpr, OF_ROWS: tl.constexpr, OF_COLUMNS: tl.constexpr, SHARED: tl.constexpr, LABELS: tl.constexpr,
    NEGATIVES: tl.constexpr, IN: tl.constexpr, ONE: tl.constexpr, EVEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    axis = tl.arange(0, WIDTH)
    x = tl.load(a + rows[:, None].to(tl.int64) * WIDTH + axis[None, :])
    k = tl.load(scale)
    weight = tl.load(a_numbers + rows)[:, None]
    product = tl.zeros((BLOCK_M, WIDTH), tl.float32)
    begin = tl.program_id(1) * span
    for start in range(begin, tl.minimum(begin + span, m), BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        y = tl.load(c + columns[:, None].to(tl.int64) * WIDTH + axis[None, :])
        s = tl.dot(x, tl.trans(y), input_precision="ieee") * k
        if SHARED:
            # Weights contain 2^-log_sum, so that both directions of a pair share one exponential.
            g = tl.exp2(s) * (weight + tl.load(c_numbers + columns)[None, :])
        else:
            g = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
            same = columns[None, :] < 0
            if LABELS:
                same = tl.load(a_labels + rows)[:, None] == tl.load(c_labels + columns)[None, :]
            if OF_ROWS:
                log_sum = tl.load(a_numbers + a_padded + rows)[:, None]
                b = tl.load(a_numbers + 2 * a_padded + rows)[:, None]
                p = tl.load(a_numbers + 3 * a_padded + rows)[:, None]
                g += _of_similarities(s, same, weight, log_sum, b, p, NEGATIVES, IN, ONE)
            if OF_COLUMNS:
                c_weight = tl.load(c_numbers + columns)[None, :]
                log_sum = tl.load(c_numbers + c_padded + columns)[None, :]
                b = tl.load(c_numbers + 2 * c_padded + columns)[None, :]
                p = tl.load(c_numbers + 3 * c_padded + columns)[None, :]
                g += _of_similarities(s, same, c_weight, log_sum, b, p, NEGATIVES, IN, ONE)
        if OF_ROWS and OF_COLUMNS:
            first = tl.program_id(0) * BLOCK_M
            if (start < first + BLOCK_M) & (start + BLOCK_N > first):
                g = tl.where(rows[:, None] == columns[None, :], 0.0, g)
        elif OF_ROWS:
            g = tl.where(columns[None, :] == tl.load(self_index + rows)[:, None], 0.0, g)
        else:
            g = tl.where(rows[:, None] == tl.load(self_index + columns)[None, :], 0.0, g)
        if not EVEN:
            g = tl.where(columns[None, :] < m, g, 0.0)
        product = tl.dot(g.to(y.dtype), y, product, input_precision="ieee")
    at = tl.program_id(1).to(tl.int64) * a_padded + rows
    tl.store(out + at[:, None] * WIDTH + axis[None, :], product)


@dataclass(frozen=True)
class Operand:
    """Rows of a product, padded with zeros to whole blocks and to a width that is a power of two.

    Attributes:
        rows: in the precision of the products.
        count: the rows without padding.
        labels: classes; the padding of anchors and candidates has no class in common.
    """

    rows: Shaped[Tensor, "padded width"]
    count: int
    labels: Int[Tensor, " padded"]

    @staticmethod
    def of(rows: Float[Tensor, "n d"], labels: Int[Tensor, " n"], operands: torch.dtype, absent: int) -> Operand:
        """The operand of rows of at most unit length; the padding has the class `absent`."""
        n, d = rows.shape
        width = max(16, triton.next_power_of_2(d))  # 16 is the least that `tl.dot` takes
        padding, values = (0, width - d, 0, -n % BLOCK), rows.to(operands)
        padded = torch.nn.functional.pad(values, padding) if any(padding) else values.contiguous()
        return Operand(padded, n, pad(labels.int(), absent))

    @property
    def shape(self) -> tuple[int, int]:
        """The rows and the width, with padding."""
        return self.rows.shape[0], self.rows.shape[1]


def pad(values: Shaped[Tensor, "... n"], fill: int | float) -> Shaped[Tensor, "... padded"]:
    """Values of rows, padded to whole blocks."""
    missing = -values.shape[-1] % BLOCK
    return torch.nn.functional.pad(values, (0, missing), value=fill) if missing else values.contiguous()


def pair_sums(z: Operand, scale: Float[Tensor, ""]) -> Float[Tensor, " n"]:
    """Σ_{k≠i} 2^{s_ik} of every row; the caller knows that no exponential or sum overflows."""
    (padded, width), blocks = z.shape, z.shape[0] // BLOCK
    out = z.rows.new_zeros(padded, dtype=torch.float32)
    # At least a thousand programs, so that the triangle fills the device to its end.
    span = BLOCK * min(16, max(1, blocks * blocks // 1024))
    _pair_sums[lambda meta: (padded // meta["BLOCK_M"], triton.cdiv(padded, span))](
        z.rows, scale, out, z.count, span, WIDTH=width, EVEN=z.count % BLOCK == 0
    )
    return out[: z.count]


def log_sums(
    a: Operand, c: Operand, self_index: Int[Tensor, " padded"], scale: Float[Tensor, ""], *, labels: bool
) -> tuple[Float[Tensor, " a"], Float[Tensor, " a"]]:
    """Log Σ_k 2^{s_ik} of every anchor without its own column: of all candidates, or of negatives and of positives."""
    padded, width = a.shape
    chunks, span = _chunks(padded, c.count, a.rows.device)
    out = a.rows.new_full((2, chunks, padded), -math.inf, dtype=torch.float32)
    _log_sums[lambda meta: (padded // meta["BLOCK_M"], chunks)](
        a.rows, c.rows, a.labels, c.labels, self_index, scale, out, c.count, padded, span, WIDTH=width, LABELS=labels
    )
    first, second = (out[..., : a.count] / LOG2_E).logsumexp(1)
    return first, second


def positive_sums(
    a: Operand,
    c: Operand,
    self_index: Int[Tensor, " padded"],
    log_negatives: Float[Tensor, " a"],
    scale: Float[Tensor, ""],
) -> tuple[Float[Tensor, " a"], Float[Tensor, " a"]]:
    """Σ_P log(1 + N_i / e^{s_ij}) of every anchor, and its derivative by log N_i."""
    padded, width = a.shape
    chunks, span = _chunks(padded, c.count, a.rows.device)
    out = a.rows.new_zeros(2, chunks, padded, dtype=torch.float32)
    _positive_sums[lambda meta: (padded // meta["BLOCK_M"], chunks)](
        a.rows, c.rows, a.labels, c.labels, self_index, pad(log_negatives * LOG2_E, -math.inf), scale,
        out, c.count, padded, span, WIDTH=width,
    )  # fmt: skip
    losses, shares = out[..., : a.count].sum(1)
    return losses / LOG2_E, shares


def weighted_rows(
    a: Operand,
    c: Operand,
    self_index: Int[Tensor, " n"],
    numbers: tuple[Float[Tensor, "k a_padded"] | None, Float[Tensor, "k c_padded"] | None],
    scale: Float[Tensor, ""],
    *,
    shared: bool,
    negatives: bool,
    form_in: bool,
    one: bool,
) -> Float[Tensor, "a width"]:
    """Σ_j G_ij c_j of every row.

    Args:
        a: the rows of the result.
        c: the rows that are summed.
        self_index: of the anchors.
        numbers: of rows and of columns where these are anchors: the weights of all terms and their log-sums, then
            those of positives; of rows alone, if both are the same anchors and `shared`.
        scale: from products to similarities.
        shared: weights contain the log-sums.
        negatives: the first term is one of negatives only.
        form_in: positives have a softmax of their own.
        one: positives have a sigmoid.
    """
    (padded, width), (of_rows, of_columns) = a.shape, numbers
    chunks, span = _chunks(padded, c.count, a.rows.device)
    out = a.rows.new_empty(chunks, padded, width, dtype=torch.float32)
    some = of_rows if of_columns is None else of_columns
    assert some is not None
    _weighted_rows[lambda meta: (padded // meta["BLOCK_M"], chunks)](
        a.rows, c.rows, a.labels, c.labels, self_index,
        some if of_rows is None else of_rows, some, scale, out, c.count, padded, c.shape[0], span,
        WIDTH=width, OF_ROWS=of_rows is not None, OF_COLUMNS=of_columns is not None, SHARED=shared,
        LABELS=negatives or form_in or one, NEGATIVES=negatives, IN=form_in, ONE=one, EVEN=c.count % BLOCK == 0,
    )  # fmt: skip
    return (out[0] if chunks == 1 else out.sum(0))[: a.count]


def _chunks(padded: int, columns: int, device: torch.device) -> tuple[int, int]:
    """Chunks of columns, and columns in each: several where blocks of rows alone do not fill the device."""
    # Two blocks of 64 rows on each multiprocessor.
    rows = 128 * torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else BLOCK
    wanted = max(1, min(rows // padded, triton.cdiv(columns, BLOCK)))
    span = triton.cdiv(triton.cdiv(columns, BLOCK), wanted) * BLOCK
    return triton.cdiv(columns, span), span
