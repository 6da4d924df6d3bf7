"""Nesting is bounded, so that nothing that walks a parsed file breaks off."""

import json
from pathlib import Path
from typing import Any

import pytest

from gpukit.errors import CheckpointError
from gpukit.formats.folder import MOST_TEXT, read_json, read_text
from gpukit.formats.nesting import MOST, check_nesting
from gpukit.formats.positioned import read_whole
from gpukit.store import gojson


def nested(depth: int, kind: str) -> Any:
    value: Any = 1
    for number in range(depth):
        as_list = kind == "lists" or (kind == "both" and number % 2)
        value = [0, value] if as_list else {"a": value, "b": 0}
    return value


@pytest.mark.parametrize("kind", ["lists", "objects", "both"])
def test_the_deepest(kind: str, tmp_path: Path) -> None:
    check_nesting(nested(MOST, kind))
    with pytest.raises(ValueError, match=f"more than {MOST} deep"):
        check_nesting(nested(MOST + 1, kind))
    for depth in (MOST, 900, 100_000):
        value = nested(depth, kind) if depth < 1000 else None
        text = json.dumps({"a": value}) if value else '{"a":' * depth
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"config\.json: no JSON: "):
            read_json(tmp_path / "config.json")
        with pytest.raises(ValueError, match="nested"):
            gojson.decode(text.encode())


@pytest.mark.parametrize("value", [1, "a", None, [], {}, [[]], {"a": [1, {"b": "c"}]}])
def test_flat_values(value: Any) -> None:
    check_nesting(value)


def test_texts_are_read_up_to_a_bound(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.touch()
    with path.open("r+b") as file:
        file.truncate(MOST_TEXT + 1)
    with pytest.raises(CheckpointError, match=r"a\.json: cannot be read: over 134,217,728 bytes"):
        read_json(path)
    path.write_bytes(b"a\r\nb\rc\xff")
    with pytest.raises(CheckpointError, match="byte 6 is no UTF-8"):
        read_text(path)
    path.write_bytes(b"a\r\nb\rc")
    assert read_text(path) == path.read_text("utf-8") == "a\nb\nc"
    assert read_whole(path, 6) == b"a\r\nb\rc"
    with pytest.raises(OSError, match="over 5 bytes"):
        read_whole(path, 5)
    with pytest.raises(OSError, match="over 70,000 bytes"):
        read_whole(Path("/dev/zero"), 70_000)
