"""Signals and streams, as shells, containers and schedulers have them."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import forked
from support.command_line import gpukit, listening
from support.shells import COMMAND, RUN, TINY, environment, shell

from gpukit.formats.gguf_fields import TensorSpec, string, u32
from gpukit.formats.gguf_writer import plan_layout
from gpukit_cli import surroundings


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF of zeros that takes no room on the disk and some seconds to quantise."""
    path = tmp_path_factory.mktemp("large") / "large.gguf"
    fields = [string("general.architecture", "llama"), u32("general.file_type", 1)]
    specs = [TensorSpec(f"blk.{i}.ffn_up.weight", (4096, 8192), "F16") for i in range(8)]
    layout = plan_layout(fields, specs)
    path.write_bytes(layout.header)
    os.truncate(path, layout.size)
    return path


def told(
    words: tuple[object, ...], begun: Callable[[], bool], *signals: int, folder: Path, **others: str
) -> tuple[int, list[str]]:
    """The exit code and the last lines on stderr of a command that gets `signals` when it has
    `begun`."""
    with tempfile.TemporaryFile() as err:
        variables = environment(folder, **others)
        process = forked.command(*words, folder=folder, err=err, environment=variables)
        end = time.monotonic() + 60
        while not begun() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.002)
        for number in signals:
            process.send_signal(number)
        code = process.wait(timeout=60)
        err.seek(0)
        lines = err.read().decode().splitlines()
    return code, [line for line in lines if not line.startswith("quantizing")]


ENDINGS = [
    (signal.SIGTERM, 143, "Error: ended by SIGTERM"),
    (signal.SIGHUP, 129, "Error: ended by SIGHUP"),
    (signal.SIGINT, 130, "Error: interrupted"),
]


@pytest.mark.parametrize(("number", "code", "line"), ENDINGS)
@pytest.mark.parametrize("options", [(), ("--split-max-size", "50M")])
def test_a_conversion_that_is_told_to_end_leaves_nothing(
    number: int, code: int, line: str, options: tuple[str, ...], large: Path, tmp_path: Path
) -> None:
    (tmp_path / "out.gguf").write_bytes(b"old")
    words = ("quantize", large, "out.gguf", "Q4_0", *options)
    found = told(words, lambda: len(os.listdir(tmp_path)) > 1, number, folder=tmp_path)
    assert found == (code, [line])
    assert os.listdir(tmp_path) == ["out.gguf"]
    assert (tmp_path / "out.gguf").read_bytes() == b"old"


def test_timeout_sends_its_signal_twice(large: Path, tmp_path: Path) -> None:
    twice = (signal.SIGTERM, signal.SIGHUP, signal.SIGTERM)
    words = ("quantize", large, "out.gguf", "Q4_0")
    code, lines = told(words, lambda: bool(os.listdir(tmp_path)), *twice, folder=tmp_path)
    assert code in (143, 129)
    assert len(lines) == 1
    assert os.listdir(tmp_path) == []


