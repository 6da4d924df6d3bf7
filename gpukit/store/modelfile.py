"""Modelfiles: the text that says what a model is made of, read and written.

commands(text) -> the commands in their order, with line numbers
read(path), parse(text) -> Modelfile: what the commands mean
write(modelfile) -> text that `parse` reads back to the same Modelfile
"""

import errno
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gpukit.errors import ArgumentError, ModelfileError
from gpukit.formats.positioned import read_whole
from gpukit.store import gotemplate, parameters
from gpukit.store.messages import ROLES, Message as Message, turns_of
from gpukit.store.parameters import Value

# A licence may be long; a model's weights given as the Modelfile should fail at once.
MAX_BYTES = 16 << 20

COMMANDS = ("from", "license", "template", "system", "adapter", "draft", "renderer", "parser",
            "parameter", "message", "requires")  # fmt: skip

_BLANK = re.compile(r"(?:[ \t\r\n]+|#[^\r\n]*)*")
_WORD = re.compile(r"[A-Za-z]*")
_KEY = re.compile(r"[ \t]*([A-Za-z0-9_]*)")
_LINE_END = re.compile(r"\r\n|\r|\n")
# A quote closes only where nothing but blanks follows it on its line.
_CLOSING = {quote: re.compile(quote + r"[^\S\r\n]*(?=[\r\n]|\Z)") for quote in ('"""', '"')}
_SEMVER = re.compile(r"v?([0-9]+(?:\.[0-9]+){0,2}(?:-[0-9A-Za-z.-]+)?(?:\+[0-9A-Za-z.-]+)?)")


@dataclass(frozen=True)
class Command:
    """One command: its name in lower case, the key of PARAMETER or the role of MESSAGE, and its
    value without quotes."""

    name: str
    key: str
    value: str
    line: int


@dataclass(frozen=True)
class Modelfile:
    """What a Modelfile says. Relative paths in it start at `folder`; `projectors` are what further
    FROMs name, `messages` are role and content each, as a `Message` or in a mapping."""

    source: str
    folder: Path = Path()
    parameters: dict[str, Value] = field(default_factory=dict)
    template: str = ""
    system: str = ""
    licenses: tuple[str, ...] = ()
    messages: Sequence[Message | Mapping[str, str]] = ()
    adapters: tuple[str, ...] = ()
    drafts: tuple[str, ...] = ()
    projectors: tuple[str, ...] = ()
    renderer: str = ""
    parser: str = ""
    requires: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def turns(self) -> tuple[Message, ...]:
        """`messages`; `ModelfileError` for one that is none."""
        return turns_of(self.messages)


def read(path: Path) -> Modelfile:
    """The Modelfile at `path`; ModelfileError names the file and the line of a fault."""
    try:
        data = read_whole(path, MAX_BYTES)
    except OSError as error:
        what = "this is no Modelfile" if error.errno == errno.EFBIG else "name a Modelfile with -f"
        raise ModelfileError(f"{path}: {error.strerror}: {what}") from None
    return parse(_decode(data, str(path)), where=str(path), folder=path.parent)


def parse(text: str, *, where: str = "Modelfile", folder: Path = Path()) -> Modelfile:
    """What `text` says; ModelfileError names `where` and the line of a fault.

    The first FROM names the model, further ones its projectors. Of the other commands the last one
    wins, except LICENSE, MESSAGE, ADAPTER, DRAFT and `PARAMETER stop`, which add up.
    """
    found: dict[str, list[Command]] = {name: [] for name in COMMANDS}
    for command in commands(text, where):
        found[command.name].append(command)
    if not found["from"]:
        raise ModelfileError(
            f"{where}: no FROM line: say FROM and a folder, a .gguf file or a name"
        )
    for command in found["template"][-1:]:
        check_template(command.value, where, command.line)
    values, warnings = _parameters(found["parameter"], where)
    last = {name: some[-1].value for name, some in found.items() if some}
    return Modelfile(
        source=found["from"][0].value,
        folder=folder,
        parameters=values,
        template=last.get("template", ""),
        system=last.get("system", ""),
        licenses=tuple(command.value for command in found["license"]),
        messages=tuple(Message(command.key, command.value) for command in found["message"]),
        adapters=tuple(command.value for command in found["adapter"]),
        drafts=tuple(command.value for command in found["draft"]),
        projectors=tuple(command.value for command in found["from"][1:]),
        renderer=last.get("renderer", ""),
        parser=last.get("parser", ""),
        requires=_requires(found["requires"], where),
        warnings=tuple(warnings),
    )


def commands(text: str, where: str = "Modelfile") -> Iterator[Command]:
    """The commands of `text` in their order.

    Between commands blanks and comments are skipped; a value runs to the end of its line, or
    to the closing quote where it begins with `"` or three of them. Every character of a value is
    kept. Raises ModelfileError at the first fault.
    """
    at = 0
    while True:
        at = _end(_BLANK, text, at)
        if at == len(text):
            return
        line = _line_number(text, at)
        end = _end(_WORD, text, at)
        name = text[at:end].lower()
        if name not in COMMANDS or text[end : end + 1] not in (" ", "\t"):
            if end == len(text) and name in COMMANDS:
                raise ModelfileError(f"{where}: unexpected EOF: (line {line}): {name} has no value")
            raise _bad_command(text, where, end)
        key, at = "", end + 1
        if name in ("parameter", "message"):
            key, at = _key(text, at, name, where)
        value, end = _value(text, at)
        if value is None:
            raise ModelfileError(
                f"{where}: unexpected EOF: the quote of {name} in line {line} is never closed"
            )
        yield Command(name, key, value, line)
        at = end


