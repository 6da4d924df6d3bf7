"""Requests together beside each alone through the cache, and beside transformers."""

import math
from pathlib import Path

import pytest
import torch
from support.checkpoints import DATA

import gpukit
from gpukit.errors import ArgumentError, CheckpointError
from gpukit.evaluation import requests
from gpukit.evaluation.requests import Answer, Pair, Scorer
from gpukit.generation.generate import GenerateOptions
from gpukit.generation.loading import LoadedModel, load_model
from gpukit.generation.sampling import SamplingOptions

TINY = DATA / "tiny-shakespeare"
GREEDY = SamplingOptions(temperature=0)
# float32 products in another order, through the layers and a sum over the vocabulary.
NEAR = 2e-4


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("requests") / "f32.gguf"
    gpukit.convert(TINY, path, "F32", device="cpu")
    return path


@pytest.fixture(scope="module")
def model(file: Path) -> LoadedModel:
    return load_model(file, "cpu")


def _pairs(model: LoadedModel) -> list[Pair]:
    """Of many lengths, some alike, one that is greedy, one with nothing to score."""
    ids = model.tokenizer.encode((DATA / "shakespeare.txt").read_text()[:4000])
    cuts = [(0, 1, 2), (3, 80, 120), (5, 6, 300), (40, 41, 42), (100, 350, 351), (7, 30, 37)]
    found = [Pair(tuple(ids[a:b]), tuple(ids[b:c])) for a, b, c in cuts]
    same = tuple(ids[200:230])
    found += [Pair(same, (number,)) for number in (7, 300, 301)]
    found += [Pair(same[:10], (*same[10:], 9)), found[1], Pair(same, ())]
    decoder = model.decoder
    said = int(decoder.forward(same, decoder.cache(64)).argmax())
    return [*found, Pair(same, (said,))]


def _alone(model: LoadedModel, pair: Pair, num_ctx: int) -> Answer:
    """The definition, from the logits of this request alone."""
    if not pair.continuation:
        return Answer(0.0, True)
    ids = list(pair.context + pair.continuation)[-(num_ctx + 1) :]
    logits = model.decoder.forward(ids[:-1], model.decoder.cache(num_ctx), every=True)
    rows = logits[-len(pair.continuation) :].double().log_softmax(-1)
    wanted = torch.tensor(pair.continuation)
    return Answer(
        float(rows.gather(-1, wanted[:, None]).sum()), bool((rows.argmax(-1) == wanted).all())
    )


@pytest.mark.parametrize(("num_ctx", "batch"), [(1024, None), (300, 3), (311, 1)])
def test_together_is_as_alone(
    model: LoadedModel, num_ctx: int, batch: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpukit.evaluation.scoring.SLICE", 5 * 2048)  # a few rows a slice
    pairs = _pairs(model)
    found = Scorer(model, "tiny", num_ctx, batch).loglikelihood(pairs)
    for answer, pair in zip(found, pairs, strict=True):
        wanted = _alone(model, pair, num_ctx)
        assert answer.log_p == pytest.approx(wanted.log_p, rel=1e-6, abs=NEAR)
        assert answer.is_greedy == wanted.is_greedy
    assert found[-1].is_greedy
    assert not found[1].is_greedy


def test_a_long_context_is_cut_from_the_left(model: LoadedModel) -> None:
    ids = tuple(model.tokenizer.encode((DATA / "shakespeare.txt").read_text()[:800]))
    assert len(ids) > 100
    scorer = Scorer(model, "tiny", 64)
    whole, cut = scorer.loglikelihood([Pair(ids[:90], ids[90:100]), Pair(ids[35:90], ids[90:100])])
    assert whole.log_p == pytest.approx(cut.log_p, abs=NEAR)
    (more,) = Scorer(model, "tiny", 65).loglikelihood([Pair(ids[:90], ids[90:100])])
    assert abs(more.log_p - whole.log_p) > 10 * NEAR


def test_passes_are_few_and_bounded(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    states = type(model.decoder).states

    def watched(decoder: object, sequences: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(sequences.shape))  # type: ignore[arg-type]
        return states(model.decoder, sequences)

    monkeypatch.setattr(type(model.decoder), "states", watched)
    monkeypatch.setattr(requests, "PASS", 64)
    pairs = [Pair((1,) * length, (2,)) for length in (5, 70, 30, 31, 30, 5, 5)]
    Scorer(model, "tiny").loglikelihood(pairs)
    # What is alike goes once; what is longer than a pass goes alone.
    assert seen == [(1, 70), (2, 31), (1, 5)]


def test_beside_transformers(model: LoadedModel) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.LlamaForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    pairs = [pair for pair in _pairs(model) if pair.continuation]
    for answer, pair in zip(Scorer(model, "tiny").loglikelihood(pairs), pairs, strict=True):
        ids = torch.tensor([pair.context + pair.continuation])
        with torch.inference_mode():
            rows = theirs(ids).logits[0, len(pair.context) - 1 : -1].double().log_softmax(-1)
        wanted = rows.gather(-1, ids[0, len(pair.context) :, None]).sum()
        assert answer.log_p == pytest.approx(float(wanted), rel=1e-5, abs=NEAR)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (Pair((), (1,)), "request 1 has no context"),
        (Pair((1,), (2,) * 65), "request 1: a continuation of 65 tokens does not fit into"),
        (Pair((1,), (99999,)), "request 1: token 99999: the vocabulary has"),
        (Pair((-1,), (2,)), "request 1: token -1: the vocabulary has"),
    ],
)
def test_what_cannot_be_scored_is_refused_at_once(
    model: LoadedModel, pair: Pair, message: str
) -> None:
    with pytest.raises(ArgumentError, match=message):
        Scorer(model, "tiny", 64).scored([Pair((1,), (2,)), pair])


