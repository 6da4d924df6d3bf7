"""Our way through a Modelfile and Ollama's find the same commands and the same faults."""

import re
from collections.abc import Callable, Iterator

from hypothesis import HealthCheck, example, given, settings, strategies as st
from support import modelfile_machine as machine

from gpukit.errors import ModelfileError
from gpukit.store import modelfile

PIECES = [
    "FROM", "from ", "SYSTEM ", "Template ", "LICENSE", "PARAMETER ", "PARAMETER stop ",
    "parameter a_1 ", "MESSAGE ", "MESSAGE user ", "message assistant ", "MESSAGE User ",
    "REQUIRES ", "nonsense ", "1", "_", '"', '"""', " ", "\t", "\n", "\n", "\n", "#", "a", "b c",
    "é", "{", "'",
]  # fmt: skip
FAULTS = {
    "command must be one of": "command",
    "message role must be": "role",
    "unexpected EOF": "end",
}


def outcome(found: Callable[[], Iterator[tuple[str, str, str]]]) -> tuple[list[object], object]:
    """The commands before the first fault, and that fault with its line."""
    some: list[object] = []
    try:
        some.extend(iter(found()))
    except machine.Fault as fault:
        return some, (fault.what, fault.line)
    except ModelfileError as error:
        (what,) = (word for text, word in FAULTS.items() if text in str(error))
        line = re.search(r"\(line (\d+)\): (command|message)", str(error))
        return some, (what, int(line[1]) if line and what != "end" else 0)
    return some, None


def ours(text: str) -> Iterator[tuple[str, str, str]]:
    for command in modelfile.commands(text):
        yield command.name, command.key, command.value


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join))
@example('SYSTEM "a" b\nc"')
@example('SYSTEM """"\n"""')
@example('SYSTEM ""\n"')
@example('SYSTEM """""\nFROM a')
@example("FROM a # b\n# FROM c\n  SYSTEM \nMESSAGE user")
def test_the_same_commands_and_faults(text: str) -> None:
    # Behind PARAMETER and MESSAGE we take any number of blanks; Ollama's second one ends the name.
    text = re.sub(r"(?i)(parameter|message)[ \t]+", r"\1 ", text)
    assert outcome(lambda: ours(text)) == outcome(lambda: machine.commands(text))
