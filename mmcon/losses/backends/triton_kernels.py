# pyright: reportArgumentType=false, reportReturnType=false
"""The kernels of `triton`, imported only where they run.

The number of column blocks is a constant of compilation: another batch size compiles once more. A bound known only at
run time cannot be iterated over by Triton 3.6's interpreter with NumPy 2.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 64


@triton.jit
def _log_sum_exp(
    a, c, own, out, n, m, width, WIDTH: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, EXACT: tl.constexpr
):
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    axis = tl.arange(0, WIDTH)
    inside = (rows[:, None] < n) & (axis[None, :] < width)
    z = tl.load(a + rows[:, None] * width + axis[None, :], mask=inside, other=0.0)
    self_column = tl.load(own + rows, mask=rows < n, other=-1)
    highest = tl.full((BLOCK,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for block in range(0, BLOCKS):
        columns = block * BLOCK + tl.arange(0, BLOCK)
        there = (columns[:, None] < m) & (axis[None, :] < width)
        y = tl.load(c + columns[:, None] * width + axis[None, :], mask=there, other=0.0)
        s = tl.dot(z, tl.trans(y), input_precision="ieee") if EXACT else tl.dot(z, tl.trans(y))
        s = tl.where((columns[None, :] < m) & (columns[None, :] != self_column[:, None]), s, -float("inf"))
        top = tl.maximum(highest, tl.max(s, 1))
        # An empty row keeps -inf as its maximum; 0 in its place keeps exp from meeting inf - inf.
        base = tl.where(top == -float("inf"), 0.0, top)
        total = total * tl.exp(highest - base) + tl.sum(tl.exp(s - base[:, None]), 1)
        highest = top
    tl.store(out + rows, highest + tl.log(total), mask=rows < n)


@triton.jit
def _pull(
    a, c, own, u, lse, v, lse_of_columns, out, n, m, width,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    axis = tl.arange(0, WIDTH)
    inside = (rows[:, None] < n) & (axis[None, :] < width)
    z = tl.load(a + rows[:, None] * width + axis[None, :], mask=inside, other=0.0)
    self_column = tl.load(own + rows, mask=rows < n, other=-1)
    weight = tl.load(u + rows, mask=rows < n, other=0.0)
    level = tl.load(lse + rows, mask=rows < n, other=float("inf"))
    gathered = tl.zeros((BLOCK, WIDTH), tl.float32)
    for block in range(0, BLOCKS):
        columns = block * BLOCK + tl.arange(0, BLOCK)
        there = (columns[:, None] < m) & (axis[None, :] < width)
        y = tl.load(c + columns[:, None] * width + axis[None, :], mask=there, other=0.0)
        weight_there = tl.load(v + columns, mask=columns < m, other=0.0)
        level_there = tl.load(lse_of_columns + columns, mask=columns < m, other=float("inf"))
        s = tl.dot(z, tl.trans(y), input_precision="ieee") if EXACT else tl.dot(z, tl.trans(y))
        felt = weight[:, None] * tl.exp(s - level[:, None]) + weight_there[None, :] * tl.exp(s - level_there[None, :])
        felt = tl.where((columns[None, :] < m) & (columns[None, :] != self_column[:, None]), felt, 0.0).to(y.dtype)
        gathered = tl.dot(felt, y, gathered, input_precision="ieee") if EXACT else tl.dot(felt, y, gathered)
    tl.store(out + rows[:, None] * width + axis[None, :], gathered, mask=inside)


def log_sum_exp(a: Tensor, c: Tensor, own: Tensor, operands: torch.dtype) -> Tensor:
    """Log Σ_k e^{⟨a_i, c_k⟩} for every row of `a`, `n`, its own column left out."""
    out = torch.empty(len(a), dtype=torch.float32, device=a.device)
    a, c, own = (x.contiguous() for x in (a.to(operands), c.to(operands), own))
    grid, blocks = (triton.cdiv(len(a), BLOCK),), triton.cdiv(len(c), BLOCK)
    if len(a):
        _log_sum_exp[grid](
            a, c, own, out, len(a), len(c), a.shape[1], _width(a), BLOCK, blocks, operands == torch.float32
        )
    return out


def pull(
    a: Tensor, c: Tensor, own: Tensor, u: Tensor, lse: Tensor, v: Tensor, lse_of_columns: Tensor, operands: torch.dtype
) -> Tensor:
    """Σ_j (u_i e^{s_ij - lse_i} + v_j e^{s_ij - lse_j}) c_j with s = ⟨a_i, c_j⟩, `n d`.

    The weights u and v are brought to the size of 1 on the way, since half precision would lose a mean's 1/n.
    """
    out = torch.empty(len(a), c.shape[1], dtype=torch.float32, device=a.device)
    size = torch.maximum(u.abs().max(), v.abs().max()).clamp_min(1e-30) if len(a) and len(c) else u.new_ones(())
    a, c, own = (x.contiguous() for x in (a.to(operands), c.to(operands), own))
    exact = operands == torch.float32
    grid, blocks = (triton.cdiv(len(a), BLOCK),), triton.cdiv(len(c), BLOCK)
    if len(a):
        _pull[grid](
            a,
            c,
            own,
            u / size,
            lse,
            v / size,
            lse_of_columns,
            out,
            len(a),
            len(c),
            a.shape[1],
            _width(a),
            BLOCK,
            blocks,
            exact,
        )
    return out * size


def _width(a: Tensor) -> int:
    return max(16, triton.next_power_of_2(a.shape[1]))
