"""Where a new model's weights come from: a checkpoint folder, a .gguf file or a stored model.

Each origin is checked and planned when it is made, before anything is written; `add` then brings
the weights into the store and gives the layers that the model starts with.
"""

from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from gpukit.adapters.target import Target
from gpukit.conversion.admission import Checked, Header, check_folder, check_gguf
from gpukit.conversion.copying import copy_file
from gpukit.conversion.run import run_plan
from gpukit.conversion.wishes import Wishes
from gpukit.errors import ArgumentError
from gpukit.events import Status, Warned
from gpukit.formats.file_types import FILE_TYPE, file_type_name, file_type_of
from gpukit.formats.gguf_fields import UNQUANTIZED
from gpukit.planning.plan import Options, QuantizePlan
from gpukit.planning.planner import plan_quantize
from gpukit.planning.provenance import Recipe, has_provenance, with_provenance
from gpukit.sources.base import ModelSource
from gpukit.sources.gguf import GGUFSource
from gpukit.sources.opening import check_whole, open_source
from gpukit.store.changes import Change
from gpukit.store.manifest import LAYER_PREFIX, Layer, Manifest
from gpukit.store.names import ModelName
from gpukit.store.store import Store

MODEL = LAYER_PREFIX + "model"


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

    def target(self) -> Target:
        """The model as adapters of it see it; `GGUFError` for an architecture that is unknown."""
        ...

    @property
    def adapters(self) -> tuple[Layer, ...]:
        """The layers of adapters that it brings with it."""
        ...

    def close(self) -> None: ...


def open_origin(store: Store, source: Path | ModelName, work: Wishes) -> Origin:
    """The weights that `source` names, checked and planned; the caller closes them.

    Raises the errors of the source's readers.
    """
    if isinstance(source, ModelName) or not source.is_dir():
        for_folder = "for a FROM that is a model folder"
        if work.pre is not None:
            raise ArgumentError(f"--pre is {for_folder}; this has its vocabulary")
        if work.converter is not None:
            raise ArgumentError(f"--converter is {for_folder}; leave it out")
        if work.mtp is not None:
            raise ArgumentError(f"--mtp and --no-mtp are {for_folder}; this has its layers")
    if isinstance(source, ModelName):
        return _stored(store, source, work)
    if source.is_dir():
        check_folder(source)
        return _converted(source, work, "converting model")
    return _file(source, work)


@dataclass(frozen=True)
class _Copied:
    """A .gguf file taken as it is."""

    path: Path
    work: Wishes
    header: Header
    adapters: tuple[Layer, ...] = ()

    def add(self, changes: Change) -> tuple[Layer, ...]:
        return (copy_file(self.path, changes, MODEL, self.work.report, link=self.work.link),)

    def foresee(self) -> Foreseen:
        layer = Layer(MODEL, "", self.path.stat().st_size, origin=self.path.name)
        return Foreseen((layer,), _plan_of_copy(self.path, self.work))

    def target(self) -> Target:
        return _target(self.path)

    def close(self) -> None:
        """Nothing is open between the check and the copy."""


@dataclass(frozen=True)
class _Converted:
    """A checkpoint or a GGUF on its way to another type, planned tensor by tensor."""

    source: ModelSource
    plan: QuantizePlan
    work: Wishes
    opening: str
    adapters: tuple[Layer, ...] = ()

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

    def target(self) -> Target:
        return self.source.target()

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

    def target(self) -> Target:
        found = _target(self.path)
        return replace(found, base=replace(found.base, called=(self.name.model,)))

    @property
    def adapters(self) -> tuple[Layer, ...]:
        return tuple(self.manifest.of("adapter"))

    def _layers(self, weights: tuple[Layer, ...]) -> tuple[Layer, ...]:
        """All layers of the model, with new `weights` if there are any, which have taken up its
        adapters if some are merged."""
        layers = [
            Layer(layer.media_type, layer.digest, layer.size, self.name.display, layer.name)
            for layer in self.manifest.layers
            if self.work.merge is None or layer.kind != "adapter"
        ]
        if weights:
            at = max(i for i, layer in enumerate(layers) if layer.kind == "model")
            (layers[at],) = weights
        return tuple(layers)

    def close(self) -> None:
        if self.converted:
            self.converted.close()


def _target(path: Path) -> Target:
    with GGUFSource(path) as source:
        return source.target()


def _stored(store: Store, name: ModelName, work: Wishes) -> Origin:
    manifest = store.manifest(name)
    path = store.weights(name, manifest)
    checked = check_gguf(path)
    quantized = _quantized(checked, work, f"FROM {name.display}")
    if quantized is None:
        _tell_untouched(f"FROM {name.display}", work)
    return _Inherited(name, manifest, path, work, checked.header, quantized)


def _file(path: Path, work: Wishes) -> Origin:
    check_whole(path)
    checked = check_gguf(path)
    quantized = _quantized(checked, work, str(path))
    if quantized is None and checked.is_split:
        return _converted(path, replace(work, file_type=None), "joining the parts of the model")
    if quantized is None:
        _tell_untouched(str(path), work)
    return quantized or _Copied(path, work, checked.header)


def _tell_untouched(what: str, work: Wishes) -> None:
    """A file that is taken as it is keeps its metadata, too."""
    if work.provenance:
        work.report(Warned(f"{what}: taken as it is, so that no provenance is noted in it"))


def _quantized(checked: Checked, work: Wishes, what: str) -> _Converted | None:
    """A GGUF on its way to another type; None where it has that type already."""
    if work.file_type is None:
        return None if work.merge is None else _converted(checked.path, work, "parsing GGUF")
    # What llama.cpp and Ollama take as a source; other types have lost too much.
    lossy = sorted(checked.types - set(UNQUANTIZED))
    if lossy and not work.allow_requantize:
        raise ArgumentError(
            f"{what}: quantization is only supported for F16, BF16 and F32 models, and this one "
            f"holds {', '.join(lossy)}: create it from the checkpoint or an unquantised GGUF, or "
            "allow the loss with --allow-requantize"
        )
    same = file_type_name(checked.header.file_type) == file_type_of(work.file_type).name
    if same and work.merge is None and work.overrides is None:
        return None
    return _converted(checked.path, work, "parsing GGUF")


def _converted(path: Path, work: Wishes, opening: str) -> _Converted:
    if work.converter is not None:
        work.report(Status(work.converter.telling(path)))
    source = open_source(path, work.pre, work.merge, work.converter, work.mtp)
    try:
        options = Options(work.overrides, work.imatrix, work.allow_requantize, mtp=work.mtp)
        changed = work.file_type is not None or work.merge is not None
        if work.provenance or (changed and has_provenance(source.fields)):
            recipe = Recipe(work.file_type, options, work.pre, work.merge, work.converter)
            source.fields = with_provenance(source, recipe)
        plan = plan_quantize(source, work.file_type, options)
        return _Converted(source, plan, work, opening)
    except BaseException:
        source.close()
        raise


def _plan_of_copy(path: Path, work: Wishes) -> QuantizePlan:
    plain = Wishes(None, work.report)
    whole = _converted(path, plain, "parsing GGUF")
    with closing(whole):
        return whole.plan
