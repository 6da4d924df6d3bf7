"""The root of gpukit's errors, and what the kernels raise; `gpukit.errors` has the whole tree."""

from collections.abc import Iterable, Mapping

# Characters of a message; the list of all pre-tokenizers takes the most.
LONGEST = 2000


def one_line(text: str) -> str:
    """`text` with everything escaped that would break a line or upset a terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def counted(number: int, thing: str) -> str:
    """`1 model`, `2 models`."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def did_you_mean(word: str, known: Iterable[str], shown: Mapping[str, str] | None = None) -> str:
    """`: did you mean 'x'?` where one of the `known` is close to `word` in any case, else ''.

    `shown` has what is told instead of some of the words.
    """
    from difflib import get_close_matches

    spelled = {name.lower(): (shown or {}).get(name, name) for name in known}
    close = get_close_matches(word.lower(), spelled, n=1)
    return f": did you mean {spelled[close[0]]!r}?" if close else ""


def unlike(wanted: str, given: object) -> str:
    """`WANTED is wanted, not 5 (int)`: what to say of a value of another kind."""
    shown = repr(given)
    kind = "" if given is None else f" ({type(given).__name__})"
    return f"{wanted} is wanted, not {shown if len(shown) <= 60 else shown[:60] + '…'}{kind}"


class GpukitError(Exception):
    """The work failed. `exit_code` is what the command line ends with."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        # Names and values come from files: whatever they hold, the message stays one short line.
        shown = message if len(message) <= LONGEST else f"{message[:LONGEST]} …"
        super().__init__(one_line(shown))


class ArgumentError(GpukitError):
    """The request itself is wrong."""

    exit_code = 2


class QuantError(ArgumentError, ValueError):
    """A type, a shape or a device that a kernel cannot take."""
