"""From a path to a model on its device, with its tokenizer."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

import gpukit_kernels as kernels
from gpukit.errors import AdapterError, CheckpointError, GGUFError, GpukitError
from gpukit.events import Report, ignore
from gpukit.generation.adapted import adapted
from gpukit.generation.placing import place_weights, rooms
from gpukit.generation.steps import Steps
from gpukit.models.config import ModelConfig
from gpukit.models.decoder import Decoder
from gpukit.models.registry import Architecture, architecture_of
from gpukit.models.weights import Observer, Weights
from gpukit.sources.base import Source
from gpukit.sources.merged import Merge
from gpukit.sources.opening import open_source
from gpukit.tokenizer import Tokenizer
from gpukit_kernels.devices import Device


@dataclass(frozen=True)
class LoadedModel:
    """A model on its device with its tokenizer; for messages its `name`, and the `adapters` in it
    with their weights."""

    decoder: Decoder
    tokenizer: Tokenizer
    seconds: float
    name: str = "the model"
    adapters: tuple[str, ...] = ()

    @cached_property
    def steps(self) -> Steps:
        """The recorded steps of its decoder."""
        return Steps(self.decoder)


def load_model(
    path: Path,
    device: Device = "auto",
    pre: str | None = None,
    observe: Observer | None = None,
    *,
    adapters: Merge | None = None,
    names: Sequence[str] = (),
    report: Report = ignore,
) -> LoadedModel:
    """The model in a GGUF file or a Hugging Face folder, its weights in blocks on `device`, or on
    several with commas between, each of which has some of the layers; what has no room there comes
    from the host's memory for each pass. `pre`
    names the pre-tokenizer of a folder with a byte-level BPE, `observe` hears of every input of a
    linear map. `adapters` work beside the weights, which stay as they are; `names` are what else
    the model is called, for the warning about an adapter of another one.

    `GGUFError` for a file that is no whole model of a known architecture, `ArgumentError` for a
    device that is not there, `AdapterError` for an adapter of another base or that has to be
    merged, and the errors of the readers.
    """
    started = time.monotonic()
    devices = kernels.device_list(device)
    with open_source(path, pre) as source:
        found = Description.of(source)
        with at_path(path), _room_for(path, devices):
            with adapted(source, adapters, devices[0], names=names, report=report) as beside:
                placed = place_weights(source, found.config, found.arch.style, rooms(devices))
                if adapters is not None and adapters.adapters and not placed.placement.is_simple:
                    raise AdapterError(
                        f"{path}: adapters work beside a model that is on one device as a whole; "
                        "merge them with gpukit merge, or quantise the model to a smaller type"
                    )
                taken = beside.changed(placed.weights)
                weights = Weights(taken, observe, beside.pairs_of(taken))
            decoder = placed.decoder(found.build(weights))
    return LoadedModel(
        decoder, found.tokenizer, time.monotonic() - started, str(path),
        adapters.words if adapters is not None else (),
    )  # fmt: skip


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
            if config.unused.alone(tensor.name for tensor in source.tensors):
                raise GGUFError(
                    "it has only the layers that guess further tokens, for a whole model beside it;"
                    " name a model that has all layers"
                )
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
def _room_for(path: Path, devices: Sequence[torch.device]) -> Iterator[None]:
    """Say in one line that a device ran out of memory in the block."""
    try:
        yield
    except torch.OutOfMemoryError:
        there = ", ".join(f"{d} has {kernels.free_bytes(d) / 2**30:.1f} GiB free" for d in devices)
        raise GpukitError(
            f"{path}: the device ran out of memory while the model was loaded; {there}; end what "
            "else runs there, or quantise the model to a smaller type"
        ) from None


@contextmanager
def at_path(path: Path) -> Iterator[None]:
    """Put `path` in front of what is wrong with a model in the block."""
    try:
        yield
    except AdapterError:  # says where
        raise
    except (GGUFError, CheckpointError) as error:
        raise type(error)(f"{path}: {error}") from None