def test_what_is_ignored_stays_ignored(tmp_path: Path) -> None:
    """As under nohup."""
    code = (
        "import os, signal\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from gpukit_cli.surroundings import endings\n"
        "with endings():\n"
        "    os.kill(os.getpid(), signal.SIGHUP)\n"
        "    print('goes on')\n"
        "assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(tmp_path), capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("goes on\n", "")


HANGS = """
import os, signal, sys, time
from pathlib import Path
from gpukit.formats.atomic import temporary_name
from gpukit_cli.surroundings import Ended, endings
with endings():
    temporary_name(Path(sys.argv[1]) / "a").touch()
    if os.fork() == 0:
        os.kill(os.getpid(), signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 143
    assert os.listdir(sys.argv[1])  # a fork ends, and removes nothing of its parent's
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except Ended:
        pass
    os.kill(os.getpid(), signal.SIGTERM)  # the second of `timeout`
    time.sleep(1.1)
    os.kill(os.getpid(), signal.SIGTERM)
"""


def test_an_interrupt_before_anything_is_loaded_shows_no_traceback(tmp_path: Path) -> None:
    """Python's own handler would: Ctrl-C while the command line is imported."""
    (tmp_path / "typer.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGINT)")
    variables = environment(tmp_path)
    variables["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{variables['PYTHONPATH']}"
    done = subprocess.run(
        [*COMMAND, "list"], env=variables, capture_output=True, preexec_fn=listening
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, b"", b"")


class Ending:
    """An attribute that is told to end while its class is made: Python 3.11 raises a RuntimeError
    for it."""

    def __set_name__(self, owner: type, name: str) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


def a_class() -> None:
    type("Made", (), {"attribute": Ending()})


def cleaning_up() -> None:
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        raise OSError("the disk has gone")


@pytest.mark.parametrize("work", [a_class, cleaning_up])
def test_an_end_inside_another_error_is_an_end(work: Callable[[], None]) -> None:
    with pytest.raises(surroundings.Ended) as told, surroundings.endings():
        work()
    assert told.value.exit_code == 143


def test_what_hangs_is_ended_by_a_later_signal(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", HANGS, tmp_path / "out"], env=environment(tmp_path), check=False
    )
    assert done.returncode == 143
    assert os.listdir(tmp_path / "out") == []


@pytest.mark.parametrize(("number", "code", "line"), ENDINGS)
def test_a_create_that_is_told_to_end_leaves_the_store_as_it_was(
    number: int, code: int, line: str, large: Path, tmp_path: Path
) -> None:
    (tmp_path / "Modelfile").write_text(f"FROM {large}\n")
    (tmp_path / "small").write_text(f"FROM {TINY}\nLICENSE MIT\n")
    store = tmp_path / "models"
    done = gpukit("create", "old", "-f", "small", folder=tmp_path, GPUKIT_MODELS=str(store))
    assert done.returncode == 0, done.stderr

    def files() -> dict[Path, tuple[int, int]]:
        return {p: (p.stat().st_ino, p.stat().st_size) for p in store.rglob("*") if p.is_file()}

    before = files()
    words = ("create", "new", "-q", "Q4_0")
    begun = lambda: len(files()) > len(before) + 1  # noqa: E731, the journal and the weights
    found, lines = told(words, begun, number, folder=tmp_path)
    assert (found, lines[-1]) == (code, line)
    assert files() == before


def test_compilers_end_with_the_command(large: Path, tmp_path: Path) -> None:
    """The compiled kernels, of which none is there yet, take many seconds."""
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "TMPDIR": str(tmp_path / "tmp")}
    (tmp_path / "tmp").mkdir()
    (tmp_path / "out").mkdir()

    def begun() -> bool:
        return any((tmp_path / "cache").rglob("*.c*")) or any((tmp_path / "tmp").rglob("*.c*"))

    words = ("quantize", large, "out/out.gguf", "Q6_K")
    found = told(words, begun, signal.SIGTERM, folder=tmp_path, **cache)
    assert found == (143, ["Error: ended by SIGTERM"])
    assert os.listdir(tmp_path / "out") == []
    mine = str(tmp_path).encode()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            assert mine not in (process / "cmdline").read_bytes()
            assert mine not in (process / "environ").read_bytes()
        except OSError:
            continue  # it has ended, or is somebody else's


# As `docker run --user 12345`; the capability is for the interpreter, which may lie below /root.
NOBODY = (
    "setpriv --reuid 12345 --clear-groups --inh-caps=+dac_read_search "
    "--ambient-caps=+dac_read_search env -u HOME -u USER -u LOGNAME -u GPUKIT_MODELS "
    "-u OLLAMA_MODELS -u XDG_CACHE_HOME -u HF_HOME -u HF_HUB_CACHE"
)
NO_STORE = "there is no home folder, so no place for models: set GPUKIT_MODELS to a folder"
homeless = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root and setpriv"
)


