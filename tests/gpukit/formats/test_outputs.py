"""Outputs that are no new files are refused before anything is read, and stay as they are."""

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from support.checkpoints import build

from gpukit.conversion.run import run_plan
from gpukit.errors import ArgumentError, DiskError, GpukitError
from gpukit.formats.gguf_fields import string
from gpukit.formats.gguf_reader import GGUFFile
from gpukit.formats.gguf_writer import GGUFWriter
from gpukit.formats.new_folder import check_folder
from gpukit.formats.outputs import check_output
from gpukit.planning.planner import plan_quantize
from gpukit.sources.opening import open_source

root = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes devices")


def refused(path: Path, message: str, kind: type[GpukitError] = ArgumentError) -> None:
    with pytest.raises(kind, match=message) as found:
        check_output(path)
    assert str(found.value).startswith(f"{path}: ")


def test_new_files_and_old_ones(tmp_path: Path) -> None:
    check_output(tmp_path / "new.gguf")
    (tmp_path / "old.gguf").write_bytes(b"old")
    check_output(tmp_path / "old.gguf")
    assert os.listdir(tmp_path) == ["old.gguf"]


@root
def test_devices(tmp_path: Path) -> None:
    """Private ones: were they replaced, /dev/null would be safe."""
    for name, kind, number in (("null", stat.S_IFCHR, (1, 3)), ("loop", stat.S_IFBLK, (7, 99))):
        os.mknod(tmp_path / name, kind | 0o666, os.makedev(*number))
        (tmp_path / f"{name}-link").symlink_to(name)
        refused(tmp_path / name, "a device; name the file to write")
        refused(tmp_path / f"{name}-link", "a device; name the file to write")


def test_standard_output_is_no_file() -> None:
    for check in (check_output, check_folder):
        with pytest.raises(ArgumentError, match=r"^-: nothing is written to standard output"):
            check(Path("-"))


def test_pipes_sockets_and_folders(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "pipe-link").symlink_to("pipe")
    (tmp_path / "folder-link").symlink_to(".")
    refused(tmp_path / "pipe", "a pipe; name")
    refused(tmp_path / "pipe-link", "a pipe; name")
    refused(tmp_path, "a folder; name")
    refused(tmp_path / "folder-link", "a folder; name")
    with socket.socket(socket.AF_UNIX) as own:
        here = os.getcwd()
        os.chdir(tmp_path)  # names of sockets are short
        own.bind("socket")
        os.chdir(here)
        refused(tmp_path / "socket", "a socket; name")


def test_standard_output(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from gpukit.formats.outputs import check_output\n"
        "check_output(Path(sys.argv[1]))"
    )
    for path in ("/dev/stdout", "/proc/self/fd/1"):
        done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
        assert f"{path}: a pipe; name the file to write" in done.stderr
        with (tmp_path / "out").open("w") as out:
            # `> out` with the name /dev/stdout: the file has a name, which is written.
            assert subprocess.run([sys.executable, "-c", code, path], stdout=out).returncode == 0
            (tmp_path / "out").unlink()
            done = subprocess.run(
                [sys.executable, "-c", code, path], stdout=out, stderr=subprocess.PIPE, text=True
            )
            assert f"{path}: leads to no name" in done.stderr


def test_links(tmp_path: Path) -> None:
    (tmp_path / "none").symlink_to("there/target")
    (tmp_path / "loop").symlink_to("loop")
    refused(tmp_path / "none", "there is no folder .*there; make it first")
    refused(tmp_path / "loop", "Too many levels", DiskError)
    (tmp_path / "there").mkdir()
    check_output(tmp_path / "none")


def test_places_without_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    refused(tmp_path / "none" / "x", "there is no folder .*none; make it first")
    refused(tmp_path / "file" / "x", "file is no folder")
    refused(tmp_path / ("n" * 256), "too long", DiskError)


def test_inputs(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"")
    (tmp_path / "link").symlink_to("in")
    os.link(tmp_path / "in", tmp_path / "twin")
    for name in ("in", "link", "twin"):
        with pytest.raises(ArgumentError, match="input and output are the same file"):
            check_output(tmp_path / name, [tmp_path / "missing", tmp_path / "in"])


NOBODY = """
import os, sys
from pathlib import Path
from gpukit.formats.outputs import check_output
os.setuid(65534)
for path in sys.argv[1:]:
    try:
        check_output(Path(path))
    except Exception as error:
        print(error)
"""


@root
def test_what_this_user_may_not_write(tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o755)
    (tmp_path / "closed").mkdir(mode=0o700)
    (tmp_path / "open").mkdir()
    os.chmod(tmp_path / "open", 0o777)
    (tmp_path / "open" / "old").write_bytes(b"")
    paths = [tmp_path / "x", tmp_path / "closed" / "x", tmp_path / "open" / "old"]
    for parent in tmp_path.parents:
        if parent.stat().st_mode & 0o005 != 0o005:
            os.chmod(parent, 0o755)  # of pytest
    command = [sys.executable, "-c", NOBODY, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        f"{paths[0]}: you may not write to the folder {tmp_path}",
        f"{paths[1]}: Permission denied",
        f"{paths[2]}: write-protected; remove it first or write to another name",
    ]


def test_a_writer_follows_a_link(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link.gguf").symlink_to("there/target.gguf")
    for _ in range(2):
        with GGUFWriter(tmp_path / "link.gguf", [string("general.architecture", "a")], []):
            assert [path.parent.name for path in tmp_path.rglob(".*.tmp")] == ["there"]
    assert (tmp_path / "link.gguf").is_symlink()
    assert os.listdir(tmp_path / "there") == ["target.gguf"]
    with GGUFFile(tmp_path / "there" / "target.gguf") as file:
        assert file.get("general.architecture") == "a"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.model"])
def test_a_folder_is_not_converted_onto_its_own_files(name: str, tmp_path: Path) -> None:
    folder = build("plain", tmp_path)
    before = (folder / name).read_bytes()
    (tmp_path / "link").symlink_to(folder / name)
    with open_source(folder) as source:
        plan = plan_quantize(source, None)
        for out in (folder / name, tmp_path / "link"):
            with pytest.raises(ArgumentError, match="input and output are the same file"):
                run_plan(source, plan, out)
        run_plan(source, plan, folder / "model.gguf")
        run_plan(source, plan, folder / "model.gguf")
    assert (folder / name).read_bytes() == before
