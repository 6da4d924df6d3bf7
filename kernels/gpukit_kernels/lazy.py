"""Packages whose names are imported when they are first used."""

import importlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any


def lazily(
    package: dict[str, Any], modules: Mapping[str, Iterable[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package, of which `package` are the globals: each name comes
    from the module that has it in `modules`, and stays."""
    module_of = {name: module for module, names in modules.items() for name in names}

    def find(name: str) -> Any:
        module = module_of.get(name)
        if module is None:
            raise AttributeError(f"module {package['__name__']!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{package['__name__']}.{module}"), name)
        package[name] = value
        return value

    return find, lambda: sorted({*package, *module_of})
