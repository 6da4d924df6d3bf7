"""Where a new model's weights come from: a checkpoint folder, a .gguf file or a stored model.

Each origin is checked and planned when it is made, before anything is written; `add` then brings
the weights into the store and gives the layers that the model starts with.
"""

from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from gpukit.conversion.run import run_plan
from gpukit.errors import ArgumentError, CheckpointError, FormatError
from gpukit.events import Report, Status, Step
from gpukit.formats.file_types import FILE_TYPE, file_type_name, file_type_of
from gpukit.formats.folder import check_files, has_weights
from gpukit.formats.gguf_fields import UNQUANTIZED
from gpukit.formats.gguf_split import GGUFModel
from gpukit.formats.imatrix import Imatrix
from gpukit.planning.plan import Options, QuantizePlan
from gpukit.planning.planner import plan_quantize
from gpukit.sources.base import Source
from gpukit.sources.opening import check_whole, open_source
from gpukit.store import blobs
from gpukit.store.changes import Change
from gpukit.store.manifest import LAYER_PREFIX, Layer, Manifest
from gpukit.store.names import ModelName
from gpukit.store.store import Store

MODEL = LAYER_PREFIX + "model"


@dataclass(frozen=True)
class Wishes:
    """How weights are converted: the file type wanted (None: the source's own), who hears of it,
    the device, the bound on host memory in bytes, the pre-tokenizer where none is recognised, and
    the importance weights.
    """

    file_type: str | None
    report: Report
    device: str = "auto"
    budget: int = 4 << 30
    pre: str | None = None
    imatrix: Imatrix | None = None


@dataclass(frozen=True)
class Header:
    """What a model's GGUF says of itself: architecture, number of weights, `general.file_type`."""

    architecture: str
    weights: int
    file_type: object


@dataclass(frozen=True)
class Checked:
    """A GGUF that is a whole model: its header, the types of its tensors, whether it has parts."""

    path: Path
    header: Header
    types: frozenset[str]
    is_split: bool


@dataclass(frozen=True)
class Foreseen:
    """What an origin would add: the layers that the model starts with, where only writing tells a
    digest an empty one, and the plan of the weights."""

    layers: tuple[Layer, ...]
    plan: QuantizePlan


class Origin(Protocol):
    """Weights that have been checked; `header` is that of the GGUF that the model will have."""

    @property
    def header(self) -> Header: ...

    def add(self, changes: Change) -> tuple[Layer, ...]:
        """Bring them into the store; the model's first layers, in order."""
        ...

    def foresee(self) -> Foreseen:
        """What `add` would bring; nothing is written."""
        ...

    def close(self) -> None: ...


def open_origin(store: Store, source: Path | ModelName, work: Wishes) -> Origin:
    """The weights that `source` names, checked and planned; the caller closes them.

    Raises the errors of the source's readers.
    """
    if work.pre is not None and (isinstance(source, ModelName) or not source.is_dir()):
        raise ArgumentError("--pre is for a FROM that is a model folder; this has its vocabulary")
    if isinstance(source, ModelName):
        return _stored(store, source, work)
    if source.is_dir():
        _check_folder(source)
        return _converted(source, work, "converting model")
    return _file(source, work)


@dataclass(frozen=True)
class _Copied:
    """A .gguf file taken as it is."""

    path: Path
    work: Wishes
    header: Header

    def add(self, changes: Change) -> tuple[Layer, ...]:
        report, total, done = self.work.report, self.path.stat().st_size, 0
        report(Status("parsing GGUF"))

        def advance(n: int) -> None:
            nonlocal done
            done += n
            report(Step(f"copying {self.path.name}", done, total))

        target = changes.temporary()
        with blobs.disk_errors(target.parent):
            digest, size = blobs.copy_in(self.path, target, advance)
        if size != total:
            raise FormatError(f"{self.path}: {total} bytes became {size} while it was copied")
        return (changes.add_file(target, digest, size, MODEL, origin=self.path.name),)

    def foresee(self) -> Foreseen:
        layer = Layer(MODEL, "", self.path.stat().st_size, origin=self.path.name)
        return Foreseen((layer,), _plan_of_copy(self.path, self.work))

    def close(self) -> None:
        """Nothing is open between the check and the copy."""


@dataclass(frozen=True)
class _Converted:
    """A checkpoint or a GGUF on its way to another type, planned tensor by tensor."""

    source: Source
    plan: QuantizePlan
    work: Wishes
    opening: str

    @property
    def header(self) -> Header:
        return Header(
            str(self.plan.get("general.architecture")),
            sum(spec.n_elements for spec in self.plan.specs),
            self.plan.get(FILE_TYPE),
        )

    def add(self, changes: Change) -> tuple[Layer, ...]:
        work = self.work
        work.report(Status(self.opening))
        if self.plan.title != self.opening:
            work.report(Status(self.plan.title))
        changes.need_room(self.plan.size)
        target = changes.temporary()
        result = run_plan(
            self.source, self.plan, target, device=work.device, budget=work.budget, digest=True,
            report=work.report,
        )  # fmt: skip
        return (changes.add_file(target, f"sha256:{result.digest}", result.size, MODEL),)

    def foresee(self) -> Foreseen:
        return Foreseen((Layer(MODEL, "", self.plan.size),), self.plan)

    def close(self) -> None:
        self.source.close()


