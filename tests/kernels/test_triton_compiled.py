"""Every Triton kernel of every type compiles for three generations of GPUs, without one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpukit_kernels import QUANTS, resources

KERNELS = Path(__file__).parents[2] / "kernels"


def start(*arguments: str, interpret: bool = False) -> subprocess.Popen[str]:
    """`gpukit_kernels.resources` in its own process: ours may have the interpreter instead."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(KERNELS),
        "TRITON_INTERPRET": str(int(interpret)),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "gpukit_kernels.resources", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# Processes for all types, which several cores share; each takes seconds to start.
PARTS = 3
ARCHES = [
    pytest.param(arch, marks=[] if arch == 90 else pytest.mark.thorough)
    for arch in resources.ARCHES
]


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("arch", ARCHES)
def test_no_spill_no_fma_no_flush(arch: int, part: int) -> None:
    names = sorted(QUANTS, key=lambda name: QUANTS[name].block)[part::PARTS]
    choice = ("--arch", str(arch), "--dtype", "bf16", "--type", ",".join(names))
    out, err = start("--json", *choice).communicate()
    assert out, err
    usages = json.loads(out)
    for name in names:
        mine = [usage for usage in usages if str(usage["kernel"]).split()[0] == name]
        # Decode, to scaled halves too, and an exact product; encode, with importance, which some
        # types begin with rows' mean squares; some have aligned kernels. Two merge: into blocks and
        # out of them, of floats one and one for the rows' lengths. Types whose blocks are read by
        # parts have halves by them, products and gated ones for one row of x and for as many as go
        # together.
        row = QUANTS[name]
        pair = row.triton
        assert pair is not None
        encodes = pair.encode is not None
        more = encodes + (pair.weighted is not None) + row.row_mean
        more += 1 + (encodes or row.block == 1)
        more += (pair.few is not None) + (pair.aligned is not None)
        if pair.vectors is not None:
            more += 1 + 2 * len({1, pair.vectors.together})
        # Decoding by pieces; which factors have exact products is asked once, by F32's.
        more += (pair.pieces is not None) + (name == "F32")
        assert len(mine) == 3 + more
        faults = {usage["kernel"]: usage["fault"] for usage in mine}
        assert set(faults.values()) == {None}, faults
    # Products do fuse, so that a count of no FMAs elsewhere says something.
    few = [usage for usage in usages if str(usage["kernel"]).endswith("matmul few")]
    assert few
    assert all(int(str(usage["fma"])) > 0 for usage in few)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHES)
def test_kernels_of_the_forward_pass_do_not_spill(arch: int) -> None:
    out, err = start("--forward", "--json", "--arch", str(arch)).communicate()
    assert out, err
    faults = {usage["kernel"]: usage["fault"] for usage in json.loads(out)}
    assert len(faults) == 32
    assert set(faults.values()) == {None}, faults


def test_the_table_in_docs_has_every_kernel_and_no_fault() -> None:
    text = (KERNELS.parent / "docs" / "kernel-resources.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    head, *rows = rows
    assert head == ["kernel", "sm_80", "sm_90", "sm_100", "spills", "FMAs"]
    kernels = [k for row in QUANTS.values() for k in resources.kernels(row, ["bf16"])]
    kernels += resources.kernels_of_no_type()
    assert [row[0] for row in rows] == [k.name for k in kernels]
    assert {row[4] for row in rows} == {"0"}
    assert [row[5] == "0" for row in rows] == [k.exact and not k.fuses for k in kernels]
    assert all(0 < int(count) <= 255 for row in rows for count in row[1:4])


def test_nothing_is_compiled_in_the_interpreter() -> None:
    out, err = start("--type", "F32", interpret=True).communicate()
    assert "TRITON_INTERPRET is set" in err
    assert "sm_" not in out
