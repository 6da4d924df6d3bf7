"""Blobs: files named by the sha256 of their content; how they are copied in, hashed and checked."""

import fcntl
import hashlib
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from tempfile import TemporaryFile

from gpukit.errors import ArgumentError, StoreError
from gpukit.formats import atomic
from gpukit.formats.atomic import need_room
from gpukit.formats.positioned import write_all
from gpukit.store.manifest import Layer, digest_hex

CHUNK = 8 << 20
# Bytes of a layer that is read at once: as many as a Modelfile can have.
MOST_TEXT = 16 << 20
# Linux's ioctl to share the blocks of a whole file (btrfs, xfs, overlay on either).
FICLONE = 0x40049409


def blob_path(blobs: Path, digest: str) -> Path:
    """Where the blob of `digest` lies; ArgumentError where it is no digest."""
    digits = digest_hex(digest)
    if digits is None:
        raise ArgumentError(f"invalid digest format: {digest[:80]!r}")
    return blobs / f"sha256-{digits}"


def digest_of(data: bytes) -> str:
    """`sha256:…` of `data`."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def check(blobs: Path, layer: Layer, owner: str) -> Path:
    """The path of the layer's blob; StoreError naming the digest where it is missing or has
    another size than the manifest of `owner` says."""
    path = blob_path(blobs, layer.digest)
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise StoreError(
            f"model '{owner}': blob {layer.digest} is missing ({path}): "
            "create or pull the model again"
        ) from None
    if size != layer.size:
        raise StoreError(
            f"model '{owner}': blob {layer.digest} is damaged: {path} has {size} bytes, the "
            f"manifest says {layer.size}: remove the model, then create or pull it again"
        )
    return path


def read(blobs: Path, layer: Layer, owner: str) -> bytes:
    """The bytes of a small blob, checked against its digest; StoreError where they differ, and
    where the manifest says that it is a large one."""
    if layer.size > MOST_TEXT:
        raise StoreError(
            f"model '{owner}': the {layer.kind} blob {layer.digest} has {layer.size} bytes; "
            f"{MOST_TEXT} can be read: remove the model, then create or pull it again"
        )
    path = check(blobs, layer, owner)
    data = path.read_bytes()
    if (actual := digest_of(data)) != layer.digest:
        raise StoreError(
            f"model '{owner}': blob {layer.digest} is damaged: {path} hashes to {actual}: "
            "remove the model, then create or pull it again"
        )
    return data


def copy_in(
    source: Path, target: Path, advance: Callable[[int], object] | None = None
) -> tuple[str, int]:
    """Copy `source` to the new file `target`, synced to the disk; its digest and its size.

    One read: the bytes are hashed while they are copied, or, where the file system can share
    blocks between files, hashed only. `advance` is called with each number of bytes.
    """
    hasher, size = hashlib.sha256(), 0
    with source.open("rb", buffering=0) as reader, target.open("x+b", buffering=0) as writer:
        shared = _share_blocks(reader.fileno(), writer.fileno())
        if not shared:
            need_room(target, os.fstat(reader.fileno()).st_size)
        buffer = memoryview(bytearray(CHUNK))
        # Shared blocks are read from the copy: the source may change after it was shared.
        while n := (writer if shared else reader).readinto(buffer):
            hasher.update(buffer[:n])
            if not shared:
                write_all(writer.fileno(), buffer[:n])
            size += n
            if advance:
                advance(n)
        os.fsync(writer.fileno())
    return f"sha256:{hasher.hexdigest()}", size


def hashed(fd: int, advance: Callable[[int], object] | None = None) -> tuple[str, int]:
    """The digest of what descriptor `fd` has from where it is to its end, and its size; `advance`
    is called with each number of bytes."""
    hasher, size, buffer = hashlib.sha256(), 0, memoryview(bytearray(CHUNK))
    while count := os.readv(fd, [buffer]):
        hasher.update(buffer[:count])
        size += count
        if advance:
            advance(count)
    return f"sha256:{hasher.hexdigest()}", size


def link_in(
    source: Path, target: Path, advance: Callable[[int], object] | None = None
) -> tuple[str, int]:
    """As `copy_in`, but where blocks cannot be shared `target` becomes another name of the file
    `source`, if the disk admits that: who changes it changes the blob, and `check_models` sees it.
    """
    if _can_share(source, target):
        return copy_in(source, target, advance)
    try:
        os.link(os.path.realpath(source), target)
    except FileExistsError:
        raise
    except OSError:  # another disk, another user's file, or one that has names enough
        return copy_in(source, target, advance)
    with target.open("rb", buffering=0) as reader:
        found = hashed(reader.fileno(), advance)
        os.fsync(reader.fileno())
    return found


def write_new(path: Path, data: bytes) -> None:
    """Write the new file `path`, synced to the disk, mode 0644."""
    with path.open("xb", buffering=0) as file:
        os.fchmod(file.fileno(), 0o644)
        write_all(file.fileno(), memoryview(data))
        os.fsync(file.fileno())


def disk_errors(where: Path) -> AbstractContextManager[None]:
    """What the disk says below the folder `where` of a store becomes one `DiskError` line."""
    return atomic.disk_errors(where, "set GPUKIT_MODELS to a folder that takes more files")


def _can_share(source: Path, target: Path) -> bool:
    """Whether the file system shares the blocks of `source` with a file where `target` will be."""
    with source.open("rb") as reader, TemporaryFile(dir=target.parent) as writer:
        return _share_blocks(reader.fileno(), writer.fileno())


def _share_blocks(reader: int, writer: int) -> bool:
    try:
        fcntl.ioctl(writer, FICLONE, reader)
    except OSError:
        return False
    return True
