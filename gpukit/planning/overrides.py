"""What a user decides about the types of tensors, over the mix of a file type."""

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gpukit.errors import ArgumentError, did_you_mean
from gpukit.given import path_of, text_of, texts_of
from gpukit_kernels import type_facts


@dataclass(frozen=True)
class Overrides:
    """What a user decides: patterns (first match wins), and types of output and embedding.

    `exact` are types by the names of tensors, before all else; `exact_option` is where they are
    from.
    """

    patterns: tuple[tuple[re.Pattern[str], str], ...] = ()
    pure: bool = False
    leave_output: bool = False
    output_type: str | None = None
    embedding_type: str | None = None
    exact: Mapping[str, str] = field(default_factory=dict)
    exact_option: str = ""

    def options(self) -> list[str]:
        """Every option that decides types, as `Choice.option` names it."""
        found = [pattern_option(pattern, kind) for pattern, kind in self.patterns]
        if self.output_type:
            found.append(OUTPUT_TYPE)
        if self.embedding_type:
            found.append(EMBEDDING_TYPE)
        return found + [LEAVE_OUTPUT] * self.leave_output


OUTPUT_TYPE, EMBEDDING_TYPE = "--output-tensor-type", "--token-embedding-type"
LEAVE_OUTPUT = "--leave-output-tensor"


def pattern_option(pattern: re.Pattern[str], kind: str) -> str:
    """How a user wrote a pattern."""
    return f"--tensor-type {pattern.pattern}={kind}"


def read_patterns(path: Path) -> list[str]:
    """The patterns in a file of llama-quantize's `--tensor-type-file`: `REGEX=TYPE` each, with
    white space between. `ArgumentError` for a file that cannot be read or holds none."""
    try:
        found = path_of(path, "the path of a file of patterns").read_text(encoding="utf-8").split()
    except OSError as error:
        raise ArgumentError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ArgumentError(f"{path}: no text: byte {error.start} is not UTF-8") from None
    if not found:
        raise ArgumentError(f"{path}: holds no REGEX=TYPE, such as ffn_down=Q6_K")
    return found


def make_overrides(
    patterns: Sequence[str],
    *,
    pure: bool = False,
    leave_output: bool = False,
    output_type: str | None = None,
    embedding_type: str | None = None,
) -> Overrides | None:
    """Overrides from what a user wrote, `REGEX=TYPE` each; None where nothing is overridden.

    `ArgumentError` for what is no pattern or no type.
    """
    compiled = []
    for text in texts_of(patterns, "a list of REGEX=TYPE such as ['ffn_down=Q6_K']"):
        expression, separator, kind = text.rpartition("=")
        if not separator or not expression:
            raise ArgumentError(f"--tensor-type {text}: REGEX=TYPE is needed, as in ffn_down=Q6_K")
        compiled.append((_pattern(text, expression), _tensor_type(kind)))
    found = Overrides(
        tuple(compiled),
        pure,
        leave_output,
        _tensor_type(output_type) if output_type else None,
        _tensor_type(embedding_type) if embedding_type else None,
    )
    return None if found == Overrides() else found


def _pattern(text: str, expression: str) -> re.Pattern[str]:
    try:
        with warnings.catch_warnings():
            # Python warns of what it may read otherwise one day; to a user that says nothing.
            warnings.simplefilter("ignore")
            return re.compile(expression)
    except (re.error, OverflowError, RecursionError) as error:
        raise ArgumentError(f"--tensor-type {text}: no regular expression: {error}") from None


def _tensor_type(name: str) -> str:
    facts = type_facts().get(text_of(name, "a type such as 'Q6_K'").upper())
    if facts is None or not facts.encodable:
        what = "gpukit only reads" if facts else "unknown"
        known = [kind for kind, facts in type_facts().items() if facts.encodable]
        hint = "" if facts else did_you_mean(name, known)
        raise ArgumentError(f"{what} tensor type {name!r}; known: {', '.join(known)}{hint}")
    return facts.name
