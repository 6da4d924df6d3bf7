"""From a path to an adapter that fits its base.

An adapter is a folder with adapter_config.json and weights, as PEFT or mlx-lm writes it, the file
of weights in such a folder, or a GGUF adapter.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from gpukit.adapters.adapter import Adapter
from gpukit.adapters.base import Base
from gpukit.adapters.delta import Added, Delta, LowRank, Replaced
from gpukit.adapters.experts import Layout
from gpukit.adapters.fit import Fit
from gpukit.adapters.gguf import fit_gguf
from gpukit.adapters.mlx import fit_mlx, is_mlx, mlx_settings
from gpukit.adapters.names import check_base_name
from gpukit.adapters.peft import fit_peft
from gpukit.adapters.peft_config import CONFIG, settings
from gpukit.adapters.ties import settle, vocabulary
from gpukit.adapters.values import WeightFile
from gpukit.errors import AdapterError, NotFoundError, one_line
from gpukit.formats.floats import float32
from gpukit.formats.folder import check_files, file_names, model_name, read_json
from gpukit.formats.gguf_reader import GGUFFile, is_gguf

PEFT_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
MLX_WEIGHTS = ("adapters.safetensors",)


def open_adapter(
    path: Path,
    base: Base,
    *,
    name: str | None = None,
    layout: Layout | None = None,
    strict: bool = False,
    activated: bool = False,
) -> Adapter:
    """The adapter at `path`, fitted to `base` and called `name`, its folder's or file's name if
    none is given.

    `layout` tells how the tensors of experts lie where that cannot be seen. With `strict` an
    adapter that says it was made for a base of another name is refused, not only warned about.
    One that works only behind some tokens (aLoRA) is refused unless it may be `activated`.
    `NotFoundError` where nothing is there; `AdapterError` or the error of a reader for what is
    missing, malformed, of no use or for another base. No weights are read but those that two ties
    of one vocabulary are compared by, and B and A up to the first product that is not zero.
    """
    config, weights = _located(path)
    with ExitStack() as stack:
        file = stack.enter_context(WeightFile(weights))
        if not file.values:
            raise AdapterError(f"{weights}: no tensors; the adapter changes nothing")
        fit = Fit(weights, base.with_head)
        form, said, together = _fitted(fit, file, weights.parent / CONFIG, config, layout)
        if fit.invocation and not activated:
            raise fit.fail(
                "aLoRA works only behind its invocation tokens and can neither be merged nor run "
                "here: gpukit adapter writes it for llama.cpp"
            )
        if said is not None:
            fit.warnings += check_base_name(weights, said, base.names, strict=strict)
        added = settle(fit, together=together)
        sizes = vocabulary(fit)
        kept = {n: tuple(r) for n, r in fit.deltas.items() if n in base.tensors or n in added}
        _warn_of_nothing(fit, kept)
        stack.pop_all()
    if path.is_dir():
        called = model_name(path)
    else:
        called = weights.parent.name if config is not None else weights.stem
    warnings = tuple(fit.warnings)
    return Adapter(name or called, form, kept, added, sizes, warnings, file, fit.invocation)


def _warn_of_nothing(fit: Fit, deltas: Mapping[str, Sequence[Delta]]) -> None:
    """Warn where all of `deltas` together change nothing."""
    if not all(_is_zero(record, records) for records in deltas.values() for record in records):
        return
    low_rank = [r for records in deltas.values() for r in records if isinstance(r, LowRank)]
    if low_rank and not any(float32(record.scale) for record in low_rank):
        fit.warn("a scale of 0 (alpha / rank): it changes nothing")
    elif deltas:
        fit.warn("every B·A in it is zero, so that it changes nothing: it was not trained")


def _is_zero(record: Delta, records: Sequence[Delta]) -> bool:
    """Whether `record`, one of those of a tensor, adds nothing, or is what another stands on."""
    if isinstance(record, Added):
        return not float32(record.scale)
    if isinstance(record, LowRank) and record.magnitude is None:
        parts = (record.b, record.a)
        # What is times 0 need not be read.
        return not float32(record.scale) or not all(
            bool(part.fetch(0, part.shape[0]).any()) for part in parts
        )
    beside = any(isinstance(other, LowRank) for other in records)
    return isinstance(record, Replaced) and beside


def weights_of(path: Path) -> Path:
    """The file that holds the tensors of the adapter at `path`; errors as `open_adapter`."""
    return _located(path)[1].resolve()


def _fitted(
    fit: Fit,
    file: WeightFile,
    config_path: Path,
    config: Mapping[str, Any] | None,
    layout: Layout | None,
) -> tuple[str, str | None, bool]:
    """What form the adapter has, the name of its base if it says one, and whether it trained head
    and embedding as one; its deltas are in `fit` then."""
    if config is None:
        assert isinstance(file.file, GGUFFile)
        fit_gguf(fit, file.file, file.values)
        return "GGUF LoRA", None, False
    if is_mlx(config):
        mlx = mlx_settings(config_path, config)
        fit_mlx(fit, file.values, mlx)
        return f"MLX {mlx.kind}", mlx.base, True
    peft = settings(config_path, config)
    fit.warnings += peft.warnings
    fit.invocation = peft.invocation
    fit_peft(fit, file.values, peft, layout)
    return "PEFT DoRA" if peft.dora else "PEFT LoRA", peft.base, peft.tied


def _located(path: Path) -> tuple[Mapping[str, Any] | None, Path]:
    """adapter_config.json and the file of weights; no config for a GGUF adapter."""
    try:
        there, is_folder = path.exists(), path.is_dir()
    except OSError as error:
        raise NotFoundError(one_line(f"{path}: {error.strerror}")) from None
    if not there:
        raise NotFoundError(one_line(f"{path}: no such file or folder"))
    if not is_folder and is_gguf(path):
        return None, path
    folder = path if is_folder else path.parent
    check_files(folder)
    config = read_json(folder / CONFIG, AdapterError)
    names = file_names(folder)
    if config is None:
        return None, _lone_gguf(folder, names, path)
    known = MLX_WEIGHTS if is_mlx(config) else PEFT_WEIGHTS
    if not is_folder:
        if path.name not in known:
            raise AdapterError(f"{path}: no adapter's weights; {' or '.join(known)} are")
        return config, path
    found = [folder / name for name in known if name in names]
    if not found:
        shown = ", ".join(sorted(names)[:6]) or "nothing"
        raise AdapterError(
            one_line(f"{folder}: no weights ({', '.join(known)}) beside {CONFIG}; found {shown}")
        )
    return config, found[0]


def _lone_gguf(folder: Path, names: Sequence[str], path: Path) -> Path:
    """The GGUF of a folder without adapter_config.json; `AdapterError` where there is none."""
    found = sorted(name for name in names if name.endswith(".gguf"))
    if len(found) == 1 and path.is_dir():
        return folder / found[0]
    if found and path.is_dir():
        raise AdapterError(f"{folder}: {len(found)} GGUF files; name one of them")
    below = sorted(child.parent.name for child in folder.glob(f"*/{CONFIG}"))[:3]
    if below:
        hint = f"there is one in {', '.join(below)}: name that folder"
    elif "config.json" in names:
        hint = "a whole model is there, not an adapter"
    else:
        hint = "PEFT and mlx-lm write it beside the weights: fetch it, too"
    raise AdapterError(one_line(f"{folder}: no {CONFIG}; {hint}"))
