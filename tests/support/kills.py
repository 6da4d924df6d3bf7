"""Processes that make files and are killed at random moments, and what is to be there then.

What runs is a fork of this process, in which everything is imported and nothing computed: threads
of it would be missing in a fork.
"""

import faulthandler
import hashlib
import importlib
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from support.loras import lora
from support.zoo_build import build

import gpukit
import gpukit.conversion.folder
import gpukit.conversion.torch_engine
import gpukit.recipes.merge
import gpukit.sources.merged
from gpukit.batches.running import Run
from gpukit.conversion import noting, pipeline
from gpukit.formats.atomic import remove
from gpukit.formats.ledger import LEDGER, Ledger, ledger_of
from gpukit_cli import surroundings

SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
# Seconds after which a process tells where it is, and after which it is ended.
HANGS, PATIENCE = 90.0, 120.0
# Small enough that tiny models are some dozens of slabs.
SLAB_WEIGHTS, SECONDS = 1 << 15, 0.0005
ARCHITECTURES = ("qwen3", "qwen2", "gemma")
ALL_TYPES = ("F16", "Q8_0", "Q4_0", "Q4_K")
Work = Callable[[], object]

assert Run  # forks need not import it


@dataclass
class Counts:
    """What became of all kills."""

    kills: int = 0
    runs: int = 0
    lost: int = 0
    half: int = 0
    orphans: int = 0
    repeated: int = 0
    pieces: int = 0
    faults: list[str] = field(default_factory=list)
    signals: Counter[str] = field(default_factory=Counter)

    @property
    def is_good(self) -> bool:
        return not (self.lost or self.half or self.orphans or self.repeated or self.faults)

    def line(self) -> str:
        kinds = ", ".join(f"{count} {name}" for name, count in sorted(self.signals.items()))
        return (
            f"{self.kills} kills ({kinds}), {self.runs} outputs ended: {self.lost} lost, "
            f"{self.half} half, {self.orphans} orphans, {self.repeated} of {self.pieces} pieces "
            f"made twice, {len(self.faults)} other faults"
        )


