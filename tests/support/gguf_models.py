"""Small GGUF models of several architectures, and importance for them: what llama-quantize reads.

Only the shapes matter there, so rows are few; nothing of this can be run.
"""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Shape:
    """A model's architecture and sizes; `rows` is what every matrix has."""

    arch: str = "llama"
    layers: int = 8
    width: int = 256
    rows: int = 6
    heads: int = 4
    kv_heads: int = 2
    experts: int = 0
    tied: bool = False
    fused: bool = False


SHAPES = {
    "eight-layers": Shape(),
    "thirty-two-layers": Shape(layers=32, rows=2),
    "tied": Shape(layers=2, tied=True),
    "eight-experts": Shape(experts=8, rows=2),
    "fused-qkv": Shape(arch="phi3", fused=True),
    "width-288": Shape(width=288),
    "width-100": Shape(layers=1, width=100),
    "shared-by-four": Shape(heads=8, layers=3),
    "seventy-b": Shape(layers=80, rows=1, width=256),
    "falcon": Shape(arch="falcon", layers=16, fused=True),
}


def _tensors(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and numpy shapes."""
    matrix = (shape.rows, shape.width)
    yield "token_embd.weight", matrix
    if not shape.tied:
        yield "output.weight", matrix
    yield "output_norm.weight", (shape.width,)
    for i in range(shape.layers):
        at = f"blk.{i}."
        yield at + "attn_norm.weight", (shape.width,)
        for part in ("attn_qkv",) if shape.fused else ("attn_q", "attn_k", "attn_v"):
            yield f"{at}{part}.weight", matrix
        yield at + "attn_output.weight", matrix
        if shape.experts:
            yield at + "ffn_gate_inp.weight", (shape.experts, shape.width)
            for part in ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"):
                yield f"{at}{part}.weight", (shape.experts, *matrix)
        else:
            for part in (
                ("ffn_up", "ffn_down") if shape.fused else ("ffn_gate", "ffn_up", "ffn_down")
            ):
                yield f"{at}{part}.weight", matrix


def build(name: str, folder: Path, tensors_in_part: int = 0) -> Path:
    """Write the BF16 model `name` into `folder`; its path, in parts that of the first."""
    shape = SHAPES[name]
    path = folder / f"{name}.gguf"
    writer = gguf.GGUFWriter(path, shape.arch, split_max_tensors=tensors_in_part)
    writer.add_block_count(shape.layers)
    writer.add_context_length(128)
    writer.add_embedding_length(shape.width)
    writer.add_feed_forward_length(shape.width)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_layer_norm_eps(1e-5)
    writer.add_vocab_size(shape.rows)
    if shape.experts:
        writer.add_expert_count(shape.experts)
        writer.add_expert_used_count(2)
    source = random.Random(name)
    for tensor, dims in _tensors(shape):
        values = _values(source, dims)
        if len(dims) == 1:
            writer.add_tensor(tensor, values)
        else:
            upper = (values.view(np.uint32) >> 16).astype(np.uint16)
            raw = upper.view(np.uint8).reshape(*dims[:-1], dims[-1] * 2)
            writer.add_tensor(tensor, raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(folder.glob(f"{name}*.gguf"))[0] if tensors_in_part else path


def _values(source: random.Random, dims: tuple[int, ...]) -> Floats:
    """float32 in -0.06..0.06, a sum of three uniform numbers each."""
    count = int(np.prod(dims))
    raw = np.frombuffer(source.randbytes(6 * count), "<i2").astype(np.float32).reshape(3, count)
    return (raw.sum(0) / np.float32(3 * 32768) * np.float32(0.06)).reshape(dims)


# File types that llama-quantize makes only where every matrix of a layer has importance.
WANTING = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS")


def importance(name: str, whole: bool = False) -> dict[str, Floats]:
    """float32 `[width]` or `[experts * width]` of the matrices; some have none, with `whole` only
    the embeddings."""
    shape, source = SHAPES[name], random.Random(name)
    found = {}
    for tensor, dims in _tensors(shape):
        if len(dims) == 1 or "token_embd" in tensor:
            continue
        left_out = "blk.1.attn_k" in tensor
        if left_out and not whole:
            continue
        count = dims[-1] * (dims[0] if len(dims) > 2 else 1)
        numbers = random.Random(tensor) if left_out else source
        raw = np.frombuffer(numbers.randbytes(2 * count), "<u2").astype(np.float32)
        share = raw / np.float32(65536)
        # By products: numpy's powers are not the same on every machine.
        found[tensor] = share * share * share
    return found


def tensors_digest(path: Path) -> str:
    """The sha256 of the names, types and bytes of a file's tensors in its order."""
    found = hashlib.sha256()
    for tensor in gguf.GGUFReader(path).tensors:
        found.update(f"{tensor.name} {tensor.tensor_type.name} ".encode())
        found.update(np.ascontiguousarray(tensor.data).tobytes())
    return found.hexdigest()
