"""Renders a model's chat template (Jinja) as transformers does, in a sandbox, within bounds."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from gpukit.errors import ArgumentError, CheckpointError

Message = Mapping[str, Any]

# A text that no template has.
MARK = "systemtextofgpukit"
# By these names templates ask whether, and how hard, a model shall think before it answers.
THINKING = ("enable_thinking", "thinking", "reasoning_effort")

# Whether to think, or how hard, one of `LEVELS`; None is the template's own way.
Think = bool | str | None
LEVELS = ("high", "medium", "low", "max")


def render(
    template: str,
    messages: Sequence[Message],
    *,
    bos_token: str = "",
    eos_token: str = "",
    add_generation_prompt: bool = True,
    tools: Sequence[Mapping[str, Any]] = (),
    think: Think = None,
) -> str:
    """The prompt that `template` makes of `messages` (role and content each, or role and
    tool_calls), and of `tools`, JSON schemas as transformers takes them.

    `CheckpointError`, one line, for a template that is broken or refuses the messages, or wants
    more than some seconds or some MiB; it holds in any thread.
    """
    # Loaded where a template is: a model without one needs no jinja2.
    from gpukit.chat import bounds, sandbox

    variables = {
        "messages": [dict(message) for message in messages],
        "bos_token": bos_token,
        "eos_token": eos_token,
        "add_generation_prompt": add_generation_prompt,
        "tools": [dict(tool) for tool in tools] or None,
        "documents": None,
        **_thinking(think),
    }
    budget = bounds.Budget(bounds.MOST + 2 * bounds.size_of([*messages, *tools]))
    token = bounds.CURRENT.set(budget)
    try:
        with _one_line():
            return sandbox.rendered(template, variables)
    finally:
        bounds.CURRENT.reset(token)


def check_think(think: Think) -> None:
    """`ArgumentError` for a level that is none of Ollama's."""
    if isinstance(think, str) and think not in LEVELS:
        known = ", ".join(("true", "false", *LEVELS))
        raise ArgumentError(f"think is {think[:40]!r}; known: {known}")


def _thinking(think: Think) -> dict[str, Any]:
    if think is None:
        return {}
    names: dict[str, Any] = dict.fromkeys(THINKING[:2], bool(think))
    return {**names, THINKING[2]: think} if isinstance(think, str) else names


def knows_thinking(template: str) -> bool:
    """Whether `template` looks at one of `THINKING`; a broken one does not."""
    from gpukit.chat import sandbox

    try:
        with _one_line():
            return not sandbox.asked(template).isdisjoint(THINKING)
    except CheckpointError:
        return False


@contextmanager
def _one_line() -> Iterator[None]:
    """Whatever a template does wrong in the block is a `CheckpointError`."""
    from jinja2.exceptions import SecurityError, TemplateError

    from gpukit.chat import bounds

    try:
        yield
    except bounds.Exceeded as error:
        raise CheckpointError(f"chat template: {error}") from None
    except SecurityError as error:
        raise CheckpointError(f"chat template: not allowed: {error}") from None
    except TemplateError as error:
        raise CheckpointError(f"chat template: {error}") from None
    except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError, LookupError) as error:
        raise CheckpointError(f"chat template: {type(error).__name__}: {error}") from None
    except RecursionError:
        raise CheckpointError("chat template: it calls itself without end") from None
    except (SyntaxError, MemoryError):
        # What Python, which jinja2 compiles to, does not take.
        raise CheckpointError("chat template: it is nested too deeply") from None


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
