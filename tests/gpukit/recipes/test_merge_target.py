"""What is merged, within a number of bits per weight or of bytes."""

from pathlib import Path

import pytest
from support.gguf_contents import tensors

import gpukit
from gpukit import ArgumentError, Result


@pytest.mark.parametrize("by", ["bpw", "size"])
def test_within_a_target(by: str, qwen: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = qwen
    folder, file = tmp_path / "merged", tmp_path / "q5.gguf"
    fixed = gpukit.merge(base, [adapter], file, "Q5_0", device="cpu")
    assert isinstance(fixed, Result)
    wanted = {"target_size": fixed.size} if by == "size" else {"target_bpw": 6.5}
    out, two = tmp_path / "out.gguf", tmp_path / "two.gguf"
    found = gpukit.merge(base, [adapter], out, device="cpu", **wanted)  # type: ignore[arg-type]
    assert isinstance(found, Result)
    assert out.stat().st_size == found.size
    nbytes, weights = (sum(getattr(t, key) for t in found.totals) for key in ("nbytes", "weights"))
    if by == "size":
        assert fixed.size - 2000 < found.size <= fixed.size
    else:
        assert 6.0 < 8 * nbytes / weights <= 6.5
        # What is merged is looked at: the types of the merged folder, whose metadata are others.
        gpukit.merge(base, [adapter], folder, "F32", device="cpu")
        gpukit.convert(folder, two, device="cpu", **wanted)  # type: ignore[arg-type]
        assert tensors(out) == tensors(two)
    assert {t.type for t in found.totals} == {kind for kind, _ in tensors(out).values()}
    changes = {row.name: row for row in found.changes}
    assert set(changes["blk.*.attn_q.weight"].types) <= {kind for kind, _ in tensors(out).values()}
    assert changes["blk.*.attn_q.weight"].direction > 0.5  # type: ignore[operator]


def test_targets_that_cannot_be(qwen: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = qwen
    out = tmp_path / "out.gguf"
    for words, told in (
        ({"target_bpw": 1.0}, r"--target-bpw 1 cannot be reached: from \d+\.\d\d to"),
        ({"target_size": 10}, "size of 10 bytes cannot be reached: from [0-9,]+ to [0-9,]+ bytes"),
        ({"target_bpw": 6.0, "target_size": 10}, "--target-bpw and --target-size exclude"),
        ({"target_bpw": 6.0, "type": "Q8_0"}, "--target-bpw 6 chooses the types itself; leave Q8"),
    ):
        with pytest.raises(ArgumentError, match=told):
            gpukit.merge(base, [adapter], out, device="cpu", **words)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="target_bpw is for a GGUF; name a "):
        gpukit.merge(base, [adapter], tmp_path / "folder", target_bpw=6.0, device="cpu")
    assert not list(tmp_path.iterdir())
