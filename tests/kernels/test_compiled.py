"""The compiled CPU path: the reference's bytes, one compilation, a cache, eager torch without."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from support import forked, quant_kinds
from support.command_line import surroundings

from gpukit_kernels import QUANTS, quantize
from gpukit_kernels.cpu import cache, compiled

pytestmark = pytest.mark.skipif(compiled.compiler() is None, reason="no C compiler")

# A fork that has compiled nothing does so with one thread into a folder of its own, and says what
# came of it.
RUN = """
import json, logging, sys, warnings
import numpy as np, torch
warnings.simplefilter("error")
from gpukit_kernels import quantize
from gpukit_kernels.cpu import compiled
torch.set_num_threads(1)
built = []
logger = logging.getLogger("gpukit_kernels")
logger.setLevel(logging.INFO)
class Built(logging.Handler):
    def emit(self, record):
        if "built in" in record.getMessage():
            built.append(record.args[0])
logger.addHandler(Built())
logger.addHandler(logging.lastResort)
values = torch.from_numpy(np.load(sys.argv[1]))
blocks = {name: quantize(values, name, backend="compiled").numpy() for name in sys.argv[3:]}
np.savez(sys.argv[2], **blocks)
print(json.dumps({"status": compiled.status(), "built": built}))
"""


def run(folder: Path, *names: str, **environment: str) -> tuple[dict[str, torch.Tensor], dict, str]:
    """Blocks of each type, what the process says, and what it wrote to stderr."""
    import numpy as np

    values = quant_kinds.make("gaussian", 40)
    np.save(folder / "values.npy", values)
    arguments = [str(folder / "values.npy"), str(folder / "blocks.npz"), *names]
    kept = surroundings()
    kept.pop(cache.VARIABLE, None)
    there = {**kept, "XDG_CACHE_HOME": str(folder / "cache"), **environment}
    done = forked.python(RUN, arguments, there)
    done.check_returncode()
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


@pytest.mark.sampled(4)
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("name", [name for name, row in QUANTS.items() if row.encode])
def test_every_kind_gives_the_bytes_of_the_reference(name: str) -> None:
    row = QUANTS[name]
    for kind, expected in quant_kinds.references(name, False).items():
        values = torch.from_numpy(quant_kinds.make(kind, len(expected)))
        got = quantize(values, name, backend="compiled")
        wrong = (got != expected).view(-1, row.nbytes).any(dim=1).sum()
        assert wrong == 0, f"{kind}: {wrong} blocks differ"
    assert "compiled with" in compiled.status()
    if row.block > 1:
        load_without_torch(name)


def load_without_torch(name: str) -> None:
    """Nothing that the program calls is torch's."""
    code = (
        "import sys; from gpukit_kernels.cpu import cache, program\n"
        "assert cache.place(sys.argv[1]).exists()\n"
        "assert program.kept(sys.argv[1]) and 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, name], check=True)


@pytest.mark.thorough
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("name", [name for name, row in QUANTS.items() if row.weighted])
def test_every_kind_gives_the_bytes_of_the_reference_with_importance(name: str) -> None:
    row = QUANTS[name]
    importance = torch.from_numpy(quant_kinds.importance(quant_kinds.WIDTH))
    for kind, expected in quant_kinds.references(name, True).items():
        values = torch.from_numpy(quant_kinds.make(kind, len(expected)))
        got = quantize(values, name, importance, backend="compiled")
        wrong = (got != expected).view(-1, row.nbytes).any(dim=1).sum()
        assert wrong == 0, f"{kind}: {wrong} blocks differ"
    # More blocks than a thread takes at a time, and rows that do not end with a tile.
    many = 33 if name in quant_kinds.ENDING else 131
    wide = torch.randn(many, 2816, generator=torch.Generator().manual_seed(0)).bfloat16()
    importance = torch.from_numpy(quant_kinds.importance(2816))
    assert torch.equal(
        quantize(wide, name, importance, backend="compiled"),
        quantize(wide, name, importance, backend="eager"),
    )
    assert "compiled with" in compiled.status()
    load_without_torch(f"{name}-importance")


@pytest.mark.usefixtures("threads")
def test_other_inputs_are_not_compiled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Other processes of the suite write to the usual folder meanwhile.
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path))
    wide = torch.randn(3000, 512, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        quantize(wide[:1].to(dtype), "Q8_0", backend="compiled")
    code = set(cache.folder().iterdir())
    for values in (wide, wide[:7, 32:], wide.t()[:, :992], wide[:0], wide.view(-1)[32:]):
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            expected = quantize(values.to(dtype), "Q8_0", backend="eager")
            assert torch.equal(quantize(values.to(dtype), "Q8_0", backend="compiled"), expected)
    with torch.inference_mode():
        inner = torch.ones(64, 64)
        assert torch.equal(quantize(inner, "Q8_0", backend="compiled"), quantize(inner, "Q8_0"))
    assert set(cache.folder().iterdir()) == code


def programs(folder: Path) -> list[Path]:
    """The libraries that are kept."""
    return sorted((folder / "cache" / "gpukit" / "programs").glob("*.so"))


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a first process, which has built Q8_0."""
    folder = tmp_path_factory.mktemp("first")
    _, said, stderr = run(folder, "Q8_0")
    assert "compiled with" in said["status"]
    assert said["built"] == ["Q8_0"]
    assert stderr == ""
    return folder


@pytest.fixture
def built(first: Path, tmp_path: Path) -> Path:
    """A folder of its own, as the first process has left it."""
    return shutil.copytree(first, tmp_path / "built")


def test_second_process_finds_the_code(built: Path) -> None:
    (library,) = programs(built)
    assert library.name.startswith("Q8_0-")
    _, second, _ = run(built, "Q8_0")
    assert second["built"] == []


@pytest.mark.parametrize("left", [0, 1000, -1])
def test_damaged_code_is_built_again(left: int, built: Path) -> None:
    (library,) = programs(built)
    library.write_bytes(library.read_bytes()[:left])
    _, second, _ = run(built, "Q8_0")
    assert second["built"] == ["Q8_0"]
    assert "compiled with" in second["status"]
    assert run(built, "Q8_0")[1]["built"] == []


def test_code_that_nobody_has_used_for_long_is_taken_away(built: Path) -> None:
    (used,) = programs(built)
    old, new = used.with_name("Q8_0-0123.so"), used.with_name("Q8_0-4567.so")
    long_ago = time.time() - cache.KEPT_SECONDS - 60
    for path in (old, new):
        path.write_bytes(b"")
    killed = used.with_name("tmp0123")
    killed.mkdir()
    (killed / "program.c").write_text("")
    for path in (old, killed, used, used.with_suffix(".sha256")):
        os.utime(path, (long_ago, long_ago))
    # What is used is young again, and a new program clears out the rest.
    assert run(built, "Q8_0", "Q4_0")[1]["built"] == ["Q4_0"]
    assert not old.exists()
    assert not killed.exists()
    assert new.exists()
    assert used.exists()


def test_other_flags_have_code_of_their_own(built: Path) -> None:
    _, narrow, _ = run(built, "Q8_0", GPUKIT_CFLAGS="-DGPUKIT_WIDTH=4")
    assert narrow["built"] == ["Q8_0"]
    assert len(programs(built)) == 2


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
    """It concerns one type, and is told in one line."""
    _, said, stderr = run(tmp_path, "Q4_0", "Q8_0", CC="/bin/false")
    wanted = "eager torch for Q4_0, Q8_0: compiling Q4_0 failed (RuntimeError: /bin/false: "
    assert said["status"].startswith(wanted)
    first, second = stderr.splitlines()
    assert first == "Q4_0: going on in eager torch: RuntimeError: /bin/false: exit status 1"
    assert second.startswith("Q8_0: ")


def test_no_compiler_means_eager_torch(tmp_path: Path) -> None:
    _, said, _ = run(tmp_path, "Q4_0", CC="no-such-compiler", PATH=str(tmp_path))
    assert said["status"] == "eager torch: no C compiler"


def test_code_with_other_bytes_is_not_used(tmp_path: Path) -> None:
    """A compiler that rounds otherwise is found out."""
    wrong = tmp_path / "cc"
    wrong.write_text('#!/bin/sh\nexec cc "$@" -ffast-math\n')
    wrong.chmod(0o755)
    _, said, stderr = run(tmp_path, "Q4_K", CC=str(wrong))
    assert said["status"].startswith("eager torch for Q4_K: ")
    assert "compiled Q4_K gets " in stderr
    assert said["built"] == []


def test_a_cache_that_cannot_be_written_means_eager_torch(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file, not a folder")
    _, said, _ = run(tmp_path, "Q8_0")
    assert said["status"].startswith("eager torch for Q8_0: ")
