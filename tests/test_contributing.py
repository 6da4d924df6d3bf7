"""What CONTRIBUTING.md names is there."""

import re
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text()


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(gpukit\w*(?:\.\w+)+)`", TEXT))))
def test_names_lead_somewhere(name: str) -> None:
    module, _, last = name.rpartition(".")
    found = import_module(module)
    assert hasattr(found, last) or import_module(name)


def test_every_room_has_its_line() -> None:
    rooms = {path.parent.name for path in (ROOT / "gpukit").glob("*/__init__.py")}
    table = TEXT.partition("## Where things are")[2].partition("###")[0]
    assert rooms == set(re.findall(r"`gpukit/(\w+)`", table))