@pytest.mark.thorough
@homeless
def test_a_file_needs_no_home(spoken: Path, tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o777)
    shutil.copy(spoken, tmp_path)
    whole = shell(RUN, spoken.parent)
    temporary = {"TMPDIR": str(tmp_path)}
    done = shell(f"{NOBODY} {RUN}", tmp_path, **temporary)
    assert (done.returncode, done.stdout, done.stderr) == (0, whole.stdout, "")
    done = shell(f"{NOBODY} $gpukit quantize tiny.gguf out.gguf Q8_0", tmp_path, **temporary)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "~").exists()


@homeless
@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        ("list", 1, NO_STORE),
        ("run name word", 1, f"name: no such file or folder, and {NO_STORE}"),
        ("inspect name", 1, f"name: no such file or folder, and {NO_STORE}"),
        ("create name", 1, NO_STORE),
        ("run '~/tiny.gguf' word", 1, "~/tiny.gguf: there is no home folder; set HOME"),
        ("run '~who/tiny.gguf' word", 1, "~who/tiny.gguf: there is no user who"),
        ("inspect hf.co/a/b", 1, "hf.co/a/b: there is no home folder to keep it in: set HF_HOME"),
    ],
)
def test_what_needs_a_home_names_the_variable(
    words: str, code: int, line: str, tmp_path: Path
) -> None:
    os.chmod(tmp_path, 0o777)
    done = shell(f"{NOBODY} $gpukit {words}", tmp_path)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(f"Error: {line}")
    assert done.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == []


@homeless
def test_doctor_without_a_home(tmp_path: Path) -> None:
    done = shell(f"{NOBODY} $gpukit doctor", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"! {NO_STORE}"


def test_another_users_folder_names_no_user(tmp_path: Path) -> None:
    done = shell("$gpukit list", tmp_path, GPUKIT_MODELS="~nobody-at-all/models")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "Error: ~nobody-at-all/models: there is no user nobody-at-all\n"


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that every user may write to; pytest's lie below a closed one."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        yield Path(folder)


@pytest.mark.thorough
@homeless
@pytest.mark.parametrize("kind", ["Q8_0", pytest.param("Q6_K", marks=pytest.mark.slow)])
def test_nothing_that_can_be_written_but_this_folder(kind: str, spoken: Path, public: Path) -> None:
    """Caches are a help that every command does without."""
    shutil.copy(spoken, public)
    (public / "closed").mkdir(mode=0o555)
    closed = public / "closed"
    places = f"env HOME={closed} XDG_CACHE_HOME={closed}/none TMPDIR={closed}"
    done = shell(f"{NOBODY} {places} $gpukit quantize tiny.gguf out.gguf {kind}", public)
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(public)) == ["closed", "out.gguf", "tiny.gguf"]
    assert os.listdir(closed) == []


NOBODYS = """
import os, sys
from pathlib import Path
os.environ.pop("XDG_CACHE_HOME", None), os.environ.pop("GPUKIT_CACHE", None)
del os.environ["HOME"]
from gpukit_kernels.cpu import cache
os.setuid(12345)
print(cache.folder())
"""


@homeless
def test_code_that_others_may_have_left_is_not_loaded(public: Path) -> None:
    """Where there is no home, compiled code lies below the temporary folder, in one's own."""

    def folder() -> Path:
        line = [sys.executable, "-c", NOBODYS]
        variables = environment(public, TMPDIR=str(public))
        done = subprocess.run(line, env=variables, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return Path(done.stdout.strip())

    usual = public / "gpukit-12345"
    assert folder() == folder() == usual / "programs"
    assert usual.stat().st_mode & 0o777 == 0o700
    os.chmod(usual, 0o777)
    assert folder().parent not in (usual, public)
    os.chmod(usual, 0o700)
    os.chown(usual, 0, 0)
    assert folder().parent not in (usual, public)
