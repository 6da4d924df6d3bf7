"""Chat templates as transformers renders them, and what the sandbox refuses."""

import itertools
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import SENTENCEPIECE
from support.llama_cpp_server import applied_template

from gpukit.chat import THINKING, accepted, knows_thinking, render
from gpukit.conversion.run import run_plan
from gpukit.errors import CheckpointError
from gpukit.planning.planner import plan_quantize
from gpukit.sources.opening import open_source

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi & <b>"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
]

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a place, in °C.",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
    },
}
CALLED = [
    {"role": "user", "content": "How warm is it in Köln?"},
    {"role": "assistant", "content": "", "tool_calls": [
        {"type": "function", "id": "call00001",
         "function": {"name": "weather", "arguments": {"place": "Köln"}}},
    ]},
    {"role": "tool", "name": "weather", "content": "22", "tool_call_id": "call00001"},
]  # fmt: skip
# As Qwen 3 has it, without what it does to old thoughts.
THINKS = (
    "{%- if tools %}{{- '<|im_start|>system\n# Tools' }}{%- for tool in tools %}{{- '\n' }}"
    "{{- tool | tojson }}{%- endfor %}{{- '<|im_end|>\n' }}{%- endif %}{%- for m in messages %}"
    "{%- if m.role == 'tool' %}{{- '<|im_start|>user\n<tool_response>\n' + m.content + "
    "'\n</tool_response><|im_end|>\n' }}{%- else %}{{- '<|im_start|>' + m.role + '\n' + "
    "m.content }}{%- for call in m.tool_calls or [] %}{%- if call.function %}"
    '{%- set call = call.function %}{%- endif %}{{- \'<tool_call>\n{"name": "\' + call.name + '
    "'\", \"arguments\": ' }}{{- call.arguments | tojson }}{{- '}\n</tool_call>' }}{%- endfor %}"
    "{{- '<|im_end|>\n' }}{%- endif %}{%- endfor %}{%- if add_generation_prompt %}"
    "{{- '<|im_start|>assistant\n' }}{%- if enable_thinking is defined and enable_thinking is "
    "false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}{%- endif %}"
)

TEMPLATES = {
    "llama3": "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant"
    "<|end_header_id|>\n\n' }}{% endif %}",
    "chatml": "{% for message in messages %}\n    {{- '<|im_start|>' + message.role + '\n' + "
    "message.content + '<|im_end|>\n' }}\n{% endfor %}\n{% if add_generation_prompt %}\n"
    "{{- '<|im_start|>assistant\n' }}\n{% endif %}",
    "loop-controls": "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}"
    "{{ m | tojson }}{% endfor %}",
    "generation": "{% set x = 1 %}{% for m in messages %}{% if m.role == 'assistant' %}\n"
    "  {% generation %}\n{% set x = 2 %}A: {{ m.content }}{{ x }}\n  {% endgeneration %}\n"
    "{% else %}Q: {{ m.content }}{{ x }}\n{% endif %}{% endfor %}{{ x }}"
    "{%- generation -%} . {%- endgeneration -%}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    "{% endfor %}{{ ns.n }}{{ eos_token }}",
}


