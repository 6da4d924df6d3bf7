"""What a target is for: a file of the size of a fixed mix that loses less."""

from pathlib import Path

import pytest
from support.checkpoints import DATA

import gpukit
from gpukit.formats.imatrix import read_imatrix
from gpukit.planning.plan import Options

TINY = DATA / "tiny-shakespeare"
IMATRIX = DATA / "imatrix" / "tiny-shakespeare.gguf"
TEXTS = Path(__file__).resolve().parents[4] / "shared" / "text"


@pytest.mark.skipif(not TEXTS.is_dir(), reason="the shared texts are not here")
def test_the_divergence_is_less_than_that_of_the_fixed_mix(tmp_path: Path) -> None:
    fixed, chosen = tmp_path / "fixed.gguf", tmp_path / "chosen.gguf"
    imatrix = read_imatrix(IMATRIX)
    size = gpukit.quantize(TINY, fixed, "Q2_K", options=Options(imatrix=imatrix), device="cpu").size
    options = Options(imatrix=imatrix, target_size=size)
    assert size - 5000 < gpukit.quantize(TINY, chosen, options=options, device="cpu").size <= size
    found = gpukit.perplexities(
        [TINY, fixed, chosen], TEXTS / "shakespeare-valid.txt", num_ctx=256, chunks=4, device="cpu"
    )
    mix, target = (each.divergence for each in found if each.divergence is not None)
    assert target.kld.mean.value < 0.8 * mix.kld.mean.value
