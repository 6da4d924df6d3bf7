"""Low-rank deltas added to weights on a GPU in one pass: decoded, summed and encoded in registers.

A program has some rows of one block of columns, so that each row of `a` is read once for all of
them. The sums are those of `merge.py`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from gpukit_kernels import launch
from gpukit_kernels.bits_triton import divide_tl, load_float_tl, store_float_tl
from gpukit_kernels.delta_triton import SHARES, delta_tl, strange_products
from gpukit_kernels.factors import Factors
from gpukit_kernels.jit import tl, triton
from gpukit_kernels.lanes_triton import lanes_tl
from gpukit_kernels.launch import decode_blocks_tl, decode_triton, device_table, triton_pair
from gpukit_kernels.merge import LANES
from gpukit_kernels.table import FLOATS, QuantType, by_name

# Columns and rows of a program where neither side has blocks: 32 values a thread.
COLUMNS = 64
ROWS = 64
# Weights of a program that decodes: sixteen a thread, or Q4_0 spills (3.7.1, sm_90).
DECODED = 2048
# Rows of blocks that a program encodes at most: more, and IQ4_NL spills (3.7.1, sm_80).
MOST_ROWS = 64
# Types into which merges spill where sums are laid out as the weights are (3.9.0, sm_100); others,
# Q5_K and Q6_K, spill where they are not.
NOT_LAID = ("Q3_K",)
# Neighbours of a sum that a turn of the loop adds.
AHEAD = 4
# Rows whose lengths a program adds up.
LENGTH_ROWS = 16


@triton.jit
def merge_kernel(
    weight,
    table,
    b,
    a,
    bounds,
    scales,
    factors,
    strange,
    out,
    rows,
    width,
    ranks,
    DECODE: tl.constexpr,
    ENCODE: tl.constexpr,
    BLOCK: tl.constexpr,
    NBYTES: tl.constexpr,
    OUT_NBYTES: tl.constexpr,
    ROWS: tl.constexpr,
    BY_LANES: tl.constexpr,
    EVEN: tl.constexpr,
    SHARES: tl.constexpr,
    AHEAD: tl.constexpr,
    FUSE: tl.constexpr,
    LAID: tl.constexpr,
    ADAPTERS: tl.constexpr,
):
    """`out`, matrices of `rows` rows, is `weight` and the deltas of ADAPTERS adapters.

    `b [matrices, rows, ranks]` and `a [matrices, ranks, width]` hold those of all adapters, number
    n from `bounds[n]` to `bounds[n + 1]`; `factors [ADAPTERS, matrices * rows]` are multiplied with
    after each (DoRA), or None. `strange [SHARES]` is of `exact_kernel`, and is looked at if FUSE.
    DECODE and ENCODE, or None, are of blocks of BLOCK values; EVEN where BLOCK divides `width`.
    """
    matrix = tl.program_id(2).to(tl.int64)
    first_row = tl.program_id(1).to(tl.int64) * ROWS
    # 64 bits to the program's rows, 32 from there.
    line = matrix * rows + first_row
    block = tl.program_id(0)
    per_row = tl.cdiv(width, BLOCK)
    r = tl.arange(0, ROWS)
    column = block * BLOCK + tl.arange(0, BLOCK)
    last = tl.minimum(rows - first_row, ROWS).to(tl.int32) - 1
    here = r <= last
    inside = None if EVEN else column < width
    place = r[:, None] * width + column[None, :]
    mask = here[:, None]
    if inside is not None:
        mask = mask & inside[None, :]
    if DECODE is None:
        x = load_float_tl(weight + line * width + place, mask)
    else:
        at = (r * per_row + block) * NBYTES
        x = decode_blocks_tl(weight + line * per_row * NBYTES, table, at, here, DECODE)
    exact = FUSE
    if FUSE:
        exact = tl.max(tl.load(strange + tl.arange(0, SHARES)), axis=0) == 0
    # Rows beyond the last read the last again; nothing of them is stored.
    left = b + line * ranks + tl.minimum(r, last) * ranks
    right = a + matrix * ranks * width + column
    for n in tl.static_range(ADAPTERS):
        begin = tl.load(bounds + n)
        count = tl.load(bounds + n + 1) - begin
        total = tl.zeros((ROWS, BLOCK), tl.float32)
        if LAID:
            # Zeros laid out among the threads as the weights are: nothing crosses them then.
            total = ((x.to(tl.int32, bitcast=True) & 0x7FFFFFFF) >> 31).to(tl.float32)
        start = right + begin * width
        if exact:
            total = delta_tl(total, left + begin, start, inside, count, width, True, AHEAD)
        else:
            total = delta_tl(total, left + begin, start, inside, count, width, False, AHEAD)
        x = x + total * tl.load(scales + n)
        if factors is not None:
            stride = tl.num_programs(2).to(tl.int64) * rows
            factor = tl.load(factors + n * stride + line + r, mask=here, other=1.0)
            x = x * factor[:, None]
    if ENCODE is None:
        store_float_tl(out + line * width + place, x, mask)
    else:
        if BY_LANES:
            x = lanes_tl(x, 32)
        ENCODE(x, out + line * per_row * OUT_NBYTES, (r * per_row + block) * OUT_NBYTES, here)


@triton.jit
def factors_kernel(
    weight,
    b,
    a,
    scale,
    magnitude,
    out,
    rows,
    width,
    begin,
    end,
    ranks,
    LANES: tl.constexpr,
    ROWS: tl.constexpr,
):
    """`out [matrices, rows]` is magnitude / length of each row of `weight` plus the delta of
    `begin` to `end` times `scale`, which is in memory."""
    matrix = tl.program_id(1).to(tl.int64)
    first_row = tl.program_id(0).to(tl.int64) * ROWS
    line = matrix * rows + first_row
    r = tl.arange(0, ROWS)
    here = r < rows - first_row
    weight += line * width
    b += line * ranks
    a += matrix * ranks * width
    by = tl.load(scale)
    left = b + tl.minimum(r, rows - 1 - first_row) * ranks + begin
    squares = tl.zeros((ROWS, LANES), tl.float32)
    for first in range(0, width, LANES):
        column = first + tl.arange(0, LANES)
        inside = column < width
        x = load_float_tl(
            weight + r[:, None] * width + column[None, :], here[:, None] & inside[None, :]
        )
        total = tl.zeros((ROWS, LANES), tl.float32)
        right = a + begin * width + column
        x = x + delta_tl(total, left, right, inside, end - begin, width, False, 1) * by
        squares = squares + x * x
    for k in tl.static_range(5):
        even, odd = tl.split(tl.reshape(squares, (ROWS, LANES >> (k + 1), 2)))
        squares = even + odd
    length = tl.where(here, tl.sqrt_rn(tl.reshape(squares, (ROWS,))), 1.0)
    wanted = tl.load(magnitude + line + r, mask=here, other=0.0)
    tl.store(out + line + r, divide_tl(wanted, length), mask=here)


def merge_triton(
    weight: Tensor, row: QuantType, factors: Sequence[Factors], kind: QuantType
) -> Tensor:
    """uint8 `[matrices, rows, row_bytes]`, blocks of `kind`, of `weight`, the same of `row`; `b`,
    `a` and magnitudes have a dimension for matrices, too."""
    width = weight.shape[2] // row.nbytes * row.block
    matrices, rows = weight.shape[:2]
    out = weight.new_empty((matrices, rows, width // kind.block * kind.nbytes))
    if not out.numel():
        return out
    if triton_pair(kind).nearest:
        # Their search takes so much longer that another pass over memory is nothing beside it.
        merged = merge_triton(weight, row, factors, by_name("F32"))
        return launch.encode_triton(merged.view(torch.float32), kind).view(out.shape)
    with torch.cuda.device_of(weight):
        weight, row = _readable(weight, row, factors, kind)
        no_b, no_a = (weight.new_empty(s, dtype=torch.float32) for s in
                      ((matrices, rows, 0), (matrices, 0, width)))  # fmt: skip
        b = torch.cat([no_b, *(f.b for f in factors)], 2)
        a = torch.cat([no_a, *(f.a for f in factors)], 1)
        ends = [0]
        for f in factors:
            ends.append(ends[-1] + f.b.shape[-1])
        scales = torch.tensor([f.scale for f in factors], dtype=torch.float32, device=a.device)
        by = _factors(weight, row, factors, b, a, ends, scales)
        bounds = torch.tensor(ends, dtype=torch.int32, device=a.device)
        shape = tile(row, kind, width)
        grid = (triton.cdiv(width, shape["BLOCK"]), triton.cdiv(rows, shape["ROWS"]), matrices)
        merge_kernel[grid](
            _values(weight, row),
            _table(row, weight.device),
            b,
            a,
            bounds,
            scales,
            by,
            strange_products(b, a),
            _values(out, kind),
            rows,
            width,
            ends[-1],
            ADAPTERS=len(factors),
            **shape,
            enable_fp_fusion=False,
        )
    return out


def tile(row: QuantType, kind: QuantType, width: int) -> dict[str, object]:
    """The constants of `merge_kernel` from blocks of `row` to blocks of `kind`, `width` a row."""
    decode, encode = row.name not in FLOATS, kind.name not in FLOATS
    into = triton_pair(kind)
    block = kind.block if encode else row.block if decode else COLUMNS
    rows = max(DECODED // block, 1) if decode else ROWS
    if encode:
        rows = min(into.tile, MOST_ROWS)
    return {
        "DECODE": triton_pair(row).decode if decode else None,
        "ENCODE": into.encode if encode else None,
        "BLOCK": block,
        "NBYTES": row.nbytes,
        "OUT_NBYTES": kind.nbytes,
        "BY_LANES": encode and into.lanes,
        "ROWS": rows,
        "EVEN": width % block == 0,
        "SHARES": SHARES,
        # Beside blocks more loads ahead, or a second sum, spill with some version of Triton.
        "AHEAD": 1 if decode or encode else AHEAD,
        "FUSE": not decode and not encode,
        "LAID": not decode and kind.name not in NOT_LAID,
    }


def _readable(
    weight: Tensor, row: QuantType, factors: Sequence[Factors], kind: QuantType
) -> tuple[Tensor, QuantType]:
    """`weight` as the kernels take it: blocks of another size than those to be made, and blocks
    whose rows' lengths are asked for, are decoded first."""
    lengths = any(f.magnitude is not None for f in factors)
    if row.name in FLOATS or (not lengths and (kind.name in FLOATS or kind.block == row.block)):
        return weight.contiguous(), row
    values = decode_triton(weight.reshape(-1, row.nbytes), row, torch.float32)
    return values.view(torch.uint8).view(*weight.shape[:2], -1), by_name("F32")


