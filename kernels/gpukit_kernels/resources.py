"""What the Triton kernels compile to, without a GPU: registers, spills and FMAs of each.

    python -m gpukit_kernels.resources [--arch 80,90,100] [--type Q4_K,...] [--dtype bf16]
                                       [--forward | --kernel NAME...] [--json]
    python -m gpukit_kernels.resources --table FILE [--anew]

With `--table` all kernels of the table: what FILE says of those that are as they were is taken from
there, the others are compiled, FILE is written again, and a page with the same numbers is printed.
"""

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from functools import cache
from itertools import chain
from pathlib import Path
from typing import TextIO

from gpukit_kernels import resource_table
from gpukit_kernels.errors import QuantError
from gpukit_kernels.kernel_keys import key
from gpukit_kernels.launched import DTYPES, Kernel, kernels
from gpukit_kernels.machine_code import Usage, usage
from gpukit_kernels.resource_table import ARCHES, ResourceTable
from gpukit_kernels.table import QUANTS, by_name


def main() -> int:
    """Print what was found; 1 when a kernel spills, outgrows its machine, or is not exact."""
    parser = argparse.ArgumentParser(prog="gpukit_kernels.resources")
    parser.add_argument("--arch", default=",".join(map(str, ARCHES)))
    parser.add_argument("--type", default=",".join(QUANTS))
    parser.add_argument("--dtype", default=",".join(DTYPES))
    parser.add_argument("--forward", action="store_true", help="instead: those of no type")
    parser.add_argument("--kernel", nargs="+", help="instead: these of the table")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--table", type=Path, metavar="FILE", help="bring FILE up to date")
    parser.add_argument("--anew", action="store_true", help="take nothing from FILE")
    options = parser.parse_args()
    arches = [int(arch) for arch in options.arch.split(",")]
    if options.table:
        found = list(_refreshed(options.table, anew=options.anew))
        sys.stdout.write(resource_table.markdown(found))
        return int(any(use.fault() for use in found))
    if not options.json:
        _tell(sys.stdout, *_HEAD, "")
    found = []
    for kernel in _chosen(options):
        for arch in arches:
            found.append(usage(kernel, arch))
            if options.json:
                _write_json(found[-1], kernel)
            else:
                _tell_usage(sys.stdout, found[-1])
    return int(any(use.fault() for use in found))


def _chosen(options: argparse.Namespace) -> Iterator[Kernel]:
    if options.kernel:
        return (_table_kernels()[name] for name in options.kernel)
    if options.forward:
        return resource_table.kernels_of_no_type()
    types, dtypes = map(by_name, options.type.split(",")), options.dtype.split(",")
    return chain.from_iterable(kernels(row, dtypes) for row in types)


def _refreshed(path: Path, *, anew: bool) -> Iterator[Usage]:
    """Of every kernel of the table, which is written after each that was compiled."""
    table = ResourceTable.read(path)
    if anew:
        table.rows.clear()
    every = _table_kernels()
    pairs = [(name, arch) for name in every for arch in ARCHES]
    missing = [(name, arch) for name, arch in pairs if table.usage(every[name], arch) is None]
    workers = min(os.cpu_count() or 1, len(missing))
    with multiprocessing.get_context("spawn").Pool(workers) if missing else nullcontext() as pool:
        for use in pool.imap_unordered(_compiled_again, missing) if pool else ():
            table.add(every[use.kernel], use)
            table.write(path)
            _tell_usage(sys.stderr, use)
    table.rows = {name: table.rows[name] for name in every}
    table.write(path)
    for name, arch in pairs:
        known = table.usage(every[name], arch)
        assert known is not None
        yield known


def _compiled_again(pair: tuple[str, int]) -> Usage:
    """In a process of the pool: of the kernel of that name."""
    name, arch = pair
    return usage(_table_kernels()[name], arch)


@cache
def _table_kernels() -> dict[str, Kernel]:
    return {kernel.name: kernel for kernel in resource_table.all_kernels()}


def _write_json(use: Usage, kernel: Kernel) -> None:
    """One line of it."""
    document = {**asdict(use), "fault": use.fault(), "key": key(kernel)}
    sys.stdout.write(json.dumps(document) + "\n")


def _tell_usage(to: TextIO, use: Usage) -> None:
    facts = (use.registers, use.spills, use.shared, use.fma, use.flushes)
    _tell(to, use.kernel, f"sm_{use.arch}", *facts, use.fault() or "")


def _tell(to: TextIO, *columns: object) -> None:
    to.write(_FORMAT.format(*columns))
    to.flush()


_HEAD = ("kernel", "arch", "registers", "spills", "shared", "fma", "flushes")
_FORMAT = "{:24} {:7} {:>9} {:>7} {:>8} {:>5} {:>8}  {}\n"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except QuantError as error:
        sys.exit(f"Error: {error}")
