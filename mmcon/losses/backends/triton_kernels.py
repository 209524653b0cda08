# pyright: reportArgumentType=false, reportReturnType=false
"""The kernels of `triton`, a module that is imported only where they run.

The number of column blocks is a compile-time constant, so that another batch size compiles once more: Triton 3.6's
interpreter with NumPy 2 cannot iterate up to a bound that is known only at run time.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

BLOCK = 64


@triton.jit
def _log_sum_exp(
    a, c, self_index, out, n, m, width,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    axis = tl.arange(0, WIDTH)
    row_mask = (rows[:, None] < n) & (axis[None, :] < width)
    z = tl.load(a + rows[:, None] * width + axis[None, :], mask=row_mask, other=0.0)
    self_column = tl.load(self_index + rows, mask=rows < n, other=-1)
    highest = tl.full((BLOCK,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for block in range(0, BLOCKS):
        columns = block * BLOCK + tl.arange(0, BLOCK)
        column_mask = (columns[:, None] < m) & (axis[None, :] < width)
        y = tl.load(c + columns[:, None] * width + axis[None, :], mask=column_mask, other=0.0)
        # Triton multiplies float32 operands in TF32 by default, with 10 bits of mantissa.
        s = tl.dot(z, tl.trans(y), input_precision="ieee") if EXACT else tl.dot(z, tl.trans(y))
        s = tl.where((columns[None, :] < m) & (columns[None, :] != self_column[:, None]), s, -float("inf"))
        top = tl.maximum(highest, tl.max(s, 1))
        # An empty row has the maximum -inf; 0 is used instead, since inf - inf is NaN.
        base = tl.where(top == -float("inf"), 0.0, top)
        total = total * tl.exp(highest - base) + tl.sum(tl.exp(s - base[:, None]), 1)
        highest = top
    tl.store(out + rows, highest + tl.log(total), mask=rows < n)


@triton.jit
def _weighted_rows(
    a, c, self_index, row_weights, row_log_sums, column_weights, column_log_sums, out, n, m, width,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    axis = tl.arange(0, WIDTH)
    row_mask = (rows[:, None] < n) & (axis[None, :] < width)
    z = tl.load(a + rows[:, None] * width + axis[None, :], mask=row_mask, other=0.0)
    self_column = tl.load(self_index + rows, mask=rows < n, other=-1)
    row_weight = tl.load(row_weights + rows, mask=rows < n, other=0.0)
    row_log_sum = tl.load(row_log_sums + rows, mask=rows < n, other=float("inf"))
    product = tl.zeros((BLOCK, WIDTH), tl.float32)
    for block in range(0, BLOCKS):
        columns = block * BLOCK + tl.arange(0, BLOCK)
        column_mask = (columns[:, None] < m) & (axis[None, :] < width)
        y = tl.load(c + columns[:, None] * width + axis[None, :], mask=column_mask, other=0.0)
        column_weight = tl.load(column_weights + columns, mask=columns < m, other=0.0)
        column_log_sum = tl.load(column_log_sums + columns, mask=columns < m, other=float("inf"))
        s = tl.dot(z, tl.trans(y), input_precision="ieee") if EXACT else tl.dot(z, tl.trans(y))
        g = row_weight[:, None] * tl.exp(s - row_log_sum[:, None])
        g += column_weight[None, :] * tl.exp(s - column_log_sum[None, :])
        g = tl.where((columns[None, :] < m) & (columns[None, :] != self_column[:, None]), g, 0.0).to(y.dtype)
        product = tl.dot(g, y, product, input_precision="ieee") if EXACT else tl.dot(g, y, product)
    tl.store(out + rows[:, None] * width + axis[None, :], product, mask=row_mask)


def log_sum_exp(
    a: Float[Tensor, "a d"], c: Float[Tensor, "c d"], self_index: Int[Tensor, " a"], operands: torch.dtype
) -> Float[Tensor, " a"]:
    """Log Σ_k e^{⟨a_i, c_k⟩} for every row of `a`, its own column left out."""
    out = torch.empty(len(a), dtype=torch.float32, device=a.device)
    a, c, self_index = a.to(operands).contiguous(), c.to(operands).contiguous(), self_index.contiguous()
    grid, blocks = (triton.cdiv(len(a), BLOCK),), triton.cdiv(len(c), BLOCK)
    if len(a):
        _log_sum_exp[grid](
            a, c, self_index, out, len(a), len(c), a.shape[1], _width(a), BLOCK, blocks, operands == torch.float32
        )
    return out


def weighted_rows(
    a: Float[Tensor, "a d"],
    c: Float[Tensor, "c d"],
    self_index: Int[Tensor, " a"],
    u: Float[Tensor, " a"],
    log_sum: Float[Tensor, " a"],
    v: Float[Tensor, " c"],
    column_log_sum: Float[Tensor, " c"],
    operands: torch.dtype,
) -> Float[Tensor, "a d"]:
    """Σ_j (u_i e^{s_ij - log_sum_i} + v_j e^{s_ij - log_sum_j}) c_j with s = ⟨a_i, c_j⟩.

    The weights u and v are scaled by their maximum in the kernel: half precision would lose the 1/n of a mean.
    """
    out = torch.empty(len(a), c.shape[1], dtype=torch.float32, device=a.device)
    size = torch.maximum(u.abs().max(), v.abs().max()).clamp_min(1e-30) if len(a) and len(c) else u.new_ones(())
    a, c, self_index = a.to(operands).contiguous(), c.to(operands).contiguous(), self_index.contiguous()
    grid, blocks = (triton.cdiv(len(a), BLOCK),), triton.cdiv(len(c), BLOCK)
    if len(a):
        _weighted_rows[grid](
            a, c, self_index, u / size, log_sum, v / size, column_log_sum, out,
            len(a), len(c), a.shape[1], _width(a), BLOCK, blocks, operands == torch.float32,
        )  # fmt: skip
    return out * size


def _width(a: Float[Tensor, "_ d"]) -> int:
    """The width of a block of rows: a power of two of at least 16, as `tl.dot` needs."""
    return max(16, triton.next_power_of_2(a.shape[1]))