@pytest.mark.peer
@pytest.mark.parametrize("name", TEMPLATES)
def test_renders_as_transformers(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(SENTENCEPIECE)
    wanted = tokenizer.apply_chat_template(
        MESSAGES, chat_template=TEMPLATES[name], tokenize=False, add_generation_prompt=True
    )
    assert render(TEMPLATES[name], MESSAGES, bos_token="<s>", eos_token="</s>") == wanted


@pytest.mark.peer
@pytest.mark.parametrize("think", [None, True, False])
@pytest.mark.parametrize("tools", [[], [WEATHER]])
def test_tools_and_thoughts_as_transformers(tools: list[Any], think: bool | None) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(SENTENCEPIECE)
    wanted = tokenizer.apply_chat_template(
        CALLED, tools=tools or None, chat_template=THINKS, tokenize=False,
        add_generation_prompt=True, **({} if think is None else {"enable_thinking": think}),
    )  # fmt: skip
    assert render(THINKS, CALLED, tools=tools, think=think) == wanted
    assert ("# Tools" in wanted, "</think>" in wanted) == (bool(tools), think is False)


def test_who_knows_thinking() -> None:
    assert knows_thinking(THINKS)
    assert knows_thinking("{% if thinking %}<think>{% endif %}")
    assert knows_thinking("Reasoning: {{ reasoning_effort }}")
    # What a template sets itself is not asked for, and what it writes is no question.
    assert not knows_thinking(
        "{% set thinking = false %}enable_thinking {{ messages[0].thinking }}"
    )
    assert not knows_thinking("{% for %}{{ thinking }}")
    assert render("{{ reasoning_effort }} {{ thinking }}", [], think="low") == "low True"


# Where scripts/bench unpacks llama.cpp's source package.
PEERS = Path(__file__).resolve().parents[2] / ".venv-peers" / "source"
PUBLISHED = sorted(PEERS.glob("llama_cpp_python-*/vendor/llama.cpp/models/templates/*.jinja"))


@pytest.mark.peer
@pytest.mark.thorough
@pytest.mark.skipif(not PUBLISHED, reason="no templates: scripts/bench fetches them")
@pytest.mark.parametrize(
    "how", [{}, {"tools": [WEATHER]}, {"think": True}, {"tools": [WEATHER], "think": False}]
)
def test_every_template_of_llama_cpp_renders_as_in_transformers(how: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(SENTENCEPIECE)
    other, refused = [], 0
    said = (MESSAGES[1:2], MESSAGES, CALLED) if "tools" in how else (MESSAGES[1:2], MESSAGES)
    more = dict.fromkeys(THINKING[:2], how["think"]) if "think" in how else {}
    for path, turns in itertools.product(PUBLISHED, said):
        try:
            wanted = tokenizer.apply_chat_template(
                turns, chat_template=path.read_text(), tokenize=False, add_generation_prompt=True,
                tools=how.get("tools"), **more,
            )  # fmt: skip
        except Exception:  # each template refuses in its own way
            refused += 1
            with pytest.raises(CheckpointError):
                render(path.read_text(), turns, bos_token="<s>", eos_token="</s>", **how)
            continue
        if render(path.read_text(), turns, bos_token="<s>", eos_token="</s>", **how) != wanted:
            other.append(path.name)
    assert not other
    assert refused < len(PUBLISHED) / 2


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ raise_exception('no system role') }}", "no system role"),
        ("{% for %}", "chat template: "),
        ("{% generation %}", "chat template: "),
        ("{% endgeneration %}", "chat template: "),
        ("{{ messages.append(1) }}", "chat template: "),
        ("{{ ''.__class__.__mro__ }}", "chat template: "),
        ("{{ messages[0].content + 1 }}", "TypeError"),
        ("{{ range(10 ** 9) | list }}", "chat template: "),
        ("{{ nobody.nothing }}", "undefined"),
    ],
)
def test_templates_that_fail_give_one_line(template: str, words: str) -> None:
    with pytest.raises(CheckpointError, match=words) as caught:
        render(template, MESSAGES)
    assert "\n" not in str(caught.value)


def test_a_template_that_is_no_utf_8() -> None:
    # A GGUF may hold any bytes; they come out as they are.
    template = b"\xff{{ '\xe2' }}{{ messages[1].content }}".decode("utf-8", "surrogateescape")
    text = render(template, MESSAGES)
    assert text.encode("utf-8", "surrogateescape") == b"\xff\xe2Hi & <b>"


MARKED = (
    "{% for m in messages %}{% if m['role']=='assistant' %}{% generation %}A: {{ m['content'] }}\n"
    "{% endgeneration %}{% else %}Q: {{ m['content'] }}\n{% endif %}{% endfor %}A:"
)


def test_a_generation_tag_does_nothing() -> None:
    assert render(MARKED, MESSAGES[1:]) == "Q: Hi & <b>\nA: Hello\nQ: Bye\nA:"


TURNS = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
REFUSES = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}" + TURNS
)
PASSES_OVER = TURNS.replace("in messages", "in messages if m.role != 'system'")


@pytest.mark.parametrize("template", [REFUSES, PASSES_OVER])
def test_a_system_text_that_has_no_place(template: str) -> None:
    # As llama.cpp renders it.
    assert accepted(template, MESSAGES[:2]) == [{"role": "user", "content": "Be brief.\nHi & <b>"}]
    turns = accepted(template, MESSAGES)
    assert render(template, turns) == "user: Be brief.\nHi & <b>\nassistant: Hello\nuser: Bye\n"


def test_every_system_text_goes_before_the_first_user() -> None:
    assistant, more = {"role": "assistant", "content": "?"}, {"role": "system", "content": "More."}
    turns = accepted(REFUSES, [MESSAGES[0], more, assistant, MESSAGES[1]])
    assert turns == [assistant, {"role": "user", "content": "Be brief.\nMore.\nHi & <b>"}]


def test_a_system_text_with_a_place_stays_there() -> None:
    assert accepted(TURNS, MESSAGES) == MESSAGES
    assert accepted(REFUSES, MESSAGES[1:]) == MESSAGES[1:]


@pytest.mark.peer
@pytest.mark.parametrize("template", [REFUSES, PASSES_OVER, TURNS, MARKED])
def test_turns_are_those_of_llama_cpp(template: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(SENTENCEPIECE, folder)
    (folder / "chat_template.jinja").write_text(template)
    with open_source(folder) as source:
        run_plan(source, plan_quantize(source, "F16"), tmp_path / "x.gguf")
    for messages in (MESSAGES[:2], MESSAGES[1:2], MESSAGES):
        wanted = applied_template(tmp_path / "x.gguf", messages)
        assert render(template, accepted(template, messages)) == wanted
