"""Turns of the conversation that a model begins with."""

from collections.abc import Mapping
from dataclasses import dataclass

from gpukit.errors import ArgumentError, ModelfileError, unlike
from gpukit.given import list_of

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Message:
    """One turn of the conversation that a model begins with."""

    role: str
    content: str


def turns_of(given: object) -> tuple[Message, ...]:
    """Messages, or mappings with role and content, as messages; `ModelfileError` for what are
    none."""
    try:
        found = list_of(given, "messages: a list of role and content each")
    except ArgumentError as error:
        raise ModelfileError(str(error)) from None
    return tuple(_turn(f"message {number}", each) for number, each in enumerate(found))


def _turn(where: str, given: object) -> Message:
    if isinstance(given, Mapping) and set(given) == {"role", "content"}:
        given = Message(given["role"], given["content"])
    if not isinstance(given, Message) or not isinstance(given.content, str):
        wanted = "{'role': 'user', 'content': 'a text'}"
        raise ModelfileError(f"{where}: {unlike(wanted, given)}")
    if given.role not in ROLES:
        raise ModelfileError(
            f"{where}: role must be one of {', '.join(ROLES)}, not {given.role!r:.60}"
        )
    return given
