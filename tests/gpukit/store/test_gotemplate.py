"""Templates that Go's text/template parses, and those that it does not: each verdict is Go's own
(1.19), but for `else with`, which came with Go 1.23, and for `template` without data, which Go
takes and Ollama does not."""

import time

import pytest

from gpukit.errors import ModelfileError
from gpukit.store.gotemplate import check
from gpukit.store.gotemplate_tokens import TemplateError
from gpukit.store.modelfile import parse

# After the structure of templates that are published for Ollama.
PUBLISHED = {
    "plain": "{{ .Prompt }}",
    "none": "no action at all }} {",
    "headers": (
        "{{ if .System }}<|start_header_id|>system<|end_header_id|>\n\n{{ .System }}<|eot_id|>"
        "{{ end }}{{ if .Prompt }}<|start_header_id|>user<|end_header_id|>\n\n{{ .Prompt }}"
        "<|eot_id|>{{ end }}<|start_header_id|>assistant<|end_header_id|>\n\n"
        "{{ .Response }}<|eot_id|>"
    ),
    "messages": (
        '{{- range $i, $_ := .Messages }}\n{{- $last := eq (len (slice $.Messages $i)) 1 -}}\n'
        '{{- if or (eq .Role "user") (eq .Role "system") }}<start_of_turn>user\n{{ .Content }}'
        '<end_of_turn>\n{{ if $last }}<start_of_turn>model\n{{ end }}\n'
        '{{- else if eq .Role "assistant" }}<start_of_turn>model\n{{ .Content }}'
        "{{ if not $last }}<end_of_turn>\n{{ end }}\n{{- end }}\n{{- end }}"
    ),
    "tools": (
        "{{- if or .System .Tools }}<|im_start|>system\n{{- if .System }}\n{{ .System }}"
        "\n{{- end }}"
        '\n{{- if .Tools }}\n<tools>\n{{- range .Tools }}\n{"type": "function", "function": '
        "{{ .Function }}}\n{{- end }}\n</tools>\n{{- end }}<|im_end|>\n{{ end }}"
        '{{- range $i, $_ := .Messages }}{{- if eq .Role "user" }}{{ .Content }}'
        '{{ else if eq .Role "assistant" }}{{ if .Content }}{{ .Content }}'
        "{{- else if .ToolCalls }}<tool_call>\n{{ range .ToolCalls }}"
        '{"name": "{{ .Function.Name }}", "arguments": {{ .Function.Arguments }}}\n{{ end }}'
        '</tool_call>\n{{- end }}{{ else if eq .Role "tool" }}{{ json .Content }}{{ end }}{{ end }}'
    ),
    "system before the first turn": (
        "{{- $system := .System }}{{ range .Messages }}"
        '{{- if eq .Role "user" }}[INST] {{ if $system }}{{ $system }}\n\n{{ $system = "" }}'
        '{{ end }}{{ .Content }}[/INST]{{ else }} {{ .Content }}</s>{{ end }}{{ end }}'
    ),
    "thinking": (
        "{{- if and .IsThinkSet .Think (ne $.ThinkLevel \"\") }}{{ .ThinkLevel }}{{ end }}"
        "Today's date is {{ currentDate }}, yesterday's {{ yesterdayDate }}.\n"
        "{{- range $name, $it := .Properties }}{{ $name }}: {{ toTypeScriptType $it }}{{ end }}"
    ),
    "last user": (
        '{{- $index := -1 }}{{ range $i, $m := .Messages }}{{ if eq $m.Role "user" }}'
        "{{- $index = $i }}{{ end }}{{ end }}{{ $index | printf `%d` }}"
    ),
    "parts": (
        '{{ define "turn" }}{{ .Role }}: {{ .Content }}\n{{ end }}{{ block "head" .System }}'
        '{{ . }}{{ end }}{{ range .Messages }}{{ template "turn" . }}{{ else }}nothing{{ end }}'
    ),
    "fill in": "{{- if .Suffix }}<PRE>{{ .Prompt }}<SUF>{{ .Suffix }}<MID>{{ end }}{{ .Response }}",
}  # fmt: skip
ACCEPTED = [
    "",
    "}}",
    "{{/* note */}}",
    "{{- /* two\nlines */ -}}  x",
    "{{/**/}}",
    "a {{- .X -}} b",
    "{{-3}}",
    "{{\n.X\n|\n len\n}}",
    "{{.X |}}",
    '{{"a"|len}}',
    "{{(.X).Y}}",
    "{{(index .X 1).Y.Z}}",
    "{{.X.Y.Z}}",
    "{{.}}",
    "{{$}}",
    "{{$.X}}",
    "{{nil}}",
    "{{.X nil true false}}",
    "{{$x := 1}}{{$x}}",
    "{{$x = 1}}",
    "{{range .X}}{{break}}{{continue}}{{end}}",
    "{{range $x, $x}}{{end}}",
    "{{if $x := .X}}{{$x}}{{else if $y := $x}}{{$y}}{{else}}{{$y}}{{end}}",
    "{{with .X}}{{else with .Y}}{{else}}{{end}}",
    "{{with $x := .X}}{{$x}}{{end}}",
    "{{if .X}}{{else  if .Y}}{{end}}",
    "{{template `a` .}}",
    '{{define "a"}} {{end}}{{define "a"}}x{{end}}',
    '{{define "a"}}x{{end}}{{define "a"}}{{/* */}}\n{{end}}',
    '{{"\\x41\\u00e9\\U0001F600\\377\\n\\""}}',
    "{{'a'}}{{'\\''}}{{'\\n'}}{{'é'}}",
    "{{``}}{{`\n{{`}}",
    "{{1_0}}{{0x_1F}}{{0b1}}{{0o7}}{{0_7}}{{.5}}{{5.}}",
    "{{1.5_0e1_0}}{{0x1p-2}}{{08.5}}{{1i}}{{08i}}{{1+2i}}{{+5}}{{-0}}",
    "{{18446744073709551615}}",
    "{{-9223372036854775808}}",
    "{{.é}}{{.中}}{{$_a1 := 1}}",
    "{{.X\r\n}}",
    '{{printf "%v" (.X | json)}}',
    "{{and}}{{or .}}{{not .X}}{{print}}{{println}}{{html .}}{{js .}}{{urlquery .}}{{call .}}",
    "{{eq . 1 2}}{{ne . 1}}{{lt . 1}}{{le . 1}}{{gt . 1}}{{ge . 1}}{{slice . 1 2}}",
]
REFUSED = [
    ("{{", 1, "an action is never closed"),
    ("a\n{{ .X\n\n", 2, "an action is never closed"),
    ("{{.X}", 1, "cannot follow .X"),
    ("{{}}", 1, "a value is missing"),
    ("{{ }}", 1, "a value is missing"),
    ("{{if .X}}\n{{.Y}}", 1, "{{if}} is never closed"),
    ("{{if .X}}{{range .Y}}{{end}}", 1, "{{if}} is"),
    ("{{end}}", 1, "{{end}} without"),
    ("a\n{{else}}", 2, "{{else}} without"),
    ("{{if}}{{end}}", 1, "missing in if"),
    ("{{if .X}}{{else}}\n{{else}}{{end}}", 2, "a second {{else}}"),
    ("{{if .X}}{{else}}{{else if .Y}}{{end}}", 1, "second"),
    ("{{range .X}}{{else if .Y}}{{end}}", 1, "if cannot stand in {{else}}"),
    ("{{if .X}}{{else with .Y}}{{end}}", 1, "with cannot stand"),
    ("{{with .X}}{{else if .Y}}{{end}}", 1, "if cannot"),
    ('{{define "a"}}{{else}}{{end}}', 1, "{{else}} without"),
    ("{{if .X}}{{end .Y}}", 1, ".Y cannot stand in {{end}}"),
    ("{{break}}", 1, "{{break}} outside"),
    ("{{range .X}}{{else}}{{continue}}{{end}}", 1, "{{continue}} outside"),
    ('{{range .X}}{{block "a" .}}{{break}}{{end}}{{end}}', 1, "outside"),
    ("{{range .X}}{{break 1}}{{end}}", 1, "1 cannot"),
    ("{{foo}}", 1, "no function foo; known: and, call, currentDate"),
    ("{{.X | foo}}", 1, "no function foo"),
    ("{{$x}}", 1, "$x is not declared"),
    ("{{if $x := .X}}{{end}}\n\n{{$x}}", 3, "$x is not declared"),
    ("{{range $i, $x := .X}}{{end}}{{$i}}", 1, "$i is not"),
    ('{{$x := 1}}{{define "a"}}{{$x}}{{end}}', 1, "$x is not"),
    ('{{$x := 1}}{{block "a" .}}{{$x}}{{end}}', 1, "$x is not"),
    ("{{$x, $y := .X}}", 1, "too many declarations"),
    ("{{range $i, $x, $y := .X}}{{end}}", 1, "too many"),
    ("{{range $i, .X}}{{end}}", 1, "only declare"),
    ("{{range $i, }}{{end}}", 1, "missing in range"),
    ("{{$x=1}}", 1, "'=' cannot follow $x"),
    ("{{|.X}}", 1, "| cannot stand"),
    ("{{.X||.Y}}", 1, "| cannot"),
    ("{{1|2}}", 1, "2 behind | is no function"),
    ("{{.X|.}}", 1, "no function"),
    ("{{.X|nil}}", 1, "no function"),
    ("{{(.X}}", 1, "a ( is never closed"),
    ("{{.X)}}", 1, "a ) without its ("),
    ("{{()}}", 1, "missing in parentheses"),
    ("{{(.X)(.Y)}}", 1, "( cannot"),
    ('{{"a".X}}', 1, "has no fields"),
    ("{{1.X}}", 1, "is no number"),
    ("{{nil.X}}", 1, "nil has no fields"),
    ("{{..}}", 1, ". cannot stand"),
    ("{{.X, .Y}}", 1, ", cannot stand"),
    ("{{.X == .Y}}", 1, "= cannot stand"),
    ("{{.X!}}", 1, "'!' cannot follow"),
    ("{{.X + 1}}", 1, "+ is no number"),
    ("{{-.X}}", 1, "is no number"),
    ("{{a-b}}", 1, "'-' cannot follow a"),
    ("{{.X-}}", 1, "cannot follow"),
    ("{{ .²}}", 1, "'²' cannot follow"),
    ("{{\0}}", 1, "has no meaning"),
    ("{{\xa0.X}}", 1, "has no meaning"),
    ("{{:}}", 1, "has no meaning"),
    ('{{"a}}\n', 1, 'begins with " is never closed'),
    ('{{"a\n"}}', 1, "never closed"),
    ("{{`a}}", 1, "begins with `"),
    ('{{"\\400"}}', 1, "an escape is unknown"),
    ('{{"\\ud800"}}', 1, "escape"),
    ('{{"\\U00110000"}}', 1, "escape"),
    ('{{"\\\'"}}', 1, "escape"),
    ('{{"\\q"}}', 1, "escape"),
    ("{{'ab'}}", 1, "one character"),
    ("{{''}}", 1, "one character"),
    ("{{'\\\"'}}", 1, "one character"),
    ("{{08}}", 1, "08 is no number"),
    ("{{1__0}}", 1, "is no number"),
    ("{{0x}}", 1, "is no"),
    ("{{0b12}}", 1, "is no"),
    ("{{0x1.8}}", 1, "is no"),
    ("{{1+2}}", 1, "is no"),
    ("{{1e400}}", 1, "is no"),
    ("{{99999999999999999999}}", 1, "is no"),
    ("{{-9223372036854775809}}", 1, "is no"),
    ("{{+18446744073709551615}}", 1, "is no"),
    ("{{1_}}", 1, "is no"),
    ("{{1é}}", 1, "is no"),
    ("{{0x1g}}", 1, "is no"),
    ("{{/* a", 1, "a comment is never closed"),
    ("{{/* a */ }}", 1, "a comment ends before"),
    ("{{ /* a */}}", 1, "cannot stand"),
    ("x\n{{define}}{{end}}", 2, "}} cannot stand in {{define}}"),
    ("{{define a}}{{end}}", 1, "a cannot stand"),
    ('{{if .X}}{{define "a"}}{{end}}{{end}}', 1, "{{define}} inside {{if}}"),
    ('{{define "a"}}x{{end}}\n{{define "a"}}y{{end}}', 2, 'a second definition of "a"'),
    ('{{define "a"}}x{{end}}{{block `a` .}}y{{end}}', 1, "a second"),
    ('{{define ""}}x{{end}}y', 1, 'definition of ""'),
    ('{{block "a"}}{{end}}', 1, "missing in {{block}}"),
    ("{{template a .}}", 1, "a cannot stand in {{template}}"),
    ('{{template "a"}}', 1, 'write what it is given: {{template "a" .}}'),
    ('{{define "a"}}', 1, "{{define}} is never"),
    ("{{" + "(" * 101 + ".X" + ")" * 101 + "}}", 1, "over 100 parentheses"),
]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_templates(name: str) -> None:
    check(PUBLISHED[name])
    check(PUBLISHED[name].replace("\n", "\r\n"))


