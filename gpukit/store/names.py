"""Model names: `[host/][namespace/]model[:tag]`, as Ollama reads and shows them."""

import re
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from pathlib import PurePosixPath

from gpukit.errors import ArgumentError
from gpukit.given import text_of

DEFAULT_HOST = "registry.ollama.ai"
DEFAULT_NAMESPACE = "library"
DEFAULT_TAG = "latest"

# First character, further characters, greatest length (Ollama spec 2.2).
_PARTS = {
    "host": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}"),
    "namespace": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}"),
    "model": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}"),
    "tag": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}"),
}
_RULES = {
    "host": "letters, digits and _ . - :, at most 350",
    "namespace": "letters, digits and _ -, at most 80",
    "model": "letters, digits and _ . -, at most 80",
    "tag": "letters, digits and _ . -, at most 80",
}


@dataclass(frozen=True)
class ModelName:
    """A valid, complete name. Equality minds the case; `same` does not, as lookups do not."""

    host: str
    namespace: str
    model: str
    tag: str

    def __post_init__(self) -> None:
        _check(str(self), astuple(self))

    @classmethod
    def parse(cls, text: str) -> "ModelName":
        """The name that `text` writes, with defaults for what it leaves out.

        A scheme (`https://`) is accepted and dropped: it is no part of the stored name.
        Raises ArgumentError naming the part that breaks the rules.
        """
        parts = _split(text_of(text, "the name of a model such as 'llama3.2:1b'"))
        _check(text, parts)
        return cls(*parts)

    @classmethod
    def from_path(cls, path: PurePosixPath) -> "ModelName | None":
        """The name of the manifest `host/namespace/model/tag`; None where it is no valid one."""
        if len(path.parts) != 4:
            return None
        try:
            return cls(*path.parts)
        except ArgumentError:
            return None

    @property
    def path(self) -> PurePosixPath:
        """Where the manifest lies below `manifests/`."""
        return PurePosixPath(self.host, self.namespace, self.model, self.tag)

    @property
    def display(self) -> str:
        """The shortest form that names the same model; the tag is always there."""
        if self.host != DEFAULT_HOST:
            return str(self)
        if self.namespace != DEFAULT_NAMESPACE:
            return f"{self.namespace}/{self.model}:{self.tag}"
        return f"{self.model}:{self.tag}"

    def __str__(self) -> str:
        return f"{self.host}/{self.namespace}/{self.model}:{self.tag}"

    def same(self, other: "ModelName") -> bool:
        """Whether Ollama takes both for one model: equal apart from case."""
        return str(self).lower() == str(other).lower()

    def in_casing_of(self, existing: Iterable["ModelName"]) -> "ModelName":
        """This name spelled as the store already spells it.

        A manifest of the same name decides; without one each part takes the spelling that any
        manifest gives it. Otherwise two entries could appear that Ollama cannot tell apart.
        """
        names = sorted(existing, key=str)
        if self in names:
            return self
        if twin := next((name for name in names if self.same(name)), None):
            return twin
        parts = []
        for i, mine in enumerate(astuple(self)):
            spellings = [astuple(name)[i] for name in names]
            alike = (spelling for spelling in spellings if spelling.lower() == mine.lower())
            parts.append(mine if mine in spellings else next(alike, mine))
        return ModelName(*parts)


def _split(text: str) -> tuple[str, str, str, str]:
    rest, tag = text, DEFAULT_TAG
    if rest.rfind(":") > rest.rfind("/"):
        rest, _, tag = rest.rpartition(":")
    before, slash, model = rest.rpartition("/")
    if not slash:
        return DEFAULT_HOST, DEFAULT_NAMESPACE, model, tag
    host, slash, namespace = before.rpartition("/")
    if not slash:
        return DEFAULT_HOST, namespace, model, tag
    scheme, separator, bare = host.partition("://")
    return bare if separator and scheme else host, namespace, model, tag


def _check(text: str, parts: tuple[str, ...]) -> None:
    for (part, pattern), value in zip(_PARTS.items(), parts, strict=True):
        if not pattern.fullmatch(value):
            raise ArgumentError(
                f"invalid model name: {_shown(text)} ({part} {_shown(value)!r}: {_RULES[part]}, "
                "beginning with a letter, a digit or _)"
            )


def _shown(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:100]}…"
