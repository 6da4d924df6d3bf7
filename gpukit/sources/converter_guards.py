"""What the converter in `converter_child`'s process may not do, and why it ended, in a word.

Nothing of gpukit is imported: it lies beside that script, in a Python that may have none of it.
"""

import importlib.abc
import importlib.util
import socket
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from typing import Any, NoReturn

AUTO_CLASSES = ("AutoConfig", "AutoTokenizer")
# The hosts that were asked for.
asked: list[str] = []


class Stopped(Exception):
    """Why nothing can be served: a kind that the parent knows, and what it is about."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind, self.text = kind, text


def no_network() -> None:
    """Let nothing be fetched: what a folder lacks, its owner fetches."""

    def refuse(host: Any, *_: Any, **__: Any) -> NoReturn:
        asked.append(str(host))
        raise OSError(f"no network here, {host} is not asked")

    def connect(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            refuse(address[0])
        original(self, address)

    original = socket.socket.connect
    socket.getaddrinfo = refuse
    socket.socket.connect = connect  # type: ignore[assignment,method-assign]


class _Untrusting(importlib.abc.MetaPathFinder):
    """Finds transformers as Python does, and lets it trust no code as soon as it is there."""

    _looking = False

    def find_spec(self, name: str, *_: Any) -> ModuleSpec | None:
        # It may be looked for without being imported.
        if name != "transformers" or self._looking:
            return None
        self._looking = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._looking = False
        if spec is None or spec.loader is None:
            return spec
        loader: Any = spec.loader
        execute = loader.exec_module

        def run(module: Any) -> None:
            execute(module)
            _distrust()

        loader.exec_module = run
        return spec


def no_code() -> None:
    """Let no code of the model's folder run, whatever the converter asks for."""
    sys.meta_path.insert(0, _Untrusting())


def _distrust() -> None:
    import transformers
    from transformers import dynamic_module_utils

    def untrusting(method: Callable[..., Any]) -> Callable[..., Any]:
        def load(*args: Any, **kwargs: Any) -> Any:
            return method(*args, **{**kwargs, "trust_remote_code": False})

        return load

    for name in AUTO_CLASSES:
        found = getattr(transformers, name)
        found.from_pretrained = untrusting(found.from_pretrained)

    def refuse(class_name: str, module: Any, *_: Any, **__: Any) -> NoReturn:
        raise Stopped("code", f"{module} with {class_name}")

    # All code of a folder is run by this one.
    dynamic_module_utils.get_class_in_module = refuse  # type: ignore[assignment]


def reason(error: BaseException) -> dict[str, str]:
    """Why there is nothing to serve, as the parent is told: a kind, and what it is about."""
    text = str(error).strip().split("\n")[0] or type(error).__name__
    chain = list(_chain(error))
    for one in chain:
        if isinstance(one, Stopped):
            return {"error": one.kind, "text": one.text}
    if isinstance(error, ModuleNotFoundError) and error.name:
        return {"error": "module", "text": error.name}
    if any("trust_remote_code" in str(one) for one in chain):
        return {"error": "code", "text": ""}
    if asked or any(_offline(one) for one in chain):
        return {"error": "network", "text": asked[-1] if asked else "huggingface.co"}
    if isinstance(error, SystemExit):
        return {"error": "exit", "text": str(error.code)}
    return {"error": "failed", "text": f"{type(error).__name__}: {text}"}


def _chain(error: BaseException) -> Iterator[BaseException]:
    """`error` and those that it came of."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        found = found.__cause__ or found.__context__


def _offline(error: BaseException) -> bool:
    """Whether the Hugging Face hub was wanted."""
    name = type(error).__name__
    return "Offline" in name or name == "LocalEntryNotFoundError" or "connect to" in str(error)
