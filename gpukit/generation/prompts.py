"""From a text or a conversation to the tokens of a prompt."""

from collections.abc import Mapping, Sequence
from typing import Any

from gpukit import chat
from gpukit.chat import Message, Think, accepted, render
from gpukit.errors import ArgumentError
from gpukit.events import Report, Warned, ignore
from gpukit.generation.loading import LoadedModel
from gpukit.store import gotemplate_prompt
from gpukit.tokenizer import Tokenizer

# What a message has besides its role, one of these at least.
SAID = {"content", "tool_calls"}


def prompt_ids(
    model: LoadedModel,
    prompt: str | Sequence[Message],
    *,
    system: str = "",
    messages: Sequence[Message] = (),
    template: str = "",
    report: Report = ignore,
) -> list[int]:
    """The tokens of a prompt: through `template`, Ollama's TEMPLATE, else the model's own chat
    template; as it is where there is neither.

    `prompt` is a text or messages (role and content each). `system` and `messages` come before it,
    `system` only where the prompt brings none; without a template they cannot, which a warning
    tells. `ArgumentError` for messages without a template, `CheckpointError` where it refuses them.
    """
    if not template and model.tokenizer.chat_template is None:
        if not isinstance(prompt, str):
            raise ArgumentError("the model has no chat template; give a text instead of messages")
        if system or messages:
            report(Warned("the model has no chat template; SYSTEM and MESSAGE are not used"))
        return _without_end(model.tokenizer, model.tokenizer.encode(prompt))
    said = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    if not said:
        raise ArgumentError("no messages; there is nothing to answer")
    for number, turn in enumerate(said):
        if not isinstance(turn, Mapping) or "role" not in turn or not turn.keys() & SAID:
            raise ArgumentError(f"message {number} is {turn!r}; role and content are needed")
    turns = [*messages, *said]
    if system and said[0]["role"] != "system":
        turns.insert(0, {"role": "system", "content": system})
    return turn_ids(model, turns, template)


def turn_ids(
    model: LoadedModel,
    turns: Sequence[Message],
    template: str = "",
    *,
    tools: Sequence[Mapping[str, Any]] = (),
    think: Think = None,
) -> list[int]:
    """The tokens of a conversation, through `template` or the model's own as `prompt_ids`. Without
    either it is what the user and the model said, one behind the other, as Ollama has it.
    `ArgumentError` for `tools` that no template would see, `CheckpointError` where the template
    refuses the conversation."""
    tokenizer, own = model.tokenizer, model.tokenizer.chat_template
    if tools and (template or own is None):
        why = "a TEMPLATE, which does not see them" if template else "no chat template"
        raise ArgumentError(f"tools are for a model's own chat template; this one has {why}")
    bos, eos = (_spelled(tokenizer, number) for number in (tokenizer.bos_id, tokenizer.eos_id))
    if template:
        text = gotemplate_prompt.prompt(template, turns, think)
    elif own is not None:
        text = render(
            own, accepted(own, turns), bos_token=bos, eos_token=eos, tools=tools, think=think
        )
    else:
        said = (str(turn.get("content", "")) for turn in turns if turn["role"] != "system")
        return _without_end(tokenizer, tokenizer.encode("".join(said)))
    # Many templates write BOS themselves, and it must not stand there twice.
    has_bos = bool(bos) and text.startswith(bos)
    ids = tokenizer.encode(text, add_special=not has_bos, parse_special=True)
    return _without_end(tokenizer, ids)


def knows_thinking(model: LoadedModel, template: str = "") -> bool:
    """Whether the template of a model looks at what `think` says."""
    if template:
        return gotemplate_prompt.knows_thinking(template)
    own = model.tokenizer.chat_template
    return own is not None and chat.knows_thinking(own)


def _without_end(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    """`ids` without EOS, which would leave nothing to say."""
    return ids[:-1] if tokenizer.add_eos and ids and ids[-1] == tokenizer.eos_id else ids


def _spelled(tokenizer: Tokenizer, number: int | None) -> str:
    return "" if number is None else tokenizer.token_text(number)
