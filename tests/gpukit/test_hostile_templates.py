"""Chat templates that want all of the machine: each is one line, soon, whatever it tries."""

import re
import threading
import time
from contextlib import suppress

import pytest

from gpukit.chat import bounds, render
from gpukit.errors import CheckpointError

MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
# Doubles `ns.s` thirty times.
DOUBLE = (
    "{% set ns = namespace(s='xx', l=[1, 2]) %}{% for i in range(40) %}STEP{% endfor %}{{ ns.s }}"
)
PRIME = (1 << 61) - 1  # whole numbers that are multiples of it all hash to 0
LARGE = {
    "product": "{{ 'x' * 100000000 }}",
    "product of a list": "{{ [1] * 100000000 }}",
    "product, turned": "{{ 100000000 * 'x' }}",
    "product of a tuple": "{{ (1, 2) * 100000000 }}",
    "sums": DOUBLE.replace("STEP", "{% set ns.s = ns.s + ns.s %}"),
    "sums of lists": DOUBLE.replace("STEP", "{% set ns.l = ns.l + ns.l %}"),
    "joins": DOUBLE.replace("STEP", "{% set ns.s = ns.s ~ ns.s %}"),
    "shared lists": DOUBLE.replace("STEP", "{% set ns.l = [ns.l, ns.l] %}") + "{{ ns.l }}",
    "shared tuples": DOUBLE.replace("STEP", "{% set ns.l = (ns.l, ns.l) %}{{ ns.l == ns.s }}"),
    "shared dicts": DOUBLE.replace("STEP", "{% set ns.l = {1: ns.l, 2: ns.l} %}"),
    "shared by dict()": DOUBLE.replace("STEP", "{% set ns.l = dict(a=ns.l, b=ns.l) %}"),
    "power": "{{ 2 ** (10 ** 9) }}",
    "powers": "{% set ns = namespace(n=3) %}{% for i in range(99) %}{% set ns.n = ns.n * ns.n %}"
    "{% endfor %}",
    "negative power of ten": "{{ 5 | round(-1000000000) }}",
    "power of ten": "{{ 5.5 | round(1000000000, 'floor') }}",
    "centre": "{{ 'x' | center(10 ** 9) }}",
    "its method": "{{ 'x'.center(10 ** 9) }}",
    "justified": "{{ 'x'.ljust(10 ** 9) }}",
    "filled": "{{ '1'.zfill(10 ** 9) }}",
    "centres": "{{ ['x'] | map('center', 10 ** 9) | list }}",
    "tabs": "{{ '\t'.expandtabs(10 ** 9) }}",
    "indent": "{{ 'x\ny' | indent(10 ** 9) }}",
    "indent of texts": "{{ ('x\n' * 10000) | indent('x' * 10000) }}",
    "join": "{{ range(99999) | join('x' * 100000) }}",
    "its method, too": "{{ ('x' * 100000).join('y' * 99999) }}",
    "join of an iterator": "{{ ', '.join([['x' * 4000000]] * 1000 | map('first')) }}",
    "joined letters": "{{ ('y' * 99999) | join('x' * 100000) }}",
    "replace": "{{ ('x' * 100000) | replace('x', 'y' * 100000) }}",
    "replace nothing": "{{ ('x' * 100000).replace('', 'y' * 100000) }}",
    "format": "{{ '%1000000000d' % 1 }}",
    "format with a width": "{{ '%*d' % (1000000000, 1) }}",
    "format filter": "{{ '%.1000000000f' | format(1.5) }}",
    "formats": "{{ ('%(a)s' * 10000) % {'a': 'x' * 10000} }}",
    "its format": "{{ '{:>1000000000}'.format(1) }}",
    "its format with a width": "{{ '{:>{w}}'.format(1, w=1000000000) }}",
    "its format_map": "{{ '{a:1000000000}'.format_map({'a': 1}) }}",
    "many of it": "{{ ('{0}' * 10000).format('x' * 10000) }}",
    "batch": "{{ [1] | batch(10 ** 9, 0) | list }}",
    "slice": "{{ [1] | slice(10 ** 9) | list }}",
    "json": "{{ [1] | tojson(indent=10 ** 9) }}",
    "json with separators": "{{ ([1] * 10000) | tojson(separators=('x' * 10000, '')) }}",
    "json with an indent": "{{ ([1] * 10000) | tojson(indent='x' * 10000) }}",
    "date": "{{ strftime_now('%Y' * 1000000) }}",
    "same value": "{{ {}.fromkeys(range(99999), 'x' * 100000) }}",
    "range": "{% for i in range(10 ** 9) %}x{% endfor %}",
    "range of large numbers": f"{{{{ dict.fromkeys(range(0, {10**5 * PRIME}, {PRIME})) }}}}",
    "letters": "{{ ('x' * 400000) | list | map('center', 99) | join }}",
    "bytes": "{{ (1).to_bytes(10 ** 9, 'big') }}",
    "many bytes": "{{ 'x'.encode('utf-32').hex() }}",
    "output": "{% for i in range(100000) %}" + "x" * 1000 + "{% endfor %}",
    "output of a macro": "{% macro m() %}" + "x" * 1000 + "{% endmacro %}{% set all %}"
    "{% for i in range(100000) %}{{ m() }}{% endfor %}{% endset %}",
    "text kept back": "{% set all %}{% for i in range(100000) %}{% if i %}" + "x" * 1000
    + "{% endif %}{% else %}{% endfor %}{% endset %}",
    "many texts": "{% set a = 'x' * 4000000 %}"
    + "".join(f"{{% set a{n} = a[{n}:] %}}" for n in range(1000)),
    "macros that call macros": "{% macro m(n) %}{{ n and m(n - 1) ~ m(n - 1) or 'x' * 1000 }}"
    "{% endmacro %}{{ m(40) }}",
    "a long template": "{{ 1 }}" * 100_000,
    "namespaces": "{% set a, b = namespace(), namespace() %}{% set a.x = [b, b] %}",
    "a namespace in one": "{% set a = namespace(x=namespace()) %}",
    "a namespace as a text": "{% set a = namespace(x=1) %}{{ a }}",
    "the rest of the arguments": "{% macro m() %}{{ varargs | upper }}{% endmacro %}"
    "{{ m(namespace()) }}",
}  # fmt: skip
LONG = {
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "loops that find nothing": "{% for i in range(99999) %}{% for j in range(99999) if j < 0 %}"
    "{% endfor %}{% endfor %}",
    "empty loops": "{% for i in range(99999) %}{% for j in range(99999) if 0 %}{% endfor %}"
    "{% endfor %}",
    "filters": "{% for i in range(99999) %}{{ range(99999) | map('string') | select('none') | first"
    " is defined }}{% endfor %}",
    "macros": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}"
    "{{ m(60) }}",
    "searches": "{% set a = 'x' * 4000000 %}{% for i in range(99999) %}"
    "{% if 'x' * 1000 ~ 'y' in a %}{% endif %}{% endfor %}",
    "searches from the right": "{{ ('a' * 4000000).rfind('a' ~ 'b' ~ 'a' * 2000000) }}",
    "trimming": "{{ ('a' * 4000000) | trim('b' * 4000000 ~ 'a') }}",
    "recursion": "{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "sorting": "{% for i in range(99999) %}{% set x = range(99999) | sort(reverse=true) %}"
    "{% endfor %}",
    "one bucket": f"{{% set ns = namespace(l=[]) %}}{{% for i in range(99999) %}}"
    f"{{% set ns.l = ns.l + [i * {PRIME}] %}}{{% endfor %}}{{{{ ns.l | unique | list }}}}",
    "blocks": "{% block a %}{% for i in range(2) %}{{ self.a() }}{% endfor %}{% endblock %}",
}  # fmt: skip
DEEP = {
    "loops": "{% for i in range(2) %}" * 60 + "{% endfor %}" * 60,
    "parentheses": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "sums": "{{ " + "1+" * 20_000 + "1 }}",
    "conditions": "{% if 0 %}" + "{% elif 0 %}" * 5000 + "{% endif %}",
    "lists": "{{ " + "[" * 3000 + "]" * 3000 + " }}",
}


