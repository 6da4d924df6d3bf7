"""Every Triton kernel of every type compiles for three generations of GPUs, without one.

What each compiled to stands in docs/kernel-resources.json and holds as long as nothing that goes
into it has changed (`kernel_keys`). A kernel that is not as it was is compiled here, and so is each
with another Triton than the table's; and always some that are as they were.
"""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest

from gpukit_kernels import QUANTS, resource_table
from gpukit_kernels.kernel_keys import key
from gpukit_kernels.launched import Kernel, kernels
from gpukit_kernels.machine_code import Usage, compilers
from gpukit_kernels.resource_table import ARCHES, ResourceTable

KERNELS = Path(__file__).parents[2] / "kernels"
TABLE = KERNELS.parent / "docs" / "kernel-resources.json"
PAGE = TABLE.with_suffix(".md")
# Kernels of the table that are compiled whatever it says: others with every change of it.
SAMPLE = 4


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


@cache
def table() -> ResourceTable:
    """That of this Triton, or an empty one."""
    return ResourceTable.read(TABLE)


def table_is_ours() -> bool:
    """Whether what compiled the table's kernels is what would compile them here."""
    return bool(json.loads(TABLE.read_text())["made_by"] == compilers())


def compiled(names: Sequence[str], *arches: int) -> tuple[list[Usage], dict[str, str]]:
    """What kernels of the table compile to, and their keys."""
    wanted = ",".join(map(str, arches))
    out, err = start("--json", "--arch", wanted, "--kernel", *names).communicate()
    assert out, err
    found, keys = [], {}
    for line in out.splitlines():
        document = json.loads(line)
        keys[document["kernel"]] = document.pop("key")
        fault = document.pop("fault")
        found.append(Usage(**document))
        assert found[-1].fault() == fault
    assert len(found) == len(names) * len(arches)
    return found, keys


def checked(chosen: Sequence[Kernel], arch: int) -> dict[str, Usage]:
    """What each kernel compiles to, by name, by the table or compiled: without a fault. A table
    that is behind is the fault of who changed a kernel."""
    known = {kernel.name: table().usage(kernel, arch) for kernel in chosen}
    behind = [name for name, usage in known.items() if usage is None]
    found = {name: usage for name, usage in known.items() if usage is not None}
    if behind:
        found |= {usage.kernel: usage for usage in compiled(behind, arch)[0]}
    faults = {name: usage.fault() for name, usage in found.items() if usage.fault()}
    assert not faults
    if behind and table_is_ours():
        pytest.fail(
            f"{TABLE.name} does not say what {len(behind)} kernels for sm_{arch} compile to, "
            f"such as {behind[0]!r}; scripts/resources brings it up to date"
        )
    return found


# Where they are compiled: processes for all types, which several cores share; each takes seconds to
# start.
PARTS = 3
SEVERAL = [pytest.param(arch, marks=[] if arch == 90 else pytest.mark.thorough) for arch in ARCHES]


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("arch", SEVERAL)
def test_no_spill_no_fma_no_flush(arch: int, part: int) -> None:
    names = sorted(QUANTS, key=lambda name: QUANTS[name].block)[part::PARTS]
    by_type = {name: list(kernels(QUANTS[name], [resource_table.DTYPE])) for name in names}
    for name, mine in by_type.items():
        # Decode, to scaled halves too, and an exact product; encode, with importance, which some
        # types begin with rows' mean squares; some have aligned kernels. Two merge: into blocks and
        # out of them, of floats one and one for the rows' lengths. Types whose blocks are read by
        # parts have halves by them, products and gated ones for one row of x and for as many as go
        # together. Into types that look up the nearest rows of a codebook nothing is merged.
        row = QUANTS[name]
        pair = row.triton
        assert pair is not None
        encodes = pair.encode is not None
        more = encodes + (pair.weighted is not None) + row.row_mean
        if pair.nearest is not None:
            more += 1 + pair.nearest.plain
        more += 1 + (encodes or row.block == 1)
        more += (pair.few is not None) + (pair.aligned is not None)
        if pair.vectors is not None:
            more += 1 + 2 * len({1, pair.vectors.together})
        # Decoding by pieces; which factors have exact products is asked once, by F32's.
        more += (pair.pieces is not None) + (name == "F32")
        assert len(mine) == 3 + more
        assert {kernel.name.split()[0] for kernel in mine} == {name}
    found = checked([kernel for mine in by_type.values() for kernel in mine], arch)
    # Products do fuse, so that a count of no FMAs elsewhere says something.
    few = [usage for name, usage in found.items() if name.endswith("matmul few")]
    assert few
    assert all(usage.fma > 0 for usage in few)


@pytest.mark.slow
@pytest.mark.parametrize("arch", SEVERAL)
def test_kernels_of_the_forward_pass_do_not_spill(arch: int) -> None:
    assert len(checked(list(resource_table.kernels_of_no_type()), arch)) == 32


@pytest.mark.slow
@pytest.mark.parametrize(
    "arches", [(90,), pytest.param((80, 100), marks=pytest.mark.thorough)], ids=["90", "others"]
)
def test_some_kernels_of_the_table_compile_to_what_it_says(arches: tuple[int, ...]) -> None:
    if not table_is_ours():
        pytest.skip("another Triton than the table's: all kernels are compiled")
    every = {
        kernel.name: kernel
        for kernel in resource_table.all_kernels()
        if all(table().usage(kernel, arch) for arch in ARCHES)
    }
    text = str(sorted((name, row.key) for name, row in table().rows.items()))
    order = {name: hashlib.sha256(f"{name} {text}".encode()).digest() for name in every}
    sample = sorted(every, key=order.__getitem__)[:SAMPLE]
    found, keys = compiled(sample, *arches)
    assert keys == {name: key(every[name]) for name in sample}
    assert found == [table().usage(every[name], arch) for name in sample for arch in arches]


def test_the_table_has_every_kernel_and_its_page_the_same() -> None:
    every = resource_table.all_kernels()
    document = json.loads(TABLE.read_text())
    assert list(document["kernels"]) == [kernel.name for kernel in every]
    head, *rows = [
        line.strip("| ").split(" | ")
        for line in PAGE.read_text().splitlines()
        if line.startswith("| ")
    ]
    assert head == ["kernel", "sm_80", "sm_90", "sm_100", "spills", "FMAs"]
    assert [row[0] for row in rows] == [kernel.name for kernel in every]
    assert {row[4] for row in rows} == {"0"}
    assert [row[5] == "0" for row in rows] == [k.exact and not k.fuses for k in every]
    counts = [[int(count) for count in row[1:4]] for row in rows]
    recorded = [by_arch for _, by_arch in document["kernels"].values()]
    assert counts == [[by_arch[str(arch)][0] for arch in ARCHES] for by_arch in recorded]
    assert all(0 < count <= 255 for row in counts for count in row)


def test_nothing_is_compiled_in_the_interpreter() -> None:
    out, err = start("--type", "F32", interpret=True).communicate()
    assert "TRITON_INTERPRET is set" in err
    assert "sm_" not in out
