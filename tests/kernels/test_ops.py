"""The public calls: shapes, dtypes, strides, empty sizes, errors, and how far values may move."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support import quant_kinds
from torch import Tensor

from gpukit_kernels import (
    QUANTS,
    QuantError,
    dequantize,
    plan_backend,
    quantize,
)
from gpukit_kernels.cpu import cache, program

# Those that need importance: test_grids.py.
NAMES = [name for name, row in QUANTS.items() if row.encode]


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("lead", [(), (1,), (3,), (2, 3), (0,), (2, 0, 3)])
def test_any_leading_shape(name: str, lead: tuple[int, ...]) -> None:
    row = QUANTS[name]
    values = gaussian(*lead, 512)
    blocks = quantize(values, name)
    assert blocks.shape == (*lead, row.row_bytes(512))
    assert blocks.dtype == torch.uint8
    assert blocks.is_contiguous()
    back = dequantize(blocks, name)
    assert back.shape == values.shape
    assert back.dtype == torch.float32
    flat = quantize(values.reshape(-1), name)
    assert torch.equal(blocks.reshape(-1), flat)


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_nothing(name: str) -> None:
    assert quantize(torch.empty(3, 0), name).shape == (3, 0)
    assert dequantize(torch.empty(3, 0, dtype=torch.uint8), name).shape == (3, 0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_floats_are_widened_first(name: str, dtype: torch.dtype) -> None:
    values = gaussian(7, 256).to(dtype)
    assert torch.equal(quantize(values, name), quantize(values.float(), name))
    blocks = quantize(values, name)
    wide = dequantize(blocks, name)
    assert torch.equal(dequantize(blocks, name, dtype), wide.to(dtype))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", NAMES)
def test_strides_do_not_matter(name: str) -> None:
    base = gaussian(512, 6, 256)
    views = [
        base.permute(1, 2, 0),
        base[::3],
        base[:, ::2],
        base.flip(0),
        base[:, :, :1].expand(-1, -1, 256),
    ]
    for view in views:
        assert torch.equal(quantize(view, name), quantize(view.contiguous(), name))
    blocks = quantize(base, name)
    for view in (blocks[::5], blocks.transpose(0, 1)):
        assert torch.equal(dequantize(view, name), dequantize(view.contiguous(), name))


@pytest.mark.parametrize("name", NAMES)
def test_blocks_are_independent(name: str) -> None:
    # More blocks than one tile holds, an odd number: each as if it were alone.
    values = gaussian(4097, 256)
    whole = quantize(values, name)
    for at in (0, 1, 1023, 1024, 2048, 4095, 4096):
        assert torch.equal(whole[at], quantize(values[at], name))
    assert torch.equal(dequantize(whole, name)[4096], dequantize(whole[4096], name))


@pytest.mark.parametrize("name", NAMES)
def test_inputs_stay(name: str) -> None:
    values = gaussian(9, 256)
    before = values.clone()
    blocks = quantize(values, name)
    kept = blocks.clone()
    dequantize(blocks, name).fill_(float("nan"))
    assert torch.equal(values, before)
    assert torch.equal(blocks, kept)


# Points of a lattice are chosen for eight weights, or four, together: any one may move further.
EACH = [name for name in NAMES if QUANTS[name].block > 1 and name not in quant_kinds.ENDING]


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("kind", ["gaussian", "positive", "heavy-tailed", "sparse", "constant"])
def test_values_move_within_a_step(name: str, kind: str) -> None:
    row = QUANTS[name]
    values = torch.from_numpy(quant_kinds.make(kind, 200)).view(-1, row.block)
    moved = (dequantize(quantize(values, name), name) - values).abs()
    # Levels divide at most twice the largest magnitude; a value at the end of an uneven range is
    # cut off by up to a step, and scales are rounded to fp16. Scales cost half a bit or so.
    step = 2 / 2 ** int(row.bits_per_weight - 0.5 - (name == "NVFP4"))
    # Scales and minima of four bits are themselves off by up to half of a fifteenth.
    slack = 1 / 30 if name == "Q2_K" else 2**-10
    # Scales of NVFP4 cost a whole bit, and are off by half of the least one: six of that a value.
    least = 6 * 2**-10 if name == "NVFP4" else 0
    assert (moved <= (step + slack) * values.abs().amax(dim=-1, keepdim=True) + least).all()


@pytest.mark.parametrize(("name", "share"), [("F32", 0.0), ("F16", 2**-11), ("BF16", 2**-8)])
def test_floats_move_within_half_a_unit(name: str, share: float) -> None:
    values = torch.from_numpy(quant_kinds.make("gaussian", 200))
    moved = (dequantize(quantize(values, name), name) - values).abs()
    # The second term: half the step between fp16 subnormals.
    assert (moved <= share * values.abs() + 2**-25).all()


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0", "Q5_0", "F16", "BF16"])
def test_quantising_decoded_values_changes_nothing(name: str) -> None:
    # For these types the levels of decoded values are the levels they came from. Q8_0's scale is
    # max / 127, which only returns if some level is 127: always, as the largest value defines it.
    values = gaussian(64, 256)
    once = quantize(values, name)
    assert torch.equal(
        dequantize(quantize(dequantize(once, name), name), name), dequantize(once, name)
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["not finite", "extreme"])
def test_odd_values_do_not_crash(name: str, kind: str) -> None:
    blocks = quantize(torch.from_numpy(quant_kinds.make(kind, 64)), name)
    assert dequantize(blocks, name).shape == (64, 256)


@pytest.mark.parametrize("name", NAMES)
def test_any_bytes_decode(name: str) -> None:
    rng = np.random.default_rng(3)
    blocks = torch.from_numpy(rng.integers(0, 256, (300, QUANTS[name].nbytes), dtype=np.uint8))
    assert dequantize(blocks, name).shape == (300, QUANTS[name].block)


@pytest.mark.parametrize("name", NAMES)
def test_shape_function_agrees(name: str) -> None:
    values = gaussian(3, 512)
    blocks = quantize(values, name)
    on_meta = quantize(values.to("meta"), name, backend="eager")
    assert (on_meta.shape, on_meta.dtype) == (blocks.shape, blocks.dtype)
    back = dequantize(on_meta, name, torch.float16, backend="eager")
    assert (back.shape, back.dtype) == (values.shape, torch.float16)


def test_ops_are_well_formed() -> None:
    values = gaussian(2, 64)
    torch.library.opcheck(torch.ops.gpukit.quantize, (values, "Q8_0", None, "eager"))
    weights = torch.ones(64)
    torch.library.opcheck(torch.ops.gpukit.quantize, (values, "Q4_0", weights, "eager"))
    blocks = quantize(values, "Q8_0")
    torch.library.opcheck(torch.ops.gpukit.dequantize, (blocks, "Q8_0", torch.float32, "eager"))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: quantize(torch.ones(2, 100), "q4_0"),
            r"rows of 100 are no multiple of 32 \(Q4_0\)",
        ),
        (lambda: quantize(torch.ones(288), "Q6_K"), r"rows of 288 are no multiple of 256 \(Q6_K\)"),
        (lambda: quantize(torch.ones(32), "Q9_9"), "unknown quant type 'Q9_9'; known: F32"),
        (lambda: quantize(torch.ones(32, dtype=torch.int8), "Q8_0"), "int8.*float32, float16"),
        (
            lambda: quantize(torch.ones(32, dtype=torch.float64), "Q8_0"),
            "float64.*float32, float16",
        ),
        (lambda: quantize(torch.tensor(1.0), "F32"), "scalar"),
        (
            lambda: quantize(torch.ones(3, 32), "Q8_0", torch.ones(64)),
            r"importance is \[64\], values are \[3, 32\]; one number for each of 32 columns",
        ),
        (lambda: quantize(torch.ones(3, 2, 32), "Q4_0", torch.ones(2, 32)), r"\[2, 32\].*\[3, 2"),
        (
            lambda: quantize(torch.ones(3, 32), "Q4_0", torch.ones(32).double()),
            "importance is torch.float64 on cpu; float32 on cpu is needed",
        ),
        (
            lambda: quantize(torch.ones(32), "Q8_0", backend="gpu"),
            "'gpu'; known: eager, compiled, triton",
        ),
        (
            lambda: quantize(torch.ones(32, device="meta"), "Q8_0", backend="compiled"),
            "for the CPU.*meta",
        ),
        (lambda: dequantize(torch.ones(34), "Q8_0"), "float32; dequantize takes uint8"),
        (lambda: dequantize(torch.ones(33, dtype=torch.uint8), "Q8_0"), r"33 bytes .* 34 \(Q8_0\)"),
        (
            lambda: dequantize(torch.tensor(1, dtype=torch.uint8), "Q8_0"),
            r"no multiple of 34 \(Q8_0\)",
        ),
        (lambda: dequantize(torch.ones(34, dtype=torch.uint8), "Q8_0", torch.float64), "float64"),
        (lambda: dequantize(torch.ones(34, dtype=torch.uint8), "Q8_0", backend="x"), "backend 'x'"),
    ],
)
def test_errors_are_one_line_with_both_numbers(call, message: str) -> None:
    with pytest.raises(QuantError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.fixture
def nothing_compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As in the first process of a new user."""
    monkeypatch.setattr(cache, "folder", lambda: tmp_path)
    monkeypatch.setattr(program, "_loaded", {})