def _factors(
    weight: Tensor,
    row: QuantType,
    factors: Sequence[Factors],
    b: Tensor,
    a: Tensor,
    ends: Sequence[int],
    scales: Tensor,
) -> Tensor | None:
    """float32 `[adapters, matrices * rows]`, None where no adapter has magnitudes."""
    if all(f.magnitude is None for f in factors):
        return None
    matrices, rows = weight.shape[:2]
    found = torch.ones((len(factors), matrices, rows), device=weight.device)
    values = _values(weight, row)
    for n, f in enumerate(factors):
        if f.magnitude is not None:
            factors_kernel[(triton.cdiv(rows, LENGTH_ROWS), matrices)](
                values,
                b,
                a,
                scales[n:],
                f.magnitude.contiguous(),
                found[n],
                rows,
                values.shape[-1],
                ends[n],
                ends[n + 1],
                ends[-1],
                LANES=LANES,
                ROWS=LENGTH_ROWS,
                enable_fp_fusion=False,
            )
    return found


def _values(data: Tensor, row: QuantType) -> Tensor:
    """uint8 rows as the floats that they are, or as they are."""
    return data.view(FLOATS[row.name]) if row.name in FLOATS else data


def _table(row: QuantType, device: torch.device) -> Tensor | None:
    return None if row.name in FLOATS else device_table(triton_pair(row), device)
