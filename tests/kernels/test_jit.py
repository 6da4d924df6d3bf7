"""Without a GPU nobody waits for Triton, and who asks for its kernels is told."""

import os
import subprocess
import sys

import pytest
import torch

WITHOUT_TRITON = """
import sys, torch, gpukit_kernels, gpukit_kernels.ops
from gpukit_kernels import jit, launch

values = torch.linspace(-1, 1, 512).view(2, 256)
for name, row in gpukit_kernels.QUANTS.items():
    if row.encode:
        blocks = gpukit_kernels.quantize(values, name, backend="eager")
        assert gpukit_kernels.dequantize(blocks, name).shape == (2, 256), name
for call in (
    lambda: gpukit_kernels.quantize(values, "Q4_K", backend="triton"),
    lambda: launch.encode_triton(values, gpukit_kernels.by_name("Q4_K")),
):
    try:
        call()
    except gpukit_kernels.QuantError as error:
        print(error)
print(jit.PRESENT, "triton" in sys.modules)
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_triton_is_not_imported_where_nothing_can_run_it() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", WITHOUT_TRITON],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    said = "the triton backend needs a GPU; TRITON_INTERPRET=1 runs its kernels on the CPU, slowly"
    assert done.stderr == ""
    assert done.stdout.splitlines() == [said, said, "False False"]
