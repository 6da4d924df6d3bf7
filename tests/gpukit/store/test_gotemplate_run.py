"""What Go templates write: by the rules of Go's documentation, and Ollama's two ways of giving them
a conversation. The templates are in the style of published ones; the texts were worked out by hand.
"""

import re
import time
from datetime import date, timedelta
from typing import Any

import pytest

from gpukit.errors import CheckpointError
from gpukit.store.gotemplate import parse
from gpukit.store.gotemplate_functions import Record
from gpukit.store.gotemplate_prompt import prompt
from gpukit.store.gotemplate_run import execute
from gpukit.store.gotemplate_tokens import TemplateError

SYSTEM = {"role": "system", "content": "Be brief."}
FIRST = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello"}
LAST = {"role": "user", "content": "Bye"}
LONG = (SYSTEM, FIRST, ANSWER, LAST)

# name: template, text for one question without a system text, text for LONG
GOLDEN: dict[str, tuple[str, str, str]] = {
    "llama3": (
        "{{ if .System }}<|start_header_id|>system<|end_header_id|>\n\n{{ .System }}<|eot_id|>"
        "{{ end }}{{ if .Prompt }}<|start_header_id|>user<|end_header_id|>\n\n{{ .Prompt }}"
        "<|eot_id|>{{ end }}<|start_header_id|>assistant<|end_header_id|>\n\n{{ .Response }}"
        "<|eot_id|>",
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "llama3 with messages": (
        "{{- range .Messages }}<|start_header_id|>{{ .Role }}<|end_header_id|>\n\n"
        "{{ .Content }}<|eot_id|>\n{{- end }}<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "mistral": (
        "[INST] {{ if .System }}{{ .System }}\n\n{{ end }}{{ .Prompt }}[/INST]",
        "[INST] Hi[/INST]",
        "[INST] Be brief.\n\nHi[/INST]Hello[INST] Bye[/INST]",
    ),
    "mistral with messages": (
        '{{- $system := "" }}{{- range .Messages }}\n'
        '{{- if eq .Role "system" }}{{ $system = .Content }}\n'
        '{{- else if eq .Role "user" }}[INST] {{ if $system }}{{ $system }}\n\n'
        '{{ $system = "" }}{{ end }}{{ .Content }}[/INST]\n'
        '{{- else if eq .Role "assistant" }} {{ .Content }}</s>\n{{- end }}\n{{- end }}',
        "[INST] Hi[/INST]",
        "[INST] Be brief.\n\nHi[/INST] Hello</s>[INST] Bye[/INST]",
    ),
    "gemma": (
        "<start_of_turn>user\n{{ if .System }}{{ .System }} {{ end }}{{ .Prompt }}<end_of_turn>\n"
        "<start_of_turn>model\n{{ .Response }}<end_of_turn>\n",
        "<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n",
        "<start_of_turn>user\nBe brief. Hi<end_of_turn>\n<start_of_turn>model\nHello<end_of_turn>\n"
        "<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n",
    ),
    "gemma with messages": (
        "{{- $first := true }}\n{{- range $i, $m := .Messages }}\n"
        "{{- $last := eq (len (slice $.Messages $i)) 1 }}\n"
        '{{- if eq $m.Role "user" }}<start_of_turn>user\n'
        "{{ if and $.System $first }}{{ $.System }} {{ $first = false }}{{ end }}"
        "{{- $m.Content }}<end_of_turn>\n{{ if $last }}<start_of_turn>model\n{{ end }}\n"
        '{{- else if eq $m.Role "assistant" }}<start_of_turn>model\n{{ $m.Content }}'
        "{{ if not $last }}<end_of_turn>\n{{ end }}\n{{- end }}\n{{- end }}",
        "<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n",
        "<start_of_turn>user\nBe brief. Hi<end_of_turn>\n<start_of_turn>model\nHello<end_of_turn>\n"
        "<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n",
    ),
    "chatml": (
        "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}"
        "{{ if .Prompt }}<|im_start|>user\n{{ .Prompt }}<|im_end|>\n{{ end }}"
        "<|im_start|>assistant\n{{ .Response }}<|im_end|>\n",
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n"
        "<|im_start|>assistant\n",
    ),
    "phi3": (
        "{{- range .Messages }}<|{{ .Role }}|>\n{{ .Content }}<|end|>\n{{ end }}<|assistant|>\n",
        "<|user|>\nHi<|end|>\n<|assistant|>\n",
        "<|system|>\nBe brief.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\nHello<|end|>\n"
        "<|user|>\nBye<|end|>\n<|assistant|>\n",
    ),
    "alpaca": (
        "{{- if .System }}{{ .System }}\n\n{{ end }}{{ if .Prompt }}### Instruction:\n"
        "{{ .Prompt }}\n\n{{ end }}### Response:\n{{ .Response }}\n\n",
        "### Instruction:\nHi\n\n### Response:\n",
        "Be brief.\n\n### Instruction:\nHi\n\n### Response:\nHello\n\n"
        "### Instruction:\nBye\n\n### Response:\n",
    ),
    "vicuna": (
        "{{ .System }}\nUSER: {{ .Prompt }}\nASSISTANT: {{ .Response }}</s>\n",
        "\nUSER: Hi\nASSISTANT: ",
        "Be brief.\nUSER: Hi\nASSISTANT: Hello</s>\n\nUSER: Bye\nASSISTANT: ",
    ),
    "zephyr": (
        "{{- range .Messages -}}\n<|{{ .Role }}|>\n{{ .Content }}</s>\n{{ end -}}\n<|assistant|>\n",
        "<|user|>\nHi</s>\n<|assistant|>\n",
        "<|system|>\nBe brief.</s>\n<|user|>\nHi</s>\n<|assistant|>\nHello</s>\n"
        "<|user|>\nBye</s>\n<|assistant|>\n",
    ),
    "command-r": (
        "{{- if or .Tools .System }}<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>\n"
        "{{- if .Tools }}# Tools\n{{ range .Tools }}{{ json . }}{{ end }}{{ end }}\n"
        "{{- if .System }}{{ .System }}{{ end }}<|END_OF_TURN_TOKEN|>\n{{- end }}\n"
        '{{- range .Messages }}\n{{- if eq .Role "system" }}{{ continue }}{{ end }}'
        "<|START_OF_TURN_TOKEN|>\n"
        '{{- if eq .Role "user" }}<|USER_TOKEN|>{{ .Content }}\n'
        '{{- else if eq .Role "assistant" }}<|CHATBOT_TOKEN|>\n'
        "{{- if .ToolCalls }}Action\n{{- else }}{{ .Content }}{{ end }}\n"
        "{{- end }}<|END_OF_TURN_TOKEN|>\n{{- end }}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
        "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>Hi<|END_OF_TURN_TOKEN|>"
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
        "<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>Be brief.<|END_OF_TURN_TOKEN|>"
        "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>Hi<|END_OF_TURN_TOKEN|>"
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>Hello<|END_OF_TURN_TOKEN|>"
        "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>Bye<|END_OF_TURN_TOKEN|>"
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_published_templates_as_go_writes_them(name: str) -> None:
    template, short, long = GOLDEN[name]
    assert prompt(template, [FIRST]) == short
    assert prompt(template, LONG) == long
    assert prompt(template.replace("\n", "\r\n"), LONG).replace("\r\n", "\n") == long


def test_the_last_answer_is_gone_on_with() -> None:
    template = GOLDEN["chatml"][0]
    begun = prompt(template, [*LONG, {"role": "assistant", "content": "Fare"}])
    assert begun.endswith("Bye<|im_end|>\n<|im_start|>assistant\nFare")


def test_what_is_cut_in_a_control_is_cut_behind_it_too() -> None:
    template = "Q{{ .Prompt }}{{ if .Prompt }}A{{ .Response }}B{{ else }}C{{ end }}D"
    assert prompt(template, [FIRST]) == "QHiA"
    assert prompt(template, [FIRST, ANSWER, LAST]) == "QHiAHelloBDQByeA"


def test_messages_of_one_role_are_one() -> None:
    assert prompt("{{ range .Messages }}<{{ .Role }}:{{ .Content }}>{{ end }}", [
        FIRST, LAST, ANSWER, {"role": "tool", "content": "1"}, {"role": "tool", "content": "2"},
    ]) == "<user:Hi\n\nBye><assistant:Hello><tool:1><tool:2>"  # fmt: skip
    systems = [SYSTEM, FIRST, ANSWER, {"role": "system", "content": "Now long."}, LAST]
    assert (
        prompt("{{ .System }}{{ range .Messages }}{{ end }}", systems) == "Be brief.\n\nNow long."
    )
    assert prompt("({{ .System }}|{{ .Prompt }}|{{ .Response }})", systems) == (
        "(Be brief.|Hi|Hello)(Now long.|Bye|"
    )


DATA: dict[str, Any] = {
    "A": "text", "E": "", "N": 3, "F": 1.5, "T": True, "L": ["a", "b", "c"], "Nil": None,
    "M": {"y": 2, "x": 1}, "R": Record(Role="user", Content="<é>"), "None": [],
}  # fmt: skip
WRITTEN = [
    ("{{ .A }}{{ .N }}{{ .F }}{{ .T }}{{ .L }}{{ .M }}", "text31.5true[a b c]map[x:1 y:2]"),
    ("{{ .Missing }}|{{ print .Missing }}|{{ $.A }}", "<no value>|<nil>|text"),
    ("a {{- /* gone */ -}} b", "ab"),
    ("  {{- .A -}}  \n x", "textx"),
    ("{{ with .R }}{{ .Role }}{{ $.A }}{{ end }}{{ with .E }}x{{ else }}y{{ end }}", "usertexty"),
    ("{{ with .E }}x{{ else with .A }}{{ . }}{{ end }}", "text"),
    ("{{ if .E }}1{{ else if .N }}2{{ else }}3{{ end }}", "2"),
    ("{{ if .R }}struct{{ end }}{{ if .None }}x{{ end }}{{ if .Nil }}x{{ end }}", "struct"),
    ("{{ range $i, $x := .L }}{{ $i }}{{ $x }}{{ end }}", "0a1b2c"),
    ("{{ range $x := .L }}{{ $x }}{{ . }}{{ end }}", "aabbcc"),
    ("{{ range $k, $v := .M }}{{ $k }}{{ $v }}{{ end }}", "x1y2"),
    ("{{ range 3 }}{{ . }}{{ end }}{{ range .None }}x{{ else }}none{{ end }}", "012none"),
    ("{{ range .Missing }}x{{ else }}none{{ end }}", "none"),
    ("{{ range .L }}{{ if eq . `b` }}{{ continue }}{{ end }}{{ . }}{{ end }}", "ac"),
    ("{{ range .L }}{{ if eq . `b` }}{{ break }}{{ end }}{{ . }}{{ end }}", "a"),
    ("{{ $x := 1 }}{{ if .T }}{{ $x = 2 }}{{ $x := 3 }}{{ end }}{{ $x }}", "2"),
    ("{{ $x := `` }}{{ range $x = .L }}{{ end }}{{ $x }}", "c"),
    ("{{ and .A .N }}{{ and .E .N }}{{ or .E .N }}{{ or .A .N }}{{ not .E }}", "33texttrue"),
    ("{{ and .T (eq .N 3) }}{{ or false (.E | not) }}", "truetrue"),
    ("{{ if and .Nil .Nil.X }}{{ end }}short", "short"),
    ("{{ eq .A `text` }}{{ eq .N 1 2 3 }}{{ ne .N 3 }}{{ eq .Missing `x` }}", "truetruefalsefalse"),
    ("{{ lt 1 2 }}{{ le 2 2 }}{{ gt 1 2 }}{{ ge `b` `a` }}{{ lt 1.5 .F }}",
     "truetruefalsetruefalse"),
    ("{{ len .A }}{{ len `é` }}{{ len .L }}{{ .L | len | printf `%03d` }}", "423003"),
    ("{{ index .L 1 }}{{ index .M `x` }}{{ index .M `z` }}", "b1<no value>"),
    ("{{ slice .L 1 }}{{ slice .A 1 3 }}{{ (slice .L 0 2) }}{{ len (slice .L 3) }}",
     "[b c]ex[a b]0"),
    ("{{ print 1 2 `a` `b` 3 }}{{ println 1 `a` }}", "1 2ab31 a\n"),
    ("{{ printf `%s-%v-%d-%q-%t-%5.1f|%-4s|%x%%` .A .L 7 `q\"` true 2.25 `w` 255 }}",
     'text-[a b c]-7-"q\\""-true-  2.2|w   |ff%'),
    ("{{ printf `%d` `x` }}{{ printf `%s` }}{{ printf `a` 1 }}",
     "%!d(string=x)%!s(MISSING)a%!(EXTRA int=1)"),
    ("{{ json .L }}{{ json .R }}{{ json .M.x }}{{ .A | json }}",
     '["a","b","c"]{"Role":"user","Content":"\\u003cé\\u003e"}1"text"'),
    ("{{ html `<a b='c'>` }}", "&lt;a b=&#39;c&#39;&gt;"),
    ("{{ 'a' }}{{ 0x1F }}{{ 0o17 }}{{ 1_000 }}{{ -0.5 }}{{ 1e3 }}{{ 1e21 }}{{ 0.00001 }}",
     "973115" "1000-0.510001e+211e-05"),
    ("{{ `a\n\\` }}{{ \"\\u00e9\\n\\x41\" }}", "a\n\\é\nA"),
    ('{{ define "t" }}[{{ . }}{{ $ }}]{{ end }}{{ template "t" .A }}', "[texttext]"),
    ('{{ block "b" .R }}{{ .Role }}{{ end }}{{ template "b" .R }}', "useruser"),
    ('{{ define "t" }}old{{ end }}{{ define "t" }} {{ end }}{{ template "t" . }}', "old"),
    ("{{ (index .L 0) }}{{ (.R).Role }}{{ $r := .R }}{{ $r.Role }}", "auseruser"),
]  # fmt: skip


@pytest.mark.parametrize(("template", "text"), WRITTEN)
def test_what_actions_write(template: str, text: str) -> None:
    assert execute(parse(template), DATA, 1000) == text


def test_days() -> None:
    today = date.today()
    found = execute(parse("{{ currentDate }} {{ yesterdayDate }}"), {}, 100)
    assert found in {f"{d} {d - timedelta(days=1)}" for d in (today, today + timedelta(days=1))}


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("\n{{ .A.B }}", "can't evaluate field B in type string"),
        ("{{ .R.Nothing }}", "can't evaluate field Nothing in type struct"),
        ("{{ .Missing.X }}", "nil pointer"),
        ("{{ .A 1 }}", "can't give argument to non-function .A"),
        ("{{ 1 | .A }}", "can't give argument to non-function .A"),
        ("{{ nil }}", "nil is not a command"),
        ("{{ eq .A 1 }}", "string and int are never equal"),
        ("{{ eq .A }}", "compares with nothing"),
        ("{{ lt .A 1 }}", "no order"),
        ("{{ len 3 }}", "len of a int"),
        ("{{ len }}", "wrong number of args for len"),
        ("{{ index .L 3 }}", "index 3 of 3"),
        ("{{ slice .L 2 1 }}", "slice 2 to 1 of 3"),
        ("{{ range .A }}{{ end }}", "range can't iterate over a string"),
        ("{{ template `t` . }}", "is not defined"),
        ("{{ $x = 1 }}", "undefined variable: $x"),
        ("{{ js .A }}", "js is not supported"),
        ("{{ 1i }}", "imaginary"),
        ("{{ and }}", "at least 1"),
        ("{{ define `t` }}{{ template `t` . }}{{ end }}{{ template `t` . }}", "call each other"),
        ("{{ range 1000000000 }}{{ end }}", "steps"),
        ("{{ range 1000 }}{{ range 1000 }}{{ range 1000 }}{{ end }}{{ end }}{{ end }}", "steps"),
        ("{{ printf `%1000000000d` 1 }}", "more than 1000 characters"),
        ("{{ range 1000 }}0123456789{{ end }}", "more than 1000 characters"),
        ("{{ if .T }}" * 5000 + "{{ end }}" * 5000, "nested too deeply"),
        ("{{ define `t` }}{{ range .L }}{{ template `t` $ }}{{ end }}{{ end }}"
         "{{ template `t` . }}", "call each other"),
    ],
)  # fmt: skip
def test_what_go_stops_at(template: str, told: str) -> None:
    began = time.thread_time()
    with pytest.raises(TemplateError, match=re.escape(told)) as caught:
        execute(parse(template), DATA, 1000)
    assert caught.value.line == 1 + template.startswith("\n")
    assert time.thread_time() - began < 10


def test_a_prompt_names_the_line() -> None:
    with pytest.raises(CheckpointError, match=r"^TEMPLATE: \(line 2\): can't evaluate field X"):
        prompt("{{ .Prompt }}\n{{ .Prompt.X }}", [FIRST])
    with pytest.raises(CheckpointError, match=r"^TEMPLATE: \(line 1\): no function bos"):
        prompt("{{ bos }}", [FIRST])