def test_a_continuation_as_long_as_the_context(model: LoadedModel) -> None:
    pair = Pair((1,), tuple(range(300, 364)))
    (found,) = Scorer(model, "tiny", 64).loglikelihood([pair])
    assert found.log_p == pytest.approx(_alone(model, pair, 64).log_p, rel=1e-6, abs=NEAR)


@pytest.mark.parametrize(("num_ctx", "batch"), [(0, None), (1025, None), (None, 0)])
def test_sizes_that_make_no_sense(
    model: LoadedModel, num_ctx: int | None, batch: int | None
) -> None:
    with pytest.raises(ArgumentError, match=r"at least 1|was made for 1024"):
        Scorer(model, "tiny", num_ctx, batch)


def test_damaged_weights_are_told(file: Path) -> None:
    broken = load_model(file, "cpu")
    object.__setattr__(broken.decoder, "head", lambda x: torch.full((len(x), 2048), math.nan))
    with pytest.raises(CheckpointError, match="tiny: a logit is nan"):
        Scorer(broken, "tiny").loglikelihood([Pair((1,), (2,))])


def test_generation_stops_and_is_cut(file: Path, model: LoadedModel) -> None:
    scorer = Scorer(model, "tiny")
    prompt = model.tokenizer.encode("First Citizen:")
    whole = scorer.generate(prompt, GenerateOptions(GREEDY, 24))
    assert (
        whole
        == gpukit.load(file, "cpu").generate("First Citizen:", temperature=0, num_predict=24).text
    )
    at = len(whole) // 2
    stop = whole[at : at + 3]
    stopped = scorer.generate(prompt, GenerateOptions(GREEDY, 24, stop=(stop,)))
    assert stopped == whole.partition(stop)[0]
    short = Scorer(model, "tiny", 32)
    long = [1, *range(300, 400)]
    assert short.generate(long, GenerateOptions(GREEDY, 8)) == short.generate(
        long[-24:], GenerateOptions(GREEDY, 8)
    )
    for count in (32, 0, -1):
        with pytest.raises(ArgumentError, match=f"{count} tokens are to be generated"):
            short.generate(long, GenerateOptions(GREEDY, count))


def test_a_token_can_stop(model: LoadedModel) -> None:
    prompt = model.tokenizer.encode("First Citizen:")
    decoder = model.decoder
    first = int(decoder.forward(prompt, decoder.cache(64)).argmax())
    options = GenerateOptions(GREEDY, 24, stop_ids=frozenset({first}))
    assert Scorer(model, "tiny").generate(prompt, options) == ""
