"""The vocabulary of a Hugging Face folder as GGUF metadata, as llama.cpp's converter writes it.

There are three: `tokenizer.model` (sentencepiece), `tokenizer.json` of a sentencepiece model (BPE
with byte fallback), `tokenizer.json` of a byte-level BPE. Where both files are there the first
counts, as for the converter, unless tokenizer.json has other tokens: transformers reads that one.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from gpukit.errors import TokenizerError
from gpukit.events import Report, Warned, ignore
from gpukit.formats.gguf_fields import Field, boolean
from gpukit.tokenizer import filling
from gpukit.tokenizer.added import added_tokens_decoder, added_tokens_file, text_of
from gpukit.tokenizer.files import read_json
from gpukit.tokenizer.library import Library, read_library
from gpukit.tokenizer.pieces import Piece, read_pieces
from gpukit.tokenizer.recognition import recognise
from gpukit.tokenizer.special import special_fields
from gpukit.tokenizer.table import Table
from gpukit.tokenizer.templates import chat_templates
from gpukit.tokenizer.types import TokenType

# Vocabulary sizes that stand for a model family with facts of its own.
CODE_LLAMA = 32016
GRANITE_SMALL = 49152
CODE_LLAMA_IDS = {"prefix": 32007, "suffix": 32008, "middle": 32009, "eot": 32010}


def vocabulary_fields(
    folder: Path, config: Mapping[str, Any], *, pre: str | None = None, report: Report = ignore
) -> list[Field]:
    """Every tokenizer.* field for a Llama in `folder`, in the converter's order.

    `config` is config.json (its vocab_size counts); `pre` names the pre-tokenizer of a byte-level
    BPE that is not recognised; `report` is told of tokens that are left out. `TokenizerError` for a
    vocabulary that is missing, unknown, broken or larger than the embedding.
    """
    size = int(config["vocab_size"])
    settings = read_json(folder / "tokenizer_config.json") or {}
    prefix = settings.get("add_prefix_space")
    said = [] if prefix is None else [boolean("tokenizer.ggml.add_space_prefix", bool(prefix))]
    fields = [*said, *listed_fields(folder, size, pre, report), *said]
    if size == CODE_LLAMA:
        fields += special_fields(folder, kinds=tuple(CODE_LLAMA_IDS), ids=CODE_LLAMA_IDS)
    if size == GRANITE_SMALL:
        fields.append(boolean("tokenizer.ggml.add_bos_token", False))
    return last_values(fields)


def last_values(fields: list[Field]) -> list[Field]:
    """A key set twice keeps its first place and its last value."""
    return list({field.key: field for field in fields}.values())


# A token that the converter adds to a tokenizer.model: id, text and type.
Placed = tuple[int, str, TokenType]


def listed_fields(
    folder: Path,
    size: int,
    pre: str | None,
    report: Report,
    added: Callable[[Path], Iterable[Placed]] | None = None,
    texts: Mapping[str, str] = MappingProxyType({}),
) -> list[Field]:
    """The fields of whichever vocabulary is in `folder`, with `size` tokens; `added` finds those
    that the converter adds to a tokenizer.model; `texts` are the special tokens of kinds that no
    file names."""
    library, table = read_library(folder), Table(size)
    pieces = _pieces(folder, library, report)
    if library is None and pieces is None and (folder / "tekken.json").is_file():
        raise TokenizerError(
            f"{folder}: no tokenizer.json beside tekken.json, which is not read; copy that of the "
            "model's repository into the folder"
        )
    if library is None and pieces is None:
        raise TokenizerError(
            f"{folder}: no tokenizer.model and no tokenizer.json; copy the tokenizer of the model "
            "into the folder"
        )
    more: list[Field] = []
    if pieces is not None:
        _check_fits(folder / "tokenizer.model", pieces, size)
        filling.fill_pieces(table, pieces, (added or _added)(folder))
        filling.fill_added(table, folder, library)
        listed = table.fields("llama", "default")
    elif library is not None and library.byte_fallback:
        filling.fill_ranked(table, folder, library)
        listed = table.fields("llama", "default")
        if not library.puts_space:
            more = [boolean("tokenizer.ggml.add_space_prefix", False)]
    elif library is not None:
        tokenizer = filling.fill_byte_level(table, folder, library)
        listed = table.fields("gpt2", recognise(tokenizer, library.path, pre))
    _leave_out(folder, table.outside, report)
    special = special_fields(
        folder,
        size=size,
        merges=listed[0].value == "gpt2",
        ids=_ids(folder, library, texts),
        library=library.data if library else None,
        report=report,
    )
    return [*listed, *special, *more]


def character_fields(
    folder: Path, size: int, report: Report, shown: Iterable[str] = ()
) -> list[Field]:
    """The fields of a tokenizer.json of which llama.cpp merges characters as they are ("gemma4"),
    with `size` tokens; those called `shown` are part of every answer."""
    library, table = read_library(folder), Table(size)
    if library is None or not library.byte_fallback:
        raise TokenizerError(
            f"{folder}: no tokenizer.json with a BPE that falls back to bytes, which this "
            "architecture has; copy the tokenizer of the model into the folder"
        )
    filling.fill_characters(table, folder, library)
    for text in shown:
        table.show(text)
    _leave_out(folder, table.outside, report)
    special = special_fields(folder, size=size, merges=True, library=library.data, report=report)
    return [*table.fields("gemma4", None), *special]


def _ids(folder: Path, library: Library | None, texts: Mapping[str, str]) -> dict[str, int]:
    """The ids of added tokens by their kinds; `TokenizerError` for one that is not there."""
    added = (library.data.get("added_tokens") or []) if library else []
    there = {token.get("content"): token.get("id") for token in added}
    missing = [text for text in texts.values() if text not in there]
    if missing:
        raise TokenizerError(
            f"{folder}: no added token {missing[0]} in tokenizer.json, which this architecture "
            "has; copy the tokenizer of the model into the folder"
        )
    return {kind: there[text] for kind, text in texts.items()}


def _pieces(folder: Path, library: Library | None, report: Report) -> list[Piece] | None:
    """What is in tokenizer.model; None where there is none, or where tokenizer.json counts."""
    path = folder / "tokenizer.model"
    if not path.is_file() or (library is not None and library.byte_level):
        return None
    spare = library is not None and library.byte_fallback
    try:
        pieces = read_pieces(path)
    except TokenizerError as error:
        if not spare:
            raise
        report(Warned(f"{error}: tokenizer.json is read in its place"))
        return None
    if library is None or not spare or library.agrees(pieces):
        return pieces
    report(Warned(f"{path}: other tokens than in tokenizer.json, which is read in its place"))
    return None


def _check_fits(path: Path, pieces: list[Piece], size: int) -> None:
    if len(pieces) > size:
        raise TokenizerError(
            f"{path}: {len(pieces)} tokens, config.json has a vocab_size of {size}; the model has "
            "no embedding for the rest"
        )


def _added(folder: Path) -> Iterator[Placed]:
    for entry in added_tokens_file(folder):
        yield entry.number, entry.text, TokenType.USER_DEFINED
    for entry in added_tokens_decoder(folder):
        yield entry.number, entry.spelled, entry.kind


def _leave_out(folder: Path, outside: Mapping[int, str], report: Report) -> None:
    """Tell of tokens without an embedding; `TokenizerError` where the model needs one."""
    if not outside:
        return
    settings = read_json(folder / "tokenizer_config.json") or {}
    ends = [text_of(settings.get(f"{kind}_token")) for kind in ("bos", "eos")]
    templates = chat_templates(folder, settings).values()
    for number, text in outside.items():
        if text in ends or any(text in template for template in templates):
            raise TokenizerError(
                f"{folder}: token {number} ({text[:80]!r}) has no row in the embedding, and the "
                "tokenizer's settings or the chat template ask for it; fetch the folder again"
            )
    shown = ", ".join(f"{number} {text[:80]!r}" for number, text in list(outside.items())[:3])
    more = ", …" if len(outside) > 3 else ""
    count = f"{len(outside)} token{'s' if len(outside) > 1 else ''}"
    report(Warned(f"{folder}: {count} left out, past the end of the embedding: {shown}{more}"))
