"""C compiled to shared libraries, by whatever C compiler there is."""

import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

# Exactness: nothing is contracted to FMA, nothing reordered; whole numbers wrap around.
EXACT = (
    "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fno-strict-aliasing", "-fwrapv",
)  # fmt: skip
# Further flags, such as -mno-avx512f.
FLAGS = "GPUKIT_CFLAGS"
MOST_SECONDS = 120


def compiler() -> str | None:
    """The C compiler's path: $CC, cc, gcc or clang."""
    for name in (os.environ.get("CC"), "cc", "gcc", "clang"):
        if name and (path := shutil.which(name)):
            return path
    return None


def flags() -> list[str]:
    """What the compiler is told beside the names of files."""
    native = "-march" if platform.machine() in ("x86_64", "AMD64", "i686") else "-mcpu"
    more = shlex.split(os.environ.get(FLAGS, ""))
    return ["-std=gnu11", "-O2", "-w", f"{native}=native", *EXACT, *more]


def build(source: str, library: Path, compiler: str) -> None:
    """Compile C to `library`; RuntimeError with what the compiler said."""
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = _made(source, Path(folder), compiler, "-shared", "-fPIC")
        os.replace(made, library)


@cache
def has_tiles(compiler: str) -> bool:
    """Whether code that `compiler` makes can use the processor's tiles; see `probe.c`."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            made = _made(Path(__file__).with_name("probe.c").read_text(), Path(folder), compiler)
            return subprocess.run([made], check=False, timeout=MOST_SECONDS).returncode == 0
        except (OSError, RuntimeError, subprocess.TimeoutExpired):
            return False  # such as a folder from which nothing may be run


def _made(source: str, folder: Path, compiler: str, *more: str) -> Path:
    code, made = folder / "program.c", folder / "program.so"
    code.write_text(source)
    command = [compiler, *flags(), *more, "-pthread", "-o", str(made), str(code)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=MOST_SECONDS
    )
    if done.returncode:
        said = " ".join(done.stderr.split())
        raise RuntimeError(f"{compiler}: {said or f'exit status {done.returncode}'}")
    return made
