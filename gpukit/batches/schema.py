"""What a plan may say. Importing pydantic takes time: only `reading` imports this."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    model_validator,
)

from gpukit.errors import GpukitError
from gpukit.formats.file_types import ALIASES, FILE_TYPES, file_type_of
from gpukit.formats.gguf_split import parse_size, part_of


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


def _kind(value: Any) -> Any:
    return {"type": value} if isinstance(value, str) else value


def _text(value: Any) -> Any:
    return {"text": value} if isinstance(value, str) else value


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
Size = Annotated[int, BeforeValidator(_size, json_schema_input_type=int | str)]


class Type(Entry):
    """What a model becomes: a file type, or what chooses the types of its tensors instead; one of
    the first four."""

    type: TypeName | None = Field(default=None, description="A file type such as Q4_K_M.")
    target_bpw: float | None = Field(
        default=None, gt=0, description="Bits per weight; the types that lose least within them."
    )
    target_size: Size | None = Field(
        default=None, description="Bytes of the file, as 500M or 2G; as target_bpw."
    )
    like: str | None = Field(
        default=None,
        min_length=1,
        description="A GGUF whose tensors' types are taken, with {source} and {adapter} in it.",
    )
    name: str | None = Field(default=None, min_length=1, description="What {type} becomes.")

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [name for name in CHOICES if getattr(self, name) is not None]
        if len(given) != 1:
            told = " and ".join(given) if given else "none of them"
            raise ValueError(f"one of {', '.join(CHOICES)} is needed, {told} is given")
        if self.like is not None and "{" in self.like and self.name is None:
            raise ValueError(f"{self.like}: say what {{type}} becomes, with `name`")
        return self

    @property
    def called(self) -> str:
        """What {type} becomes."""
        if self.name is not None:
            return self.name
        if self.target_bpw is not None:
            return f"{self.target_bpw:g}bpw"
        if self.target_size is not None:
            return _round_size(self.target_size)
        if self.like is not None:
            path = Path(self.like)
            part = part_of(path.name)
            return part[0] if part else path.stem
        assert self.type is not None
        return self.type


CHOICES = ("type", "target_bpw", "target_size", "like")


def _round_size(size: int) -> str:
    """A size as users write it, in the largest unit that leaves nothing over."""
    for unit, letter in ((10**9, "G"), (10**6, "M"), (10**3, "K")):
        if size % unit == 0:
            return f"{size // unit}{letter}"
    return str(size)


TypeEntry = Annotated[
    Type,
    BeforeValidator(
        _kind,
        json_schema_input_type=Annotated[
            str, WithJsonSchema({"type": "string", "examples": [*FILE_TYPES, *ALIASES]})
        ]
        | Type,
    ),
]
Words = Annotated[tuple[str, ...], BeforeValidator(_list, json_schema_input_type=str | list[str])]
NO_ADAPTER = Adapter(paths=())


class Matrix(Entry):
    """Every source with every adapter as every type."""

    sources: tuple[SourceEntry, ...] = Field(min_length=1, description="The models to read.")
    adapters: tuple[AdapterEntry, ...] = Field(
        default=(NO_ADAPTER,),
        min_length=1,
        description="What is merged into each: `none`, an adapter, or a list of them together.",
    )
    types: tuple[TypeEntry, ...] = Field(
        min_length=1,
        description="File types such as Q4_K_M, or what chooses a type for each tensor.",
    )


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
    split_max_size: Size | None = Field(
        default=None, description="Bytes of data in each file at most: results are split."
    )
    keep_split: bool = Field(
        default=False, description="As many files as the split GGUF has that is read."
    )
    provenance: bool = Field(
        default=False, description="The metadata say what a file was made from."
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


class Evaluate(Entry):
    """A text that results are measured by, as `gpukit perplexity` does."""

    text: str | None = Field(default=None, min_length=1, description="A file of text; needed.")
    context: int | None = Field(default=None, description="Tokens of each window; 512.")
    chunks: int | None = Field(default=None, description="Windows at most; all of the text.")
    stride: int | None = Field(
        default=None, description="Windows begin every so many tokens, and only these are scored."
    )
    against: str | None = Field(
        default=None,
        min_length=1,
        description="`source`, with the adapters that were merged, or a model or a logits file: "
        "what the divergence is from. Without it there is perplexity alone.",
    )


class Calibrate(Entry):
    """A text that a source reads first: what it hears is the importance of its weights."""

    text: str | None = Field(default=None, min_length=1, description="A file of text; needed.")
    context: int | None = Field(default=None, description="Tokens of each window; 512.")
    chunks: int | None = Field(default=None, description="Windows at most; all of the text.")


CalibrateEntry = Annotated[
    Calibrate, BeforeValidator(_text, json_schema_input_type=str | Calibrate)
]


class Override(Entry):
    """Options for the jobs that match, over those before it."""

    match: Match
    options: JobOptions = JobOptions()
    evaluate: Evaluate | Literal[False] | None = Field(
        default=None, description="Keys over those before, or false: these are not measured."
    )
    calibrate: CalibrateEntry | Literal[False] | None = Field(
        default=None, description="Keys over those before, or false: without importance."
    )


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
    evaluate: Evaluate | None = Field(
        default=None, description="What every result is measured by when it is made."
    )
    calibrate: CalibrateEntry | None = Field(
        default=None,
        description="What sources read first; the importance is used by all types but floats.",
    )
    overrides: tuple[Override, ...] = Field(default=(), description="Options of some jobs.")


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a plan."""
    found = BatchPlan.model_json_schema(mode="validation")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found}
