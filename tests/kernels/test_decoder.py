"""Compiled decoders and products: the reference's values, sums within their bound, no byte read
that is not there, whatever the shape, the threads and the width of vectors."""

import ctypes
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from support import quant_kinds
from torch import Tensor

from gpukit_kernels import QUANTS, dequantize, matmul
from gpukit_kernels.cpu import build, compiled, products as cpu_products

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C compiler")

NAMES = list(QUANTS)
# A sum of n products in float32, in any order and fused or not, errs by at most so much a product.
SUM = 2.0**-24
# Of tiles each operand is two bfloat16 numbers, off by 2^-16 of itself at most, and as much is the
# product of what both of the first lack, which is left out.
TILED = 3 * 2.0**-16


def random_blocks(name: str, *shape: int) -> Tensor:
    """Random bytes, so that scales are infinite and NaN, too."""
    random = torch.Generator().manual_seed(len(name) + sum(shape))
    size = (*shape[:-1], shape[-1] * QUANTS[name].nbytes)
    return torch.randint(0, 256, size, generator=random, dtype=torch.uint8)


def same(a: Tensor, b: Tensor) -> bool:
    bits = a.view(torch.int32) == b.view(torch.int32)
    return bool((bits | (a.isnan() & b.isnan())).all())


@pytest.mark.sampled(7)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 129, 1000])
def test_values_are_the_references(name: str, count: int) -> None:
    blocks = random_blocks(name, 3, count)
    got = dequantize(blocks, name, backend="compiled")
    assert same(got, dequantize(blocks, name, backend="eager"))
    half = dequantize(blocks, name, torch.bfloat16, backend="compiled")
    wanted = dequantize(blocks, name, torch.bfloat16, backend="eager")
    assert same(half.float(), wanted.float())


@pytest.mark.parametrize("name", NAMES)
def test_nothing_and_strides(name: str) -> None:
    row = QUANTS[name]
    assert dequantize(random_blocks(name, 3, 0), name, backend="compiled").shape == (3, 0)
    blocks = random_blocks(name, 9, 5)
    for view in (blocks[::2], blocks[:, row.nbytes :], blocks[0]):
        got = dequantize(view, name, backend="compiled")
        assert same(got, dequantize(view, name, backend="eager"))


def assert_product(x: Tensor, blocks: Tensor, name: str) -> None:
    got = matmul(x, blocks, name, backend="compiled")
    weights = dequantize(blocks, name, backend="eager").double()
    room = x.double().abs() @ weights.abs().t()
    wrong = (got.double() - x.double() @ weights.t()).abs()
    decoder = compiled.decoder(QUANTS[name])
    assert decoder is not None
    tiled = decoder.tiled and x.shape[0] >= cpu_products.TILED
    assert (wrong <= (x.shape[1] * SUM + TILED * tiled) * room).all()


@pytest.mark.parametrize("name", ["F16", "Q8_0", "Q4_K"])
def test_every_other_row_of_one_block(name: str) -> None:
    blocks = random_blocks(name, 40, 1)[::2]
    wanted = dequantize(blocks, name, backend="eager")
    assert same(dequantize(blocks, name, backend="compiled"), wanted)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("count", "rows"), [(1, 1), (1, 33), (2, 16), (3, 5), (7, 17), (16, 40), (31, 3), (131, 18)]
)
def test_products(name: str, count: int, rows: int) -> None:
    block = QUANTS[name].block
    for width in {1: (7, 300, 513), 32: (32, 288, 544), 64: (64, 576), 256: (256, 768)}[block]:
        x = torch.randn(count, width, generator=torch.Generator().manual_seed(rows))
        assert_product(x, quant_kinds.blocks_of(QUANTS[name], rows, width, seed=count), name)


