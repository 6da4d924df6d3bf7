"""llama.cpp's converter as a child process: what it plans, and rows on request."""

import json
import os
import re
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock, Thread
from typing import Any, NoReturn

from gpukit.errors import ArgumentError, CheckpointError, GpukitError, one_line
from gpukit.formats.gguf_header import Header

CHILD = Path(__file__).with_name("converter_child.py")
SCRIPT = "convert_hf_to_gguf.py"
# What the script was called before it could be asked for rows.
OLD_SCRIPTS = ("convert-hf-to-gguf.py", "convert.py")
# Arguments of the converter that contradict what it is used for here, and what to do instead.
REFUSED = {
    "--outfile": "OUT is the file",
    "--outtype": "TYPE says it",
    "--vocab-only": "weights are wanted",
    "--split-max-size": "give --split-max-size to gpukit",
    "--split-max-tensors": "give --split-max-size to gpukit",
    "--no-tensor-first-split": "give --split-max-size to gpukit",
    "--dry-run": "give --dry-run to gpukit",
    "--bigendian": "gpukit writes little-endian files",
    "--use-temp-file": "nothing is written before it is wanted",
    "--no-lazy": "tensors are made when they are wanted",
    "--remote": "fetch the folder first, or name hf.co/org/name",
    "--print-supported-models": "ask the converter itself",
    "--help": "ask the converter itself",
}
# Bytes of the pipe that rows come through, where it can be chosen.
F_SETPIPE_SZ, PIPE = 1031, 1 << 20
LINES = 40
_LEVEL = re.compile(r"(WARNING|ERROR|CRITICAL):[\w.\-]+:\s*(.*)")


@dataclass(frozen=True)
class Converter:
    """A checkout of llama.cpp at `tree`, whose converter shall be used, and how.

    `arguments` are passed on to it; `python` is the interpreter that runs it, that of gpukit if
    None; with `trust` code of the model's folder may run. `outtype` is what it shall write.
    """

    tree: Path
    arguments: tuple[str, ...] = ()
    python: Path | None = None
    trust: bool = False
    outtype: str = "auto"

    @property
    def executable(self) -> str:
        return str(self.python or sys.executable)

    def scripts(self) -> list[Path]:
        """The files that say how a model is converted: the converter and its gguf."""
        found = (self.tree.glob(f"{folder}/*.py") for folder in ("conversion", "gguf-py/gguf"))
        return [self.tree / SCRIPT, *(path for paths in found for path in sorted(paths))]

    def check(self) -> None:
        """`ArgumentError` for a `tree` that is no checkout, or too old a one, and for arguments
        that make no sense here."""
        if not (self.tree / SCRIPT).is_file():
            if any((self.tree / name).is_file() for name in OLD_SCRIPTS):
                raise ArgumentError(
                    f"--converter {self.tree}: this llama.cpp is too old: it has no {SCRIPT}; "
                    "update the checkout"
                )
            raise ArgumentError(
                f"--converter {self.tree}: no checkout of llama.cpp: there is no {SCRIPT} in it"
            )
        for argument in self.arguments:
            name = "--help" if argument == "-h" else argument.partition("=")[0]
            for flag, remedy in REFUSED.items():
                # The converter takes what an argument begins with for it.
                if len(name) > 2 and flag.startswith(name):
                    raise ArgumentError(
                        f"--converter-arg={argument}: makes no sense here: {remedy}"
                    )

    def telling(self, folder: Path) -> str:
        """The line that says whose code is run now."""
        return f"{folder}: planned by llama.cpp's converter in {self.tree}; its code is run"

    def with_outtype(self, name: str) -> "Converter":
        return replace(self, outtype=name.lower())


