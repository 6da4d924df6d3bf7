"""Reading GGUF: what is well-formed is read as the gguf package reads it, all else is refused."""

import os
import struct
import threading
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from support.fuzz_formats import fuzz

from gpukit.errors import GGUFError
from gpukit.formats.gguf_fields import Field, TensorSpec, ValueType, array, string, u32
from gpukit.formats.gguf_reader import GGUFFile, is_gguf
from gpukit.formats.gguf_writer import GGUFWriter

V = ValueType


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def kv(key: str | bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def number(key: str, value: int) -> bytes:
    return kv(key, V.UINT32, struct.pack("<I", value))


def listing(key: str, item: int, count: int, items: bytes) -> bytes:
    return kv(key, V.ARRAY, struct.pack("<IQ", item, count) + items)


def tensor(
    name: str | bytes,
    ne: tuple[int, ...] = (8,),
    kind: int = 0,
    at: int = 0,
    dims: int | None = None,
) -> bytes:
    shape = struct.pack(f"<I{len(ne)}q", len(ne) if dims is None else dims, *ne)
    return text(name) + shape + struct.pack("<IQ", kind, at)


@dataclass
class Raw:
    """A GGUF file put together by hand, so that any part can be wrong."""

    fields: list[bytes] = field(default_factory=list)
    tensors: list[bytes] = field(default_factory=list)
    data: bytes = b""
    magic: bytes = b"GGUF"
    version: int = 3
    n_tensors: int | None = None
    n_fields: int | None = None
    alignment: int = 32

    def bytes(self) -> bytes:
        counts = (
            len(self.tensors) if self.n_tensors is None else self.n_tensors,
            len(self.fields) if self.n_fields is None else self.n_fields,
        )
        out = self.magic + struct.pack("<Iqq", self.version, *counts)
        out += b"".join(self.fields + self.tensors)
        return out + bytes(-len(out) % self.alignment) + self.data


def refused(tmp_path: Path, data: bytes) -> str:
    path = tmp_path / "bad.gguf"
    path.write_bytes(data)
    with pytest.raises(GGUFError) as caught:
        GGUFFile(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert len(message) < len(str(path)) + 300
    return message


ONE = tensor("a")
FULL = bytes(32)
STR = struct.pack("<Q", 1 << 31)
HUGE = struct.pack("<Q", (1 << 64) - 1)

MALFORMED = {
    "empty file": (b"", "GGUF"),
    "header cut": (Raw().bytes()[:20], "too few"),
    "magic": (Raw(magic=b"GGML").bytes(), "begins with"),
    "version 0": (Raw(version=0).bytes(), "version 0"),
    "version 1": (Raw(version=1).bytes(), "version 1"),
    "version 4": (Raw(version=4).bytes(), "version 4"),
    "big-endian 3": (Raw(version=3 << 24).bytes(), "big-endian"),
    "big-endian low bits": (Raw(version=0x50000).bytes(), "big-endian"),
    "negative tensors": (Raw(n_tensors=-1).bytes(), "-1 tensors"),
    "negative fields": (Raw(n_fields=-1).bytes(), "-1 fields"),
    "most tensors": (Raw(n_tensors=(1 << 63) - 1).bytes(), "tensors do not fit"),
    "most fields": (Raw(n_fields=(1 << 63) - 1).bytes(), "fields do not fit"),
    "more tensors than there": (Raw(tensors=[ONE], n_tensors=9, data=FULL).bytes(), "do not fit"),
    "one field more": (Raw([number("a", 1)] * 1, n_fields=2).bytes() + FULL, "empty key"),
    "key of 2^64-1 bytes": (Raw([HUGE + bytes(16)]).bytes(), "key has"),
    "key behind the end": (Raw([struct.pack("<Q", 4096) + bytes(16)]).bytes(), "are left"),
    "empty key": (Raw([kv("", V.UINT8, b"\1")]).bytes(), "empty key"),
    "key twice": (Raw([number("a", 1), number("a", 2)]).bytes(), "stands twice"),
    "key no UTF-8": (Raw([kv(b"\xff\xfe", V.UINT8, b"\1")]).bytes(), "no UTF-8"),
    "key with NUL": (Raw([kv("a\0b", V.UINT8, b"\1")]).bytes(), "NUL"),
    "value type 13": (Raw([kv("a", 13, bytes(8))]).bytes(), "no value type"),
    "value type 2^32-1": (Raw([kv("a", 0xFFFFFFFF, bytes(8))]).bytes(), "no value type"),
    "value cut": (Raw([kv("a.b.c", V.UINT64, b"\1\2")], alignment=1).bytes(), "value of 'a.b.c'"),
    "string over 2^30": (Raw([kv("a", V.STRING, STR)]).bytes(), "are possible"),
    "string of 2^64-1": (Raw([kv("a", V.STRING, HUGE)]).bytes(), "are possible"),
    "string behind the end": (
        Raw([kv("a", V.STRING, struct.pack("<Q", 1000))]).bytes(),
        "are left",
    ),
    "array of arrays": (Raw([listing("a", V.ARRAY, 1, bytes(16))]).bytes(), "array of arrays"),
    "array of type 13": (Raw([listing("a", 13, 1, bytes(16))]).bytes(), "no value type"),
    "array over 2^30": (Raw([listing("a", V.UINT8, (1 << 30) + 1, b"")]).bytes(), "items"),
    "array of 2^64-1": (Raw([listing("a", V.INT64, (1 << 64) - 1, b"")]).bytes(), "items"),
    "array times size overflows": (
        Raw([listing("a", V.UINT64, 1 << 61, b"")]).bytes(),
        "items",
    ),
    "array behind the end": (Raw([listing("a", V.UINT32, 99, bytes(40))]).bytes(), "99 items"),
    "strings behind the end": (Raw([listing("a", V.STRING, 99, bytes(40))]).bytes(), "99 items"),
    "item behind the end": (
        Raw([listing("a", V.STRING, 2, text("x") + struct.pack("<Q", 99))]).bytes(),
        "item 1 of 'a'",
    ),
    "item of 2^64-1": (Raw([listing("a", V.STRING, 1, HUGE)]).bytes(), "item 0 of 'a'"),
    "items run out": (
        Raw([listing("a", V.STRING, 3, text(bytes(16)) + text(b""))], alignment=1).bytes(),
        "item 2 of 'a'",
    ),
    "alignment no u32": (
        Raw([kv("general.alignment", V.UINT64, struct.pack("<Q", 32))]).bytes(),
        "not UINT32",
    ),
    "alignment 0": (Raw([number("general.alignment", 0)]).bytes(), "no power of two"),
    "alignment 48": (Raw([number("general.alignment", 48)]).bytes(), "no power of two"),
    "alignment beyond the file": (
        Raw([number("general.alignment", 1 << 31)], [ONE], FULL).bytes(),
        "data should start",
    ),
    "no data section": (Raw([], [tensor("a", (0,))], alignment=1).bytes(), "data should start"),
    "tensor name of 64": (Raw([], [tensor("n" * 64)], FULL).bytes(), "63 bytes"),
    "tensor name of 64 in UTF-8": (Raw([], [tensor("é" * 32)], FULL).bytes(), "63 bytes"),
    "tensor name over 2^30": (Raw([], [HUGE + bytes(32)], FULL).bytes(), "are possible"),
    "tensor name no UTF-8": (Raw([], [tensor(b"\xc3")], FULL).bytes(), "no UTF-8"),
    "tensor name with NUL": (Raw([], [tensor("a\0")], FULL).bytes(), "NUL"),
    "tensor twice": (
        Raw([], [tensor("a"), tensor("a", at=32)], FULL * 2).bytes(),
        "tensor 'a' stands twice",
    ),
    "5 dimensions": (Raw([], [tensor("a", (1,) * 5)], FULL).bytes(), "5 dimensions"),
    "2^32-1 dimensions": (
        Raw([], [tensor("a", dims=0xFFFFFFFF)], FULL).bytes(),
        "4294967295 dimensions",
    ),
    "negative dimension": (Raw([], [tensor("a", (8, -1))], FULL).bytes(), "dimensions [8, -1]"),
    "two negative dimensions": (Raw([], [tensor("a", (-4, -2))], FULL).bytes(), "dimensions [-4"),
    "product over INT64_MAX": (
        Raw([], [tensor("a", (1 << 32, 1 << 31))], FULL).bytes(),
        "dimensions [4294967296",
    ),
    "product wraps to 0": (
        Raw([], [tensor("a", (1 << 32, 1 << 32))], FULL).bytes(),
        "dimensions [4294967296",
    ),
    "bytes over 2^63": (Raw([], [tensor("a", ((1 << 63) - 1,))], FULL).bytes(), "truncated"),
    **{
        f"type {kind}": (Raw([], [tensor("a", (256,), kind)], FULL).bytes(), f"type {kind} is")
        for kind in (4, 5, 31, 32, 33, 36, 37, 38, 43, 255, 0xFFFFFFFF)
    },
    "ragged Q8_0": (Raw([], [tensor("a", (33,), 8)], FULL * 9).bytes(), "no multiple of 32"),
    "ragged Q4_K": (Raw([], [tensor("a", (128, 2), 12)], FULL * 9).bytes(), "no multiple of 256"),
    "scalar Q8_0": (Raw([], [tensor("a", (), 8)], FULL).bytes(), "no multiple of 32"),
    "first offset": (Raw([], [tensor("a", at=32)], FULL * 2).bytes(), "expected at 0"),
    "gap": (
        Raw([], [tensor("a"), tensor("b", at=64)], FULL * 3).bytes(),
        "offset 64, expected at 32",
    ),
    "overlap": (
        Raw([], [tensor("a", (16,)), tensor("b", at=32)], FULL * 3).bytes(),
        "offset 32, expected at 64",
    ),
    "same place": (Raw([], [tensor("a"), tensor("b")], FULL * 2).bytes(), "expected at 32"),
    "other order": (
        Raw([], [tensor("a", at=32), tensor("b", at=0)], FULL * 2).bytes(),
        "expected at 0",
    ),
    "not aligned": (
        Raw([], [tensor("a", (1,)), tensor("b", at=4)], FULL * 2).bytes(),
        "expected at 32",
    ),
    "offset 2^64-1": (Raw([], [tensor("a", at=(1 << 64) - 1)], FULL).bytes(), "expected at 0"),
    "data cut": (Raw([], [tensor("a")], FULL[:31]).bytes(), "truncated"),
    "second tensor cut": (
        Raw([], [tensor("a"), tensor("b", at=32)], bytes(63)).bytes(),
        "truncated: b needs",
    ),
    "line breaks in a name": (
        Raw([], [tensor("a\r\n\x1b[2J")], b"").bytes(),
        r"a\r\n\x1b[2J needs",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_files_are_refused(case: str, tmp_path: Path) -> None:
    data, word = MALFORMED[case]
    assert word in refused(tmp_path, data)


def opened(tmp_path: Path, raw: Raw) -> GGUFFile:
    path = tmp_path / "good.gguf"
    path.write_bytes(raw.bytes())
    return GGUFFile(path)


def test_version_2_is_read(tmp_path: Path) -> None:
    with opened(tmp_path, Raw([number("a", 7)], [ONE], FULL, version=2)) as file:
        assert (file.version, file.get("a"), list(file.tensors)) == (2, 7, ["a"])


def test_a_file_of_nothing(tmp_path: Path) -> None:
    with opened(tmp_path, Raw(alignment=1)) as file:
        assert (dict(file.fields), dict(file.tensors), file.alignment) == ({}, {}, 32)
        assert file.get("missing") is None
        assert file.get("missing", 5) == 5


def test_any_byte_but_zero_is_true(tmp_path: Path) -> None:
    fields = [kv("a", V.BOOL, b"\2"), listing("b", V.BOOL, 3, b"\0\1\xff")]
    with opened(tmp_path, Raw(fields)) as file:
        assert file.fields["a"] == Field("a", V.BOOL, True)
        assert file.fields["b"] == Field("b", V.ARRAY, [False, True, True], V.BOOL)


def test_values_that_are_no_utf8_survive(tmp_path: Path) -> None:
    fields = [kv("a", V.STRING, text(b"\xff")), listing("b", V.STRING, 2, text(b"\xc3") + text(""))]
    with opened(tmp_path, Raw(fields)) as file:
        assert file.get("a").encode("utf-8", "surrogateescape") == b"\xff"
        copy = tmp_path / "copy.gguf"
        with GGUFWriter(copy, file.fields.values(), []):
            pass
    assert copy.read_bytes() == Raw(fields, alignment=1).bytes()


def test_alignment_1_leaves_no_gaps(tmp_path: Path) -> None:
    raw = Raw(
        [number("general.alignment", 1)],
        [tensor("a", (3,), 24), tensor("b", (5,), 24, 3)],
        b"abcdefgh",
        alignment=1,
    )
    with opened(tmp_path, raw) as file:
        assert file.read(file.tensors["a"]).tobytes() == b"abc"
        assert file.read(file.tensors["b"]).tobytes() == b"defgh"


def test_scalars_and_tensors_of_nothing(tmp_path: Path) -> None:
    entries = [tensor("empty", (32, 0), 8), tensor("scalar", ()), tensor("last", (0,), 0, 32)]
    with opened(tmp_path, Raw([], entries, struct.pack("<f", 1.5) + bytes(28))) as file:
        assert file.read(file.tensors["empty"]).size == 0
        assert file.read(file.tensors["scalar"]).view(np.float32)[0] == 1.5
        assert file.tensors["scalar"].ne == ()
        assert file.read(file.tensors["last"]).size == 0


def test_the_last_padding_may_lack(tmp_path: Path) -> None:
    with opened(tmp_path, Raw([], [tensor("a", (1,))], b"abcd")) as file:
        assert file.read(file.tensors["a"]).tobytes() == b"abcd"


def test_names_of_63_bytes_fit(tmp_path: Path) -> None:
    with opened(tmp_path, Raw([], [tensor("n" * 63)], FULL)) as file:
        assert list(file.tensors) == ["n" * 63]


@pytest.mark.parametrize("cut", range(24, 500, 7))
def test_every_truncation_is_refused(cut: int, tmp_path: Path) -> None:
    fields = [string("general.name", "n" * 60), array("t", V.STRING, ["ab", "", "c" * 50])]
    whole = tmp_path / "whole.gguf"
    with GGUFWriter(whole, [*fields, u32("x", 1)], [TensorSpec("w", (64, 1), "F32")]) as writer:
        writer.write(0, bytes(256))
    data = whole.read_bytes()
    assert len(data) > 500
    refused(tmp_path, data[:cut])


def test_what_is_no_readable_file(tmp_path: Path) -> None:
    with pytest.raises(GGUFError, match="no such file"):
        GGUFFile(tmp_path / "missing.gguf")
    with pytest.raises(GGUFError, match="cannot be"):
        GGUFFile(tmp_path)
    assert not is_gguf(tmp_path)
    assert not is_gguf(tmp_path / "missing.gguf")


def test_parts_of_a_tensor_from_several_threads(tmp_path: Path) -> None:
    data = np.random.default_rng(1).integers(0, 256, 32 * 997, dtype=np.uint8).tobytes()
    with opened(tmp_path, Raw([], [tensor("a", (32, 997), 24)], data)) as file:
        info = file.tensors["a"]
        out = bytearray(len(data))

        def part(first: int) -> None:
            for start in range(first * 32, len(data), 4 * 32):
                file.read_into(info, memoryview(out)[start : start + 32], start)

        threads = [threading.Thread(target=part, args=(first,)) for first in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert bytes(out) == data
        with pytest.raises(ValueError, match="of 31904"):
            file.read_into(info, memoryview(bytearray(33)), len(data) - 32)
        with pytest.raises(ValueError, match="-1"):
            file.read_into(info, memoryview(bytearray(1)), -1)


def test_a_file_that_shrinks_later(tmp_path: Path) -> None:
    with opened(tmp_path, Raw([], [tensor("a")], FULL)) as file:
        os.truncate(file.path, file.size - 5)
        with pytest.raises(GGUFError, match="5 bytes short; it has changed"):
            file.read(file.tensors["a"])


def test_closing_twice_and_reading_after(tmp_path: Path) -> None:
    file = opened(tmp_path, Raw([], [tensor("a")], FULL))
    file.close()
    file.close()
    with pytest.raises(GGUFError, match="a: "):
        file.read(file.tensors["a"])


def test_refused_files_are_closed(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        refused(tmp_path, Raw(version=9).bytes())
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.thorough
def test_2500_mutants_of_files_of_weights() -> None:
    outcomes = fuzz(2500, 1)
    assert outcomes.total() == 2500
    # Both ends are reached: mutants that are still files, and mutants that are none.
    assert len(outcomes) == 6
    assert min(outcomes.values()) > 50
