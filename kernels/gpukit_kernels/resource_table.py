"""What every Triton kernel compiled to, as facts to go on with: docs/kernel-resources.json.

A row holds for a kernel as long as its key is the same, and what compiles it; else it has to be
compiled again.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import triton

from gpukit_kernels.kernel_keys import key
from gpukit_kernels.launched import Kernel, kernels
from gpukit_kernels.launched_forward import forward_kernels
from gpukit_kernels.launched_step import step_kernels
from gpukit_kernels.machine_code import Usage, compilers
from gpukit_kernels.table import QUANTS

ARCHES = (80, 90, 100)
# Values of 16 bits are loaded and stored as those of the others are, and weights mostly are these.
DTYPE = "bf16"
# What a row has of a `Usage`, in this order.
COUNTS = ("registers", "stack", "spills", "shared", "fma", "flushes")


def kernels_of_no_type() -> Iterator[Kernel]:
    """Those of a forward pass and of one token's step, but for products."""
    return chain(forward_kernels(), step_kernels())


def all_kernels() -> list[Kernel]:
    """Those of the table, in its order."""
    of_types = (kernels(row, [DTYPE]) for row in QUANTS.values())
    return [*chain.from_iterable(of_types), *kernels_of_no_type()]


@dataclass
class Row:
    """Of one kernel: its key, and for each architecture its `COUNTS`."""

    key: str
    counts: dict[int, list[int]] = field(default_factory=dict)


@dataclass
class ResourceTable:
    """Rows by kernel, and what compiled them."""

    made_by: dict[str, str]
    rows: dict[str, Row]

    @classmethod
    def read(cls, path: Path) -> "ResourceTable":
        """That of `path`; an empty one where nothing is, or what other compilers have made."""
        made_by = compilers()
        if not path.exists():
            return cls(made_by, {})
        document = json.loads(path.read_text())
        if document["made_by"] != made_by:
            return cls(made_by, {})
        rows = {
            name: Row(key, {int(arch): counts for arch, counts in by_arch.items()})
            for name, (key, by_arch) in document["kernels"].items()
        }
        return cls(made_by, rows)

    def write(self, path: Path) -> None:
        """A kernel a line."""
        lines = [
            f" {json.dumps(name)}: {json.dumps([row.key, dict(sorted(row.counts.items()))])}"
            for name, row in self.rows.items()
        ]
        made_by = json.dumps(self.made_by)
        body = ",\n".join(lines)
        path.write_text(f'{{"made_by": {made_by},\n"kernels": {{\n{body}\n}}}}\n')

    def usage(self, kernel: Kernel, arch: int) -> Usage | None:
        """What it says of `kernel`, unless that has changed."""
        row = self.rows.get(kernel.name)
        if row is None or arch not in row.counts or row.key != key(kernel):
            return None
        counts = dict(zip(COUNTS, row.counts[arch], strict=True))
        return Usage(kernel.name, arch, exact=kernel.exact, fuses=kernel.fuses, **counts)

    def add(self, kernel: Kernel, usage: Usage) -> None:
        """`usage` in the place of what it says of an older `kernel`."""
        row = self.rows.setdefault(kernel.name, Row(key(kernel)))
        if row.key != key(kernel):
            row = self.rows[kernel.name] = Row(key(kernel))
        row.counts[usage.arch] = [getattr(usage, name) for name in COUNTS]


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
        "forward pass fuse on purpose, and merges of floats where a product is exact.",
        f"Triton {triton.__version__}, compiled without a GPU by `scripts/resources`.",
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
