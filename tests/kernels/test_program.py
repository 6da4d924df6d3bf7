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
    run.run(x.numpy(), out[:count].numpy())
    wanted = torch.cat([(x * 3)[:, :3], (x / 4).floor()[:, :8]], dim=1).to(torch.uint8)
    assert torch.equal(out[:count], wanted)
    assert (out[count:] == 77).all()


@pytest.mark.parametrize("nbytes", [4, 5, 6, 7, 8])
def test_blocks_of_any_number_of_bytes(nbytes: int, tmp_path: Path) -> None:
    run = program(lambda x: halved(x)[:nbytes], nbytes, tmp_path)
    x, out = values(40), torch.zeros((40, nbytes), dtype=torch.uint8)
    run.run(x.numpy(), out.numpy())
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
    run.run(x.numpy(), out.numpy())
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
    for first, last in ((0, 7), (7, 30)):
        some = slice(first, last)
        run.run(
            x[some].numpy(), out[some].numpy(), first, columns.numpy(), rows, means[some].numpy()
        )
    wanted = x.view(experts, rows, of_row, BLOCK) + columns[:, None] + means.view(3, 5, 2, 1)
    assert torch.equal(out, wanted.view(30, BLOCK).to(torch.uint8))


@stage
def added(x: Tensor, importance: Tensor, mean: Tensor) -> Tensor:
    return x + importance + mean


@pytest.mark.parametrize(
    "encode",
    [lambda x: halved(x) + 1, lambda x: halved(x).add_(1), lambda x: halved(x.contiguous() * 2)],
)
def test_work_outside_of_stages_is_refused(encode: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(RuntimeError, match="outside of a stage"):
        record(encode, Form(LANES, BLOCK, BLOCK, False))
