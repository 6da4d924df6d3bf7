"""What importance is for: low types lose less with it."""

from pathlib import Path

import pytest
from support.checkpoints import DATA

import gpukit

TINY = DATA / "tiny-shakespeare"
TEXTS = Path(__file__).resolve().parents[4] / "shared" / "text"


@pytest.mark.thorough
@pytest.mark.skipif(not TEXTS.is_dir(), reason="the shared texts are not here")
def test_the_divergence_of_low_types_is_less(tmp_path: Path) -> None:
    train, valid = (TEXTS / f"shakespeare-{name}.txt" for name in ("train", "valid"))
    file = tmp_path / "imatrix.gguf"
    gpukit.imatrix(TINY, train, file, num_ctx=256, chunks=24, device="cpu")
    found = [
        gpukit.perplexities(
            [TINY], valid, types=["Q2_K", "Q3_K_S"], imatrix=imatrix, num_ctx=256, chunks=8,
            device="cpu",
        )
        for imatrix in (None, file)
    ]  # fmt: skip
    plain, helped = ([m.divergence for m in each if m.divergence is not None] for each in found)
    assert len(plain) == len(helped) == 2
    for without, weighted in zip(plain, helped, strict=True):
        assert weighted.kld.mean.value < without.kld.mean.value, (weighted, without)
