"""What a plan may say. Importing pydantic takes time: only `reading` imports this."""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
)

from gpukit.errors import GpukitError
from gpukit.formats.file_types import ALIASES, FILE_TYPES, file_type_of
from gpukit.formats.gguf_split import parse_size


class Entry(BaseModel):
    """A mapping with these keys and no others."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)


def _type(name: str) -> str:
    try:
        return file_type_of(name).name
    except GpukitError as error:
        raise ValueError(str(error)) from None


def _size(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"{value!r} is no size; write bytes, or K, M or G as in 500M or 2G")
    try:
        size = parse_size(str(value))
    except GpukitError as error:
        raise ValueError(str(error)) from None
    return size


def _source(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


def _adapter(value: Any) -> Any:
    if value is None or value == "none":
        return {"paths": []}
    if isinstance(value, str):
        return {"paths": [value]}
    return {"paths": value} if isinstance(value, list) else value


def _list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class Source(Entry):
    """One model, or with * ? [ ] all whose paths or names in the store match."""

    path: str = Field(
        min_length=1,
        description="A model folder, a GGUF, a name in the store or hf.co/org/name; relative paths "
        "start at the plan's folder. May be a glob.",
    )
    name: str | None = Field(default=None, min_length=1, description="What {source} becomes.")


class Adapter(Entry):
    """What is merged together: no adapter, one, or several."""

    paths: tuple[str, ...] = Field(
        description="Adapters, each DIR or DIR:WEIGHT, merged in this order; a single one may be "
        "a glob, which makes one entry of each."
    )
    name: str | None = Field(default=None, min_length=1, description="What {adapter} becomes.")


SourceEntry = Annotated[Source, BeforeValidator(_source, json_schema_input_type=str | Source)]
AdapterEntry = Annotated[
    Adapter,
    BeforeValidator(_adapter, json_schema_input_type=None | str | list[str] | Adapter),
]
TypeName = Annotated[
    str,
    AfterValidator(_type),
    WithJsonSchema({"type": "string", "examples": [*FILE_TYPES, *ALIASES]}),
]
Words = Annotated[tuple[str, ...], BeforeValidator(_list, json_schema_input_type=str | list[str])]
Size = Annotated[int, BeforeValidator(_size, json_schema_input_type=int | str)]
NO_ADAPTER = Adapter(paths=())


class Matrix(Entry):
    """Every source with every adapter as every type."""

    sources: tuple[SourceEntry, ...] = Field(min_length=1, description="The models to read.")
    adapters: tuple[AdapterEntry, ...] = Field(
        default=(NO_ADAPTER,),
        min_length=1,
        description="What is merged into each: `none`, an adapter, or a list of them together.",
    )
    types: tuple[TypeName, ...] = Field(min_length=1, description="File types such as Q4_K_M.")


class Match(Entry):
    """Jobs whose source, adapter and type match, each a glob or several, in any case; what is left
    out matches all."""

    source: Words = ("*",)
    adapter: Words = ("*",)
    type: Words = ("*",)


class Combine(Entry):
    """How several adapters become one, as `gpukit merge --combine`."""

    method: str
    density: float | None = None
    rank: int | None = None
    seed: int | None = None


class JobOptions(Entry):
    """What a job may be told besides its type, as the options of `gpukit quantize` and `merge`."""

    imatrix: str | None = Field(
        default=None,
        description="Importance matrix; {source}, {adapter} and {type} may stand in it.",
    )
    tensor_types: Words = Field(
        default=(), description="REGEX=TYPE each; the first that matches wins."
    )
    tensor_type_file: str | None = Field(default=None, description="A file of such.")
    pure: bool = Field(default=False, description="One type for all, no mix.")
    leave_output_tensor: bool = Field(default=False, description="Do not quantise output.weight.")
    output_tensor_type: str | None = Field(default=None, description="Type of output.weight.")
    token_embedding_type: str | None = Field(default=None, description="Type of token_embd.weight.")
    allow_requantize: bool = Field(
        default=False, description="Take quantised tensors, which loses more."
    )
    pre: str | None = Field(default=None, description="Pre-tokenizer of a model folder.")
    strict: bool = Field(
        default=False, description="Refuse an adapter that names another base model."
    )
    moe_layout: Literal["peft", "peft-0.18", "unsloth"] | None = Field(
        default=None, description="How an adapter's tensors of experts lie."
    )
    merge_base: Literal["full", "nf4", "nf4-single"] = Field(
        default="full", description="What deltas are added to."
    )
    combine: Combine | None = Field(default=None, description="Without it deltas are added up.")
    device: str = Field(
        default="auto", description="auto, cpu, cuda, cuda:N, or several with commas."
    )
    memory: Size = Field(
        default=4 << 30, description="Bytes of buffers on the host, as 500M or 2G."
    )


class Override(Entry):
    """Options for the jobs that match, over those before it."""

    match: Match
    options: JobOptions


class BatchPlan(Matrix):
    """A plan of `gpukit batch`: which sources become which files."""

    output: str | None = Field(
        default=None,
        min_length=1,
        description="Where each result goes: a path that ends in .gguf, or with `store` a name, "
        "with {source}, {adapter} and {type} in it.",
    )
    store: bool | str = Field(
        default=False,
        description="Put results into the store: true, or what their names begin with.",
    )
    variables: dict[str, str] = Field(default={}, description="What ${NAME} means in this plan.")
    include: tuple[Matrix, ...] = Field(
        default=(), description="More combinations, beside the matrix."
    )
    exclude: tuple[Match, ...] = Field(
        default=(), description="Combinations of the matrix left out."
    )
    options: JobOptions = Field(default=JobOptions(), description="Options of all jobs.")
    overrides: tuple[Override, ...] = Field(default=(), description="Options of some jobs.")


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a plan."""
    found = BatchPlan.model_json_schema(mode="validation")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found}
