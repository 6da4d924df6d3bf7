"""Instructions counted from machine code: loops apart, padding left out."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpukit_kernels.instructions import counted, parsed

CODE = """
        /*0000*/                   LDC R1, c[0x0][0x28] ;              /* 0x00000a00ff017b82 */
        /*0010*/                   S2R R0, SR_TID.X ;
        /*0020*/                   FMUL R2, R0, R1 ;
        /*0030*/              @!P0 FADD R3, R2, R1 ;
        /*0040*/                   LDG.E R4, desc[UR4][R2.64] ;
        /*0050*/              @P1  BRA 0x30 ;
        /*0060*/             @!UP0 IADD3 R5, R4, 0x1, RZ ;
        /*0070*/               @P2 BRA 0x20 ;
        /*0080*/                   EXIT ;
        /*0090*/                   BRA 0x90;
        /*00a0*/                   NOP;
"""


def test_every_loop_has_its_own_instructions() -> None:
    code = parsed(CODE)
    assert [name for _, name, _ in code] == [
        "LDC", "S2R", "FMUL", "FADD", "LDG.E", "BRA", "IADD3", "BRA", "EXIT", "BRA"
    ]  # fmt: skip
    # The outer loop is from 0x20 to 0x70, the inner one from 0x30 to 0x50; the last branch is the
    # trap behind the code, which goes nowhere.
    assert counted(code) == (4, [3, 3])


@pytest.mark.thorough
def test_it_counts_a_kernel() -> None:
    kernels = Path(__file__).parents[2] / "kernels"
    environment = {**os.environ, "PYTHONPATH": str(kernels), "TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "gpukit_kernels.instructions", "--type", "F32"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split()[:2] == ["kernel", "straight"]
    by_name = {line[:28].strip(): line[28:].split() for line in lines[1:]}
    straight, loops = by_name["F32 decode bf16"]
    assert loops == "-"
    # Of four bytes a load, a rounding and a store: a few, and not hundreds.
    assert 2 < float(straight) < 60
    assert "," in " ".join(by_name["F32 merge bf16"])