def fork(work: Work, side: Path) -> int:
    """Run `work` in a fork; its process. Ledgers that it removes are copied to folder `side`."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        _prepare(side)
        faulthandler.dump_traceback_later(HANGS, exit=False)
        with surroundings.endings():
            work()
        code = 0
    except surroundings.Ended as ended:
        code = ended.exit_code
    except KeyboardInterrupt:  # before its signals are answered
        code = 128 + signal.SIGINT
    except BaseException as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        sys.stderr.flush()
    finally:
        os._exit(code)


def _prepare(side: Path) -> None:
    pipeline.SLAB_WEIGHTS, noting.SECONDS = SLAB_WEIGHTS, SECONDS
    remove = Ledger.remove

    def noted(self: Ledger) -> None:
        if self.path.exists():
            copy(self.path, side)
        remove(self)

    Ledger.remove = noted  # type: ignore[method-assign]


def copy(ledger: Path, side: Path) -> None:
    """Keep what a ledger says, by its output."""
    side.mkdir(exist_ok=True)
    (side / ledger.name).write_bytes(ledger.read_bytes())


def whole(work: Work, side: Path) -> float:
    """Run `work` in a fork to its end; the seconds."""
    started = time.monotonic()
    code = _ended(fork(work, side), PATIENCE)
    if code != 0:
        raise AssertionError(f"ended with {code}")
    return time.monotonic() - started


def _ended(child: int, patience: float) -> int | None:
    """The exit code of a child, or minus the signal that ended it; None and no child any more
    where it takes longer."""
    until = time.monotonic() + patience
    while time.monotonic() < until:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def digests(folder: Path) -> dict[str, str]:
    """The sha256 of each GGUF in `folder`, and of all in folders there, by its name."""
    found = {}
    for path in sorted(folder.iterdir()):
        if not path.name.startswith(".") and (path.is_dir() or path.suffix == ".gguf"):
            for file in (path, *path.rglob("*")):
                if file.is_file():
                    name = str(file.relative_to(folder))
                    found[name] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def hidden(folder: Path) -> list[str]:
    """What lies in `folder` and is none of its own files: names that begin with a dot."""
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def emptied(folder: Path) -> None:
    """Remove whatever is in `folder`."""
    for path in folder.iterdir():
        remove(path)


@dataclass
class Case:
    """What is killed: `work` writes into folder `out`, which is to hold `wanted` at the end, for
    `seconds` undisturbed; `old` files may be there before."""

    name: str
    work: Work
    out: Path
    wanted: dict[str, str]
    seconds: float
    old: dict[str, bytes] = field(default_factory=dict)


def cycle(
    case: Case, chance: random.Random, counts: Counts, most: int, side: Path, share: float = 1.1
) -> None:
    """Kill `case` at random moments, within `share` of the time that it takes, until it ends, or
    `most` times, and then let it end."""
    emptied(case.out)
    for name, data in case.old.items():
        (case.out / name).write_bytes(data)
    for path in side.glob("*"):
        path.unlink()
    code: int | None = -1
    kills = 0
    while kills < most:
        child = fork(case.work, side)
        time.sleep(chance.random() * case.seconds * share)
        number = chance.choice(SIGNALS)
        os.kill(child, number)
        code = _ended(child, PATIENCE)
        if code == 0:
            break
        kills += 1
        counts.kills += 1
        counts.signals[signal.Signals(number).name] += 1
        if code not in (-number, 128 + number):
            counts.faults.append(f"{case.name}: ended with {code} at {number}")
        _look(case, counts)
    if code != 0 and (code := _ended(fork(case.work, side), PATIENCE)) != 0:
        counts.faults.append(f"{case.name}: ended with {code}")
    counts.runs += len(case.wanted)
    _look(case, counts)
    found = digests(case.out)
    counts.lost += sum(name not in found for name in case.wanted)
    counts.half += sum(found[n] != d for n, d in case.wanted.items() if n in found)
    counts.orphans += len(hidden(case.out))
    pieces, repeated = repeats(side)
    counts.pieces, counts.repeated = counts.pieces + pieces, counts.repeated + repeated


def _look(case: Case, counts: Counts) -> None:
    """After a kill each output is whole, the old one or not there."""
    found = digests(case.out)
    for name, data in case.old.items():
        old = hashlib.sha256(data).hexdigest()
        counts.lost += name not in found
        counts.half += name in found and found[name] not in (old, case.wanted[name])
    for name, digest in found.items():
        counts.half += name not in case.old and digest != case.wanted.get(name)


def repeats(side: Path) -> tuple[int, int]:
    """How many pieces the ledgers in `side` tell of, and how many of them more than once."""
    pieces = repeated = 0
    for path in side.glob(f".*.{LEDGER}"):
        lines = map(json.loads, path.read_text().splitlines())
        found = Counter((x["tensor"], x["start"]) for x in lines if "tensor" in x)
        pieces += len(found)
        repeated += sum(count - 1 for count in found.values())
    return pieces, repeated


def build_inputs(folder: Path) -> None:
    """A checkpoint of each architecture with an adapter, and the first as F16."""
    for seed, name in enumerate(ARCHITECTURES):
        build(name, folder)
        lora(folder / name, folder / f"{name}-lora", targets=("q_proj", "down_proj"), seed=seed)
    gpukit.convert(folder / ARCHITECTURES[0], folder / "f16.gguf", "F16", device="cpu")


def plan_text(out: Path, types: tuple[str, ...] = ALL_TYPES) -> str:
    """A plan of each architecture, without and with its adapter, as each of `types`."""
    matrices = [
        f"{{sources: [{name}], adapters: [none, {name}-lora], types: [{', '.join(types)}]}}"
        for name in ARCHITECTURES
    ]
    first, *others = matrices
    lines = first.strip("{}").replace("], ", "]\n")
    more = "".join(f"\n  - {each}" for each in others)
    return (
        f"{lines}\noutput: {out}/{{source}}-{{adapter}}-{{type}}.gguf\ninclude:{more}\n"
        "options: {device: cpu, memory: 1G}\n"
    )


def cases(folder: Path, names: tuple[str, ...]) -> list[Case]:
    """What is killed, by name, with inputs in `folder`: quantize, merge, folder, many, batch,
    small."""
    whole(lambda: build_inputs(folder), folder / "side")
    return [_case(folder, name) for name in names]


def _case(folder: Path, name: str) -> Case:
    out = folder / name
    out.mkdir()
    work = _work(folder, name, out)
    # Programs are compiled at their first use, and what that imports is imported here for all.
    _import_what(work, folder / "modules")
    emptied(out)
    seconds = whole(work, folder / "side")
    old = {"x.gguf": b"old"} if name in ("quantize", "merge") else {}
    return Case(name, work, out, digests(out), seconds, old)


def _import_what(work: Work, told: Path) -> None:
    """Import here what `work` imports, which a fork does."""

    def noted() -> None:
        before = set(sys.modules)
        work()
        told.write_text("\n".join(name for name in sys.modules if name not in before))

    whole(noted, told.with_name("side"))
    for name in told.read_text().split():
        if name.startswith(("gpukit", "yaml", "pydantic", "numpy", "torch", "safetensors")):
            with suppress(ImportError):
                importlib.import_module(name)


def _work(folder: Path, name: str, out: Path) -> Work:
    source, base = folder / "f16.gguf", folder / ARCHITECTURES[0]
    if name == "quantize":
        return lambda: gpukit.quantize(source, out / "x.gguf", "Q4_K_M", device="cpu", resume=True)
    if name == "merge":
        adapters = [folder / f"{ARCHITECTURES[0]}-lora"]
        return lambda: gpukit.merge(
            base, adapters, out / "x.gguf", "Q8_0", device="cpu", resume=True
        )
    if name == "folder":
        adapters = [folder / f"{ARCHITECTURES[0]}-lora"]
        return lambda: _merged(base, adapters, out / "x")
    if name == "many":
        types = ["Q4_K_M", "Q5_K_M", "Q8_0"]
        return lambda: gpukit.quantize_many(
            source, out / "x-{type}.gguf", types, device="cpu", resume=True
        )
    plan = folder / f"{name}.yaml"
    plan.write_text(plan_text(out, ALL_TYPES if name == "batch" else ALL_TYPES[1:2]))
    return lambda: gpukit.batch(plan)


def _merged(base: Path, adapters: list[Path], out: Path) -> None:
    """A model folder of several shards, unless a run has come to its end when it was killed."""
    if not out.exists() or ledger_of(out).exists():
        gpukit.merge(base, adapters, out, max_shard_size=500_000, device="cpu", resume=True)
