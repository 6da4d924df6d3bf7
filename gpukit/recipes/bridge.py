"""llama.cpp's converter beside other options: what it cannot go with, and what it shall write."""

from collections.abc import Sequence
from pathlib import Path

from gpukit.errors import ArgumentError
from gpukit.formats.file_types import CONVERTED, file_type_of
from gpukit.given import path_of
from gpukit.planning.overrides import Overrides
from gpukit.planning.plan import Options
from gpukit.sources.converter_process import Converter
from gpukit.store.modelfile import Modelfile

# A checkout of llama.cpp, or more exactly how its converter is used.
Checkout = Converter | str | Path


def bridge(
    converter: Checkout | None,
    types: Sequence[str | None],
    *,
    overrides: Overrides | None = None,
    pre: str | None = None,
    mtp: bool | None = None,
    adapters: bool = False,
    calibrate: bool = False,
) -> Converter | None:
    """`converter` as it is used for files of `types`; None without one.

    `ArgumentError` for a checkout that is none, and for options that it cannot go with.
    """
    if converter is None:
        return None
    how = converter
    if not isinstance(how, Converter):
        how = Converter(path_of(how, "converter: the path of a checkout of llama.cpp"))
    how.check()
    if pre is not None:
        raise ArgumentError("--pre and --converter: the converter has its own; leave --pre out")
    if mtp is not None:
        word = "--mtp" if mtp else "--no-mtp"
        raise ArgumentError(f"{word} and --converter: give the converter --converter-arg={word}")
    if adapters:
        raise ArgumentError(
            "--converter takes no adapter: merge it into a folder first (gpukit merge BASE FOLDER "
            "--adapter DIR), then convert that"
        )
    if calibrate:
        raise ArgumentError(
            "--calibrate and --converter: gpukit may not be able to run the model; give --imatrix "
            "with a file of llama-imatrix"
        )
    return how.with_outtype(_outtype(types, overrides))


def bridge_of(
    modelfile: Modelfile,
    converter: Checkout | None,
    quantize: str | None,
    pre: str | None,
    calibrate: str | Path | None,
    options: Options,
) -> Converter | None:
    """`bridge` for the model that `modelfile` describes."""
    adapters, text = bool(modelfile.adapters), calibrate is not None
    return bridge(
        converter, (quantize or None,), overrides=options.overrides, pre=pre, mtp=options.mtp,
        adapters=adapters, calibrate=text,
    )  # fmt: skip


def _outtype(types: Sequence[str | None], overrides: Overrides | None) -> str:
    """Alone, a type that the converter writes itself is made by it; else its own choice is the
    start, as it is for llama-quantize."""
    kinds = {file_type_of(kind).name for kind in types if kind is not None}
    if len(types) == 1 and overrides is None and kinds <= {*CONVERTED}:
        return next(iter(kinds), "auto")
    return "auto"
