"""The entries of a plan's lists: models, adapters and types, as they may be written."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

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


def keyed(key: str) -> Callable[[Any], Any]:
    """What reads an entry that may be a text alone, the value of `key`."""

    def read(value: Any) -> Any:
        return {key: value} if isinstance(value, str) else _mapping(value, "a text")

    return read


def _adapter(value: Any) -> Any:
    if value is None or value == "none":
        return {"paths": []}
    if isinstance(value, str):
        return {"paths": [value]}
    return {"paths": value} if isinstance(value, list) else _mapping(value, "a text or a list")


def _mapping(value: Any, other: str) -> Any:
    if not isinstance(value, dict | BaseModel):
        raise PydanticCustomError(
            "no_entry", "{other}, or keys with values, is needed", {"other": other}
        )
    return value


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


Words = Annotated[tuple[str, ...], BeforeValidator(_list, json_schema_input_type=str | list[str])]


class Checkout(Entry):
    """A checkout of llama.cpp whose converter reads the sources, as `--converter`; its code is
    run."""

    path: str = Field(min_length=1, description="The folder with convert_hf_to_gguf.py.")
    arguments: Words = Field(
        default=(), description="Arguments of the converter, as --mmproj; as --converter-arg."
    )
    python: str | None = Field(
        default=None, min_length=1, description="The Python that runs it; that of gpukit."
    )
    trust_remote_code: bool = Field(
        default=False, description="Let it run code that lies in the model's folder."
    )


class Adapter(Entry):
    """What is merged together: no adapter, one, or several."""

    paths: tuple[str, ...] = Field(
        description="Adapters, each DIR or DIR:WEIGHT, merged in this order; a single one may be "
        "a glob, which makes one entry of each."
    )
    name: str | None = Field(default=None, min_length=1, description="What {adapter} becomes.")


CheckoutEntry = Annotated[
    Checkout, BeforeValidator(keyed("path"), json_schema_input_type=str | Checkout)
]
SourceEntry = Annotated[Source, BeforeValidator(keyed("path"), json_schema_input_type=str | Source)]
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
        keyed("type"),
        json_schema_input_type=Annotated[
            str, WithJsonSchema({"type": "string", "examples": [*FILE_TYPES, *ALIASES]})
        ]
        | Type,
    ),
]
NO_ADAPTER = Adapter(paths=())
