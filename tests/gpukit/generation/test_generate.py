"""Loading and generating: llama.cpp's greedy tokens, stops, limits, prompts, files that lie."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.checkpoints import DATA, build

from gpukit.conversion.run import run_plan
from gpukit.errors import ArgumentError, CheckpointError, GGUFError, GpukitError, NotFoundError
from gpukit.events import Event, Warned
from gpukit.formats.gguf_fields import Field, TensorSpec, f32, string, u32
from gpukit.formats.gguf_reader import GGUFFile
from gpukit.formats.gguf_writer import GGUFWriter
from gpukit.generation.generate import (
    GenerateOptions,
    Generation,
    options_from,
    stream,
)
from gpukit.generation.loading import LoadedModel, load_model
from gpukit.generation.prompts import prompt_ids
from gpukit.generation.sampling import SamplingOptions
from gpukit.planning.planner import plan_quantize
from gpukit.sources.opening import open_source

TINY = DATA / "tiny-shakespeare"
PROMPT = "First Citizen:"
GREEDY = SamplingOptions(temperature=0.0)


def _file(folder: Path, kind: str) -> Path:
    out = folder / f"{kind}.gguf"
    with open_source(TINY) as source:
        run_plan(source, plan_quantize(source, kind), out)
    return out


@pytest.fixture(scope="module")
def f16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _file(tmp_path_factory.mktemp("f16"), "F16")


@pytest.fixture(scope="module")
def model(f16: Path) -> LoadedModel:
    return load_model(f16, "cpu")


def _greedy(model: LoadedModel, count: int, **options: Any) -> Generation:
    ids = prompt_ids(model, PROMPT)
    return stream(model, ids, GenerateOptions(GREEDY, num_predict=count, **options)).result


def test_greedy_tokens_are_those_of_llama_cpp(f16: Path, model: LoadedModel) -> None:
    peer = pytest.importorskip("xllamacpp")
    params = peer.CommonParams()
    params.model.path = str(f16)
    params.n_ctx, params.n_parallel, params.port, params.warmup = 256, 1, 0, False
    params.cpuparams.n_threads = 1
    request = {"prompt": PROMPT, "n_predict": 24, "temperature": 0, "n_probs": 1}
    answer = peer.Server(params).handle_completions(request)
    wanted = [entry["id"] for entry in answer["choices"][0]["logprobs"]["content"]]
    result = _greedy(model, 24)
    assert len(wanted) == 24
    assert list(result.tokens) == wanted
    assert result.text == answer["choices"][0]["text"]


def test_the_pieces_are_the_text(model: LoadedModel) -> None:
    ids = prompt_ids(model, PROMPT)
    text = stream(model, ids, GenerateOptions(GREEDY, num_predict=20))
    pieces = list(text)
    result = text.result
    assert "".join(pieces) == result.text
    assert len(pieces) > 10
    assert all(pieces)
    assert (list(text), text.result) == ([], result)
    assert model.tokenizer.decode([*ids, *result.tokens]) == PROMPT + result.text
    assert (result.prompt_tokens, len(result.tokens)) == (len(ids), 20)
    assert result.done_reason == "length"
    assert result.as_json()["eval_count"] == 20


@pytest.mark.parametrize("kind", ["F32", "BF16", "Q8_0", "Q4_0", "Q4_K_S", "Q4_K_M", "Q6_K"])
def test_every_file_type_speaks(kind: str, tmp_path: Path, model: LoadedModel) -> None:
    quantised = load_model(_file(tmp_path, kind), "cpu")
    ids = quantised.tokenizer.encode(PROMPT)
    logits = quantised.decoder.forward(ids, quantised.decoder.cache(8))
    wanted = model.decoder.forward(ids, model.decoder.cache(8))
    # How far weights of 4.5 bits may move the logits of a 4 M model; what garbles them moves more.
    assert (logits - wanted).abs().mean() < 0.1 * wanted.std()


def test_a_folder_runs_like_its_file(model: LoadedModel, tmp_path: Path) -> None:
    folder = load_model(TINY, "cpu")
    assert {w.weight.type for w in _linears(folder)} == {"BF16"}
    assert _greedy(folder, 24).tokens == _greedy(model, 24).tokens


def _linears(model: LoadedModel) -> list[Any]:
    block: Any = model.decoder.blocks[0]
    return [block.attention.q, block.attention.o, block.feed_forward.down]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("size", range(1, 8))
def test_stops_are_found_across_tokens_and_never_printed(model: LoadedModel, size: int) -> None:
    whole = _greedy(model, 40).text
    for at in range(5, 60, 9):
        stop = whole[at : at + size]
        options = GenerateOptions(GREEDY, num_predict=40, stop=("never there", stop))
        text = stream(model, prompt_ids(model, PROMPT), options)
        assert "".join(text) == text.result.text == whole[: whole.index(stop)]
        assert text.result.done_reason == "stop"


def test_the_beginning_of_a_stop_is_printed_in_the_end(model: LoadedModel) -> None:
    whole = _greedy(model, 24).text
    assert _greedy(model, 24, stop=(whole[-5:] + "?", "")).text == whole


def test_an_end_token_ends_it(model: LoadedModel) -> None:
    tokens = _greedy(model, 24).tokens
    tokenizer = model.tokenizer
    before = tokenizer.eog_ids
    assert tokenizer.eos_id in before
    tokenizer.eog_ids = frozenset({tokens[10]})
    try:
        result = _greedy(model, 24)
    finally:
        tokenizer.eog_ids = before
    assert result.tokens == tokens[: tokens.index(tokens[10]) + 1]
    assert result.text == tokenizer.decode(tokens[: tokens.index(tokens[10])])
    assert result.done_reason == "stop"


def test_a_seed_gives_the_same_text(model: LoadedModel) -> None:
    def text(seed: int) -> str:
        options = GenerateOptions(SamplingOptions(seed=seed), num_predict=30)
        return stream(model, prompt_ids(model, PROMPT), options).result.text

    assert text(3) == text(3)
    assert len({text(seed) for seed in range(3, 7)}) > 1


def test_a_full_context_ends_it_with_a_warning(model: LoadedModel) -> None:
    told: list[Event] = []
    ids = prompt_ids(model, PROMPT)
    options = GenerateOptions(GREEDY, num_ctx=10)
    result = stream(model, ids, options, told.append).result
    assert len(ids) + len(result.tokens) == 10 + 1  # the last token needs no place
    assert result.done_reason == "length"
    full = "the context of 10 tokens is full; --num-ctx can be raised to 1024"
    assert told == [Warned(full)]


def test_contexts_that_do_not_fit(model: LoadedModel) -> None:
    with pytest.raises(ArgumentError, match=r"4 tokens do not fit into a context of 3"):
        _greedy(model, 1, num_ctx=3)
    with pytest.raises(ArgumentError, match=r"1025 tokens .* of 1024; .* no more than 1024"):
        _ = stream(model, [1] * 1025, GenerateOptions(num_ctx=8192)).result
    with pytest.raises(ArgumentError, match="num_ctx is 0"):
        _greedy(model, 1, num_ctx=0)
    with pytest.raises(ArgumentError, match="prompt is empty"):
        stream(model, [])
    told: list[Event] = []
    options = GenerateOptions(GREEDY, num_predict=1, num_ctx=5000)
    assert len(stream(model, prompt_ids(model, PROMPT), options, told.append).result.tokens) == 1
    assert told == [Warned("a context of 5000 tokens; the model was made for 1024")]


def test_a_text_is_made_as_it_is_read(model: LoadedModel) -> None:
    ids = prompt_ids(model, PROMPT)
    text = stream(model, ids, GenerateOptions(GREEDY, num_predict=24))
    first = [next(text), next(text)]
    assert "".join([*first, *text]) == text.result.text == _greedy(model, 24).text
    half = stream(model, ids, GenerateOptions(GREEDY, num_predict=24))
    next(half)
    assert half.result.text == text.result.text  # what nobody read is made for the result
    short = stream(model, ids, GenerateOptions(GREEDY, num_ctx=3))
    with pytest.raises(ArgumentError, match="do not fit"):
        next(short)
    with pytest.raises(GpukitError, match="ended with an error; it has no result"):
        assert short.result


def test_nothing_to_predict(model: LoadedModel) -> None:
    result = _greedy(model, 0)
    assert (result.tokens, result.text, result.done_reason) == ((), "", "length")


def test_options_come_from_parameters_and_above_them_from_what_is_given() -> None:
    told: list[Event] = []
    params = {"temperature": 0.5, "top_k": 7, "stop": ["a", "b"], "num_ctx": 99, "num_gpu": 1,
              "mirostat_eta": 0.1}  # fmt: skip
    given = {"temperature": 0.0, "seed": None, "num_predict": 5}
    options = options_from(params, given, told.append)
    assert options == GenerateOptions(SamplingOptions(temperature=0.0, top_k=7), 5, 99, ("a", "b"))
    assert told == [Warned("parameter mirostat_eta is not used by gpukit run")]
    assert options_from({}, {"stop": "x"}).stop == ("x",)
    assert options_from({}, {}) == GenerateOptions()
    for wrong in (
        {"temperature": "warm"}, {"num_ctx": "many"}, {"top_k": 1.5}, {"seed": True},
        {"stop": 7}, {"stop": ["a", None]},
    ):  # fmt: skip
        with pytest.raises(ArgumentError, match=f"{next(iter(wrong))} has a value of the wrong"):
            options_from(wrong, {})
    with pytest.raises(ArgumentError, match=r"^the model's parameter top_p is 7; it goes from"):
        options_from({"top_p": 7}, {})
    with pytest.raises(ArgumentError, match=r"^top_p is 8; it goes from"):
        options_from({"top_p": 7}, {"top_p": 8})


TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


def _with_template(model: LoadedModel, template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.tokenizer, "chat_template", template)


def test_a_chat_template_gets_system_messages_and_prompt(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    _with_template(model, TEMPLATE, monkeypatch)
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    ids = prompt_ids(model, "Go", system="Be kind", messages=messages)
    bos, eos = model.tokenizer.bos_id, model.tokenizer.eos_id
    assert ids[0] == bos
    assert ids.count(bos or 0) == 1
    text = "[system] Be kind|[user] Hi|[assistant] Ho|[user] Go|[assistant]"
    ends = [list(group) for end, group in itertools.groupby(ids[1:], lambda i: i == eos) if not end]
    assert "|".join(map(model.tokenizer.decode, ends)) == text
    assert ids.count(eos or 0) == 4


def test_a_template_that_refuses_is_told(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    _with_template(model, "{{ raise_exception('no system here') }}", monkeypatch)
    with pytest.raises(CheckpointError, match="no system here"):
        prompt_ids(model, "Go")


def test_without_a_template_the_prompt_goes_in_bare(model: LoadedModel) -> None:
    told: list[Event] = []
    ids = prompt_ids(model, PROMPT, system="Be kind", report=told.append)
    assert ids == model.tokenizer.encode(PROMPT)
    assert told == [Warned("the model has no chat template; SYSTEM and MESSAGE are not used")]


Fields = dict[str, Field]
Tensors = dict[str, tuple[TensorSpec, bytes]]


def _changed(source: Path, out: Path, change: Callable[[Fields, Tensors], object]) -> Path:
    """A copy of a GGUF with other metadata or tensors."""
    with GGUFFile(source) as file:
        fields: Fields = dict(file.fields)
        tensors: Tensors = {
            info.name: (TensorSpec(info.name, info.ne, info.type), file.read(info).tobytes())
            for info in file.tensors.values()
        }
    change(fields, tensors)
    specs: Sequence[TensorSpec] = [spec for spec, _ in tensors.values()]
    with GGUFWriter(out, list(fields.values()), specs) as writer:
        for index, (_, data) in enumerate(tensors.values()):
            writer.write(index, data)
    return out


def _put(field: Field) -> Callable[[Fields, Tensors], object]:
    return lambda fields, tensors: fields.update({field.key: field})


def _tensor(name: str, ne: tuple[int, ...], kind: str) -> Callable[[Fields, Tensors], object]:
    spec = TensorSpec(name, ne, kind)
    return lambda fields, tensors: tensors.update({name: (spec, bytes(spec.nbytes))})


FAULTS: Mapping[str, tuple[Callable[[Fields, Tensors], object], str]] = {
    "missing": (
        lambda fields, tensors: tensors.pop("blk.1.ffn_up.weight"),
        r"blk.1.ffn_up.weight is missing",
    ),
    "shape": (
        _tensor("blk.0.attn_k.weight", (256, 64), "F16"),
        r"blk.0.attn_k.weight has 64 rows of 256, the metadata say 128 of 256",
    ),
    "norm": (_tensor("output_norm.weight", (128,), "F32"), r"1 rows of 128, .* say 1 of 256"),
    "spare": (
        _tensor("blk.0.attn_q_norm.weight", (32,), "F32"),
        r"blk.0.attn_q_norm.weight: gpukit has no use for it",
    ),
    "scalar": (_tensor("output_norm.weight", (), "F32"), r"1 rows of 1, .* say 1 of 256"),
    "empty": (
        _tensor("blk.0.attn_k.weight", (256, 0), "F16"),
        r"blk.0.attn_k.weight has 0 rows of 256",
    ),
    "no width": (_tensor("blk.0.attn_k.weight", (0, 128), "F16"), r"128 rows of 0, the"),
    "type": (
        _tensor("blk.0.ffn_down.weight", (768, 256), "I32"),
        r"blk.0.ffn_down.weight is I32; types that can be run: F32, F16, Q4_0",
    ),
    "architecture": (
        _put(string("general.architecture", "mamba")),
        r"cannot run architecture 'mamba'; known: .*llama",
    ),
    "layers": (_put(u32("llama.block_count", 5)), r"blk.4.\S+ is missing"),
    "fewer layers": (_put(u32("llama.block_count", 3)), r"blk.3.\S+ and 8 more: gpukit has no use"),
    "no count": (
        lambda fields, tensors: fields.pop("llama.block_count"),
        r"no llama.block_count in the metadata",
    ),
    "half a layer": (_put(f32("llama.block_count", 2.5)), r"2.5; a whole number"),
    "heads": (_put(u32("llama.attention.head_count_kv", 3)), r"8 .* no multiple of 3 key-value"),
    "odd": (_put(u32("llama.attention.key_length", 31)), r"key_length is 31; RoPE rotates pairs"),
    "part of a head": (_put(u32("llama.rope.dimension_count", 16)), r"dimension_count is 16"),
    "longrope": (_put(string("llama.rope.scaling.type", "longrope")), r"'longrope'; none, linear"),
    "experts": (_put(u32("llama.expert_count", 8)), r"no llama.expert_used_count in the metadata"),
    "vocabulary": (_put(u32("llama.vocab_size", 9)), r"2048 rows of 256, the metadata say 9 of"),
    "no tokens": (
        lambda fields, tensors: fields.pop("tokenizer.ggml.tokens"),
        r"no tokenizer.ggml.tokens",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_files_that_cannot_be_run_are_told_in_one_line(
    fault: str, f16: Path, tmp_path: Path
) -> None:
    change, wanted = FAULTS[fault]
    path = _changed(f16, tmp_path / "bad.gguf", change)
    with pytest.raises(GpukitError, match=wanted) as caught:
        load_model(path, "cpu")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_that_are_no_numbers_are_told(f16: Path, tmp_path: Path) -> None:
    def change(fields: Fields, tensors: Tensors) -> None:
        spec, data = tensors["blk.2.ffn_up.weight"]
        values = np.frombuffer(data, np.float16).copy()
        values[1000] = np.nan
        tensors["blk.2.ffn_up.weight"] = (spec, values.tobytes())

    broken = load_model(_changed(f16, tmp_path / "nan.gguf", change), "cpu")
    with pytest.raises(GpukitError, match=r"nan\.gguf: a logit is nan: the weights are"):
        _greedy(broken, 1)


def test_a_vocabulary_larger_than_the_embedding_is_told(f16: Path, tmp_path: Path) -> None:
    def change(fields: Fields, tensors: Tensors) -> None:
        fields["llama.vocab_size"] = u32("llama.vocab_size", 2000)
        for name in ("token_embd.weight", "output.weight"):
            spec, data = tensors[name]
            tensors[name] = (replace(spec, ne=(256, 2000)), data[: 2000 * 512])

    with pytest.raises(GGUFError, match=r"2048 tokens for 2000 rows of token_embd.weight"):
        load_model(_changed(f16, tmp_path / "few.gguf", change), "cpu")


def test_devices_and_paths_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="unknown device 'gpu'"):
        load_model(TINY, "gpu")
    with pytest.raises(NotFoundError, match="no such file or folder"):
        load_model(tmp_path / "none.gguf", "cpu")


@pytest.mark.parametrize("name", ["tied", "llama31", "biases", "padded-vocabulary", "f32"])
def test_random_checkpoints_load_from_their_folders(name: str, tmp_path: Path) -> None:
    loaded = load_model(build(name, tmp_path), "cpu")
    assert {w.weight.type for w in _linears(loaded)} == {"F32" if name == "f32" else "BF16"}
    result = stream(loaded, [1, 2, 3], GenerateOptions(GREEDY, num_predict=3)).result
    assert len(result.tokens) == 3 or result.done_reason == "stop"
