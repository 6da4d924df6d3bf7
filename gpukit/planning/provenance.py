"""What a GGUF was made from, noted in its metadata where a user asks for it (`--provenance`).

    gpukit.version, gpukit.matches   who made it, and the llama.cpp whose bytes those are
    gpukit.source.name               what the source is called; of the hub also .repo, .revision
    gpukit.source.files              names of the files that were read, with .sizes in bytes,
                                     .headers (sha256 of each header) and .digests (of all of it,
                                     '' where nobody has read it for that)
    gpukit.source.…                  of a source with provenance of its own, all of that
    gpukit.adapters.count            how many adapters were merged; of each gpukit.adapters.N.name,
                                     .weight, .files, .sizes, .digests, of the hub .repo, .revision
    gpukit.recipe.type, .options     what was asked for, in the command line's words
    gpukit.imatrix.digest            sha256 of the importance matrix
    general.source.repo_url          llama.cpp's own key, where the source is the hub's

No path of this machine, no date and no device: files of the same bytes have the same provenance.
Without being asked for it is not there, so that files are those of llama.cpp, byte for byte. A
source that has it passes it on: what it says would not be true of another file.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from gpukit.formats.digests import FileDigest, digest
from gpukit.formats.folder import file_names, hub_snapshot, model_name, read_files, weight_files
from gpukit.formats.gguf_fields import Field, ValueType, array, string, u32
from gpukit.formats.gguf_reader import is_gguf
from gpukit.planning.overrides import (
    EMBEDDING_TYPE,
    LEAVE_OUTPUT,
    OUTPUT_TYPE,
    Overrides,
    pattern_option,
)
from gpukit.planning.plan import Options
from gpukit.sources.base import Source
from gpukit.version import VERSION
from gpukit_kernels.facts import MATCHED

if TYPE_CHECKING:
    from gpukit.sources.converter_process import Converter
    from gpukit.sources.merged import Merge

PREFIX = "gpukit."
MARK = "gpukit.version"
SOURCE, ADAPTERS = "gpukit.source.", "gpukit.adapters."
REPO_URL = "general.source.repo_url"
CONFIG = "adapter_config.json"
WEIGHTS = (".safetensors", ".bin", ".pth")


@dataclass(frozen=True)
class Recipe:
    """What was asked for: a file type, options, pre-tokenizer, adapters, llama.cpp's converter."""

    type: str | None = None
    options: Options = field(default_factory=Options)
    pre: str | None = None
    merge: "Merge | None" = None
    converter: "Converter | None" = None


def has_provenance(fields: Sequence[Field]) -> bool:
    """Whether metadata says what its file was made from."""
    return any(entry.key == MARK for entry in fields)


def with_provenance(source: Source, recipe: Recipe) -> tuple[Field, ...]:
    """The metadata of `source` with what a file is made from that `recipe` makes of it."""
    own = [entry for entry in source.fields if not entry.key.startswith(PREFIX)]
    found = [string(MARK, VERSION), string("gpukit.matches", MATCHED), *_source(source)]
    earlier = [entry for entry in source.fields if entry.key.startswith(PREFIX)]
    found += [Field(SOURCE + f.key.removeprefix(PREFIX), f.type, f.value, f.item) for f in earlier]
    if recipe.merge is not None:
        found += _adapters(recipe.merge)
    found.append(string("gpukit.recipe.type", (recipe.type or "").upper()))
    found.append(array("gpukit.recipe.options", ValueType.STRING, recipe_words(recipe)))
    imatrix = recipe.options.imatrix
    if imatrix is not None and imatrix.is_file:
        found.append(string("gpukit.imatrix.digest", digest(imatrix.path, whole=True).whole))
    place = hub_snapshot(source.path)
    if place is not None and all(entry.key != REPO_URL for entry in own):
        own.append(string(REPO_URL, f"https://huggingface.co/{place[0]}"))
    return (*own, *found)


