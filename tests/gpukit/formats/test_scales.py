"""Where the scales of every type lie: a block is wrong where decoding it gives no numbers."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from gpukit.formats.gguf_fields import type_sizes
from gpukit.formats.scales import SCALES, not_finite
from gpukit_kernels import QUANTS, dequantize


def test_every_type_has_its_scales() -> None:
    assert SCALES.keys() == type_sizes().keys()
    for kind, scales in SCALES.items():
        size = type_sizes()[kind].nbytes
        assert all(scale.at + scale.form.nbytes <= size for scale in scales), kind


@pytest.mark.parametrize("kind", [name for name in QUANTS if SCALES[name]])
def test_a_scale_is_wrong_where_decoding_says_so(kind: str) -> None:
    size, poison = type_sizes()[kind].nbytes, _poison(kind)
    good = np.random.default_rng(1).integers(0, 3, (3, size), dtype=np.uint8)
    assert not_finite(kind, good.reshape(-1)) is None
    for scale in SCALES[kind]:
        bad = good.copy()
        poison(bad[1], scale.at)
        found = not_finite(kind, bad.reshape(-1))
        assert found is not None
        assert (found.block, found.name, found.value) == (1, scale.name, "nan")
        if kind != "MXFP4":  # its levels 0 and 1 decode as numbers, which no reader relies on
            values = dequantize(torch.from_numpy(bad), kind)
            assert torch.isfinite(values).all(-1).tolist() == [True, False, True]


def _poison(kind: str) -> Callable[[np.ndarray, int], None]:
    """What makes a scale at a place of a block NaN."""

    def halves(block: np.ndarray, at: int) -> None:
        block[at : at + SCALES[kind][0].form.nbytes] = 0xFF

    def spread(block: np.ndarray, at: int) -> None:
        block[at : at + 8] |= 0xF0  # the upper bits of every byte, those of the half among them

    return spread if kind == "IQ1_M" else halves
