"""The prompt that a TEMPLATE makes of a conversation, as Ollama makes it.

A template that mentions `.Messages` gets all of them at once. An older one is executed once for
each question and its answer, with `.System`, `.Prompt` and `.Response`; of the last turn, what is
behind `.Response` is left out, since the model goes on there. One that mentions neither has
`.Response` at its end. Source: ollama/template/template.go.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from gpukit.errors import CheckpointError
from gpukit.store import gotemplate
from gpukit.store.gotemplate_functions import Record
from gpukit.store.gotemplate_nodes import Control, Node, Operand, Pipeline, Template
from gpukit.store.gotemplate_run import execute
from gpukit.store.gotemplate_tokens import TemplateError

RESPONSE = "Response"


def prompt(
    text: str, messages: Sequence[Mapping[str, Any]], think: bool | str | None = None
) -> str:
    """The text of the prompt, `think` being whether to think first, or how hard; `CheckpointError`,
    which names the template's line, where it is none or cannot be executed."""
    from gpukit.chat.bounds import MOST, size_of

    most = MOST + 2 * size_of(messages)
    try:
        template = _parsed(text)
        turns = collated(messages)
        thinking = {
            "Think": bool(think),
            "ThinkLevel": think if isinstance(think, str) else "",
            "IsThinkSet": think is not None,
        }
        if "messages" in _lower(template.fields):
            return execute(template, {**_all(turns), **thinking}, most)
        return _by_turns(template, turns, thinking, most)
    except TemplateError as error:
        raise CheckpointError(f"TEMPLATE: (line {error.line}): {error}") from None


def knows_thinking(text: str) -> bool:
    """Whether the template looks at `.Think` and its kin; a broken one does not."""
    try:
        return not _lower(_parsed(text).fields).isdisjoint(("think", "thinklevel", "isthinkset"))
    except TemplateError:
        return False


@lru_cache(maxsize=8)
def _parsed(text: str) -> Template:
    template = gotemplate.parse(text)
    if _lower(template.fields) & {"messages", "response"}:
        return template
    response = Pipeline((), True, ((Operand("field", RESPONSE, 1, (RESPONSE,)),),), 1)
    root = [*template.definitions[""], response]
    return Template({**template.definitions, "": root}, template.fields | {RESPONSE})


def _lower(fields: Iterable[str]) -> set[str]:
    return {name.lower() for name in fields}


def collated(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Role and content each; those of one role in a row are one, a blank line between them."""
    found: list[dict[str, str]] = []
    for message in messages:
        role, content = str(message["role"]), str(message.get("content", ""))
        if found and found[-1]["role"] == role != "tool":
            found[-1]["content"] += f"\n\n{content}"
        else:
            found.append({"role": role, "content": content})
    return found


def _all(turns: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    messages = [
        Record(
            Role=turn["role"], Content=turn["content"], Thinking="", Images=[], ToolCalls=[],
            ToolName="", ToolCallID="",
        )
        for turn in turns
    ]  # fmt: skip
    system = "\n\n".join(turn["content"] for turn in turns if turn["role"] == "system")
    return {"System": system, "Messages": messages, "Tools": [], RESPONSE: ""}


def _by_turns(
    template: Template,
    turns: Sequence[Mapping[str, str]],
    thinking: Mapping[str, Any],
    most: int,
) -> str:
    values = {"System": "", "Prompt": "", RESPONSE: ""}
    texts: list[str] = []
    names = {"system": "System", "user": "Prompt", "assistant": RESPONSE}

    def put(found: Template) -> None:
        texts.append(execute(found, {**values, **thinking}, most - sum(map(len, texts))))
        values.update(dict.fromkeys(values, ""))

    for turn in turns:
        ends = {"system": ("Prompt", RESPONSE), "user": (RESPONSE,)}.get(turn["role"], ())
        if any(values[name] for name in ends):
            put(template)
        if turn["role"] in names:
            values[names[turn["role"]]] = turn["content"]
    root, _ = _cut(template.definitions[""])
    put(Template({**template.definitions, "": root}, template.fields))
    return "".join(texts)


def _cut(nodes: Sequence[Node]) -> tuple[list[Node], bool]:
    """`nodes` up to the first action that writes `.Response`, and whether there is one."""
    kept: list[Node] = []
    for node in nodes:
        if isinstance(node, Control):
            branches: list[tuple[Pipeline, list[Node]]] = []
            ended = False
            for pipeline, body in node.branches:
                shorter, ended = _cut(body)
                branches.append((pipeline, shorter))
                if ended:
                    break
            otherwise, ended = ([], True) if ended else _cut(node.otherwise)
            kept.append(Control(node.word, branches, otherwise))
        else:
            kept.append(node)
            ended = isinstance(node, Pipeline) and _writes_response(node)
        if ended:
            return kept, True
    return kept, False


def _writes_response(pipeline: Pipeline) -> bool:
    return any(
        operand.kind == "field" and RESPONSE in operand.fields
        for command in pipeline.commands
        for operand in command
    )
