"""What the read-only types share: codebooks, bit fields, signs; torch, then the Triton twins.

A codebook ("grid") is a fixed table of which a block names rows: eight levels of two bits each, or
four of up to four bits, together 16 bits, the first level lowest. grids.bin holds them, two bytes a
row, one codebook after the other. Values go by octets: eight consecutive ones, 32 a block.

Source: iq2xxs_grid and the others in llama.cpp's ggml-common.h, packed as in gguf-py's quants.py.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from gpukit_kernels.bits_triton import load_byte_tl
from gpukit_kernels.jit import tl, triton

# The codebooks in the order of the file, and their rows.
SIZES = {"IQ2_XXS": 256, "IQ2_XS": 512, "IQ2_S": 1024, "IQ3_XXS": 256, "IQ3_S": 512, "IQ1_S": 2048}


@cache
def grid(name: str, device: torch.device) -> Tensor:
    """int16 `[rows]` on `device`: the codebook of the type `name`, 16 bits a row."""
    packed = bytearray(Path(__file__).with_name("grids.bin").read_bytes())
    books = torch.frombuffer(packed, dtype=torch.int16).split(list(SIZES.values()))
    return books[list(SIZES).index(name)].to(device)


@cache
def row_bytes(
    name: str, size: int, numbers: Callable[[Tensor], Tensor], device: torch.device
) -> Tensor:
    """int32 `[rows * size / 4]` on `device`: `numbers` of the `size` levels of each row of the
    codebook `name`, bytes, the first lowest."""
    levels = rows(grid(name, device), torch.arange(SIZES[name], device=device)[:, None], size)
    return numbers(levels).to(torch.int8).flatten().view(torch.int32)


def fields(word: Tensor, bits: int, count: int) -> Tensor:
    """`[n * count, lanes]`: the lowest `count` fields of `bits` bits of each integer `[n, lanes]`.

    The fields of an integer stand one after the other, the lowest first.
    """
    shifts = torch.arange(0, bits * count, bits, dtype=word.dtype, device=word.device)
    parts = (word[:, None] >> shifts[None, :, None]) & ((1 << bits) - 1)
    return parts.flatten(0, 1)


def words(packed: Tensor, size: int) -> Tensor:
    """int32 `[n / size, lanes]`: integers of `size` bytes of uint8 `[n, lanes]`, little endian."""
    parts = packed.unflatten(0, (len(packed) // size, size)).to(torch.int32)
    word = parts[:, 0]
    for i in range(1, size):
        word = word | (parts[:, i] << (8 * i))
    return word


def rows(table: Tensor, index: Tensor, size: int) -> Tensor:
    """int16 `[n * size, lanes]`: the levels of rows `index` `[n, lanes]`, `size` levels each."""
    return fields(table[index], 16 // size, size)


def eight_signs(code: Tensor) -> Tensor:
    """Eight bits, of which seven are `code` and the last makes their sum even."""
    odd = code ^ (code >> 4)
    odd = odd ^ (odd >> 2)
    odd = odd ^ (odd >> 1)
    return code | ((odd & 1) << 7)


def signed(levels: Tensor, signs: Tensor) -> Tensor:
    """int16 `[256, lanes]`: `levels`, less than zero where a bit of `signs` `[32, lanes]` is 1."""
    minus = -fields(signs.to(torch.int16), 1, 8)
    return (levels ^ minus) - minus


def scaled(step: Tensor, levels: Tensor) -> Tensor:
    """float32 `[256, lanes]`: int16 `levels` times float32 `step` `[groups, lanes]`."""
    groups = levels.unflatten(0, (len(step), len(levels) // len(step)))
    return (step[:, None] * groups.to(torch.float32)).flatten(0, 1)


def iq2_magnitudes(levels: Tensor) -> Tensor:
    """8, 25 and 43 of levels 0, 1 and 2: the magnitudes of all IQ2 types."""
    return 8 + 17 * levels + (levels >> 1)


def iq3_xxs_magnitudes(levels: Tensor) -> Tensor:
    """Eight a level and four, but the last is 62."""
    return 4 + 8 * levels + 2 * ((levels + 1) >> 3)


def odd_numbers(levels: Tensor) -> Tensor:
    """The magnitudes of IQ3_S."""
    return 2 * levels + 1


def iq1_numbers(levels: Tensor) -> Tensor:
    """The numbers of IQ1_S and IQ1_M in eighths, but for the shift."""
    return 8 * levels - 7


def iq2_steps(d: Tensor, scale: Tensor) -> Tensor:
    """float32 `[groups, lanes]`: d * (scale + 1 / 2) / 4, d float32 `[lanes]`, scale 0..15."""
    return d * (scale.to(torch.float32) + 0.5) * 0.25


def iq1_levels(levels: Tensor, shift: Tensor) -> Tensor:
    """int16 `[256, lanes]`, in eighths: `levels` - 1 + 1/8, or - 1/8 where `shift` is 1.

    `shift` is `[groups, lanes]`, bits for groups of equal size.
    """
    groups = levels.unflatten(0, (len(shift), len(levels) // len(shift)))
    return (groups * 8 - 7 - 2 * shift.to(torch.int16)[:, None]).flatten(0, 1)


@triton.jit
def load_word_tl(blocks, at, SIZE: tl.constexpr, mask):
    """int32: the integer of SIZE bytes at `at`, wherever that is."""
    word = load_byte_tl(blocks, at, mask)
    for i in tl.static_range(1, SIZE):
        word = word | (load_byte_tl(blocks, at + i, mask) << (8 * i))
    return word


@triton.jit
def spread_octets_tl(word, BITS: tl.constexpr):
    """int32 `[TILE, 32, 8]`: the lowest eight fields of BITS bits of int32 `[TILE, 32]`."""
    shift = BITS * tl.arange(0, 8)[None, None, :]
    return (word[:, :, None] >> shift) & ((1 << BITS) - 1)


@triton.jit
def rows_of_eight_tl(table, index):
    """int32 `[TILE, 32, 8]`: the levels of rows `index`, int32 `[TILE, 32]`."""
    return spread_octets_tl(tl.load(table + index).to(tl.int32), 2)


@triton.jit
def rows_of_four_tl(table, first, second):
    """int32 `[TILE, 32, 8]`: the levels of rows `first` and `second`, int32 `[TILE, 32]` each."""
    low = tl.load(table + first).to(tl.int32) & 0xFFFF
    return spread_octets_tl(low | (tl.load(table + second).to(tl.int32) << 16), 4)


@triton.jit
def octet_tl(first, second):
    """int32 `[P, 8]`: the signed bytes of two words, int32 `[P]` each."""
    element = tl.arange(0, 8)[None, :]
    word = tl.where(element < 4, first[:, None], second[:, None])
    return (word << (24 - element % 4 * 8)) >> 24


@triton.jit
def signed_octet_tl(numbers, signs):
    """float32 `[P, 8]`: int32 `numbers` above zero, less than that where a bit of `signs` is 1."""
    sign = (signs[:, None] << (31 - tl.arange(0, 8))[None, :]) & -2147483648
    values = numbers.to(tl.float32).to(tl.int32, bitcast=True) ^ sign
    return values.to(tl.float32, bitcast=True)


@triton.jit
def eight_signs_tl(code):
    """int32: eight_signs."""
    odd = code ^ (code >> 4)
    odd = odd ^ (odd >> 2)
    odd = odd ^ (odd >> 1)
    return code | ((odd & 1) << 7)


@triton.jit
def signed_tl(levels, signs):
    """int32 `[TILE, 32, 8]`: `levels`, less than zero where a bit of `signs` `[TILE, 32]` is 1."""
    return tl.where(spread_octets_tl(signs, 1) == 1, -levels, levels)


@triton.jit
def scaled_tl(step, levels):
    """float32 `[TILE, 256]`: int32 `levels` `[TILE, 32, 8]` times float32 `step` `[TILE, 32]`."""
    return tl.reshape(step[:, :, None] * levels.to(tl.float32), (step.shape[0], 256))


@triton.jit
def iq2_magnitudes_tl(levels):
    """int32: iq2_magnitudes."""
    return 8 + 17 * levels + (levels >> 1)


@triton.jit
def iq2_steps_tl(d, scale):
    """float32 `[TILE, 32]`: iq2_steps of float32 `[TILE]` and int32 `[TILE, 32]`."""
    return d[:, None] * (scale.to(tl.float32) + 0.5) * 0.25


@triton.jit
def iq1_levels_tl(levels, shift):
    """int32 `[TILE, groups, n]`: iq1_levels of `[TILE, groups, n]` and `[TILE, groups]`."""
    return levels * 8 - 7 - 2 * shift[:, :, None]
