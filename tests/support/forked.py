"""Pythons that have imported torch and the rooms of a batch already: forks of a process that has.

Importing takes seconds, which a test of what such a process does need not wait for. `Forked` stands
in for `subprocess.Popen` where workers of a batch are started, `command` is the command line beside
the test, `python` any code; what says how Python itself starts needs a process of its own.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from select import select
from typing import IO

from support.command_line import server, surroundings

# For each process a keeper, which is its parent, tells its number and how it has ended. SIGCHLD is
# ignored here, so that no keeper has to be waited for.
SERVER = """
import fcntl, gc, json, os, signal, socket, sys, threading, traceback
import torch, typer
import gpukit_cli.app
import gpukit.batches.worker, gpukit.conversion.torch_engine, gpukit.evaluation.scoring
import gpukit.recipes.convert, gpukit.recipes.merge, gpukit.recipes.measured
assert "triton" not in sys.modules
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
gc.freeze()
server = socket.socket(fileno=int(sys.argv[1]))
while True:
    asked, files, _, _ = socket.recv_fds(server, 1 << 18, 16)
    if not asked:
        sys.exit()
    if not os.fork():
        break
    for file in files:
        os.close(file)
server.close()
signal.signal(signal.SIGCHLD, signal.SIG_DFL)
asked = json.loads(asked)
# Above all numbers that are asked for.
channel, *files = [fcntl.fcntl(file, fcntl.F_DUPFD, 1000) for file in files]
process = os.fork()
if process:
    os.closerange(0, channel)
    for file in files:
        os.close(file)
    os.write(channel, f"{process}\\n".encode())
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    os.write(channel, f"{status}\\n".encode())
    os._exit(0)
os.closerange(3, channel + 1)
for number, file in zip(asked["numbers"], files, strict=True):
    os.dup2(file, number)
    os.close(file)
    os.set_inheritable(number, number < 3)
os.environ.clear()
os.environ.update(asked["environment"])
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
code = 0
try:
    exec(asked["code"], {"__name__": "__main__"})
except SystemExit as end:
    code = end.code
except BaseException:
    traceback.print_exc()
    code = 1
if code is not None and not isinstance(code, int):
    print(code, file=sys.stderr)
    code = 1
threading._shutdown()
sys.stdout.flush()
sys.stderr.flush()
os._exit(code or 0)
"""


class Forked:
    """What of `subprocess.Popen([sys.executable, "-c", code], ...)` a batch asks of its workers."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        stdin: int,
        stdout: IO[bytes],
        stderr: IO[bytes],
        pass_fds: Sequence[int],
        env: Mapping[str, str],
    ) -> None:
        assert (*command[:2], stdin) == (sys.executable, "-c", subprocess.DEVNULL)
        self._channel, theirs = socket.socketpair()
        asked = {
            "code": command[2],
            "environment": dict(env),
            "numbers": [0, 1, 2, *pass_fds],
        }
        with theirs, open(os.devnull, "rb") as nothing:
            files = [theirs, nothing, stdout, stderr]
            numbers = [*(file.fileno() for file in files), *pass_fds]
            socket.send_fds(server(SERVER), [json.dumps(asked).encode()], numbers)
        self._told = self._channel.makefile("r")
        self.pid = int(self._told.readline())
        self.returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select([self._channel], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("a fork", timeout or 0.0)
            self.returncode = int(self._told.readline())
            self._told.close()
            self._channel.close()
        return self.returncode

    def poll(self) -> int | None:
        try:
            return self.wait(0.0)
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def python(
    code: str, arguments: Sequence[str], environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """What a fork says that runs `code` with `arguments` in `environment`."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        command = [sys.executable, "-c", f"import sys\nsys.argv = {['-c', *arguments]!r}\n{code}"]
        process = Forked(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, pass_fds=(), env=environment
        )
        status = process.wait()
        said = []
        for file in (out, err):
            file.seek(0)
            said.append(file.read().decode())
    return subprocess.CompletedProcess(arguments, status, *said)


COMMAND = """
import os, resource, signal, sys
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)
if longest is not None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (longest, longest))
os.chdir(folder)
sys.argv = ["gpukit", *words]
from gpukit_cli.__main__ import main
main()
"""


def command(
    *words: object,
    folder: Path | None = None,
    out: IO[bytes] | None = None,
    err: IO[bytes] | None = None,
    longest: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> Forked:
    """The command line, started with `words` in `folder`, with none of the signals that end it
    ignored; no file that it writes is longer than `longest`. Streams that are not given go
    nowhere."""
    given = (
        f"words, folder, longest = {[str(word) for word in words]!r}, "
        f"{str(folder or Path.cwd())!r}, {longest}\n"
    )
    with open(os.devnull, "wb") as nowhere:
        return Forked(
            [sys.executable, "-c", given + COMMAND], stdin=subprocess.DEVNULL,
            stdout=out or nowhere, stderr=err or nowhere, pass_fds=(),
            env=environment or surroundings(),
        )  # fmt: skip
