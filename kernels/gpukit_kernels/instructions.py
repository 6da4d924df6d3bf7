"""Instructions a weight of the Triton kernels, read from their machine code, without a GPU.

    python -m gpukit_kernels.instructions [--arch 90] [--type Q4_K,...] [--dtype bf16] [--markdown]

Of each kernel: the instructions outside of loops, those of one turn of each loop, and all of them
with the turns that the searches take, each for a warp of 32 weights. What a branch leaves out is
counted, too.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from gpukit_kernels.errors import QuantError
from gpukit_kernels.launched import Kernel, kernels
from gpukit_kernels.machine_code import compiled, disassembled
from gpukit_kernels.table import QUANTS, by_name

LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?(\w[\w.]*)([^;]*);")


@dataclass(frozen=True)
class Count:
    """Instructions a weight of one kernel: outside of loops, and of a turn of each loop, from the
    outermost and first on."""

    kernel: str
    straight: float
    loops: tuple[float, ...]


def count(kernel: Kernel, arch: int) -> Count:
    """What `kernel` takes on compute capability `arch` (90 for 9.0)."""
    found = parsed(disassembled(compiled(kernel, arch).asm["cubin"]))
    share = 32 * kernel.warps / weights(kernel)
    straight, loops = counted(found)
    return Count(kernel.name, straight * share, tuple(n * share for n in loops))


def weights(kernel: Kernel) -> int:
    """Weights that a program works on, in a turn of its outer loop where it has one."""
    c = kernel.constants
    if "TILE" in c:
        return int(c["TILE"] * c.get("BLOCK", 256))
    rows = c.get("ROWS", 1)
    if "THREADS" in c:  # each thread has a part of a block of every row
        return int(rows * c["THREADS"] * c["BLOCK"] // c["PARTS"])
    if "QUADS" in c:  # each thread has sixteen bytes of levels of every row
        return int(rows * 32 * c["QUADS"])
    return int(rows * c.get("STEP", 1) * c.get("BLOCK", c.get("LANES", 1)))


Instruction = tuple[int, str, str]


def parsed(text: str) -> list[Instruction]:
    """Address, name and operands of every instruction of a disassembly, without the padding."""
    found = [(int(at, 16), name, rest) for at, name, rest in LINE.findall(text)]
    return [entry for entry in found if entry[1] != "NOP"]


def counted(code: Sequence[Instruction]) -> tuple[int, list[int]]:
    """Instructions outside of loops, and those of each loop that are in no loop within it."""
    spans = []
    for at, name, rest in code:
        target = re.search(r"0x([0-9a-f]+)", rest)
        if name.startswith("BRA") and target and (to := int(target[1], 16)) < at:
            spans.append((to, at))
    # Branches back to one place are one loop; one that ends behind the code is the trap.
    loops = {begin: max(end for b, end in spans if b == begin) for begin, _ in spans}
    ordered = sorted(loops.items())
    straight, inside = 0, [0] * len(ordered)
    for at, _, _ in code:
        around = [n for n, (begin, end) in enumerate(ordered) if begin <= at <= end]
        if around:
            inside[max(around, key=lambda n: ordered[n][0])] += 1
        else:
            straight += 1
    return straight, inside


def main() -> int:
    """Print a line for each kernel."""
    parser = argparse.ArgumentParser(prog="gpukit_kernels.instructions")
    parser.add_argument("--arch", type=int, default=90)
    parser.add_argument("--type", default=",".join(QUANTS))
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    form = "| {} | {} | {} |\n" if options.markdown else "{:28} {:>9}  {}\n"
    sys.stdout.write(form.format("kernel", "straight", "a turn of each loop"))
    if options.markdown:
        sys.stdout.write("|---|---|---|\n")
    for name in options.type.split(","):
        for kernel in kernels(by_name(name), options.dtype.split(",")):
            found = count(kernel, options.arch)
            loops = ", ".join(f"{n:.2f}" for n in found.loops)
            sys.stdout.write(form.format(found.kernel, f"{found.straight:.2f}", loops or "-"))
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except QuantError as error:
        sys.exit(f"Error: {error}")