@pytest.mark.parametrize("text", ACCEPTED)
def test_what_go_takes(text: str) -> None:
    check(text)


@pytest.mark.parametrize(("text", "line", "message"), REFUSED)
def test_what_go_refuses(text: str, line: int, message: str) -> None:
    with pytest.raises(TemplateError) as caught:
        check(text)
    assert message in str(caught.value)
    assert caught.value.line == line


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_action_is_needed(name: str) -> None:
    """A template that is cut off inside an action or a control is refused, wherever that is."""
    text = PUBLISHED[name]
    for at in range(len(text)):
        begun = text[:at]
        if begun.rfind("{{") > begun.rfind("}}"):
            with pytest.raises(TemplateError):
                check(begun)


@pytest.mark.thorough
def test_large_templates_take_linear_time() -> None:
    turn = '{{- if .X -}}\n  text {{ printf "%s" (.Y | json) }}\n{{- else if .Z }}b{{ end -}}\n'
    began = time.process_time()
    check(turn * 10_000)
    check("{{ if .X }}" * 20_000 + "{{ end }}" * 20_000)
    check("{{ if .X }}" + "{{ else if .X }}" * 20_000 + "{{ end }}")
    assert time.process_time() - began < 20


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("FROM x\nTEMPLATE {{ .X", r"\(line 2\): template error: an action is never closed"),
        (
            'FROM x\nTEMPLATE """\n{{ if .X }}\n{{ foo }}{{ end }}"""\n',
            r"\(line 4\): .*no function foo",
        ),
        (
            'FROM x\nTEMPLATE """{{ bos_token }}\n{% if x %}"""',
            r"\(line 2\): .*: Jinja, which comes with",
        ),
    ],
)
def test_a_modelfile_names_the_line(text: str, message: str) -> None:
    with pytest.raises(ModelfileError, match=message):
        parse(text)


def test_only_the_last_template_counts() -> None:
    assert parse("FROM x\nTEMPLATE {{\nTEMPLATE {{ .Prompt }}\n").template == "{{ .Prompt }}"
    assert parse('FROM x\nTEMPLATE ""').template == ""
