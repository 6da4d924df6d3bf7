"""A Triton kernel compiled without a GPU, and what its machine code says: registers, spills, FMAs.

Each kernel is compiled as its launcher would have it compiled and its machine code is read with the
tools that Triton ships. Not under TRITON_INTERPRET=1, which takes the compiler's place.
"""

import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from gpukit_kernels.errors import QuantError
from gpukit_kernels.kernel_keys import inputs
from gpukit_kernels.launched import Kernel

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
# Bytes of shared memory that one program may have (CUDA C++ programming guide).
SHARED = {80: 166912, 90: 232448, 100: 232448}
# What may be set without another machine code.
HARMLESS = ("TRITON_INTERPRET", "TRITON_CACHE_DIR", "TRITON_HOME")


@dataclass(frozen=True)
class Usage:
    """The machine code of one kernel for one architecture.

    `spills` counts loads and stores of registers to local memory, `stack` bytes a thread of it,
    `fma` and `flushes` the instructions of PTX that fuse a product and a sum or flush subnormals
    (the divisions' own code has FMAs by design, so machine code would not tell).
    """

    kernel: str
    arch: int
    registers: int
    stack: int
    spills: int
    shared: int
    fma: int
    flushes: int
    exact: bool
    fuses: bool

    def fault(self) -> str | None:
        """What is wrong with it, in one line, or None."""
        if self.spills or self.stack:
            return f"{self.spills} spills, {self.stack} bytes of stack"
        if self.shared > SHARED.get(self.arch, self.shared):
            return f"{self.shared} bytes of shared memory, there are {SHARED[self.arch]}"
        if self.exact and ((self.fma and not self.fuses) or self.flushes):
            return f"{self.fma} FMAs and {self.flushes} flushes of subnormals in an exact kernel"
        return None


def compiled(kernel: Kernel, arch: int) -> Any:
    """What Triton makes of `kernel` for compute capability `arch` (80 for 8.0)."""
    if not isinstance(kernel.function, triton.JITFunction):
        raise QuantError("TRITON_INTERPRET is set: nothing can be compiled; unset it")
    given = inputs(kernel)
    return triton.compile(
        ASTSource(
            fn=kernel.function,
            signature=given.signature,
            constexprs=given.constants,
            attrs=given.attributes,
        ),
        target=GPUTarget("cuda", arch, 32),
        options=given.options,
    )


def usage(kernel: Kernel, arch: int) -> Usage:
    """Compile `kernel` for compute capability `arch` and read what came of it."""
    made = compiled(kernel, arch)
    ptx = made.asm["ptx"]
    registers, stack, spills = _machine_code(made.asm["cubin"])
    return Usage(
        kernel.name,
        arch,
        registers,
        stack,
        spills,
        made.metadata.shared,
        len(re.findall(r"^\s*(?:@\S+\s+)?fma\.", ptx, re.MULTILINE)),
        ptx.count(".ftz"),
        kernel.exact,
        kernel.fuses,
    )


def _machine_code(cubin: bytes) -> tuple[int, int, int]:
    """Registers and bytes of stack of a thread, and accesses to local memory."""
    used = _dumped(cubin, "-res-usage")
    registers, stack = map(int, re.findall(r"REG:(\d+) STACK:(\d+)", used)[-1])
    # Local memory is the stack: without one no access to it is there to be counted, and
    # disassembling takes as long as compiling.
    code = disassembled(cubin) if stack else ""
    return registers, stack, len(re.findall(r"\b(?:LDL|STL)\b", code))


def disassembled(cubin: bytes) -> str:
    """The machine code as text."""
    return _dumped(cubin, "-sass")


def _dumped(cubin: bytes, what: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(TOOLS / "cuobjdump"), what, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def compilers() -> dict[str, str]:
    """What makes machine code of a kernel besides its key: the versions of Triton and of each
    assembler that it ships, and what the environment tells them."""
    told = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(("TRITON_", "LLVM_", "PTXAS_", "DISABLE_")) and name not in HARMLESS
    }
    versions = {}
    for tool in sorted(TOOLS.glob("ptxas*")):
        command = [str(tool), "--version"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        versions[tool.name] = re.findall(r"V\d[\d.]*", said)[-1]
    return {"triton": triton.__version__, **versions, **dict(sorted(told.items()))}