class ConverterProcess:
    """The converter, stopped before its tensors; `header` is what its file would begin with,
    `told` what it says of each tensor, `warnings` a line about what it warned of.

    `ArgumentError` for a checkout that cannot be used, `CheckpointError` for a model that the
    converter does not convert.
    """

    def __init__(self, how: Converter, model: Path) -> None:
        how.check()
        self._how, self._model, self._lock = how, model, Lock()
        self._lines: deque[str] = deque(maxlen=LINES)
        self._warned: list[str] = []
        self._failure: str | None = None
        self._process = self._started()
        self._log = Thread(target=self._listen, daemon=True, name="gpukit-converter")
        self._log.start()
        try:
            plan = self._plan()
            self.told: list[dict[str, str]] = plan["tensors"]
            data = bytearray(plan["header"])
            if self._fill(memoryview(data)) < len(data):
                self._stopped("while it planned")
            self.header = Header(bytes(data), model, whole=False)
            if [told["name"] for told in self.told] != [*self.header.tensors]:
                raise CheckpointError(f"{model}: the converter's header and tensors differ")
        except BaseException:
            self.close()
            raise

    def _started(self) -> "subprocess.Popen[bytes]":
        how = self._how
        command = [
            how.executable, str(CHILD), str(how.tree.absolute()), str(self._model.absolute()),
            how.outtype, "trust" if how.trust else "no", *how.arguments,
        ]  # fmt: skip
        env = {
            **os.environ, "NO_LOCAL_GGUF": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1",
            "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8:replace",
        }  # fmt: skip
        pipe = subprocess.PIPE
        try:
            child = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=env)
        except OSError as error:
            raise ArgumentError(
                f"--converter-python {how.executable}: {error.strerror or error}"
            ) from None
        with suppress(ImportError, OSError):
            import fcntl

            assert child.stdout is not None
            fcntl.fcntl(child.stdout, F_SETPIPE_SZ, PIPE)
        return child

    def _listen(self) -> None:
        assert self._process.stderr is not None
        for data in self._process.stderr:
            line = data.decode(errors="replace").strip()
            if line:
                self._lines.append(line)
            if (match := _LEVEL.fullmatch(line)) and len(self._warned) < LINES:
                self._warned.append(match[2].strip("* "))

    @property
    def warnings(self) -> list[str]:
        """What the converter warned of, in a line; empty where it did not."""
        lines = [line for line in self._warned if line]
        if not lines:
            return []
        more = f" (and {len(lines) - 1} more lines)" if len(lines) > 1 else ""
        return [one_line(f"{self._model}: the converter warns: {lines[0]}{more}")]

    def _plan(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.endswith(b"\n"):
            self._stopped("while it planned")
        plan: dict[str, Any] = json.loads(line)
        if "error" in plan:
            self._process.wait()
            self._log.join()
            raise self._error(plan["error"], plan["text"])
        return plan

    def _error(self, kind: str, text: str) -> GpukitError:
        """What the converter could not do, and the remedy."""
        tree, model = self._how.tree, self._model
        if kind == "module":
            return ArgumentError(
                f"--converter {tree}: the converter needs the Python package {text!r}: install it "
                f"for {self._how.executable}, or name a Python that has it: --converter-python EXE"
            )
        if kind == "old":
            return ArgumentError(
                f"--converter {tree}: this llama.cpp is too old: {text}; update the checkout"
            )
        if kind == "code":
            what = f" ({text})" if text else ""
            return CheckpointError(
                f"{model}: the converter wants to run code of the model's folder{what}; read it, "
                "then allow it with --trust-remote-code"
            )
        if kind == "network":
            return CheckpointError(
                f"{model}: the converter asks for the network ({text}), which it does not get: "
                "fetch what the folder lacks first"
            )
        if kind == "files":
            return CheckpointError(
                f"{model}: the converter makes {text} files of this model; run it itself"
            )
        last = self._last()
        if kind == "exit" and (found := re.search(r"Model (\S+) is not supported", last)):
            return CheckpointError(
                f"{model}: the converter in {tree} does not know {found[1]!r} either; update the "
                "checkout"
            )
        said = text if kind == "failed" else last or f"it ended with {text}"
        return CheckpointError(f"{model}: the converter stopped while it planned: {said}")

    def _last(self) -> str:
        """The last line of its log that says something."""
        for line in reversed(self._lines):
            if not line.startswith(("Traceback", "File ", "^")):
                return line.split(":", 2)[2].strip() if _LEVEL.fullmatch(line) else line
        return ""

    def _stopped(self, where: str) -> NoReturn:
        """Raise what is to be said of a child that is gone."""
        status = self._process.wait()
        self._log.join()
        said = self._last() or "without a word"
        if status < 0:
            said = f"killed by signal {-status}, perhaps for want of memory"
        self._failure = one_line(f"{self._model}: the converter stopped {where}: {said}")
        raise CheckpointError(self._failure)

    def _fill(self, view: memoryview) -> int:
        """Read into all of `view`; how many bytes came."""
        assert self._process.stdout is not None
        done = 0
        while done < len(view):
            got = self._process.stdout.readinto(view[done:])  # type: ignore[attr-defined]
            if not got:
                break
            done += got
        return done

    def read(self, index: int, row: int, rows: int, buffer: memoryview) -> None:
        """Fill `buffer` with `rows` rows of tensor `index` from `row` on, as they are stored."""
        assert self._process.stdin is not None
        request = b"".join(n.to_bytes(8, "little", signed=True) for n in (index, row, rows))
        with self._lock:
            if self._failure is not None:  # whoever asks next would blame another tensor
                raise CheckpointError(self._failure)
            with suppress(BrokenPipeError):
                self._process.stdin.write(request)
                self._process.stdin.flush()
            if self._fill(buffer) < len(buffer):
                self._stopped(f"at {self.told[index]['name']}")

    def close(self) -> None:
        """Let the child end; it is gone afterwards."""
        process = self._process
        for pipe in _pipes(process):
            with suppress(OSError):
                pipe.close()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._log.join()
        if process.stderr is not None:
            process.stderr.close()


def _pipes(process: "subprocess.Popen[bytes]") -> Iterator[Any]:
    yield from (pipe for pipe in (process.stdin, process.stdout) if pipe is not None)
