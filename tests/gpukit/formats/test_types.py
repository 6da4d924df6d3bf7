"""The table of tensor types is that of the peers, and files with any type can be read."""

import ctypes
import importlib.util
from pathlib import Path

import gguf
import pytest

from gpukit.conversion.run import run_plan
from gpukit.errors import GpukitError
from gpukit.formats.file_types import file_type_name
from gpukit.formats.gguf_fields import TensorSpec, string, type_names, type_sizes
from gpukit.formats.gguf_reader import GGUFFile
from gpukit.formats.gguf_writer import GGUFWriter
from gpukit.planning.planner import plan_quantize
from gpukit.recipes.inspect import inspect
from gpukit.sources.opening import open_source

# More than ggml has: below it, its functions read past their table.
COUNT = 43


@pytest.mark.peer
def test_every_type_of_llama_cpp() -> None:
    found = importlib.util.find_spec("xllamacpp")
    if found is None or found.origin is None:
        pytest.skip("needs xllamacpp")
    (path,) = Path(found.origin).parent.glob("xllamacpp*.so")
    library = ctypes.CDLL(str(path))
    library.ggml_type_name.restype = ctypes.c_char_p
    library.ggml_type_size.restype = ctypes.c_size_t
    library.ggml_blck_size.restype = ctypes.c_int64
    theirs = {
        number: (
            library.ggml_type_name(number).decode().upper(),
            library.ggml_blck_size(number),
            library.ggml_type_size(number),
        )
        for number in range(COUNT)
        if library.ggml_blck_size(number)
    }
    assert {s.id: (name, s.block, s.nbytes) for name, s in type_sizes().items()} == theirs


def test_every_type_of_the_gguf_package() -> None:
    ours = {name: (size.id, size.block, size.nbytes) for name, size in type_sizes().items()}
    for kind, (block, nbytes) in gguf.GGML_QUANT_SIZES.items():
        if kind.name == "Q8_1":  # 40 bytes there, since a block had float32 scales
            nbytes = 36
        assert ours[kind.name] == (int(kind), block, nbytes)
    assert [type_names()[number] for number in (41, 42)] == ["Q1_0", "Q2_0"]
    assert file_type_name(41) == "Q2_0"


@pytest.mark.parametrize("kind", type_sizes())
def test_a_file_with_every_type(kind: str, tmp_path: Path) -> None:
    """It is read, shown, copied as it is; made another type, or refused in one line."""
    size = type_sizes()[kind]
    tensors = [TensorSpec("token_embd.weight", (256, 2), kind), TensorSpec("b", (8,), "F32")]
    path = tmp_path / "a.gguf"
    with GGUFWriter(path, [string("general.architecture", "llama")], tensors) as writer:
        for index, tensor in enumerate(tensors):
            writer.write(index, bytes(tensor.nbytes))
    with GGUFFile(path) as file:
        info = file.tensors["token_embd.weight"]
        assert info.nbytes == 512 // size.block * size.nbytes
        assert bytes(file.read(info)) == bytes(info.nbytes)
    assert inspect(path).tensors[0].type == kind
    with open_source(path) as source:
        if kind in ("F32", "F16", "BF16", "F64", "Q8_0"):
            run_plan(source, plan_quantize(source, "Q8_0"), tmp_path / "b.gguf")
        else:
            with pytest.raises(GpukitError, match=rf"is {kind}, |already \({kind}\)"):
                plan_quantize(source, "Q8_0")
