"""How deep parsed JSON may go: further, and what walks it (shows it, copies it) breaks off."""

from itertools import chain
from typing import Any

MOST = 100


def check_nesting(value: Any) -> None:
    """`ValueError` where lists and objects lie in each other more than `MOST` deep."""
    # A third of the time that parsing took, for a vocabulary with half a million merges.
    items = [value]
    for _ in range(MOST + 1):
        lists = [item for item in items if type(item) is list]
        objects = [item.values() for item in items if type(item) is dict]
        if not lists and not objects:
            return
        items = [*chain.from_iterable(lists), *chain.from_iterable(objects)]
    raise ValueError(f"nested more than {MOST} deep")
