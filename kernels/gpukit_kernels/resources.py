"""What the Triton kernels compile to, without a GPU: registers, spills and FMAs of each.

    python -m gpukit_kernels.resources [--arch 80,90,100] [--type Q4_K,...] [--dtype bf16]
                                       [--forward] [--json | --markdown]

Each kernel is compiled as its launcher would have it compiled and its machine code is read with the
tools that Triton ships. Not under TRITON_INTERPRET=1, which takes the compiler's place. What
`--dtype bf16 --markdown` prints is docs/kernel-resources.md.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from gpukit_kernels.errors import QuantError
from gpukit_kernels.launched import DTYPES, Kernel, kernels
from gpukit_kernels.launched_forward import forward_kernels
from gpukit_kernels.launched_step import step_kernels
from gpukit_kernels.table import QUANTS, by_name

ARCHES = (80, 90, 100)
# Bytes of shared memory that one program may have (CUDA C++ programming guide).
SHARED = {80: 166912, 90: 232448, 100: 232448}


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


def kernels_of_no_type() -> Iterator[Kernel]:
    """Those of a forward pass and of one token's step, but for products."""
    return chain(forward_kernels(), step_kernels())


def compiled(kernel: Kernel, arch: int) -> Any:
    """What Triton makes of `kernel` for compute capability `arch` (80 for 8.0)."""
    if not isinstance(kernel.function, triton.JITFunction):
        raise QuantError("TRITON_INTERPRET is set: nothing can be compiled; unset it")
    signature = {
        **kernel.pointers,
        **dict.fromkeys(kernel.integers, "i32"),
        **dict.fromkeys(kernel.floats, "fp32"),
        **dict.fromkeys(kernel.constants, "constexpr"),
    }
    # What a launcher finds out of real arguments: pointers and most widths are multiples of 16.
    order = list(kernel.function.arg_names)
    aligned = [*kernel.pointers, *(name for name in kernel.integers if name in kernel.aligned)]
    attributes = {(order.index(name),): [["tt.divisibility", 16]] for name in aligned}
    return triton.compile(
        ASTSource(
            fn=kernel.function,
            signature={name: signature[name] for name in order},
            constexprs=kernel.constants,
            attrs=attributes,
        ),
        target=GPUTarget("cuda", arch, 32),
        options={
            "num_warps": kernel.warps,
            "num_stages": kernel.stages,
            "enable_fp_fusion": not kernel.exact,
        },
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
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), what, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def main() -> int:
    """Print the table; 1 when a kernel spills, outgrows its machine, or is not exact."""
    parser = argparse.ArgumentParser(prog="gpukit_kernels.resources")
    parser.add_argument("--arch", default=",".join(map(str, ARCHES)))
    parser.add_argument("--type", default=",".join(QUANTS))
    parser.add_argument("--dtype", default=",".join(DTYPES))
    parser.add_argument("--forward", action="store_true", help="instead: those of no type")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true")
    form.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    found, write = [], sys.stdout.write
    plain = not options.json and not options.markdown
    if plain:
        write(_FORMAT.format(*_HEAD, ""))
    types, dtypes = map(by_name, options.type.split(",")), options.dtype.split(",")
    chosen: Iterator[Kernel] = chain.from_iterable(kernels(row, dtypes) for row in types)
    if options.forward:
        chosen = kernels_of_no_type()
    elif options.markdown:
        chosen = chain(chosen, kernels_of_no_type())
    for kernel in chosen:
        for arch in map(int, options.arch.split(",")):
            use = usage(kernel, arch)
            found.append(use)
            if plain:
                facts = (use.registers, use.spills, use.shared, use.fma, use.flushes)
                write(_FORMAT.format(use.kernel, f"sm_{arch}", *facts, use.fault() or ""))
                sys.stdout.flush()
    if options.json:
        write(json.dumps([{**asdict(use), "fault": use.fault()} for use in found], indent=1) + "\n")
    if options.markdown:
        write(markdown(found))
    return int(any(use.fault() for use in found))


def markdown(found: Sequence[Usage]) -> str:
    """A document with a row for each kernel: registers for each architecture, sums of the rest."""
    arches = sorted({use.arch for use in found})
    rows: dict[str, list[Usage]] = {}
    for use in found:
        rows.setdefault(use.kernel, []).append(use)
    heads = ["kernel", *(f"sm_{arch}" for arch in arches), "spills", "FMAs"]
    lines = [
        "# Registers of the Triton kernels",
        "",
        "Registers of a thread, by architecture; spills (accesses to local memory) and FMAs of all",
        "architectures together. Kernels that give bytes and decoded values have no FMA; products",
        "(`matmul`, `vectors`, `gated`, and `halves` for them) and what stands between them in a",
        "forward pass fuse on purpose, and merges of floats where a product is exact. "
        f"Triton {triton.__version__}, compiled without a GPU by",
        "`python -m gpukit_kernels.resources --dtype bf16 --markdown`.",
        "",
        f"| {' | '.join(heads)} |",
        "|---" * len(heads) + "|",
    ]
    for name, uses in rows.items():
        by_arch = {use.arch: use for use in uses}
        registers = [str(by_arch[arch].registers) if arch in by_arch else "-" for arch in arches]
        exact = all(use.exact and not use.fuses for use in uses)
        fma = str(sum(use.fma for use in uses)) if exact else "allowed"
        lines.append(f"| {' | '.join([name, *registers, str(sum(u.spills for u in uses)), fma])} |")
    faults = sum(use.fault() is not None for use in found)
    return "\n".join([*lines, "", f"{len(found)} compilations, {faults} with a fault.", ""])


_HEAD = ("kernel", "arch", "registers", "spills", "shared", "fma", "flushes")
_FORMAT = "{:24} {:7} {:>9} {:>7} {:>8} {:>5} {:>8}  {}\n"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except QuantError as error:
        sys.exit(f"Error: {error}")