def _fails(template: str) -> str:
    with pytest.raises(CheckpointError, match=r"^chat template: ") as caught:
        render(template, MESSAGES)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", LARGE)
def test_what_is_too_large_is_not_made(name: str) -> None:
    began = time.thread_time()
    _fails(LARGE[name])
    # It is refused, not cut off.
    assert time.thread_time() - began < bounds.SECONDS


@pytest.mark.parametrize("name", LONG)
def test_what_takes_too_long_ends(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "SECONDS", 0.2)
    _fails(LONG[name])


@pytest.mark.parametrize("name", DEEP)
def test_what_is_too_deep_ends(name: str) -> None:
    _fails(DEEP[name])


def test_it_holds_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "SECONDS", 0.2)
    told: list[str] = []
    threads = [
        threading.Thread(target=lambda text=text: told.append(_fails(text)))
        for text in (LONG["loops"], LARGE["product"])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    slow, large = sorted(told)
    assert slow == "chat template: it computes for more than 0.2 seconds"
    assert re.search(r"it makes a text, or a list as large, of over \d{7} characters$", large)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__ }}", "{{ messages.append(1) }}", "{{ range.__globals__ }}",
        "{{ raise_exception.__globals__ }}", "{{ messages[0].__init__ }}", "{{ 0step }}",
        "{{ 1 | 0made }}", "{{ ''.encode }}{{ ''.encode() }}", "{{ lipsum(1) }}",
        "{{ 'a' | urlize }}", "{{ ''.translate({}) }}", "{{ '{0.__class__}'.format(1) }}",
        "{{ (1 | string).__class__.__mro__ }}",
        "{{ messages | map(attribute='__class__') | list }}",
        "{{ [1] | sum(start=[]) }}", "{{ 1 | tojson(cls=2) }}", "{% include 'x' %}",
    ],
)  # fmt: skip
def test_the_sandbox_holds(template: str) -> None:
    text = ""
    # What is undefined is an empty text, as in transformers.
    with suppress(CheckpointError):
        text = render(template, MESSAGES)
    assert "class" not in text
    assert "function" not in text