@dataclass(frozen=True)
class _Inherited:
    """A model of the store: its layers, the weights quantised anew if a type was asked for."""

    name: ModelName
    manifest: Manifest
    path: Path
    work: Wishes
    stored: Header
    converted: _Converted | None

    @property
    def header(self) -> Header:
        return self.converted.header if self.converted else self.stored

    def add(self, changes: Change) -> tuple[Layer, ...]:
        for layer in self.manifest.layers:
            changes.keep(layer, self.name)
        return self._layers(self.converted.add(changes) if self.converted else ())

    def foresee(self) -> Foreseen:
        if self.converted is None:
            return Foreseen(self._layers(()), _plan_of_copy(self.path, self.work))
        foreseen = self.converted.foresee()
        return Foreseen(self._layers(foreseen.layers), foreseen.plan)

    def _layers(self, weights: tuple[Layer, ...]) -> tuple[Layer, ...]:
        """All layers of the model, with new `weights` if there are any."""
        layers = [
            Layer(layer.media_type, layer.digest, layer.size, self.name.display, layer.name)
            for layer in self.manifest.layers
        ]
        if weights:
            at = max(i for i, layer in enumerate(layers) if layer.kind == "model")
            (layers[at],) = weights
        return tuple(layers)

    def close(self) -> None:
        if self.converted:
            self.converted.close()


def _stored(store: Store, name: ModelName, work: Wishes) -> Origin:
    manifest = store.manifest(name)
    path = store.weights(name, manifest)
    checked = check_gguf(path)
    quantized = _quantized(checked, work, f"FROM {name.display}")
    return _Inherited(name, manifest, path, work, checked.header, quantized)


def _file(path: Path, work: Wishes) -> Origin:
    check_whole(path)
    checked = check_gguf(path)
    quantized = _quantized(checked, work, str(path))
    if quantized is None and checked.is_split:
        return _converted(path, replace(work, file_type=None), "joining the parts of the model")
    return quantized or _Copied(path, work, checked.header)


def _quantized(checked: Checked, work: Wishes, what: str) -> _Converted | None:
    """A GGUF on its way to another type; None where it has that type already."""
    if work.file_type is None:
        return None
    # What llama.cpp and Ollama take as a source; other types have lost too much.
    if lossy := sorted(checked.types - set(UNQUANTIZED)):
        raise ArgumentError(
            f"{what}: quantization is only supported for F16, BF16 and F32 models, and this one "
            f"holds {', '.join(lossy)}: create it from the checkpoint or an unquantised GGUF"
        )
    if file_type_name(checked.header.file_type) == file_type_of(work.file_type).name:
        return None
    return _converted(checked.path, work, "parsing GGUF")


def _converted(path: Path, work: Wishes, opening: str) -> _Converted:
    source = open_source(path, work.pre)
    try:
        plan = plan_quantize(source, work.file_type, Options(imatrix=work.imatrix))
        return _Converted(source, plan, work, opening)
    except BaseException:
        source.close()
        raise


def _plan_of_copy(path: Path, work: Wishes) -> QuantizePlan:
    whole = _converted(path, replace(work, file_type=None, imatrix=None), "parsing GGUF")
    with closing(whole):
        return whole.plan


def check_gguf(path: Path) -> Checked:
    """The model at `path`; GGUFError, FormatError or ArgumentError where the file is no whole
    one."""
    with GGUFModel(path) as file:
        kind = file.get("general.type", "model")
        architecture = file.get("general.architecture")
        if not architecture:
            raise FormatError(f"{path}: general.architecture is missing: this is no model")
        weights = sum(info.n_elements for info in file.tensors.values())
        types = frozenset(info.type for info in file.tensors.values())
        header = Header(str(architecture), weights, file.get(FILE_TYPE))
        checked = Checked(path, header, types, file.is_split)
    if kind in ("adapter", "projector", "mmproj"):
        raise ArgumentError(f"{path}: a GGUF of type {kind}, not a model; not supported as FROM")
    return checked


def _check_folder(folder: Path) -> None:
    """CheckpointError where `folder` holds no checkpoint, or what nobody may read."""
    if (folder / "adapter_config.json").exists() and not (folder / "config.json").exists():
        raise CheckpointError(
            f"{folder}: an adapter, not a model: FROM wants the base model, and adapters are not "
            "supported by this version"
        )
    check_files(folder)
    if not has_weights(folder):
        raise CheckpointError(
            f"{folder}: no Modelfile or safetensors files found: FROM wants a folder with "
            "config.json and weights (.safetensors, .bin or .pth), or a .gguf file"
        )