def check_template(text: str, where: str = "TEMPLATE", line: int = 1) -> None:
    """ModelfileError where Ollama refuses the template `text`, which begins in line `line`."""
    try:
        gotemplate.check(text)
    except gotemplate.TemplateError as error:
        jinja = ": Jinja, which comes with the weights, is not for TEMPLATE" if "{%" in text else ""
        raise ModelfileError(
            f"{where}: (line {line + error.line - 1}): template error: {error}{jinja}"
        ) from None


def write(modelfile: Modelfile) -> str:
    """The text of `modelfile`, commands in a fixed order; ModelfileError for a value that no
    form of quoting can hold."""
    lines = [("FROM", modelfile.source)]
    lines += [("ADAPTER", value) for value in modelfile.adapters]
    lines += [("DRAFT", value) for value in modelfile.drafts]
    lines += [("FROM", value) for value in modelfile.projectors]
    for command in ("TEMPLATE", "SYSTEM", "RENDERER", "PARSER", "REQUIRES"):
        if value := getattr(modelfile, command.lower()):
            lines.append((command, value))
    for key, word in parameters.words(modelfile.parameters):
        lines.append((f"PARAMETER {key}", word))
    lines += [("LICENSE", value) for value in modelfile.licenses]
    lines += [(f"MESSAGE {message.role}", message.content) for message in modelfile.turns]
    return "".join(f"{command} {_quoted(value, command)}\n" for command, value in lines)


def _decode(data: bytes, where: str) -> str:
    encoding = "utf-8-sig"
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        encoding = "utf-16"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise ModelfileError(
            f"{where}: byte {error.start} is no {encoding.removesuffix('-sig').upper()} text: "
            "this is no Modelfile"
        ) from None


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    match = pattern.match(text, at)
    return match.end() if match else at


def _line_number(text: str, at: int) -> int:
    return 1 + len(_LINE_END.findall(text, 0, at))


def _bad_command(text: str, where: str, end: int) -> ModelfileError:
    # Where a line ends too early, Ollama names the next one.
    line = _line_number(text, end + 1 if text[end : end + 1] in ("\r", "\n") else end)
    names = ", ".join(f'"{name}"' for name in COMMANDS[:-1])
    return ModelfileError(
        f'{where}: (line {line}): command must be one of {names}, or "{COMMANDS[-1]}"'
    )


def _key(text: str, at: int, name: str, where: str) -> tuple[str, int]:
    """The name after PARAMETER or the role after MESSAGE, and where the value begins."""
    match = _KEY.match(text, at)
    assert match, "the pattern matches the empty string"
    key, end = match[1], match.end()
    line = _line_number(text, at)
    if text[end : end + 1] not in (" ", "\t"):
        raise ModelfileError(
            f"{where}: unexpected EOF: {key}: (line {line}): {name} needs a "
            f"{'name' if name == 'parameter' else 'role'} and a value"
        )
    if name == "message" and key not in ROLES:
        raise ModelfileError(
            f'{where}: (line {line}): message role must be one of "system", "user", or "assistant"'
        )
    return key, end + 1


def _value(text: str, at: int) -> tuple[str | None, int]:
    """The value that begins at `at` and where it ends; None where its quote is never closed."""
    match = _LINE_END.search(text, at)
    end = match.start() if match else len(text)
    start = end - len(text[at:end].lstrip())
    for quote, closing in _CLOSING.items():
        if text.startswith(quote, start, end):
            closed = closing.search(text, start + len(quote))
            if not closed:
                return None, len(text)
            return text[start + len(quote) : closed.start()], closed.end()
    return text[start:end].rstrip(), end


def _quoted(value: str, command: str) -> str:
    # Newlines and outer blanks need quotes; so does whatever would not be read back as it is.
    plain = [] if _LINE_END.search(value) or value != value.strip() else [value]
    single = [] if '"' in value else [f'"{value}"']
    for text in (*plain, *single, f'"""{value}"""', f'"{value}"'):
        if _value(text, 0) == (value, len(text)):
            return text
    raise ModelfileError(f"{command}: no quoting can hold a value with quotes at its line ends")


def _parameters(found: list[Command], where: str) -> tuple[dict[str, Value], list[str]]:
    values: dict[str, Value] = {}
    stops: list[str] = []
    warnings = []
    for command in found:
        if told := parameters.deprecated(command.key):
            warnings.append(told)
            continue
        try:
            value = parameters.parse(command.key, command.value)
        except ArgumentError as error:
            raise ModelfileError(f"{where}: (line {command.line}): {error}") from None
        if command.key == "stop":
            stops.append(command.value)
        else:
            values[command.key] = value
    if stops:
        values["stop"] = stops
    return {key: values[key] for key in sorted(values)}, warnings


def _requires(found: list[Command], where: str) -> str:
    if not found:
        return ""
    try:
        return version(found[-1].value)
    except ArgumentError as error:
        raise ModelfileError(f"{where}: (line {found[-1].line}): requires {error}") from None


def version(text: str) -> str:
    """The version that REQUIRES `text` wants; `ArgumentError` for what is none."""
    match = _SEMVER.fullmatch(text)
    if not match:
        raise ArgumentError("must be a valid semver (e.g. 0.14.0)")
    return match[1]
