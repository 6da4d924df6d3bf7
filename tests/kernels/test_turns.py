"""Turns, counted operations and what is timed."""

import pytest
import torch

from gpukit_kernels import (
    QUANTS,
    Lane,
    QuantError,
    dequantize,
    device_list,
    issue_rate,
    operations,
    quantize,
    timed,
    zeros_by_page,
)

NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def test_zeros_take_what_is_written() -> None:
    cpu = torch.device("cpu")
    found = zeros_by_page((2, 3, 4), torch.float32, cpu)
    assert (found.shape, found.dtype) == ((2, 3, 4), torch.float32)
    assert not found.any()
    found[1, 2] = 5
    assert found.sum() == 20
    assert zeros_by_page((0, 4), torch.float16, cpu).shape == (0, 4)


def test_the_cpu_has_no_turns_to_wait_for() -> None:
    lane = Lane(torch.device("cpu"))
    assert lane.depth == 0
    host = torch.arange(5)
    with lane.turn() as turn:
        here = turn.put(host)
        assert here is host
        assert turn.take(here) is host
    turn.wait()


@NEEDS_CUDA
@pytest.mark.parametrize("name", ["Q4_K", "Q8_0", "IQ4_XS"])
def test_turns_overlap_and_give_the_bytes_of_the_cpu(name: str) -> None:
    lane = Lane(torch.device("cuda:0"))
    values = [torch.randn(64, 4096, dtype=torch.bfloat16) for _ in range(9)]
    turns = []
    for x in values:
        pinned = x.pin_memory()
        turn = lane.turn()
        with turn:
            blocks = turn.take(quantize(turn.put(pinned), name))
        turns.append((turn, pinned, blocks))
    for (turn, _, blocks), x in zip(turns, values, strict=True):
        turn.wait()
        assert torch.equal(blocks, quantize(x, name, backend="eager"))


def test_devices_by_name() -> None:
    assert device_list("cpu") == [torch.device("cpu")]
    with pytest.raises(QuantError, match="device cpu, cpu: one of them is named twice"):
        device_list("cpu, cpu")
    with pytest.raises(QuantError, match="unknown device ''"):
        device_list("cpu,")


def test_operations_are_those_of_the_search() -> None:
    assert operations("F32") == 0
    assert operations("Q8_0") < 20
    assert 300 < operations("Q4_K") < 1000
    assert operations("Q4_0", importance=True) > 10 * operations("Q4_0")
    with pytest.raises(QuantError, match="IQ1_S needs importance"):
        operations("IQ1_S")
    assert operations("IQ2_XS", importance=True) > operations("Q4_K", importance=True)
    for name, row in QUANTS.items():
        assert not row.encode or operations(name) >= 0


def test_timing() -> None:
    cpu = torch.device("cpu")
    calls: list[int] = []
    assert timed(lambda: calls.append(1), cpu, repeats=3) >= 0
    assert len(calls) == 4
    assert issue_rate(cpu) is None


def test_floats_decode_as_they_lie() -> None:
    x = torch.randn(7, 33)
    for name in ("F32", "F16", "BF16"):
        blocks = quantize(x, name)
        assert torch.equal(quantize(dequantize(blocks, name), name), blocks)
        assert torch.equal(
            dequantize(blocks[:, ::1].t().contiguous().t(), name), dequantize(blocks, name)
        )
