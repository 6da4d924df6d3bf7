"""The base that a QLoRA adapter was trained on: linear weights through 4 bits and back."""

import re
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from math import prod
from threading import Lock

import torch
from torch import Tensor

from gpukit.adapters.base import EMBEDDING, HEAD
from gpukit.errors import ArgumentError, CheckpointError
from gpukit.formats.checkpoint import Checkpoint
from gpukit.formats.dtypes import TORCH_TYPES
from gpukit.formats.safetensors import StoredTensor
from gpukit.models.fp8 import FP8
from gpukit.models.nf4 import BLOCK, decoded, largest, twice_quantised

# What bitsandbytes quantises.
DTYPES = ("BF16", "F16", "F32")
# Matrices that are no linear maps, by their modules' last names.
_EMBEDDINGS = (EMBEDDING, "wte", "wpe", "word_embeddings", "embed_positions")
_EXPERT = re.compile(r"\.experts\.\d+\.|\.(block_sparse_moe|mlp)\.(gate|router)$")
# Tensors whose magnitudes are kept, and values that are read at a time to find them.
_KEPT = 8
_READ = 1 << 24


class NF4:
    """A step that turns linear weights into what QLoRA's NF4 decodes them to; the first after
    `Scaling`. All other rows pass.

    `double` says whether the scales were quantised, too (`bnb_4bit_use_double_quant`); `dtype` in
    which type the base was loaded when it was trained on (BF16, F16, F32), its own without it.
    Linear are matrices but embeddings; `skip` are names and patterns of modules that stay, as
    `llm_int8_skip_modules` has them: the head where nothing is given. With `experts` false experts
    and routers of a mixture stay: transformers 5 has parameters there, not linear layers as
    transformers 4. `names` are the tensors that change.

    `CheckpointError` for weights in 8 bits, which QLoRA does not start from; `ArgumentError` for
    another `dtype` and for what is no pattern.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        double: bool,
        dtype: str | None = None,
        skip: Sequence[str] | None = None,
        experts: bool = True,
    ) -> None:
        if dtype is not None and dtype not in DTYPES:
            raise ArgumentError(f"a base in {dtype}; NF4 is made from {', '.join(DTYPES)}")
        for pattern in skip or ():
            try:
                re.compile(pattern)
            except re.error as error:
                raise ArgumentError(f"{pattern!r} is no pattern of modules: {error}") from None
        self._checkpoint = checkpoint
        self._double = double
        self._dtype = dtype
        self.names = frozenset(self._linear((HEAD,) if skip is None else skip, experts))
        self._kept: OrderedDict[str, tuple[Tensor, Tensor]] = OrderedDict()
        self._lock = Lock()

    def _linear(self, skip: Sequence[str], experts: bool) -> Iterator[str]:
        for tensor in self._checkpoint:
            module = tensor.name.removesuffix(".weight")
            if module == tensor.name or len(tensor.shape) != 2 or _skipped(module, skip):
                continue
            if module.rpartition(".")[2] in _EMBEDDINGS:
                continue
            if not experts and _EXPERT.search(module):
                continue
            if tensor.dtype in FP8:
                raise CheckpointError(
                    f"{tensor.path}: {tensor.name} is {tensor.dtype}; QLoRA's NF4 is made from "
                    f"{', '.join(DTYPES)}: merge with a base in one of them"
                )
            yield tensor.name

    def __call__(self, name: str, row: int, rows: Tensor, /) -> Tensor:
        if name not in self.names:
            return rows
        dtype = TORCH_TYPES[self._type(self._checkpoint.tensors[name])]
        values, at = rows.to(dtype), row * rows.shape[1]
        if not self._double and rows.shape[1] % BLOCK == 0:
            magnitudes = stored = largest(values)
            at = 0
        else:
            magnitudes, stored = self._magnitudes(name)
        return decoded(values, at, magnitudes, stored).to(dtype).to(torch.float32)

    def _type(self, tensor: StoredTensor) -> str:
        own = tensor.dtype if tensor.dtype in DTYPES else "F32"
        return self._dtype or own

    def _magnitudes(self, name: str) -> tuple[Tensor, Tensor]:
        """The largest of each block of a tensor, and what is stored of them."""
        with self._lock:
            kept = self._kept.get(name)
            if kept is None:
                found = self._read(self._checkpoint.tensors[name])
                kept = self._kept[name] = found, twice_quantised(found) if self._double else found
                while len(self._kept) > _KEPT:
                    self._kept.popitem(last=False)
        return kept

    def _read(self, tensor: StoredTensor) -> Tensor:
        dtype, stored = TORCH_TYPES[self._type(tensor)], TORCH_TYPES[tensor.dtype]
        count, found = prod(tensor.shape), []
        for at in range(0, count, _READ):
            data = torch.empty(min(_READ, count - at) * stored.itemsize, dtype=torch.uint8)
            self._checkpoint.read_into(tensor, data.numpy().data, at * stored.itemsize)
            found.append(largest(data.view(stored).to(dtype)))
        return torch.cat(found)


def _skipped(module: str, patterns: Sequence[str]) -> bool:
    """Whether a pattern means `module`, as transformers sees it: from the start to the end of a
    name's part, or as what the name ends with."""
    return any(
        module.endswith(pattern) or re.match(rf"(?:{pattern})(?:(?<=\.)|(?=\.|$))", module)
        for pattern in patterns
    )
