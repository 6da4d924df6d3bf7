"""Conversations: what the model is given, what of it is computed, what stays of a part."""

from dataclasses import replace
from typing import Any

import pytest
from support.checkpoints import DATA

import gpukit
from gpukit.errors import ArgumentError, CheckpointError
from gpukit.generation import prompts
from gpukit.generation.generate import Stream
from gpukit.generation.loading import LoadedModel, load_model
from gpukit.generation.model import Model
from gpukit.generation.session import Session, joined
from gpukit.models.decoder import Decoder

TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}[assistant]"
FAST: Any = {"temperature": 0, "num_predict": 8}


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model(DATA / "tiny-shakespeare", "cpu")


@pytest.fixture
def templated(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> Model:
    monkeypatch.setattr(loaded.tokenizer, "chat_template", TEMPLATE)
    return Model(loaded)


@pytest.fixture
def prompt(monkeypatch: pytest.MonkeyPatch) -> list[list[dict[str, str]]]:
    """The turns of every prompt that is made, the latest last."""
    seen: list[Any] = []

    def turn_ids(model: LoadedModel, turns: Any, template: str, **how: Any) -> list[int]:
        seen.append(turns)
        return real(model, turns, template, **how)

    real = prompts.turn_ids
    monkeypatch.setattr(prompts, "turn_ids", turn_ids)
    return seen


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each forward pass computes."""
    counts: list[int] = []

    def forward(self: Decoder, ids: Any, cache: Any, **how: Any) -> Any:
        counts.append(len(ids))
        return real(self, ids, cache, **how)

    real = Decoder.forward
    monkeypatch.setattr(Decoder, "forward", forward)
    return counts


def test_it_remembers_what_was_said(templated: Model, prompt: list[Any]) -> None:
    begun = ({"role": "user", "content": "Ho"}, {"role": "assistant", "content": "Hey"})
    session = Session(replace(templated, messages=begun), system="Be kind.", **FAST)
    first = session.say("Hi").result.text
    second = session.say("Go").result.text
    said = ["Be kind.", "Ho", "Hey", "Hi", first, "Go"]
    assert [turn["content"] for turn in prompt[-1]] == said
    assert [turn["role"] for turn in prompt[-1]] == ["system", *["user", "assistant"] * 2, "user"]
    assert session.messages[-1] == {"role": "assistant", "content": second}
    session.clear()
    session.say("New").close()
    assert [turn["content"] for turn in prompt[-1]] == ["Be kind.", "New"]


def test_what_both_prompts_have_is_computed_once(templated: Model, computed: list[int]) -> None:
    session = Session(templated, **FAST)
    first = session.say("Hi, who are you?").result
    assert (computed[0], first.remembered_tokens) == (first.prompt_tokens, 0)
    assert first.load_seconds == templated.loaded.seconds
    computed.clear()
    second = session.say("And why?").result
    # All but the newest turn, and the last token of the answer, which nothing came behind.
    assert second.remembered_tokens >= first.prompt_tokens + len(first.tokens) - 2
    assert computed[0] == second.prompt_tokens - second.remembered_tokens
    assert second.load_seconds == 0
    fresh = Session(templated, **FAST)
    fresh.messages = session.messages[:-2]
    assert fresh.say("And why?").result.tokens == second.tokens


def test_another_beginning_is_computed_anew(templated: Model, computed: list[int]) -> None:
    session = Session(templated, **FAST)
    session.say("Hi, who are you?").close()
    list(session.say("Go on"))
    session.system = "Another."
    computed.clear()
    changed = session.say("So?").result
    assert computed[0] > changed.prompt_tokens - 5
    session.set("num_ctx", 200)
    computed.clear()
    assert session.say("So?").result.prompt_tokens == computed[0]


def test_a_part_of_an_answer_stays(templated: Model, prompt: list[Any]) -> None:
    session = Session(templated, temperature=0)
    answer = session.say("Hi")
    part = next(answer) + next(answer)
    answer.close()
    assert session.messages[-1] == {"role": "assistant", "content": part}
    # Asked twice, as a template sees it: one turn.
    session.say("never read").close()
    session.say("again").close()
    assert prompt[-1][-1] == {"role": "user", "content": "never read\n\nagain"}
    whole = session.say("on").result
    assert whole.text


def test_an_interrupt_while_it_computes_leaves_the_cache_whole(
    templated: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, calls = Session(templated, **FAST), 0
    block = templated.decoder.blocks[2]

    def interrupted(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return block(*arguments)

    broken = replace(
        templated.decoder,
        blocks=[*templated.decoder.blocks[:2], interrupted, *templated.decoder.blocks[3:]],
    )
    session.model = replace(templated, loaded=replace(templated.loaded, decoder=broken))
    answer = session.say("Hi")
    with pytest.raises(KeyboardInterrupt):
        list(answer)
    assert session.messages[-1]["role"] == "assistant"
    found = session.say("And now?").result
    assert found.remembered_tokens > 5
    fresh = Session(templated, **FAST)
    fresh.messages = session.messages[:-2]
    assert fresh.say("And now?").result.tokens == found.tokens


def test_the_oldest_go_and_the_system_text_stays(templated: Model, prompt: list[Any]) -> None:
    session = Session(templated, system="Keep this.", num_ctx=128, **FAST)
    for number in range(12):
        assert session.say(f"Question {number}, what of it?").result.prompt_tokens <= 112
        turns = prompt[-1]
        assert turns[0]["content"] == "Keep this."
        assert turns[1]["role"] == "user"
        assert turns[-1]["content"].startswith(f"Question {number},")
    assert len(prompt[-1]) < 12
    assert len(session.messages) == 24  # nothing of it is lost
    before = len(session.messages)
    with pytest.raises(ArgumentError, match=r"do not fit into a context of 128"):
        list(session.say("word " * 200))
    assert len(session.messages) == before
    assert session.say("Still there?").result.text


def test_old_messages_go_several_at_once(templated: Model) -> None:
    session = Session(templated, num_ctx=128, **FAST)
    anew = [session.say(f"{n}: what?").result.remembered_tokens < 10 for n in range(16)]
    assert 0 < sum(anew[1:]) < 8


def test_a_template_that_refuses_leaves_nothing_said(
    templated: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session(templated, **FAST)
    session.say("Hi").close()
    monkeypatch.setattr(templated.tokenizer, "chat_template", "{{ raise_exception('no') }}")
    with pytest.raises(CheckpointError, match="no"):
        session.say("Ho")
    assert [turn["content"] for turn in session.messages] == ["Hi"]


def test_without_a_template_texts_go_on(loaded: LoadedModel) -> None:
    session = Session(Model(loaded), system="unused", **FAST)
    first = session.say("First Citizen:").result
    assert first.text == Model(loaded).generate("First Citizen:", **FAST).text
    second = session.say("\nAll:").result
    whole = "First Citizen:" + first.text + "\nAll:"
    assert second.prompt_tokens == len(loaded.tokenizer.encode(whole))


def test_a_character_of_many_tokens_is_never_cut(
    templated: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, text = templated.tokenizer, "né 🙂 stop here"
    ids = iter([*tokenizer.encode(text, add_special=False), tokenizer.eos_id])
    monkeypatch.setattr("gpukit.generation.sampling.Sampler.pick", lambda *_: next(ids))
    session = Session(templated, stop=["op he"])
    pieces = list(session.say("Hi"))
    assert "".join(pieces) == " né 🙂 st" == session.messages[-1]["content"]
    assert "🙂" in "|".join(pieces)
    assert not any("\ufffd" in piece for piece in pieces)


def test_half_a_character_ends_an_answer_that_is_cut(
    templated: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = templated.tokenizer
    ids = iter(tokenizer.encode("a🙂", add_special=False)[:-1])
    monkeypatch.setattr("gpukit.generation.sampling.Sampler.pick", lambda *_: next(ids))
    session = Session(templated)
    answer = session.say("Hi")
    pieces = [next(answer)]
    answer.close()
    assert not any("\ufffd" in piece for piece in pieces)
    assert session.messages[-1]["content"] == "".join(pieces)


def test_parameters_are_looked_at_when_they_are_set(templated: Model) -> None:
    with pytest.raises(ArgumentError, match="unknown parameter 'warmth'"):
        Session(templated, warmth=1)  # type: ignore[call-arg]
    with pytest.raises(ArgumentError, match="temperature is -1"):
        Session(templated, temperature=-1)
    session = Session(templated, seed=None, **FAST)
    with pytest.raises(ArgumentError, match="top_k has a value of the wrong kind"):
        session.set("top_k", "many")
    assert session.parameters == FAST
    session.set("stop", ["x"])
    assert session.parameters == {**FAST, "stop": ["x"]}


def test_thoughts_and_tools_reach_the_template(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asks = "{% if enable_thinking is defined %}{{ enable_thinking }}{% endif %}{{ tools }}"
    monkeypatch.setattr(loaded.tokenizer, "chat_template", TEMPLATE + asks)
    session = Session(Model(loaded), tools=[{"name": "f"}], **FAST)
    assert session.knows_thinking
    texts: list[str] = []
    encode = loaded.tokenizer.encode
    monkeypatch.setattr(loaded.tokenizer, "encode", lambda text, **how: (
        texts.append(text), encode(text, **how)
    )[1])  # fmt: skip
    _ = session.say("Call").result
    with pytest.raises(ArgumentError, match="think is 'hard'; known: true, false, high, medium, l"):
        session.think = "hard"
    session.think = False
    answer = session.say("22", role="tool").result
    assert texts[0].endswith("[user]Call\n[assistant][{'name': 'f'}]")
    assert texts[-1].endswith("[tool]22\n[assistant]False[{'name': 'f'}]")
    assert session.messages[-1] == {"role": "assistant", "content": answer.text}
    # Ollama's templates hear of thoughts, and not of tools.
    go = "{{ if .IsThinkSet }}{{ if .Think }}T{{ .ThinkLevel }}{{ else }}N{{ end }}{{ end }}"
    for template in (go + "{{ .Prompt }}", go + "{{ range .Messages }}{{ .Content }}{{ end }}"):
        session = Session(Model(loaded, template=template), **FAST)
        assert session.knows_thinking
        for think, mark in ((None, ""), (True, "T"), ("low", "Tlow"), (False, "N")):
            session.clear()
            session.think = think
            _ = session.say("Hi").result
            assert texts[-1] == f"{mark}Hi"
        session.tools = [{"name": "f"}]
        with pytest.raises(ArgumentError, match="this one has a TEMPLATE, which does not see them"):
            session.say("Hi")
    assert not Session(Model(loaded, template="{{ .Prompt }}")).knows_thinking


def test_turns_of_one_role_are_joined() -> None:
    said = (("user", "a"), ("user", "b"), ("tool", "c"), ("tool", "d"), ("user", "e"))
    turns = [{"role": role, "content": text} for role, text in said]
    assert [turn["content"] for turn in joined(turns)] == ["a\n\nb", "c", "d", "e"]
    assert turns[0]["content"] == "a"


def test_the_face_has_it(templated: Model) -> None:
    assert gpukit.Session is Session
    assert isinstance(gpukit.Session(templated).say("Hi"), Stream)
