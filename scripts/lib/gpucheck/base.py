"""What every process of a run shares: the plan, files in one folder, Triton's keys, the device."""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
# The types that matter most, then those that can be written, then those that are only read.
TOP = ("Q4_K", "Q6_K", "Q8_0", "Q4_0")
NEXT = (
    "Q5_K",
    "Q3_K",
    "Q2_K",
    "Q5_0",
    "Q4_1",
    "Q5_1",
    "IQ4_XS",
    "IQ4_NL",
    "MXFP4",
    "NVFP4",
    "F16",
    "BF16",
)


@dataclass(frozen=True)
class Plan:
    """What a run does, and how much of it; `until` is a time of the monotonic clock."""

    folder: str
    device: str
    types: list[str]
    steps: list[str]
    until: float
    checked: int = 12_000_000  # weights of each type whose bytes are compared
    weighted: int = 4_000_000  # the same with importance
    timed: int = 1 << 27  # weights of a timed call, more than the second-level cache holds
    side: int = 8192  # of the weight of a timed product
    big: int = 5  # layers of the large file
    repeats: int = 9
    width: int = 4096

    @property
    def cuda(self) -> bool:
        return self.device.startswith("cuda")

    @cached_property
    def at(self) -> Path:
        return Path(self.folder)

    def save(self) -> None:
        write_json(self.at / "plan.json", asdict(self))


def load_plan(folder: str) -> Plan:
    return Plan(**json.loads((Path(folder) / "plan.json").read_text()))


def write_json(path: Path, value: Any) -> None:
    """Leave `value` at `path`, whole."""
    write_text(path, json.dumps(value) + "\n")


def write_text(path: Path, text: str) -> None:
    """Leave `text` at `path`, whole."""
    part = path.with_name(f"{path.name}.{os.getpid()}")
    part.write_text(text)
    os.replace(part, path)


def claim(path: Path) -> bool:
    """Whether this process is the first that asks for `path`."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def guarded(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `work` returns and its seconds; of an error the first line and the trace's end."""
    begin = time.monotonic()
    try:
        found = work()
    except Exception as error:
        lines = traceback.format_exc().splitlines()
        found = {
            "error": f"{type(error).__name__}: {error}".splitlines()[0][:300],
            "trace": [line[:300] for line in lines[-14:]],
        }
    return {**found, "took_s": round(time.monotonic() - begin, 3)}


def compilations() -> list[str]:
    """A list that gets the name of each kernel that this process compiles from now on, which it did
    not find on disk."""
    from triton import knobs

    names: list[str] = []

    def heard(*, src: Any, cache_hit: bool, **_: Any) -> None:
        if not cache_hit:
            names.append(str(getattr(src, "name", src)))

    knobs.compilation.listener = heard
    return names


def as_tests_interpret() -> None:
    """Where kernels are interpreted, which only tests want, without work done over and over."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        sys.path.append(str(ROOT / "tests"))
        from support.interpreter import alike_at_once, keep_shapes_and_types, patch_once_a_launch

        patch_once_a_launch()
        keep_shapes_and_types()
        alike_at_once()


def stable_keys() -> int:
    """How many jit functions there are; each has its key, whatever kernel is launched first.

    Triton 3.6's key of a function depends on which functions had theirs before: asked for in one
    order in every process, one finds on disk what another compiled.
    """
    from triton.runtime import jit

    from gpukit_kernels import ops, table

    del ops
    assert table.QUANTS
    kind = getattr(jit, "JITCallable", jit.JITFunction)
    found = {}
    for name, module in list(sys.modules.items()):
        if name.startswith("gpukit_kernels"):
            for value in vars(module).values():
                if isinstance(value, kind):
                    found[f"{value.fn.__module__}.{value.fn.__qualname__}"] = value
    for name in sorted(found):
        _ = found[name].cache_key
    return len(found)
