"""Renders a model's chat template (Jinja) as transformers does, in a sandbox."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any, NoReturn

from gpukit.errors import CheckpointError

Message = Mapping[str, Any]

# A text that no template has.
MARK = "systemtextofgpukit"


def render(
    template: str,
    messages: Sequence[Message],
    *,
    bos_token: str = "",
    eos_token: str = "",
    add_generation_prompt: bool = True,
) -> str:
    """The prompt that `template` makes of `messages` (role and content each).

    `CheckpointError`, one line, for a template that is broken or refuses the messages.
    """
    from jinja2.exceptions import SecurityError, TemplateError

    try:
        text: str = (
            _environment()
            .from_string(template)
            .render(
                messages=[dict(message) for message in messages],
                bos_token=bos_token,
                eos_token=eos_token,
                add_generation_prompt=add_generation_prompt,
                tools=None,
                documents=None,
            )
        )
        return text
    except SecurityError as error:
        raise CheckpointError(f"chat template: not allowed: {error}") from None
    except TemplateError as error:
        raise CheckpointError(f"chat template: {error}") from None
    except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError, LookupError) as error:
        raise CheckpointError(f"chat template: {type(error).__name__}: {error}") from None
    except RecursionError:
        raise CheckpointError("chat template: it calls itself without end") from None


def accepted(template: str, messages: Sequence[Message]) -> list[dict[str, Any]]:
    """`messages` as `template` has places for them: where it refuses a system text, or leaves it
    out, that goes in front of the first user's text, as llama.cpp and Ollama have it."""
    turns = [dict(message) for message in messages]
    if not any(turn.get("role") == "system" for turn in turns) or _takes_system(template, turns):
        return turns
    texts = [str(turn.get("content", "")) for turn in turns if turn.get("role") == "system"]
    rest = [turn for turn in turns if turn.get("role") != "system"]
    for turn in rest:
        if turn.get("role") == "user":
            turn["content"] = "\n".join([*texts, str(turn.get("content", ""))])
            break
    return rest


def _takes_system(template: str, turns: Sequence[dict[str, Any]]) -> bool:
    marked = [{**turn, "content": MARK} if turn.get("role") == "system" else turn for turn in turns]
    try:
        return MARK in render(template, marked)
    except CheckpointError:
        return False


@cache
def _environment() -> Any:
    """Where templates run: in a sandbox, with what transformers gives them."""
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks for a trainer what the model said: what is inside is a part of
        the text as any other."""

        tags = {"generation"}  # noqa: RUF012  (as jinja2 declares it)

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _now
    return environment


def _refuse(message: str) -> NoReturn:
    from jinja2 import TemplateError

    raise TemplateError(message)


def _to_json(value: Any, **how: Any) -> str:
    return json.dumps(value, ensure_ascii=False, **how)


def _now(pattern: str) -> str:
    return datetime.now().strftime(pattern)
