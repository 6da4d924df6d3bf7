"""What cannot be measured is told in one line; what is harmless is a warning."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.checkpoints import DATA
from support.zoo_build import build

import gpukit
from gpukit.errors import ArgumentError, CheckpointError, DiskError, FormatError, NotFoundError
from gpukit.evaluation.windows import lost_bytes
from gpukit.tokenizer.types import TokenType

TINY = DATA / "tiny-shakespeare"
TEXT = DATA / "shakespeare.txt"
PEER_LOGITS = DATA / "golden" / "llama-cpp-logits.dat"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model in F32."""
    out = tmp_path_factory.mktemp("refused") / "f32.gguf"
    gpukit.convert(TINY, out, "F32", device="cpu")
    return out


@pytest.fixture
def changed(file: Path, tmp_path: Path) -> Iterator[Path]:
    """The F32 model with a NaN in its last norm."""
    from gguf import GGUFReader

    path = tmp_path / "nan.gguf"
    path.write_bytes(file.read_bytes())
    reader = GGUFReader(path, "r+")
    (tensor,) = (each for each in reader.tensors if each.name == "output_norm.weight")
    tensor.data[3] = math.nan
    reader.data.flush()
    yield path
    del reader


def test_logits_that_are_no_numbers_are_told(changed: Path, file: Path) -> None:
    for models in ((changed, None), (changed, file), (file, changed)):
        with pytest.raises(CheckpointError, match=r"nan.gguf: chunk 1: a logit is nan|nan.gguf: a"):
            gpukit.perplexity(models[0], TEXT, num_ctx=32, against=models[1], device="cpu")


def test_what_cannot_be_is_told_before_a_model_is_looked_for(tmp_path: Path) -> None:
    base = {"models": ["no/such.gguf"], "text": "x", "device": "cpu"}
    for words, why in (
        ({"num_ctx": 2}, "num_ctx is 2"),
        ({"chunks": 0}, "chunks is 0"),
        ({"stride": 512}, "stride is 512; from 1 to 511"),
        ({"types": ["Q4_Q"]}, "unknown type 'Q4_Q'"),
        ({"types": ["Q4_0"], "models": ["a", "b"]}, "types are of one model, and 2 are named"),
        ({"models": []}, "no model"),
        ({"imatrix": "x.gguf"}, "an importance matrix is for types"),
        ({"text": None}, "no text"),
        ({"text": tmp_path / "none.txt"}, "No such file"),
        ({"device": "tpu"}, "tpu"),
        ({"pre": "nope"}, "nope"),
        ({"journal": tmp_path / "no" / "run"}, "there is no folder"),
        ({"against": PEER_LOGITS, "stride": 8}, "leave out stride"),
        ({"against": PEER_LOGITS, "num_ctx": 64}, "windows of 32 tokens, num_ctx is 64"),
    ):
        with pytest.raises(ArgumentError, match=why):
            gpukit.perplexities(**{**base, **words})  # type: ignore[arg-type]
    with pytest.raises(NotFoundError, match=r"such\.gguf"):
        gpukit.perplexity("no/such.gguf", "x", device="cpu")
    with pytest.raises(NotFoundError, match=r"other\.gguf"):
        gpukit.perplexity(TINY, "x", against="no/other.gguf", device="cpu")
    for words, why in (
        ({"save_logits": tmp_path / "no" / "file"}, "there is no folder"),
        (
            {
                "save_logits": tmp_path,
            },
            "a folder",
        ),
        ({"save_logits": tmp_path / "x", "stride": 8}, "leave out stride"),
        ({"save_logits": tmp_path / "x", "journal": tmp_path / "y"}, "leave out one"),
    ):
        with pytest.raises((ArgumentError, DiskError), match=why):
            gpukit.perplexity("no/such.gguf", "x", device="cpu", **words)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_fit_is_told(file: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    for words in ({}, {"against": PEER_LOGITS}):
        with pytest.raises(ArgumentError, match=r"empty\.txt: the text is empty; two window"):
            gpukit.perplexity(file, tmp_path / "empty.txt", device="cpu", **words)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"^the text has \d tokens; two windows of 512 to"):
        gpukit.perplexity(file, "to be or not", device="cpu")
    with pytest.raises(ArgumentError, match=r"the name of a file, not its text; .* Path\("):
        gpukit.perplexity(file, str(TEXT), device="cpu")
    with pytest.raises(ArgumentError, match="input and output are the same file"):
        gpukit.perplexity(file, TEXT, save_logits=file, device="cpu")
    with pytest.raises(ArgumentError, match="different tokens from number 2 on"):
        gpukit.perplexity(file, "x" + TEXT.read_text(), against=PEER_LOGITS, device="cpu")
    cut_off = tmp_path / "cut.dat"
    cut_off.write_bytes(PEER_LOGITS.read_bytes()[:1000])
    with pytest.raises(FormatError, match="cut off"):
        gpukit.perplexity(file, TEXT, against=cut_off, device="cpu")


def test_models_of_another_vocabulary_are_refused(file: Path, tmp_path: Path) -> None:
    other = build("qwen2-bpe", tmp_path)
    with pytest.raises(ArgumentError, match=r"different vocabularies: .*compare models of"):
        gpukit.perplexity(file, TEXT, num_ctx=16, against=other, pre="qwen2", device="cpu")
    with pytest.raises(ArgumentError, match="made with a vocabulary of 2048 tokens"):
        gpukit.perplexity(other, None, against=PEER_LOGITS, pre="qwen2", device="cpu")
    with pytest.raises(ArgumentError, match="--pre is for model folders"):
        gpukit.perplexity(file, TEXT, num_ctx=16, pre="qwen2", device="cpu")


def test_a_context_past_the_models_is_a_warning(file: Path) -> None:
    heard: list[gpukit.Status | gpukit.Step | gpukit.Warned] = []
    text = TEXT.read_text() * 2
    found = gpukit.perplexity(file, text, num_ctx=1100, chunks=1, device="cpu", report=heard.append)
    (line,) = (event.text for event in heard if isinstance(event, gpukit.Warned))
    assert "windows of 1100 tokens, the model was made for 1024" in line
    assert found.tokens == 1100 - 1 - 550


def test_bytes_without_a_token_are_a_warning(file: Path) -> None:
    tokenizer = gpukit.load(file, "cpu").tokenizer
    assert lost_bytes(TEXT.read_text() + "é€😀\n", tokenizer) == 0
    hole = tokenizer.encode("?")[-1]
    tokenizer.types[hole] = TokenType.UNUSED
    assert lost_bytes("What? Who?", tokenizer) > 0
