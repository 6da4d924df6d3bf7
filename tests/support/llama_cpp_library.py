"""llama.cpp's own functions, from the library inside xllamacpp."""

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest


class _Params(ctypes.Structure):
    """More room than llama_model_params takes; its defaults are all that is wanted."""

    _fields_ = (("room", ctypes.c_uint64 * 64),)


def decoded(path: Path, texts: Sequence[Sequence[int]]) -> list[bytes]:
    """What llama_detokenize makes of the ids of each of `texts`, with the vocabulary of the model
    at `path`; skips the test where xllamacpp is not installed."""
    no = ctypes.c_bool(False)
    found = []
    with _vocabulary(path) as (library, vocabulary):
        for ids in texts:
            room = ctypes.create_string_buffer(1 << 16)
            tokens = (ctypes.c_int32 * len(ids))(*ids)
            size = library.llama_detokenize(vocabulary, tokens, len(ids), room, len(room), no, no)
            assert size >= 0
            found.append(room.raw[:size])
    return found


def tokenized(path: Path, texts: Sequence[bytes]) -> list[list[int]]:
    """The ids that llama_tokenize gives to `texts`, without special tokens; skips as `decoded`."""
    no = ctypes.c_bool(False)
    found = []
    with _vocabulary(path) as (library, vocabulary):
        for text in texts:
            tokens = (ctypes.c_int32 * (4 * len(text) + 8))()
            count = library.llama_tokenize(vocabulary, text, len(text), tokens, len(tokens), no, no)
            assert count >= 0
            found.append(tokens[:count])
    return found


@contextmanager
def _vocabulary(path: Path) -> Iterator[tuple[ctypes.CDLL, ctypes.c_void_p]]:
    peer = pytest.importorskip("xllamacpp")
    (file,) = Path(peer.__file__).parent.glob("xllamacpp*.so")
    library, pointer = ctypes.CDLL(str(file)), ctypes.c_void_p
    library.llama_model_default_params.restype = _Params
    library.llama_model_load_from_file.argtypes = ctypes.c_char_p, _Params
    for name in ("llama_model_load_from_file", "llama_model_get_vocab"):
        getattr(library, name).restype = pointer
    library.llama_model_get_vocab.argtypes = library.llama_model_free.argtypes = (pointer,)
    params = library.llama_model_default_params()
    model = library.llama_model_load_from_file(str(path).encode(), params)
    assert model
    yield library, pointer(library.llama_model_get_vocab(model))
    library.llama_model_free(model)