@pytest.mark.usefixtures("nothing_compiled")
@pytest.mark.parametrize("name", NAMES)
def test_little_work_is_done_eagerly(name: str) -> None:
    assert plan_backend(name, 1 << 18, "cpu") == "eager"
    assert plan_backend(name, 1, torch.device("cuda")) == "triton"


@pytest.mark.parametrize("name", ["F16", "BF16", "Q8_0", "MXFP4", "F32"])
def test_types_that_take_no_notice_of_importance(name: str) -> None:
    values = gaussian(3, 512)
    weighted = quantize(values, name, torch.rand(512))
    assert torch.equal(weighted, quantize(values, name))


@pytest.mark.parametrize("name", [name for name in NAMES if QUANTS[name].weighted])
def test_importance_with_views_and_nothing(name: str) -> None:
    values, weights = gaussian(6, 768), torch.rand(512)
    view = values[::2, 128:640]
    assert not view.is_contiguous()
    wanted = quantize(view.contiguous(), name, weights, backend="eager")
    assert torch.equal(quantize(view, name, weights, backend="eager"), wanted)
    assert torch.equal(quantize(view[1], name, weights, backend="eager"), wanted[1])
    assert quantize(view[:0], name, weights).shape == (0, wanted.shape[1])
    assert quantize(values.view(6, 1, 768)[:0], name, torch.rand(0, 768)).shape[:2] == (0, 1)
    assert not torch.equal(quantize(view, name, backend="eager"), wanted)


PEAK = """
import resource, sys, torch
from gpukit_kernels import quantize, dequantize
values = torch.zeros(4096, 8192, dtype=torch.bfloat16).normal_()
values = values.t() if sys.argv[2] == "strided" else values
quantize(values[:64], sys.argv[1]), dequantize(quantize(values[:64], sys.argv[1]), sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
blocks = quantize(values, sys.argv[1], backend="eager")
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((after - before) * 1024 - blocks.nbytes)
"""


@pytest.mark.sampled(4)
@pytest.mark.parametrize("layout", ["rows", "strided"])
@pytest.mark.parametrize("name", ["F16", "Q8_0"])
def test_scratch_memory_is_bounded(name: str, layout: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", PEAK, name, layout], capture_output=True, text=True, check=True
    )
    assert int(run.stdout) < 100_000_000
