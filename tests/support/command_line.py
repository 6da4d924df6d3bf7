"""gpukit as a user calls it."""

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Importing torch takes seconds, and the verbs half of one: a process that has done so, and has made
# the options of all commands, divides for every command. Imports hold no circle, so their order is
# nothing that a command could meet, and no file of ours looks at the environment while it is
# loaded; libraries that do are loaded by each command. What says how Python starts needs a process
# that does: `STARTS`.
SERVER = """
import atexit, gc, importlib, json, os, pkgutil, socket, sys, threading, weakref
import gguf, jinja2, rich.console, rich.markdown, torch, typer.main
from sentencepiece import sentencepiece_model_pb2
ROOMS = ("conversion", "generation", "models", "recipes", "tokenizer")
for room in map(importlib.import_module, ["gpukit_cli", *(f"gpukit.{room}" for room in ROOMS)]):
    for module in pkgutil.iter_modules(room.__path__, room.__name__ + "."):
        if not module.name.endswith(".__main__"):
            importlib.import_module(module.name)
from gpukit.models import registry
from gpukit_cli import app
registry.architectures()
line, made = app.command_line(), typer.main.get_command
tree = made(line)
app.command_line = lambda: line
typer.main.get_command = lambda given: tree if given is line else made(given)
assert not {"huggingface_hub", "triton", "typer.rich_utils"} & sys.modules.keys()
for each in list(weakref.finalize._registry):
    each.atexit = False  # torch's operators, which would be taken apart one by one
gc.freeze()  # what is loaded is no garbage: looking at it would copy its pages in each child
channel = socket.socket(fileno=int(sys.argv[1]))
while True:
    asked, files, _, _ = socket.recv_fds(channel, 1 << 17, 3)
    if not asked:
        sys.exit()
    process = os.fork()
    if not process:
        break
    for file in files:
        os.close(file)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    channel.send(str(status).encode())
channel.close()
for number, file in enumerate(files):
    os.dup2(file, number)
    os.close(file)
asked = json.loads(asked)
os.environ.clear()
os.environ.update(asked["environment"])
os.chdir(asked["folder"])
sys.argv = ["gpukit", *asked["words"]]
code = 0
try:
    app.main()
except SystemExit as end:
    code = end.code
if code is None or isinstance(code, int):
    # The end of Python, but for taking apart what is loaded, which takes longer than most commands.
    threading._shutdown()
    atexit._run_exitfuncs()
    gc.collect()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)
sys.exit(code)
"""
STARTS = ("PYTHON", "LC_", "LANG", "OMP_")


def surroundings(**variables: str) -> dict[str, str]:
    """Ours with `variables`, on one thread, without what is set for the hub, and as on a machine
    without a GPU: no kernels of Triton, which the interpreter would run."""
    ours = {
        key: value
        for key, value in os.environ.items()
        if key != "TRITON_INTERPRET" and not key.startswith("HF_")
    }
    roots = os.pathsep.join(str(ROOT / part) for part in (".", "kernels", "cli"))
    return {**ours, "PYTHONPATH": roots, "OMP_NUM_THREADS": "1", **variables}


def gpukit(
    *words: object, folder: Path | None = None, stdin: bytes = b"", **variables: str
) -> subprocess.CompletedProcess[str]:
    """What the command line says to `words` and `stdin`, in `folder`, else in ours, on one thread,
    with `variables` in its environment."""
    environment = surroundings(**variables)
    arguments = [*map(str, words)]
    if any(name.startswith(STARTS) for name in variables):
        assert not stdin
        return process_of_its_own(arguments, folder, environment)
    asked = {"words": arguments, "environment": environment, "folder": str(folder or Path.cwd())}
    with ExitStack() as stack:
        given, out, err = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(3))
        given.write(stdin)
        given.seek(0)
        channel = server(SERVER)
        files = [file.fileno() for file in (given, out, err)]
        socket.send_fds(channel, [json.dumps(asked).encode()], files)
        status = int(channel.recv(64))
        said = []
        for file in (out, err):
            file.seek(0)
            said.append(file.read().decode().replace("\r\n", "\n"))
    return subprocess.CompletedProcess(arguments, status, *said)


def process_of_its_own(
    arguments: Sequence[str], folder: Path | None, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """The same, from the start of Python on."""
    return subprocess.run(
        [sys.executable, "-m", "gpukit_cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        cwd=folder,
        env=environment,
    )


@cache
def server(code: str) -> socket.socket:
    """Where a process that runs `code` is asked for forks, one at a time: not from several
    threads. Its own end of the channel has the number that is its argument."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(theirs.fileno())],
        env=surroundings(),
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
    )
    theirs.close()

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


def listening() -> None:
    """Nothing ignored, as SIGINT is where the tests run in the background of a shell."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