def source_files(source: Source) -> list[FileDigest]:
    """The files of the model itself that `source` reads, adapters left out."""
    path = source.path
    if not path.is_dir():
        return [digest(part) for part in source.files if is_gguf(part)][: len(source.parts)]
    naming = weight_files(file_names(path))
    weights = set(naming[1]) if naming is not None else set()
    # Weights of another naming and GGUFs beside them are not read.
    others = (*WEIGHTS, ".gguf")
    read = (f for f in read_files(path) if f.suffix not in others or f.name in weights)
    return [digest(file) for file in read]


def _source(source: Source) -> Iterator[Field]:
    path = source.path
    yield string(SOURCE + "name", model_name(path) if path.is_dir() else path.name)
    yield from _hub(SOURCE, path)
    files = source_files(source)
    yield from _files(SOURCE, files)
    yield array(SOURCE + "headers", ValueType.STRING, [file.header for file in files])


def _hub(prefix: str, path: Path) -> Iterator[Field]:
    place = hub_snapshot(path)
    if place is not None:
        yield string(prefix + "repo", place[0])
        yield string(prefix + "revision", place[1])


def _files(prefix: str, files: Sequence[FileDigest]) -> Iterator[Field]:
    yield array(prefix + "files", ValueType.STRING, [file.name for file in files])
    yield array(prefix + "sizes", ValueType.UINT64, [file.size for file in files])
    yield array(prefix + "digests", ValueType.STRING, [file.whole for file in files])


def _adapters(merge: "Merge") -> Iterator[Field]:
    yield u32(ADAPTERS + "count", len(merge.adapters))
    for number, chosen in enumerate(merge.adapters):
        prefix = f"{ADAPTERS}{number}."
        path = chosen.path
        yield string(prefix + "name", model_name(path) if path.is_dir() else path.name)
        yield Field(prefix + "weight", ValueType.FLOAT64, float(chosen.weight))
        yield from _hub(prefix, path)
        yield from _files(prefix, [digest(file, whole=True) for file in adapter_files(path)])


def adapter_files(path: Path) -> list[Path]:
    """The files of the adapter at `path`; a trainer leaves other ones of tensors beside it."""
    if path.is_dir():
        found = read_files(path)
        return [f for f in found if f.suffix not in WEIGHTS or f.name.startswith("adapter")]
    config = path.parent / CONFIG
    return [path] if is_gguf(path) or not config.exists() else [path, config]


def recipe_words(recipe: Recipe) -> Iterator[str]:
    """What was asked for, as the command line spells it."""
    options, merge = recipe.options, recipe.merge
    if options.like is not None:
        yield f"--like {options.like.name}"
    elif options.target is not None:
        yield options.target
    overrides = options.overrides or Overrides()
    yield from (pattern_option(*found) for found in overrides.patterns)
    for word, wanted in (
        (f"{OUTPUT_TYPE} {overrides.output_type}", overrides.output_type),
        (f"{EMBEDDING_TYPE} {overrides.embedding_type}", overrides.embedding_type),
        (LEAVE_OUTPUT, overrides.leave_output),
        ("--pure", overrides.pure),
        ("--allow-requantize", options.allow_requantize),
        ("--keep-split", options.keep_split),
        (f"--split-max-size {options.split_max_size}", options.split_max_size),
        (f"--pre {recipe.pre}", recipe.pre),
        ("--mtp", options.mtp),
        ("--no-mtp", options.mtp is False),
    ):
        if wanted:
            yield word
    if recipe.converter is not None:
        yield "--converter"
        yield from (f"--converter-arg={word}" for word in recipe.converter.arguments)
    if merge is None:
        return
    if merge.base != "full":
        yield f"--merge-base {merge.base}"
    if merge.layout is not None:
        yield f"--moe-layout {merge.layout.value}"
    if (how := merge.combining) is not None:
        yield f"--combine {how.method}"
        for name, value in (("density", how.density), ("rank", how.rank), ("seed", how.seed)):
            if value is not None:
                yield f"--{name} {value}"
