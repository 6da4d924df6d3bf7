"""Prints docs/commands.md: every command with its arguments and options, from the code itself."""

import re
from typing import Any

import typer.main

from gpukit_cli.app import command_line
from gpukit_cli.examples import EXAMPLES

HEAD = """\
# Commands

Written by `scripts/docs` from what `gpukit --help` prints. `gpukit help COMMAND` has the same.
Exit codes: 0 done, 1 the work failed, 2 the arguments are wrong, 130, 143 and 129 interrupted.
Every error is one line.
"""


def page() -> str:
    """All of it as Markdown, a heading for each command in the order of `gpukit --help`."""
    group: Any = typer.main.get_command(command_line())
    overview = ["| command | what |", "|---|---|"]
    parts = []
    for name, command in group.commands.items():
        overview.append(f"| [`{name}`](#{name}) | {cell(first_sentence(command.help))} |")
        parts.append(section(name, command))
    return "\n".join((HEAD, *overview, "", *parts))


def first_sentence(text: str) -> str:
    """What `gpukit --help` has of a command."""
    return re.split(r"(?<=\.)\s", text.strip())[0]


def section(name: str, command: Any) -> str:
    """A command: what it does, its words, its options, its examples."""
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    options = [each for each in command.params if each.param_type_name == "option"]
    words = " ".join(word(each) for each in arguments)
    lines = [
        f"## {name}",
        "",
        prose(command.help),
        "",
        "```text",
        f"gpukit {name} {words}".rstrip(),
    ]
    lines += ["```", ""]
    if arguments:
        lines += ["| argument | what | without it |", "|---|---|---|"]
        lines += [row(f"`{each.metavar or each.name.upper()}`", each) for each in arguments] + [""]
    lines += ["| option | what | without it |", "|---|---|---|"]
    lines += [row(names(each), each) for each in options] + [""]
    lines += ["Examples:", "", "```text", *EXAMPLES[name], "```", ""]
    return "\n".join(lines)


def word(argument: Any) -> str:
    """An argument in the line that shows how a command is called."""
    text = (argument.metavar or argument.name.upper()).strip("[]")
    text += "..." if argument.nargs == -1 and " " not in text else ""
    return text if argument.required else f"[{text}]"


def names(option: Any) -> str:
    """All names of an option and what follows them."""
    value = "" if getattr(option, "is_flag", False) else f" {option.metavar or 'VALUE'}"
    both = [*option.opts, *option.secondary_opts]
    return ", ".join(f"`{each}{value}`" for each in sorted(both, key=len, reverse=True))


def row(label: str, parameter: Any) -> str:
    """A line of a table; what holds without an option is its default, or what is said of it."""
    default = parameter.show_default
    if not isinstance(default, str):
        value = parameter.default
        flag = getattr(parameter, "is_flag", False)
        default = "" if flag or callable(value) or value in (None, False, "", ()) else f"{value}"
        default = "required" if parameter.required else default
    label = label.replace("|", "\\|")
    return f"| {label} | {cell(parameter.help or '')} | {cell(default)} |"


def cell(text: str) -> str:
    """Text in one cell of a table."""
    return prose(" ".join(text.split())).replace("|", "\\|")


def prose(text: str) -> str:
    """Text as it is: what looks like an option is code, what looks like HTML is none."""
    text = text.replace("<", "&lt;").replace("*", "\\*")
    return re.sub(r"(?<![\w`-])--?[a-z][a-z-]*", r"`\g<0>`", text)


if __name__ == "__main__":
    print(page(), end="")
