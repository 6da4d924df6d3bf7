"""What a plan may say. Importing pydantic takes time: only `reading` imports this."""

from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
)

from gpukit.batches.schema_entries import (
    NO_ADAPTER,
    AdapterEntry,
    CheckoutEntry,
    Entry,
    Size,
    SourceEntry,
    TypeEntry,
    Words,
    keyed,
)


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
    mtp: bool | None = Field(
        default=None,
        description="Of a model folder the layers alone that guess further tokens; false: all but "
        "those.",
    )
    converter: CheckoutEntry | None = Field(
        default=None, description="A checkout of llama.cpp whose converter reads model folders."
    )
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
    Calibrate, BeforeValidator(keyed("text"), json_schema_input_type=str | Calibrate)
]


class Push(Entry):
    """Where results are sent when they are made, as `gpukit push` does."""

    to: str | None = Field(
        default=None,
        min_length=1,
        description="hf.co/org/name[/FILE.gguf], or with `store` a name with its registry; "
        "{source}, {adapter} and {type} may stand in it. Needed.",
    )
    private: bool = Field(
        default=False, description="A repository of the hub that is made is private."
    )
    insecure: bool = Field(
        default=False,
        description="Plain http and certificates that nobody vouches for, of registries.",
    )


PushEntry = Annotated[Push, BeforeValidator(keyed("to"), json_schema_input_type=str | Push)]


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
    push: PushEntry | Literal[False] | None = Field(
        default=None, description="Keys over those before, or false: these stay here."
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
    push: PushEntry | None = Field(
        default=None, description="Where each result is sent when it is made."
    )
    overrides: tuple[Override, ...] = Field(default=(), description="Options of some jobs.")


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a plan."""
    found = BatchPlan.model_json_schema(mode="validation")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found}
