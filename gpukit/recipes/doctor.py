"""What this machine offers: versions, devices, compiler, store, disk, and what is missing."""

import importlib.metadata
import os
import platform
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gpukit.errors import GpukitError
from gpukit.store import default_root
from gpukit.version import VERSION
from gpukit_kernels.facts import MATCHED

LIBRARIES = ("torch", "triton", "safetensors", "gguf", "peft", "numpy", "tokenizers",
             "sentencepiece", "typer")  # fmt: skip


@dataclass(frozen=True)
class Device:
    """One device that torch can use; memory in bytes."""

    name: str
    model: str
    total: int
    free: int


@dataclass(frozen=True)
class Diagnosis:
    """The findings; `advice` has one line for each thing that is missing, with its remedy, and
    `matches` says whose bytes gpukit's are."""

    gpukit: str
    matches: str
    python: str
    system: str
    libraries: dict[str, str | None]
    devices: list[Device]
    compiler: str | None
    kernels: str
    store: Path | None
    store_free: int | None
    scratch_free: int
    advice: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "store": str(self.store) if self.store else None}


def diagnose() -> Diagnosis:
    """Look at the machine; changes nothing and needs no network."""
    libraries = {name: _version(name) for name in LIBRARIES}
    devices = _devices()
    compiler = _compiler()
    store, trouble = _store()
    diagnosis = Diagnosis(
        gpukit=VERSION,
        matches=MATCHED,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        libraries=libraries,
        devices=devices,
        compiler=compiler,
        kernels=_kernels(),
        store=store,
        store_free=_free(store) if store else None,
        scratch_free=_free(Path.cwd()),
        advice=trouble,
    )
    diagnosis.advice[:0] = _advice(diagnosis)
    return diagnosis


def _store() -> tuple[Path | None, list[str]]:
    """The store's folder, or why there is none and what to do."""
    try:
        root = default_root()
    except GpukitError as error:
        return None, [str(error)]
    if _writable(root):
        return root, []
    return root, [f"the store {root} is not writable: set GPUKIT_MODELS"]


def _advice(found: Diagnosis) -> list[str]:
    advice = [
        f"{name} is not installed: pip install {name}"
        for name, version in found.libraries.items()
        if version is None
    ]
    if found.compiler is None:
        advice.append(
            "no C compiler: quantising on the CPU is some twenty times slower without one; "
            "apt-get install gcc (or set CC)"
        )
    if not any(device.name.startswith("cuda") for device in found.devices):
        advice.append(
            "no CUDA device: kernels run on the CPU; on an NVIDIA machine install a CUDA build "
            "of torch (https://pytorch.org/get-started)"
        )
    return advice


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> list[Device]:
    from gpukit_kernels.hardware import devices

    return [Device(*row) for row in devices()]


def _kernels() -> str:
    from gpukit_kernels.cpu import compiled

    return compiled.status()


def _compiler() -> str | None:
    from gpukit_kernels.cpu.build import compiler

    return compiler()


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def _free(path: Path) -> int:
    return shutil.disk_usage(_existing(path)).free


def _writable(path: Path) -> bool:
    return os.access(_existing(path), os.W_OK)
