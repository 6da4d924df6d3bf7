"""From a path to a model on its device, with its tokenizer."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import gpukit_kernels as kernels
from gpukit.errors import AdapterError, CheckpointError, GGUFError
from gpukit.events import Report, ignore
from gpukit.generation.adapted import adapted
from gpukit.models.config import ModelConfig
from gpukit.models.decoder import Decoder
from gpukit.models.registry import Architecture, architecture_of
from gpukit.models.weights import Observer, Weight, Weights
from gpukit.sources.base import Source
from gpukit.sources.gguf import GGUFSource
from gpukit.sources.merged import Merge
from gpukit.sources.opening import open_source
from gpukit.tokenizer import Tokenizer


@dataclass(frozen=True)
class LoadedModel:
    """A model on its device with its tokenizer."""

    decoder: Decoder
    tokenizer: Tokenizer
    seconds: float


def load_model(
    path: Path,
    device: str = "auto",
    pre: str | None = None,
    observe: Observer | None = None,
    *,
    adapters: Merge | None = None,
    names: Sequence[str] = (),
    report: Report = ignore,
) -> LoadedModel:
    """The model in a GGUF file or a Hugging Face folder, its weights in blocks on `device`; `pre`
    names the pre-tokenizer of a folder with a byte-level BPE, `observe` hears of every input of a
    linear map. `adapters` work beside the weights, which stay as they are; `names` are what else
    the model is called, for the warning about an adapter of another one.

    `GGUFError` for a file that is no whole model of a known architecture, `ArgumentError` for a
    device that is not there, `AdapterError` for an adapter of another base or that has to be
    merged, and the errors of the readers.
    """
    started = time.monotonic()
    place = kernels.device(device)
    with open_source(path, pre) as source:
        found = Description.of(source)
        with at_path(path):
            with adapted(source, adapters, place, names=names, report=report) as beside:
                taken = beside.changed(_weights(source, place))
                weights = Weights(taken, observe, beside.pairs_of(taken))
            decoder = found.build(weights)
    return LoadedModel(decoder, found.tokenizer, time.monotonic() - started)


@dataclass(frozen=True)
class Description:
    """What the metadata of a model that can be run say."""

    arch: Architecture
    config: ModelConfig
    tokenizer: Tokenizer

    @staticmethod
    def of(source: Source) -> "Description":
        """That of an open model; `GGUFError` and `CheckpointError` for what is missing or
        unknown."""
        metadata = {field.key: field for field in source.fields}
        arch = architecture_of(source.get("general.architecture"), str(source.path))
        with at_path(source.path):
            tokenizer = Tokenizer.from_fields(metadata)
            config = arch.restore(metadata)
        return Description(arch, config, tokenizer)

    def build(self, weights: Weights) -> Decoder:
        """The decoder that runs; `GGUFError`, within `at_path`, for weights that are missing, too
        many or of another shape, and for more tokens than there are rows."""
        decoder = self.arch.build(self.config, weights)
        weights.check_all_taken()
        tokens, rows = self.tokenizer.n_vocab, self.config.vocab_size
        if tokens > rows:
            raise GGUFError(f"{tokens} tokens for {rows} rows of token_embd.weight")
        return decoder


@contextmanager
def at_path(path: Path) -> Iterator[None]:
    """Put `path` in front of what is wrong with a model in the block."""
    try:
        yield
    except AdapterError:  # says where
        raise
    except (GGUFError, CheckpointError) as error:
        raise type(error)(f"{path}: {error}") from None


def _weights(source: Source, place: torch.device) -> dict[str, Weight]:
    weights = {}
    for index, tensor in enumerate(source.tensors):
        # A checkpoint's float32 weights stay float32, which a plain conversion would round.
        kind = "F32" if tensor.type == "F32" else source.stored_type(index)
        if kind not in kernels.QUANTS:
            known = ", ".join(kernels.QUANTS)
            raise GGUFError(f"{tensor.name} is {kind}; types that can be run: {known}")
        data = torch.from_numpy(np.empty(source.stored_bytes(index, tensor.rows), np.uint8))
        source.read(index, 0, data.numpy().data)
        if isinstance(source, GGUFSource):
            blocks = data.view(tensor.rows, tensor.row_bytes)
        else:
            values = source.values(index, 0, tensor.rows, data)
            blocks = kernels.quantize(values, kind)
        weights[tensor.name] = Weight(blocks.to(place), kind, tensor.ne[0] if tensor.ne else 1)
    return weights