def test_long_conversations_are_no_attack() -> None:
    turns = [{"role": "user", "content": "word " * 400_000}] * 5
    template = (
        "{% set ns = namespace(l=[]) %}{% for m in messages %}{% set ns.l = ns.l + [m] %}"
        "{% set text = m.content | trim %}{{ '<' + m.role + '>' + text ~ '\n' }}{% endfor %}"
        "{{ ns.l | length }}"
    )
    text = render(template, turns)
    assert text == ("<user>" + "word " * 399_999 + "word\n") * 5 + "5"


def test_many_turns_are_no_attack() -> None:
    turns = [{"role": "user", "content": f"turn {n}"} for n in range(2000)]
    template = (
        "{% for m in messages %}{% if m.role not in ['user', 'assistant'] or loop.index0 is odd "
        "and loop.last %}{{ m | tojson }}{% else %}{{ m.content.strip().split(' ')[-1] }};"
        "{% endif %}{% endfor %}"
    )
    assert render(template, turns).count(";") == 1999


def test_what_loops_have_around_a_call_is_no_part_of_it() -> None:
    template = (
        "{% for m in messages %}{% set ns = namespace(l=[]) %}{% set old = namespace(n=1) %}"
        "{% set ns = namespace(n=old.n) %}{{ '{}{}'.format(ns.n, m.role) }}{% endfor %}"
    )
    assert render(template, MESSAGES) == "1user1assistant"
