"""From a Modelfile to a model in the store: weights converted and quantised in one pass."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from gpukit.conversion.admission import Header
from gpukit.conversion.checks import check_device, check_options, check_plan
from gpukit.conversion.new_adapters import NewLayer, opened_adapters
from gpukit.conversion.origins import Origin, open_origin
from gpukit.conversion.wishes import Wishes
from gpukit.errors import ArgumentError, ModelfileError, NotFoundError
from gpukit.events import Report, Status, Warned, ignore
from gpukit.formats.file_types import file_type_name
from gpukit.formats.imatrix import read_imatrix
from gpukit.planning.plan import Options, QuantizePlan
from gpukit.recipes.adapter_lines import check_digests, locate_line, to_merge
from gpukit.recipes.beside import check_beside, without_known
from gpukit.recipes.bridge import Checkout, bridge_of
from gpukit.recipes.calibration import calibrated, check_calibration
from gpukit.recipes.plan import PLAIN
from gpukit.recipes.references import Reference, fetched_adapter, locate
from gpukit.store import blobs, gojson, parameters
from gpukit.store.changes import change
from gpukit.store.config import Config, human_count
from gpukit.store.manifest import CONFIG_TYPE, LAYER_PREFIX, Layer, Manifest
from gpukit.store.modelfile import Modelfile
from gpukit.store.modelfile_checks import checked
from gpukit.store.models import StoredModel
from gpukit.store.names import ModelName
from gpukit.store.store import Store
from gpukit_kernels.devices import Device


def create(
    store: Store,
    name: str,
    modelfile: Modelfile,
    quantize: str | None = None,
    *,
    device: Device = "auto",
    budget: int = 4 << 30,
    pre: str | None = None,
    imatrix: Path | None = None,
    options: Options = PLAIN,
    calibrate: str | Path | None = None,
    hub: bool = False,
    merge: bool = False,
    converter: Checkout | None = None,
    provenance: bool = False,
    link: bool = False,
    report: Report = ignore,
) -> StoredModel:
    """Put the model that `modelfile` describes into the store; what `list` says of it.

    `quantize` is a file type such as `Q4_K_M`; without one a checkpoint keeps its own type and
    a GGUF its bytes. `budget` bounds host memory, in bytes; `pre` names the pre-tokenizer of a
    checkpoint that is not recognised; `imatrix` is a file with importance weights for the
    quantisation, `calibrate` a text, or the `Path` of one, from which they are collected;
    `options` tell types of tensors, whether blocks may become others, and which layers of a folder
    there are (`mtp`); with `hub` FROM is an id of the Hugging Face hub. ADAPTERs stay beside the
    weights as they are, in layers of their own; with `quantize` or `merge` they, and those that
    FROM has already, are merged into the weights. `converter` is as for `convert`. With
    `provenance` the metadata of weights that are written anew says what they are made from. With
    `link` a GGUF that is taken as it is becomes another name of the same file where the disk cannot
    share its blocks.
    All is checked before a byte is fetched or written; a failed run leaves the store as it was.
    Raises ArgumentError for a bad name, type or Modelfile, NotFoundError for a model that is not
    there, `AdapterError` for an adapter of another base, DiskError, and the readers' errors.
    """
    model, modelfile = store.find(name), checked(modelfile)
    check_device(device)
    check_calibration(calibrate, quantize, imatrix)
    how = bridge_of(modelfile, converter, quantize, pre, calibrate, options)
    work = _wishes(quantize, pre, imatrix, options, report)
    work = replace(
        work, device=device, budget=budget, provenance=provenance, converter=how, link=link
    )
    with (
        _opened(store, modelfile, work, hub, merge, calibrate) as (base, origin, new),
        change(store) as changes,
    ):
        # Adapters first: they are small, and what is wrong with them shows at once.
        beside = [each.add(changes) for each in new]
        check_digests([layer for layer in beside if layer.kind == "adapter"], origin.adapters)
        start = without_known(origin.add(changes), beside)
        layers = _layers(changes.add_bytes, start, base, modelfile)
        config = _config(origin.header, base, modelfile)
        config_layer = changes.add_bytes(config.encode(), CONFIG_TYPE)
        for layer in layers:
            verb = "creating new" if layer.digest in changes.added else "using existing"
            report(Status(f"{verb} layer {layer.digest}"))
        report(Status("writing manifest"))
        made = changes.publish(model, Manifest(config_layer, tuple(layers)))
    report(Status("success"))
    return made


@dataclass(frozen=True)
class PlannedModel:
    """What `create` would put into the store: the plan of the weights, and the layers in order.

    The digest of weights that have to be written first is empty; `there` are the digests of layers
    that the store has.
    """

    name: ModelName
    weights: QuantizePlan
    layers: tuple[Layer, ...]
    there: frozenset[str]

    @property
    def size(self) -> int:
        """Bytes of all layers."""
        return sum(layer.size for layer in self.layers)

    def as_json(self) -> dict[str, Any]:
        """The plan of the weights and the layers as one JSON-ready document; sizes in bytes."""
        layers = [
            {
                "kind": layer.kind,
                "size": layer.size,
                "digest": layer.digest or None,
                "new": layer.digest not in self.there if layer.digest else None,
            }
            for layer in self.layers
        ]
        return {"name": self.name.display, **self.weights.as_json(), "layers": layers}


def plan_create(
    store: Store,
    name: str,
    modelfile: Modelfile,
    quantize: str | None = None,
    *,
    pre: str | None = None,
    imatrix: Path | None = None,
    options: Options = PLAIN,
    calibrate: str | Path | None = None,
    hub: bool = False,
    merge: bool = False,
    converter: Checkout | None = None,
    provenance: bool = False,
    report: Report = ignore,
) -> PlannedModel:
    """What `create` would make of the same arguments; nothing is written. Errors as there."""
    model, modelfile = store.find(name), checked(modelfile)
    check_calibration(calibrate, quantize, imatrix)
    how = bridge_of(modelfile, converter, quantize, pre, calibrate, options)
    work = _wishes(quantize, pre, imatrix, options, report)
    work = replace(work, provenance=provenance, converter=how)
    with _opened(store, modelfile, work, hub, merge, calibrate, dry=True) as (base, origin, new):
        foreseen = origin.foresee()
        start = (*foreseen.layers, *(each.foresee() for each in new))
        layers = _layers(_imagined, start, base, modelfile)
    known = {layer.digest for layer in layers if layer.digest}
    there = (d for d in known if blobs.blob_path(store.blobs, d).is_file())
    return PlannedModel(model, foreseen.plan, tuple(layers), frozenset(there))


def _imagined(data: bytes, media_type: str) -> Layer:
    return Layer(media_type, blobs.digest_of(data), len(data))


def _wishes(
    quantize: str | None,
    pre: str | None,
    imatrix: Path | None,
    options: Options,
    report: Report,
) -> Wishes:
    """How the weights are converted; ArgumentError for what is wrong whatever FROM names."""
    if imatrix is not None and not quantize:
        raise ArgumentError(f"--imatrix {imatrix}: importance is for quantising; add -q TYPE")
    check_options(options, quantize)
    check_plan(quantize or None, pre)
    return Wishes(
        quantize.upper() if quantize else None, report, pre=pre,
        imatrix=read_imatrix(imatrix) if imatrix else None, overrides=options.overrides,
        allow_requantize=options.allow_requantize, mtp=options.mtp,
    )  # fmt: skip


@contextmanager
def _opened(
    store: Store,
    modelfile: Modelfile,
    work: Wishes,
    hub: bool,
    merge: bool,
    calibrate: str | Path | None,
    *,
    dry: bool = False,
) -> "Iterator[tuple[_Base, Origin, tuple[NewLayer, ...]]]":
    """What the model takes over, its weights, checked and planned, and what is new beside them:
    projectors, adapters, drafts."""
    found = _source(store, modelfile, hub=hub)
    projectors, drafts = check_beside(modelfile, found.model, work.report)
    adapters = [locate_line(word, modelfile.folder) for word in modelfile.adapters]
    source = found.model if isinstance(found.model, ModelName) else found.fetch(work.report)
    for warning in modelfile.warnings:
        work.report(Warned(warning))
    base = _base(store, source)
    paths = [fetched_adapter(adapter, work.report) for adapter in adapters]
    merged = to_merge(store, source, paths, work.file_type, merge=merge)
    work = replace(work, merge=merged)
    if calibrate is not None:
        path = source if isinstance(source, Path) else store.open(source).gguf
        opened = partial(open_origin, store, source)
        work = calibrated(path, work, calibrate, opened, dry=dry)
    with ExitStack() as stack:
        origin = stack.enter_context(closing(open_origin(store, source, work)))
        new: tuple[NewLayer, ...] = ()
        if paths and merged is None:
            new = stack.enter_context(opened_adapters(paths, origin.target(), work.report))
        yield base, origin, (*projectors, *new, *drafts)


@dataclass(frozen=True)
class _Base:
    """What the new model takes over from the stored one that FROM names, if it names one."""

    config: Config
    params: dict[str, parameters.Value]


def _base(store: Store, source: Path | ModelName) -> _Base:
    if not isinstance(source, ModelName):
        return _Base(Config(), {})
    manifest = store.manifest(source)
    old = store.config(source, manifest)
    kept = Config(
        model_format=old.model_format,
        renderer=old.renderer,
        parser=old.parser,
        requires=old.requires,
        capabilities=old.capabilities,
    )
    return _Base(kept, store.params(source, manifest))


def _source(store: Store, modelfile: Modelfile, *, hub: bool) -> Reference:
    """What FROM names."""
    folder = modelfile.folder.absolute()
    try:
        return locate(modelfile.source, hub=hub, folder=folder, store=store)
    except NotFoundError as error:
        raise NotFoundError(f"FROM {error}") from None
    except ArgumentError as error:
        raise ModelfileError(f"FROM {error}") from None


def _layers(
    add: Callable[[bytes, str], Layer], start: Iterable[Layer], base: _Base, modelfile: Modelfile
) -> list[Layer]:
    """The layers in Ollama's order: the weights or all inherited layers first, then what the
    Modelfile sets, each in the place of its predecessor's end."""
    layers = list(start)

    def put(kind: str, data: bytes, *, instead: bool = True) -> None:
        if instead:
            layers[:] = [layer for layer in layers if layer.kind != kind]
        layers.append(add(data, LAYER_PREFIX + kind))

    if modelfile.template:
        layers = [layer for layer in layers if layer.kind != "prompt"]
        put("template", modelfile.template.encode())
    if modelfile.system:
        put("system", modelfile.system.encode())
    for text in modelfile.licenses:
        if text:
            put("license", text.encode(), instead=False)
    if values := parameters.merge(base.params, modelfile.parameters):
        put("params", gojson.encode(parameters.stored(values)))
    if modelfile.messages:
        turns = [{"role": turn.role, "content": turn.content} for turn in modelfile.turns]
        put("messages", gojson.encode(turns))
    return layers


def _config(header: Header, base: _Base, modelfile: Modelfile) -> Config:
    """The config blob: the weights say what they are, the rest is inherited or set."""
    old = base.config
    return replace(
        old,
        model_format=old.model_format or "gguf",
        model_family=header.architecture,
        model_families=(header.architecture,),
        model_type=human_count(header.weights),
        file_type=file_type_name(header.file_type),
        renderer=modelfile.renderer or old.renderer,
        parser=modelfile.parser or old.parser,
        requires=modelfile.requires or old.requires,
    )
