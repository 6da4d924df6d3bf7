"""Renders a model's chat template (Jinja) as transformers does, in a sandbox."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from gpukit.errors import CheckpointError

Message = Mapping[str, Any]


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
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _now
    try:
        return environment.from_string(template).render(
            messages=[dict(message) for message in messages],
            bos_token=bos_token,
            eos_token=eos_token,
            add_generation_prompt=add_generation_prompt,
            tools=None,
            documents=None,
        )
    except SecurityError as error:
        raise CheckpointError(f"chat template: not allowed: {error}") from None
    except TemplateError as error:
        raise CheckpointError(f"chat template: {error}") from None
    except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError, LookupError) as error:
        raise CheckpointError(f"chat template: {type(error).__name__}: {error}") from None
    except RecursionError:
        raise CheckpointError("chat template: it calls itself without end") from None


def _refuse(message: str) -> NoReturn:
    from jinja2 import TemplateError

    raise TemplateError(message)


def _to_json(value: Any, **how: Any) -> str:
    return json.dumps(value, ensure_ascii=False, **how)


def _now(pattern: str) -> str:
    return datetime.now().strftime(pattern)
