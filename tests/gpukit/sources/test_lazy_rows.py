"""Rows of the converter's lazy tensors are those of the whole ones."""

from typing import Any

import gguf
import numpy as np
import pytest
import torch

from gpukit.sources.lazy_rows import Rows, evaluate, flat, leaf_dtype, shape_of


class Lazy(gguf.LazyBase):  # type: ignore[misc]
    """A lazy tensor of torch, as the converter has them."""

    _tensor_type = torch.Tensor

    @classmethod
    def meta_with_dtype_and_shape(cls, dtype: Any, shape: Any) -> torch.Tensor:
        return torch.empty(size=shape, dtype=dtype, device="meta")

    def numpy(self) -> gguf.LazyNumpyTensor:
        meta = gguf.LazyNumpyTensor.meta_with_dtype_and_shape(np.float32, tuple(self._meta.shape))
        return gguf.LazyNumpyTensor(meta=meta, args=(self,), func=(lambda s: s.numpy()))

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return cls._wrap_fn(func)(*args, **(kwargs or {}))


def stored(*shape: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> Any:
    """A lazy tensor of a file."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    meta = Lazy.meta_with_dtype_and_shape(dtype, shape)
    return Lazy(meta=meta, args=("file",), func=lambda _: values)


def experts(count: int = 3) -> list[Any]:
    return [stored(4, 6, seed=i).to(torch.float32) for i in range(count)]


GRAPHS = {
    "a cast": lambda: stored(7, 6).to(torch.float32),
    "an array": lambda: stored(7, 6).float().numpy(),
    "a cast array": lambda: stored(7, 6).float().numpy().astype(np.float16, copy=False),
    "experts": lambda: torch.stack(experts(), dim=0),
    "experts as an array": lambda: torch.stack(experts()).numpy(),
    "columns of experts": lambda: torch.stack(experts(), dim=1),
    "last of experts": lambda: torch.stack(experts(), dim=-1),
    "joined": lambda: torch.cat(experts(), dim=0),
    "side by side": lambda: torch.cat(experts(), dim=1),
    "joined casts": lambda: torch.cat([stored(2, 6), stored(3, 6).float()]),
    "a view": lambda: stored(8, 6).view(2, 4, 6),
    "other rows": lambda: stored(8, 6).view(4, 12),
    "other bits": lambda: stored(8, 6).view(torch.int16),
    "permuted": lambda: stored(8, 6).view(2, 4, 6).transpose(0, 1).reshape(8, 6),
    "transposed": lambda: stored(6, 6).t().float(),
    "computed": lambda: -torch.exp(stored(8, 6).float()),
    "half": lambda: stored(8, 6).chunk(2, dim=0)[1].float(),
    "part": lambda: stored(3, 8, 6)[:, 2:5, :].float(),
    "a line": lambda: stored(9).float(),
    "a column": lambda: stored(9).float().unsqueeze(-1),
    "squeezed": lambda: stored(5, 1, 6).squeeze(),
    "joined views": lambda: torch.cat([stored(4, 6).view(2, 2, 6), stored(3, 2, 6)]),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_rows_are_those_of_the_whole(name: str) -> None:
    lazy, rows = GRAPHS[name](), Rows()
    whole = flat(evaluate(lazy))
    assert tuple(evaluate(lazy).shape) == shape_of(lazy)
    count = len(whole)
    for begin, end in ((0, count), (0, 1), (count // 2, count), (count - 1, count), (1, 3)):
        part = rows.of(lazy, begin, min(end, count))
        assert part.dtype == whole.dtype
        assert torch.equal(part, whole[begin:end])


def test_what_is_stored_is_seen_through_moves_only() -> None:
    assert leaf_dtype(GRAPHS["experts as an array"]()) == "bfloat16"
    assert leaf_dtype(stored(2, 2, dtype=torch.float32).view(4, 1).numpy()) == "float32"
    assert leaf_dtype(GRAPHS["computed"]()) == leaf_dtype(GRAPHS["half"]()) == ""