@pytest.mark.parametrize("name", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("rows", [1, 7, 8, 9, 40])
def test_one_row_of_x_and_floats(name: str, rows: int) -> None:
    row = QUANTS[name]
    for width in (32, 64, 1024):
        x = torch.randn(1, width, generator=torch.Generator().manual_seed(rows))
        wide = torch.zeros(rows, row.row_bytes(width) + 7, dtype=torch.uint8)
        fenced = Fenced(rows * row.row_bytes(width))
        blocks = fenced.bytes.view(rows, -1)
        blocks.copy_(quant_kinds.blocks_of(row, rows, width, seed=rows))
        wide[:, 5:-2] = blocks
        assert_product(x, blocks, name)
        assert torch.equal(matmul(x, wide[:, 5:-2], name), matmul(x, blocks, name))
        blocks[0] = 255
        got = matmul(x, blocks, name)
        assert got[0, 0].isnan()
        assert got[0, 1:].isfinite().all()


@pytest.mark.parametrize("name", ["F16", "Q8_0", "Q4_K", "Q3_K"])
def test_rows_of_w_that_lie_apart(name: str) -> None:
    blocks = quant_kinds.blocks_of(QUANTS[name], 40, 512, seed=1)
    x = torch.randn(3, 512, generator=torch.Generator().manual_seed(0))
    whole = matmul(x, blocks, name)
    assert torch.equal(matmul(x, blocks[::3], name), whole[:, ::3])
    wide = torch.zeros(40, blocks.shape[1] + 5, dtype=torch.uint8)
    wide[:, 3:-2] = blocks
    assert torch.equal(matmul(x, wide[:, 3:-2], name), whole)
    assert torch.equal(matmul(x.t().contiguous().t(), blocks, name), whole)
    assert torch.equal(matmul(x, blocks.t().contiguous().t(), name), whole)


@pytest.mark.parametrize(("count", "rows"), [(33, 257), (513, 31), (1030, 300)])
@pytest.mark.parametrize("name", ["F32", "BF16", "Q8_0", "Q4_K"])
def test_more_rows_than_are_summed_at_a_time(name: str, count: int, rows: int) -> None:
    width = 768 if QUANTS[name].block > 1 else 301
    x = torch.randn(count, width, generator=torch.Generator().manual_seed(rows))
    assert_product(x, quant_kinds.blocks_of(QUANTS[name], rows, width, seed=count), name)


def test_infinite_and_large_numbers_of_many_rows() -> None:
    weights = torch.ones(33, 64)
    weights[3, 5] = torch.inf
    x = torch.full((40, 64), 2.0**-70)
    largest = torch.finfo(torch.float32).max
    for row, value in ((1, torch.inf), (2, torch.nan), (4, largest), (5, -largest)):
        x[row, 7] = value
    got = matmul(x, weights.view(torch.uint8), "F32")
    assert got[1, 0] == torch.inf
    assert got[2].isnan().all()
    assert not got[[1, 4], 3].isfinite().any()
    # The bfloat16 number that is nearest to the largest of all is infinite.
    assert not got[4, 0] < largest * 0.99
    assert not got[5, 0] > -largest * 0.99
    assert torch.allclose(got[6:, 0], torch.tensor(64 * 2.0**-70))
    assert got[6:, 3].isinf().all() or not got[6:, 3].isfinite().any()


def test_rows_of_x_do_not_see_each_other() -> None:
    blocks = quant_kinds.blocks_of(QUANTS["Q6_K"], 30, 512, seed=1)
    x = torch.randn(37, 512, generator=torch.Generator().manual_seed(0))
    alone = torch.cat([matmul(row[None], blocks, "Q6_K") for row in x])
    x[3] = torch.nan
    got = matmul(x, blocks, "Q6_K")
    assert got[3].isnan().all()
    room = x[4:].abs() @ dequantize(blocks, "Q6_K").abs().t()
    assert ((got - alone)[4:].abs() <= (2 * 512 * SUM + TILED) * room).all()


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_threads_change_nothing() -> None:
    blocks = quant_kinds.blocks_of(QUANTS["Q4_K"], 3001, 512, seed=1)
    x = torch.randn(2, 512, generator=torch.Generator().manual_seed(0))
    results = []
    for number in (1, 2, 5):
        torch.set_num_threads(number)
        values = dequantize(blocks, "Q4_K", backend="compiled")
        results.append((matmul(x, blocks, "Q4_K"), values))
    for product, values in results[1:]:
        assert torch.equal(product, results[0][0])
        assert torch.equal(values, results[0][1])


def test_a_forked_process_has_threads_of_its_own() -> None:
    """Threads do not live on in a fork; those that wait for work would be waited for in vain."""
    code = (
        "import os, torch, warnings; warnings.simplefilter('ignore')\n"
        "from gpukit_kernels import matmul\n"
        "torch.set_num_threads(2)\n"
        "x, w = torch.ones(1, 512), torch.zeros(2000, 1024, dtype=torch.uint8)\n"
        "matmul(x, w, 'F16')\n"
        "child = os.fork()\n"
        "if child == 0: matmul(x, w, 'F16'); os._exit(7)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "7\n"


class Fenced:
    """Memory that ends where no byte may be read."""

    def __init__(self, size: int) -> None:
        page = mmap.PAGESIZE
        self.whole = mmap.mmap(-1, -(-size // page) * page + page)
        memory = np.frombuffer(self.whole, dtype=np.uint8)
        fence = memory.ctypes.data + len(memory) - page
        protect = ctypes.CDLL(None, use_errno=True).mprotect
        assert protect(ctypes.c_void_p(fence), page, 0) == 0
        self.bytes = torch.from_numpy(memory[len(memory) - page - size : len(memory) - page])


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_read_behind_the_end(name: str) -> None:
    row = QUANTS[name]
    decoder = compiled.decoder(row)
    assert decoder is not None
    width = {1: 33, 32: 96, 64: 192, 256: 256}[row.block]
    for rows in (1, 16, 17):
        size = rows * row.row_bytes(width)
        fenced = Fenced(size)
        blocks = fenced.bytes.view(rows, -1)
        blocks.copy_(quant_kinds.blocks_of(row, rows, width, seed=rows))
        wanted = dequantize(blocks.clone(), name, backend="eager")
        out = torch.empty(size // row.nbytes, row.block)
        cpu_products.decode(blocks.view(-1, row.nbytes), decoder, None, out)
        assert same(out.view(rows, -1), wanted)
        assert_product(torch.randn(2, width), blocks, name)
        assert_product(torch.randn(1, width), blocks, name)


# What the processor needs for vectors of so many lanes, as in vectors.h.
LANES: dict[int, set[str]] = {
    4: set(), 8: {"avx2", "f16c"}, 16: {"avx512f", "avx512dq", "avx512bw", "avx512vl"},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize("width", LANES)
def test_every_width_of_vectors(width: int) -> None:
    """The values of all types in vectors of so many lanes, by another process with other flags,
    but for the most lanes that there are: those are taken anyway, by code that others need, too."""
    there = set(Path("/proc/cpuinfo").read_text().split())
    if not LANES[width] <= there:
        pytest.skip(f"no {', '.join(LANES[width] - there)} here")
    environment = {**os.environ}
    if width < max(lanes for lanes, flags in LANES.items() if flags <= there):
        environment["GPUKIT_CFLAGS"] = f"-DGPUKIT_WIDTH={width}"
    code = (
        "import torch\n"
        "from gpukit_kernels import QUANTS\n"
        "from gpukit_kernels.cpu import compiled\n"
        "for row in QUANTS.values():\n"
        "    assert compiled.decoder(row) is not None, row.name\n"
        "    if row.block > 1 and row.encode:\n"
        "        assert compiled._program(row, False) is not None, row.name\n"
        "    if row.weighted:\n"
        "        assert compiled._program(row, True) is not None, row.name\n"
    )
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
