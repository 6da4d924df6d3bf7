"""Programs: what they record, what they refuse, tiles that are not full, memory used again."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gpukit_kernels.cpu.build import build, compiler
from gpukit_kernels.cpu.program import Program
from gpukit_kernels.cpu.recording import Form, record
from gpukit_kernels.search.common import added as summed
from gpukit_kernels.stages import settle, stage

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C compiler")

LANES, BLOCK = 16, 32


def program(
    encode: Callable[..., Tensor], nbytes: int, folder: Path, weighted: bool = False
) -> Program:
    source = record(encode, Form(LANES, BLOCK, nbytes, weighted))
    build(source, folder / "program.so", str(compiler()))
    return Program(folder / "program.so")


def values(count: int) -> Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.randint(0, 80, (count, BLOCK), generator=random).float()


@stage
def halved(x: Tensor) -> Tensor:
    return (x / 2).to(torch.int32).to(torch.float32)


@stage
def scaled(x: Tensor, factor: Tensor) -> Tensor:
    return x * factor


@stage
def capped(state: Tensor, cap: Tensor) -> tuple[Tensor, Tensor]:
    found = torch.where(state + 1 < cap, state + 1, cap)
    return found, summed(lambda v: (v,), found)[0]


def bytes_of(x: Tensor) -> Tensor:
    """Constants, memory that is used again, and parts one after the other: 3 * x and x / 4."""
    for _ in range(6):
        x = halved(scaled(x, torch.tensor(2.0)))
    return torch.cat([scaled(x, torch.tensor(3.0))[:3], halved(halved(x))[:8]])


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 100])
def test_tiles_that_are_full_and_not(count: int, tmp_path: Path) -> None:
    run = program(bytes_of, 11, tmp_path)
    x, out = values(count), torch.full((count + 1, 11), 77, dtype=torch.uint8)
    run.encoder(x.numpy(), out[:count].numpy())(0, count)
    wanted = torch.cat([(x * 3)[:, :3], (x / 4).floor()[:, :8]], dim=1).to(torch.uint8)
    assert torch.equal(out[:count], wanted)
    assert (out[count:] == 77).all()


@pytest.mark.parametrize("nbytes", [4, 5, 6, 7, 8])
def test_blocks_of_any_number_of_bytes(nbytes: int, tmp_path: Path) -> None:
    run = program(lambda x: halved(x)[:nbytes], nbytes, tmp_path)
    x, out = values(40), torch.zeros((40, nbytes), dtype=torch.uint8)
    run.encoder(x.numpy(), out.numpy())(0, len(x))
    assert torch.equal(out, (x[:, :nbytes] / 2).floor().to(torch.uint8))


def test_loops_end_when_nothing_changes_and_after_the_most(tmp_path: Path) -> None:
    def encode(x: Tensor) -> Tensor:
        cap = halved(x)
        found, _ = settle(
            lambda state: capped(state[0], cap), capped(scaled(x, torch.tensor(0.0)), cap), 1, 20
        )
        return found

    run = program(encode, BLOCK, tmp_path)
    x, out = values(50), torch.zeros((50, BLOCK), dtype=torch.uint8)
    run.encoder(x.numpy(), out.numpy())(0, len(x))
    assert torch.equal(out, (x / 2).floor().clamp(max=21).to(torch.uint8))
    assert torch.equal(out, encode(x.t().contiguous()).t().to(torch.uint8))


def test_importance_is_that_of_the_column_and_the_expert(tmp_path: Path) -> None:
    def encode(x: Tensor, importance: Tensor, mean: Tensor) -> Tensor:
        return added(x, importance, mean)

    run = program(encode, BLOCK, tmp_path, weighted=True)
    experts, of_row, rows = 3, 2, 5
    columns = torch.randint(0, 50, (experts, of_row, BLOCK)).float()
    x, means = values(experts * of_row * rows), torch.arange(30).float()
    out = torch.zeros((30, BLOCK), dtype=torch.uint8)
    encode = run.encoder(x.numpy(), out.numpy(), columns.numpy(), rows, means.numpy())
    for first, last in ((7, 30), (0, 7)):
        encode(first, last)
    wanted = x.view(experts, rows, of_row, BLOCK) + columns[:, None] + means.view(3, 5, 2, 1)
    assert torch.equal(out, wanted.view(30, BLOCK).to(torch.uint8))


@stage
def added(x: Tensor, importance: Tensor, mean: Tensor) -> Tensor:
    return x + importance + mean


@stage
def chosen(a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    """What compiled code has instructions for, and what is nearly that, and two that are not."""
    found = (
        torch.where(a > b, a, b), torch.where(a > b, b, a), torch.where(a < b, a, b),
        torch.where(a < b, b, a), torch.where(a >= b, a, b), torch.where(b > a, b + 0.0, a),
        torch.copysign(a, b), torch.copysign(torch.full((), 0.5), b),
    )  # fmt: skip
    return tuple(bytes_in(row) for row in found)


def bytes_in(row: Tensor) -> Tensor:
    bits = row.view(torch.int32)
    return torch.cat([((bits >> (8 * i)) & 0xFF) for i in range(4)]).to(torch.float32)


def test_the_larger_and_the_smaller_of_two_and_a_sign(tmp_path: Path) -> None:
    """Beside NaN and of zeros, too, bit by bit."""
    hard = [0.0, -0.0, 1.0, -1.0, float("inf"), -float("inf"), float("nan"), 1e-45, -3e38]
    pairs = torch.cartesian_prod(torch.tensor(hard), torch.tensor(hard))
    x = torch.zeros((len(pairs), BLOCK))
    x[:, :2] = pairs
    run = program(lambda x: torch.cat(chosen(x[:1], x[1:2])), 32, tmp_path)
    out = torch.zeros((len(x), 32), dtype=torch.uint8)
    run.encoder(x.numpy(), out.numpy())(0, len(x))
    wanted = torch.cat(chosen.function(x.t()[:1], x.t()[1:2])).t().to(torch.uint8)
    assert torch.equal(out, wanted)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_of_a_tile_are_there_when_a_stage_reaches_them(
    kind: torch.dtype, tmp_path: Path
) -> None:
    """Few at first, then others behind them, in a loop, and copied."""

    def encode(x: Tensor) -> Tensor:
        none = scaled(x[:4], torch.tensor(0.0))
        begin = capped(none, none)
        found, _ = settle(lambda state: capped(state[0], x[40:44]), begin, 1, 90)
        return torch.cat([x[:3], found, halved(x[70:99]), x[120:]])

    def eager(x: Tensor) -> Tensor:
        return torch.cat([x[:3], x[40:44], halved(x[70:99]), x[120:]])

    random = torch.Generator().manual_seed(0)
    x = torch.randint(0, 80, (37, 128), generator=random).to(kind)
    source = record(encode, Form(LANES, 128, 44, False))
    build(source, tmp_path / "program.so", str(compiler()))
    out = torch.zeros((37, 44), dtype=torch.uint8)
    values = x.view(torch.uint16) if kind is torch.bfloat16 else x
    Program(tmp_path / "program.so").encoder(values.numpy(), out.numpy())(0, 37)
    assert torch.equal(out, eager(x.float().t()).t().to(torch.uint8))


@pytest.mark.parametrize(
    "encode",
    [lambda x: halved(x) + 1, lambda x: halved(x).add_(1), lambda x: halved(x.contiguous() * 2)],
)
def test_work_outside_of_stages_is_refused(encode: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(RuntimeError, match="outside of a stage"):
        record(encode, Form(LANES, BLOCK, BLOCK, False))
