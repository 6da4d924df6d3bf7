"""From a file to a plan that is known to make sense, whatever the models are."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from gpukit.batches.document import Document, Place, read_document, with_variables
from gpukit.batches.schema import BatchPlan, Calibrate, Evaluate, JobOptions, Matrix
from gpukit.conversion.checks import check_device, check_plan
from gpukit.errors import ArgumentError, GpukitError, did_you_mean
from gpukit.given import path_of
from gpukit.planning.overrides import Overrides, make_overrides, read_patterns
from gpukit.planning.plan import Options

NAMES = ("source", "adapter", "type")
# Where pydantic speaks of Python instead of YAML.
WANTED = {
    "tuple_type": "a list is needed, as [a, b]",
    "too_short": "one at least is needed",
    "bool_type": "true or false is needed",
    "bool_parsing": "true or false is needed",
    "string_type": "a text is needed",
    "dict_type": "keys with values are needed",
    "model_type": "keys with values are needed",
    "model_attributes_type": "keys with values are needed",
}


@dataclass(frozen=True)
class ReadPlan:
    """A plan, and where each word of it stands."""

    document: Document
    plan: BatchPlan

    @property
    def folder(self) -> Path:
        """Where relative paths start."""
        return self.document.path.absolute().parent

    @property
    def kept(self) -> Path:
        """The folder of what belongs to the plan and to no output: beside the plan."""
        path = self.document.path.absolute()
        return path.with_name(f"{path.name}.gpukit")


def read_plan(path: str | Path) -> ReadPlan:
    """The plan at `path`; `ArgumentError` with file and line for what is wrong in it."""
    document = with_variables(read_document(path_of(path, "the path of a plan")), os.environ)
    if not isinstance(document.value, dict):
        raise document.fault((), f"no plan: keys are needed: {', '.join(BatchPlan.model_fields)}")
    try:
        plan = BatchPlan.model_validate(document.value)
    except ValidationError as error:
        raise _first(document, error) from None
    _check_output(document, plan)
    _check_types(document, plan)
    _check_evaluations(document, plan)
    _check_pushes(document, plan)
    for place, options in _all_options(plan):
        _check_options(document, place, options, in_store=bool(plan.store))
    return ReadPlan(document, plan)


def _first(document: Document, error: ValidationError) -> ArgumentError:
    """The fault that stands first in the file, behind it keys that are missing, and the lines of
    all others. A key that is missing stands nowhere: it is told first only where nothing else is
    wrong."""
    faults = error.errors(include_url=False)
    places = [fault["loc"] for fault in faults]
    # A list whose every item is wrong is told to be empty, too.
    faults = [f for f in faults if not any(len(p) > len(f["loc"]) and p[: len(f["loc"])] == f["loc"]
                                           for p in places)]  # fmt: skip
    faults.sort(key=lambda fault: (fault["type"] == "missing", document.line(fault["loc"])))
    first, *rest = faults
    told = [_told(first, document)]
    told += [f"and {_told(fault, document)}" for fault in rest if fault["type"] == "missing"]
    stand = [fault["loc"] for fault in faults if fault["type"] != "missing"]
    others = sorted({document.line(place) for place in stand} - {document.line(first["loc"])})
    if others:
        shown = ", ".join(map(str, others[:3])) + (", …" if len(others) > 3 else "")
        told.append(f"see also line {shown}")
    return document.fault(first["loc"], "; ".join(told))


def _told(fault: Any, document: Document) -> str:
    """What is wrong, and what is allowed, in a word that the file has."""
    place: Place = fault["loc"]
    key = next((word for word in reversed(place) if isinstance(word, str)), "")
    match fault["type"]:
        case "extra_forbidden":
            known = _keys(place[:-1])
            return f"unknown key {key!r}; known: {', '.join(known)}{did_you_mean(key, known)}"
        case "missing":
            parent = ".".join(map(str, place[:-1]))
            return f"{key!r} is missing{f' in {parent}' if parent else ''}"
        case "value_error":
            return str(fault["ctx"]["error"])
    while place and place not in document.lines:
        place = place[:-1]
    shown = ".".join(map(str, place)) or "the plan"
    given = "null" if fault["input"] is None else repr(fault["input"])
    given = given if len(given) <= 60 else f"{given[:60]}…"
    wanted = WANTED.get(fault["type"], fault["msg"][:1].lower() + fault["msg"][1:])
    return f"{shown} is {given}; {wanted}"


def _keys(place: Place) -> list[str]:
    """The keys that a mapping at `place` may have."""
    model: type[BaseModel] = BatchPlan
    for word in place:
        if isinstance(word, str) and word in model.model_fields:
            model = _model_in(model.model_fields[word].annotation) or model
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_in, get_args(annotation))), None)


def _check_output(document: Document, plan: BatchPlan) -> None:
    if plan.output is None and plan.store is False:
        raise document.fault((), "'output' is missing: a pattern such as out/{source}-{type}.gguf, "
                             "or store: true")  # fmt: skip
    if plan.output is not None:
        check_pattern(document, ("output",), plan.output)
        if plan.store is False and not plan.output.endswith(".gguf"):
            raise document.fault(("output",), f"{plan.output}: must end in .gguf")


def _check_types(document: Document, plan: BatchPlan) -> None:
    """`ArgumentError` for what cannot be asked for in place of a file type."""
    matrices: list[tuple[Place, Matrix]] = [((), plan)]
    matrices += [(("include", i), more) for i, more in enumerate(plan.include)]
    for at, matrix in matrices:
        for i, wanted in enumerate(matrix.types):
            place = (*at, "types", i)
            if plan.store and wanted.type is None:
                raise document.fault(place, "the store's models have file types; write files with "
                                     "`output`, or name a type")  # fmt: skip
            if wanted.like is not None:
                check_pattern(document, (*place, "like"), wanted.like, NAMES[:2])
            try:
                Options(target_bpw=wanted.target_bpw, target_size=wanted.target_size)
            except GpukitError as error:
                raise document.fault(place, str(error)) from None


def _check_evaluations(document: Document, plan: BatchPlan) -> None:
    """`ArgumentError` for windows that nothing can be cut into."""
    wishes: list[tuple[Place, Any]] = []
    for key in ("evaluate", "calibrate"):
        wish = getattr(plan, key)
        if wish is not None and wish.text is None:
            raise document.fault((key,), f"'text' is missing in {key}: a file of text")
        wishes.append(((key,), wish))
        wishes += [(("overrides", i, key), getattr(o, key)) for i, o in enumerate(plan.overrides)]
    for place, wish in wishes:
        if not isinstance(wish, Evaluate | Calibrate):
            continue
        # What cuts texts takes time to import.
        from gpukit.evaluation.windows import NUM_CTX, check_window

        try:
            stride = wish.stride if isinstance(wish, Evaluate) else None
            check_window(NUM_CTX if wish.context is None else wish.context, wish.chunks, stride)
        except GpukitError as error:
            raise document.fault(place, str(error).replace("num_ctx", "context")) from None


def _check_pushes(document: Document, plan: BatchPlan) -> None:
    wishes: list[tuple[Place, Any]] = [(("push",), plan.push)]
    wishes += [(("overrides", i, "push"), o.push) for i, o in enumerate(plan.overrides)]
    if plan.push is not None and plan.push.to is None:
        raise document.fault(("push",), "'to' is missing in push: hf.co/org/name or the like")
    for place, wish in wishes:
        if wish and wish.to is not None:
            check_pattern(document, (*place, "to"), wish.to)


def check_pattern(
    document: Document, place: Place, pattern: str, names: Sequence[str] = NAMES
) -> None:
    """`ArgumentError` for braces around anything but `names` of a job's parts."""
    try:
        parts = list(Formatter().parse(pattern))
    except ValueError as error:
        raise document.fault(place, f"{pattern}: {error}") from None
    for _, name, form, conversion in parts:
        if name is not None and (name not in names or form or conversion):
            known = ", ".join(f"{{{known}}}" for known in names)
            raise document.fault(
                place, f"{pattern}: unknown {{{name}}}; known: {known}{did_you_mean(name, names)}"
            )


