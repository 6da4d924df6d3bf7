"""Perplexity and divergence of whole models, beside llama-perplexity and beside their definitions.

What llama-perplexity (llama.cpp 0c1e5709) printed stands here: of tiny-shakespeare as F32, and as
Q2_K decoded to F32, so that it computes exactly, with -f shakespeare.txt -ctk f32 -ctv f32 -fa off
--no-repack -c 32 -b 32 --chunks 8 (with --ppl-stride: -c 240 -b 256, which it makes 256).
"""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.checkpoints import DATA

import gpukit
from gpukit.errors import ArgumentError
from gpukit.evaluation import kept, scoring
from gpukit.evaluation.measuring import Scored
from gpukit.evaluation.scoring import Likelihood
from gpukit.evaluation.windows import cut, read_text
from gpukit.events import Status
from gpukit.formats.logits import LogitsFile
from gpukit.models.decoder import Decoder

TINY = DATA / "tiny-shakespeare"
TEXT = DATA / "shakespeare.txt"
PEER_LOGITS = DATA / "golden" / "llama-cpp-logits.dat"
REAL = Path(__file__).resolve().parents[4] / "shared"

F32_RUNNING = (7.6679, 6.1116, 9.9663, 10.3981, 8.9220, 9.8917, 12.0137, 14.4845)
Q2_RUNNING = (7.5535, 7.0500, 11.7812, 12.1921, 9.8643, 11.0398, 13.4270, 16.4459)
STRIDED = (47.3516, 64.9719, 59.6238)
BESIDE = {
    "perplexity": 16.445852, "error": 4.194280, "perplexity_base": 14.484539,
    "perplexity_base_error": 3.564748, "correlation": 0.9649, "log_ratio": 0.126992,
    "log_ratio_error": 0.066951, "ratio": 1.135407, "ratio_error": 0.076017,
    "difference": 1.961313, "difference_error": 1.202116, "kld": 0.173478, "kld_error": 0.019673,
    "kld_max": 1.822478, "kld_999": 1.682588, "kld_99": 0.636694, "kld_95": 0.508183,
    "kld_90": 0.405214, "kld_median": 0.102564, "kld_10": 0.015989, "kld_05": 0.006963,
    "kld_01": 0.000023, "kld_001": 0.000009, "kld_min": 0.000007, "dp": -0.01292,
    "dp_error": 0.00818, "dp_max": 0.25751, "dp_999": 0.24813, "dp_99": 0.17839, "dp_95": 0.12386,
    "dp_90": 0.06440, "dp_75": 0.01956, "dp_median": -0.00043, "dp_25": -0.03288,
    "dp_10": -0.10851, "dp_05": -0.16853, "dp_01": -0.31343, "dp_001": -0.41602,
    "dp_min": -0.42887, "dp_rms": 0.09019, "dp_rms_error": 0.01121, "same_top": 0.78333,
    "same_top_error": 0.03777,
}  # fmt: skip
# Half a step of llama.cpp's 16-bit codes, the most that ln p of the reference is off.
HALF_STEP = 8 / 65535
# With AMX a product of weights in blocks is off by so much at most; perplexities were not more.
TILED = 3 * 2.0**-16
N_EMBD = json.loads((TINY / "config.json").read_text())["hidden_size"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The model in F32, and decoded from Q2_K."""
    folder = tmp_path_factory.mktemp("perplexity")
    names = {name: folder / f"{name}.gguf" for name in ("f32", "q2_k", "q2_k_f32")}
    gpukit.convert(TINY, names["f32"], "F32", device="cpu")
    gpukit.convert(TINY, names["q2_k"], "Q2_K", device="cpu")
    gpukit.convert(names["q2_k"], names["q2_k_f32"], "F32", device="cpu")
    return names


@pytest.fixture(scope="module")
def beside(files: dict[str, Path]) -> gpukit.Perplexity:
    return gpukit.perplexity(
        files["q2_k"], TEXT, num_ctx=32, chunks=8, against=files["f32"], device="cpu"
    )


def test_windows_beside_llama_perplexity(files: dict[str, Path]) -> None:
    found = gpukit.perplexity(files["f32"], TEXT, num_ctx=32, chunks=8, device="cpu")
    assert found.running == pytest.approx(F32_RUNNING, abs=5.1e-5)
    assert found.perplexity == pytest.approx(found.running[-1], rel=1e-12)
    assert found.error == pytest.approx(3.56475, abs=5.1e-6)
    assert (found.chunks, found.tokens, found.num_ctx) == (8, 120, 32)
    assert found.divergence is None


def test_a_stride_beside_llama_perplexity(files: dict[str, Path]) -> None:
    found = gpukit.perplexity(files["f32"], TEXT, num_ctx=256, stride=32, chunks=3, device="cpu")
    # It takes the logarithm of a float32 probability.
    assert found.running == pytest.approx(STRIDED, rel=3e-6)
    assert (found.tokens, found.stride) == (96, 32)


def test_a_divergence_beside_llama_perplexity(beside: gpukit.Perplexity) -> None:
    assert beside.running == pytest.approx(Q2_RUNNING, abs=5.1e-5, rel=TILED)
    found = beside.as_json()
    for key, printed in BESIDE.items():
        # Both half a step of its codes, and the digits that it prints.
        wanted = pytest.approx(printed, rel=2 * HALF_STEP, abs=HALF_STEP / 2)
        assert found[key] == wanted, key
    assert found["against"].endswith("f32.gguf")


def test_an_exact_type_is_the_decoded_weights(
    files: dict[str, Path], beside: gpukit.Perplexity
) -> None:
    found = gpukit.perplexity(files["q2_k_f32"], TEXT, num_ctx=32, chunks=8, device="cpu")
    assert found.running == pytest.approx(beside.running, rel=TILED)
    assert found.nbytes > 9 * beside.nbytes


def test_llama_cpps_logits_file_is_a_reference(files: dict[str, Path]) -> None:
    """With its text, and without one."""
    words = {"against": PEER_LOGITS, "device": "cpu"}
    for text in (TEXT, None):
        found = gpukit.perplexity(files["f32"], text, **words)  # type: ignore[arg-type]
        assert found.divergence is not None
        assert found.running == pytest.approx(F32_RUNNING[:2], abs=5.1e-5)
        assert found.num_ctx == 32
        assert abs(found.divergence.kld.mean.value) < HALF_STEP
        assert found.divergence.same_top.value == 1
        assert found.divergence.base.value == pytest.approx(found.perplexity, rel=HALF_STEP)


def test_a_logits_file_gives_what_the_model_gives_but_for_its_rounding(
    files: dict[str, Path], beside: gpukit.Perplexity, tmp_path: Path
) -> None:
    path = tmp_path / "base.dat"
    words = {"num_ctx": 32, "chunks": 8, "device": "cpu"}
    gpukit.perplexity(files["f32"], TEXT, save_logits=path, **words)  # type: ignore[arg-type]
    found = gpukit.perplexity(files["q2_k"], TEXT, against=path, **words)  # type: ignore[arg-type]
    assert found.scores.kld is not None
    assert beside.scores.kld is not None
    assert found.scores.nll.tolist() == beside.scores.nll.tolist()
    bound = _bound(files)
    off = np.abs(found.scores.kld - beside.scores.kld)
    assert (off <= bound).all()
    assert off.max() > 0
    assert bound.mean() < 2e-3
    # Ours is llama.cpp's, but for codes that lie between two.
    with LogitsFile(path) as ours, LogitsFile(PEER_LOGITS) as theirs:
        assert np.array_equal(ours.ids[:2], theirs.ids)
        for chunk in range(2):
            a, b = (file.log_probabilities(chunk, 0, 15) for file in (ours, theirs))
            assert np.abs(a - b).max() < 3 * HALF_STEP
            assert (a == b).mean() > 0.5 or np.abs(a - b).mean() < HALF_STEP


def _bound(files: dict[str, Path]) -> np.ndarray:
    """The most that the codes may change the divergence of each token: ln p of the reference is off
    by d = half a step at most, so each p (ln p - ln q) by p (d + (e^d - 1) (|ln p - ln q| + d)),
    and what has p below e^-16 is left out, with p |ln p - ln q|."""
    models = [gpukit.load(files[name], "cpu") for name in ("f32", "q2_k")]
    windows = cut(read_text(TEXT), models[0].tokenizer, 32, chunks=8)
    bounds = []
    for number in range(8):
        p, q = (
            torch.log_softmax(model.logits(windows.inputs(number))[16:-1].double(), -1).numpy()
            for model in models
        )
        d, apart = HALF_STEP + 1e-6, np.abs(p - q)
        kept = np.exp(p) * (d + math.expm1(d) * (apart + d))
        bounds.append(np.where(p > -16 - d, kept, 0).sum(-1))
        bounds[-1] += np.where(p < -16 + 2 * d, np.exp(p) * apart, 0).sum(-1) + 1e-6
    return np.concatenate(bounds)


def test_divergence_grows_as_bits_go() -> None:
    heard: list[object] = []
    rows = gpukit.perplexities(
        [TINY], TEXT, types=["q4_k_m", "Q3_K_S", "Q2_K"], num_ctx=64, chunks=4, device="cpu",
        report=heard.append,
    )  # fmt: skip
    assert [row.type for row in rows] == ["BF16", "Q4_K_M", "Q3_K_S", "Q2_K"]
    assert rows[0].divergence is None
    found = [row.divergence.kld.mean.value for row in rows if row.divergence is not None]
    assert 0 < found[0] < found[1] < found[2]
    assert [row.nbytes for row in rows] == sorted((row.nbytes for row in rows), reverse=True)
    assert all(row.against == str(TINY) for row in rows[1:])
    alone = gpukit.perplexity(TINY, TEXT, num_ctx=64, chunks=4, device="cpu")
    assert rows[0].running == pytest.approx(alone.running, rel=1e-12)
    assert rows[0].error == pytest.approx(alone.error, rel=1e-12)
    steps = [event for event in heard if isinstance(event, Scored)]
    assert [step.done for step in steps] == [1, 2, 3, 4] * 3
    assert steps[-1].standing is not None
    assert steps[-1].standing.perplexity.value == pytest.approx(rows[-1].perplexity)
    assert steps[-1].standing.kld is not None
    assert steps[-1].standing.kld.value == pytest.approx(found[-1])


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("room", "passes", "line"),
    [
        (4, 8, f"{TINY} goes through 4 of 4 chunks once for 3 models"),
        (3, 10, f"{TINY} goes through 2 of 4 chunks once for 3 models, through the other 2 once a "
         "model"),
        (0, 12, f"{TINY} goes through 0 of 4 chunks once for 3 models, through the other 4 once a "
         "model"),
    ],
)  # fmt: skip
def test_a_reference_of_several_goes_through_its_layers_once(
    room: int, passes: int, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bits, however many chunks are kept: two pass together, 31 tokens of each scored."""
    asked: list[torch.Tensor] = []

    def states(self: Decoder, ids: torch.Tensor) -> torch.Tensor:
        asked.append(ids)
        return through(self, ids)

    through = Decoder.states
    monkeypatch.setattr(Decoder, "states", states)
    monkeypatch.setattr(scoring, "PASS", 128)
    monkeypatch.setattr(kept, "KEPT", room * 31 * N_EMBD * 4)
    heard: list[object] = []
    words = {"num_ctx": 64, "chunks": 4, "device": "cpu"}
    kinds = ["Q4_0", "Q3_K_S", "Q2_K"]
    rows = gpukit.perplexities([TINY], TEXT, types=kinds, report=heard.append, **words)  # type: ignore[arg-type]
    assert len(asked) == passes
    assert Status(line) in heard
    one_by_one = [
        gpukit.perplexities([TINY], TEXT, types=[kind], **words)[1]  # type: ignore[arg-type]
        for kind in kinds
    ]
    assert [row.divergence for row in rows[1:]] == [row.divergence for row in one_by_one]


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize(
    ("kind", "exact", "peer"),
    [
        ("BF16", 39.912, 39.915), ("Q4_K_M", 39.852, 39.860), ("Q3_K_S", 40.451, 40.448),
        ("Q2_K", 43.244, 43.268),
    ],
)  # fmt: skip
def test_the_whole_text_of_the_real_model(
    kind: str, exact: float, peer: float, tmp_path: Path
) -> None:
    """Beside exact arithmetic, and beside llama.cpp with its activations of 8 bits."""
    text = REAL / "text" / "shakespeare-valid.txt"
    if not text.exists():
        pytest.skip("the shared text is not here")
    gpukit.convert(TINY, tmp_path / "model.gguf", kind, device="cpu")
    found = gpukit.perplexity(tmp_path / "model.gguf", text, num_ctx=256, device="cpu")
    assert (found.chunks, found.tokens) == (180, 22860)
    assert found.perplexity == pytest.approx(exact, abs=6e-4)
    assert found.perplexity == pytest.approx(peer, rel=1e-3)


def test_a_type_in_memory_is_the_file_of_it(
    files: dict[str, Path], beside: gpukit.Perplexity
) -> None:
    rows = gpukit.perplexities([TINY], TEXT, types=["Q2_K"], num_ctx=32, chunks=8, device="cpu")
    assert rows[1].scores.nll.tolist() == beside.scores.nll.tolist()
    assert rows[1].nbytes == beside.nbytes
    assert rows[1].bits_per_weight == beside.bits_per_weight
    three = gpukit.perplexities(
        [files["f32"], files["q2_k"]], TEXT, num_ctx=32, chunks=8, device="cpu"
    )
    assert three[1].divergence == beside.divergence


def test_a_killed_run_goes_on_where_it_was(
    files: dict[str, Path], beside: gpukit.Perplexity, tmp_path: Path
) -> None:
    journal = tmp_path / "run.jsonl"

    def run(report: gpukit.Report) -> gpukit.Perplexity:
        return gpukit.perplexity(
            files["q2_k"], TEXT, num_ctx=32, chunks=8, against=files["f32"], device="cpu",
            journal=journal, report=report,
        )  # fmt: skip

    def kill(event: object) -> None:
        if isinstance(event, Scored) and event.done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(kill)
    assert len(journal.read_bytes().splitlines()) == 4
    heard: list[object] = []
    found = run(heard.append)
    assert found.as_json() | {"tokens_per_second": 0} == beside.as_json() | {"tokens_per_second": 0}
    assert [event.done for event in heard if isinstance(event, Scored)] == list(range(1, 9))
    assert len(journal.read_bytes().splitlines()) == 9
    # All is known now: no model is loaded, and more windows can follow.
    again = run(heard.append)
    assert again.tokens_per_second is None
    assert again.divergence == beside.divergence
    with pytest.raises(ArgumentError, match="journal of another run: num_ctx is 32 there and 64"):
        gpukit.perplexity(
            files["q2_k"], TEXT, num_ctx=64, against=files["f32"], device="cpu", journal=journal
        )
    with pytest.raises(ArgumentError, match="journal of another run: model 1 is another"):
        gpukit.perplexity(
            files["f32"], TEXT, num_ctx=32, against=files["f32"], device="cpu", journal=journal
        )


def test_logits_are_in_memory_a_few_rows_at_a_time(
    files: dict[str, Path], beside: gpukit.Perplexity, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []

    def heard(logits: torch.Tensor, where: str, *more: Any) -> Likelihood:
        rows.append(len(logits))
        return of(logits, where, *more)

    of = Likelihood.of
    monkeypatch.setattr(Likelihood, "of", heard)
    monkeypatch.setattr(scoring, "SLICE", 4 * 2048 + 1)
    found = gpukit.perplexity(
        files["q2_k"], TEXT, num_ctx=32, chunks=2, against=files["f32"], device="cpu"
    )
    assert rows == [4, 4, 4, 4, 4, 4, 3, 3] * 2
    assert found.running == pytest.approx(beside.running[:2], rel=1e-6)


def test_probabilities_are_made_once_for_scores_and_a_logits_file(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def heard(logits: torch.Tensor, where: str, *more: Any) -> Likelihood:
        made.append(where)
        return of(logits, where, *more)

    of = Likelihood.of
    monkeypatch.setattr(Likelihood, "of", heard)
    words = {"num_ctx": 32, "chunks": 2, "device": "cpu"}
    for path, more in (("a.dat", {}), ("b.dat", {"against": files["f32"]})):
        found = gpukit.perplexity(
            files["q2_k"], TEXT, save_logits=tmp_path / path, **words, **more,  # type: ignore[arg-type]
        )  # fmt: skip
        names = [str(files["q2_k"]), *map(str, more.values())]
        assert [sum(where.startswith(name) for where in made) for name in names] == [2] * len(names)
        made.clear()
        plain = gpukit.perplexity(files["q2_k"], TEXT, **words, **more)  # type: ignore[arg-type]
        assert np.array_equal(found.scores.nll, plain.scores.nll)
        made.clear()
    assert (tmp_path / "a.dat").read_bytes() == (tmp_path / "b.dat").read_bytes()


def test_adapters_work_beside_the_model_and_not_beside_the_reference() -> None:
    lora = REAL / "models" / "tiny-shakespeare-wiki-lora"
    if not lora.exists():
        pytest.skip("the shared adapter is not here")
    words = {"num_ctx": 32, "chunks": 2, "device": "cpu"}
    text = (REAL / "text" / "wikitext-valid.txt").read_text()
    plain = gpukit.perplexity(TINY, text, **words)  # type: ignore[arg-type]
    found = gpukit.perplexity(TINY, text, adapters=[lora], against=TINY, **words)  # type: ignore[arg-type]
    assert found.divergence is not None
    assert found.divergence.base.value == pytest.approx(plain.perplexity)
    assert found.perplexity < plain.perplexity / 2


def test_results_are_frozen_and_say_what_they_come_from(beside: gpukit.Perplexity) -> None:
    with pytest.raises(AttributeError):
        beside.perplexity = 1.0  # type: ignore[misc]
    found = beside.as_json()
    named = "perplexity error chunks tokens kld kld_99 kld_999 same_top against size text_sha256"
    assert set(named.split()) <= found.keys()
    assert replace(beside, scores=beside.scores) == beside
