"""Chat templates as transformers renders them, and what the sandbox refuses."""

import pytest
from support.checkpoints import SENTENCEPIECE

from gpukit.chat import render
from gpukit.errors import CheckpointError

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi & <b>"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
]

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


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ raise_exception('no system role') }}", "no system role"),
        ("{% for %}", "chat template: "),
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
