"""Readers of files wait for no pipe and read no device."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from gpukit.errors import FormatError
from gpukit.formats.gguf_reader import GGUFFile, is_gguf
from gpukit.formats.imatrix import read_imatrix
from gpukit.formats.pointers import is_pointer
from gpukit.formats.positioned import open_to_read
from gpukit.formats.pytorch import PytorchFile
from gpukit.formats.safetensors import SafetensorsFile

READERS = [GGUFFile, SafetensorsFile, PytorchFile, read_imatrix]


@pytest.mark.parametrize("name", ["pipe", "/dev/zero", "link"])
@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_regular_file(
    reader: Callable[[Path], object], name: str, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    with pytest.raises(FormatError, match=f"{name}: .*no regular file"):
        reader(tmp_path / name)
    assert not is_gguf(tmp_path / name)
    assert not is_pointer(tmp_path / name)


def test_a_descriptor_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"data")
    fd = open_to_read(tmp_path / "a")
    assert os.read(fd, 9) == b"data"
    os.close(fd)
    with pytest.raises(IsADirectoryError):
        open_to_read(tmp_path)
