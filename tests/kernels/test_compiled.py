"""The compiled CPU path: the reference's bytes, one compilation, a cache, eager torch without."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import quant_kinds

from gpukit_kernels import QUANTS, cache, compiled, quantize

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(compiled.compiler() is None, reason="no C++ compiler"),
]

# A process of its own compiles with one thread into a folder of its own, and says what came of it:
# mostly BF16, which is the least to compile.
RUN = """
import json, sys, warnings
import numpy as np, torch
warnings.simplefilter("error")
from gpukit_kernels import compiled, quantize
torch.set_num_threads(1)
values = torch.from_numpy(np.load(sys.argv[1]))
blocks = {name: quantize(values, name, backend="compiled").numpy() for name in sys.argv[3:]}
np.savez(sys.argv[2], **blocks)
traced = "torch._inductor" in sys.modules
print(json.dumps({"status": compiled.status(), "traced": traced}))
"""


def run(folder: Path, *names: str, **environment: str) -> tuple[dict[str, torch.Tensor], dict, str]:
    """Blocks of each type, what the process says, and what it wrote to stderr."""
    import numpy as np

    values = quant_kinds.make("gaussian", 40)
    np.save(folder / "values.npy", values)
    arguments = [str(folder / "values.npy"), str(folder / "blocks.npz"), *names]
    unset = {"TORCHINDUCTOR_CACHE_DIR"}
    kept = {key: value for key, value in os.environ.items() if key not in unset}
    done = subprocess.run(
        [sys.executable, "-c", RUN, *arguments],
        env={**kept, "XDG_CACHE_HOME": str(folder / "cache"), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    with np.load(folder / "blocks.npz") as file:
        blocks = {name: torch.from_numpy(file[name]) for name in names}
    for name in names:
        assert torch.equal(blocks[name], quantize(torch.from_numpy(values), name, backend="eager"))
    return blocks, json.loads(done.stdout), done.stderr


@pytest.fixture(scope="module")
def threads():
    """One thread, for few rows."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.filterwarnings("ignore:.*:FutureWarning", "ignore:.*:DeprecationWarning")
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("name", [name for name, row in QUANTS.items() if row.encodable])
def test_every_kind_gives_the_bytes_of_the_reference(name: str) -> None:
    row = QUANTS[name]
    rows = max(64, 2048 * row.block // quant_kinds.WIDTH)
    for kind in [*quant_kinds.FINITE, *quant_kinds.NOT_FINITE]:
        values = torch.from_numpy(quant_kinds.make(kind, rows))
        expected = quantize(values, name, backend="eager")
        got = quantize(values, name, backend="compiled")
        wrong = (got != expected).view(-1, row.nbytes).any(dim=1).sum()
        assert wrong == 0, f"{kind}: {wrong} blocks differ"
    assert "compiled with" in compiled.status()
    load_without_torch(f"{name}-float32")


def load_without_torch(name: str) -> None:
    """Nothing that the program calls is torch's."""
    code = (
        "import sys; from gpukit_kernels import cache, program\n"
        "assert cache.place(sys.argv[1]).exists()\n"
        "assert program.kept(sys.argv[1]) and 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, name], check=True)


@pytest.mark.filterwarnings("ignore:.*:FutureWarning", "ignore:.*:DeprecationWarning")
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("name", [name for name, row in QUANTS.items() if row.weighted])
def test_every_kind_gives_the_bytes_of_the_reference_with_importance(name: str) -> None:
    row = QUANTS[name]
    rows = max(64, 2048 * row.block // quant_kinds.WIDTH)
    importance = torch.from_numpy(quant_kinds.importance(quant_kinds.WIDTH))
    for kind in quant_kinds.FINITE:
        values = torch.from_numpy(quant_kinds.make(kind, rows))
        expected = quantize(values, name, importance, backend="eager")
        got = quantize(values, name, importance, backend="compiled")
        wrong = (got != expected).view(-1, row.nbytes).any(dim=1).sum()
        assert wrong == 0, f"{kind}: {wrong} blocks differ"
    # More blocks than a tile, and rows that do not end with it.
    wide = torch.randn(1030, 2816, generator=torch.Generator().manual_seed(0)).bfloat16()
    importance = torch.from_numpy(quant_kinds.importance(2816))
    assert torch.equal(
        quantize(wide, name, importance, backend="compiled"),
        quantize(wide, name, importance, backend="eager"),
    )
    assert "compiled with" in compiled.status()
    load_without_torch(f"{name}-importance-float32")


@pytest.mark.filterwarnings("ignore:.*:FutureWarning", "ignore:.*:DeprecationWarning")
@pytest.mark.usefixtures("threads")
def test_other_inputs_are_not_compiled_again() -> None:
    wide = torch.randn(3000, 512, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        quantize(wide[:1].to(dtype), "Q8_0", backend="compiled")
    code = set(cache.folder().glob("*.compiled"))
    for values in (wide, wide[:7, 32:], wide.t()[:, :992], wide[:0], wide.view(-1)[32:]):
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            expected = quantize(values.to(dtype), "Q8_0", backend="eager")
            assert torch.equal(quantize(values.to(dtype), "Q8_0", backend="compiled"), expected)
    with torch.inference_mode():
        inner = torch.ones(64, 64)
        assert torch.equal(quantize(inner, "Q8_0", backend="compiled"), quantize(inner, "Q8_0"))
    assert set(cache.folder().glob("*.compiled")) == code


def test_second_process_finds_the_code(tmp_path: Path) -> None:
    _, first, stderr = run(tmp_path, "BF16")
    assert "compiled with" in first["status"]
    assert first["traced"]
    assert stderr == ""
    assert list((tmp_path / "cache" / "gpukit" / "inductor").glob("BF16-*.compiled"))
    _, second, _ = run(tmp_path, "BF16")
    assert not second["traced"]


def test_damaged_code_is_compiled_again(tmp_path: Path) -> None:
    run(tmp_path, "BF16")
    for path in (tmp_path / "cache" / "gpukit" / "inductor").glob("BF16-*.compiled"):
        path.write_bytes(path.read_bytes()[:1000])
    _, second, _ = run(tmp_path, "BF16")
    assert "compiled with" in second["status"]
    _, third, _ = run(tmp_path, "BF16")
    assert not third["traced"]


def test_libraries_that_are_gone_are_made_again(tmp_path: Path) -> None:
    run(tmp_path, "BF16")
    for path in (tmp_path / "cache" / "gpukit" / "inductor").rglob("*.so"):
        path.unlink()
    _, second, _ = run(tmp_path, "BF16")
    assert "compiled with" in second["status"]
    assert second["traced"]


def test_many_threads_give_the_bytes_of_one() -> None:
    values = torch.randn(3000, 2048, generator=torch.Generator().manual_seed(0))
    importance = torch.rand(2048, generator=torch.Generator().manual_seed(1))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        got = quantize(values, "Q4_0", backend="compiled")
        weighted = quantize(values, "Q4_0", importance, backend="compiled")
    finally:
        torch.set_num_threads(before)
    assert torch.equal(got, quantize(values, "Q4_0", backend="eager"))
    assert torch.equal(weighted, quantize(values, "Q4_0", importance, backend="eager"))
    assert "compiled with" in compiled.status()


def test_a_broken_compiler_means_eager_torch(tmp_path: Path) -> None:
    _, said, _ = run(tmp_path, "Q4_0", "Q8_0", CXX="/bin/false")
    assert said["status"].startswith("eager torch: compiling failed (")
    assert "\n" not in said["status"]


def test_a_cache_that_cannot_be_written_means_eager_torch(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file, not a folder")
    _, said, _ = run(tmp_path, "BF16")
    assert said["status"].startswith("eager torch: compiling failed (")