def _all_options(plan: BatchPlan) -> list[tuple[Place, JobOptions]]:
    more = [(("overrides", i, "options"), o.options) for i, o in enumerate(plan.overrides)]
    return [(("options",), plan.options), *more]


# What the store's models are made with; everything else is for files.
FOR_THE_STORE = {"imatrix", "pre", "mtp", "converter", "provenance", "device", "memory"}


def _check_options(
    document: Document, place: Place, options: JobOptions, *, in_store: bool
) -> None:
    """`ArgumentError` for an option that is wrong whatever the job."""
    if in_store and (others := sorted(options.model_fields_set - FOR_THE_STORE)):
        known = ", ".join(sorted(FOR_THE_STORE))
        raise document.fault(
            (*place, others[0]), f"{others[0]!r} is for files; with `store` there are {known}"
        )
    checks: dict[str, Any] = {
        "device": lambda: check_device(options.device),
        "tensor_types": lambda: make_overrides(options.tensor_types),
        "output_tensor_type": lambda: make_overrides((), output_type=options.output_tensor_type),
        "token_embedding_type": lambda: make_overrides(
            (), embedding_type=options.token_embedding_type
        ),
        "pre": lambda: check_plan(None, options.pre),
        "combine": lambda: combining(options),
    }
    for name in checks.keys() & options.model_fields_set:
        try:
            checks[name]()
        except GpukitError as error:
            raise document.fault((*place, name), str(error)) from None
    if options.keep_split and options.split_max_size is not None:
        raise document.fault((*place, "keep_split"), "keep_split and split_max_size exclude each "
                             "other; give one")  # fmt: skip
    if options.imatrix is not None:
        check_pattern(document, (*place, "imatrix"), options.imatrix)


def overrides_of(options: JobOptions) -> Overrides | None:
    """Types of single tensors that a job is told, None for none; the errors of a file of them."""
    patterns = [*options.tensor_types]
    if options.tensor_type_file is not None:
        patterns += read_patterns(Path(options.tensor_type_file))
    return make_overrides(
        patterns, pure=options.pure, leave_output=options.leave_output_tensor,
        output_type=options.output_tensor_type, embedding_type=options.token_embedding_type,
    )  # fmt: skip


def combining(options: JobOptions) -> Any:
    """How adapters become one, as `gpukit.Combining`; None where their deltas are added up."""
    if options.combine is None:
        return None
    # It is told with torch.
    from gpukit.adapters.mixing import Combining

    wish = options.combine
    return Combining(wish.method, density=wish.density, rank=wish.rank, seed=wish.seed)
