"""Fills the table of a vocabulary from each of the three forms that a folder has it in."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpukit.errors import TokenizerError
from gpukit.tokenizer.added import Added, added_tokens_decoder, added_tokens_file, special_texts
from gpukit.tokenizer.library import Library
from gpukit.tokenizer.merges import check_merges
from gpukit.tokenizer.pieces import Piece
from gpukit.tokenizer.table import Table
from gpukit.tokenizer.types import BYTE_TEXTS, TokenType


def fill_pieces(
    table: Table, pieces: Sequence[Piece], added: Iterable[tuple[int, str, TokenType]]
) -> None:
    """Put the pieces of a tokenizer.model, then the tokens that the converter adds to them."""
    for number, (text, score, kind) in enumerate(pieces):
        table.put(number, text, kind, score)
    for number, text, kind in added:
        table.put(number, text, kind)


def fill_added(table: Table, folder: Path, library: Library | None) -> None:
    """Take up what tokenizer.json and the settings say of tokens of a tokenizer.model."""
    # A tokenizer.json without a model is none: transformers would not read it.
    whole = library is not None and bool(library.model)
    own = library.added if library is not None and whole else []
    _declare(table, folder, own, whole=whole)


def fill_ranked(table: Table, folder: Path, library: Library) -> None:
    """Put a sentencepiece model that is there as tokenizer.json: merges have ranks, and what makes
    the pieces merge in their order are scores that fall with them."""
    library.check()
    scores = library.scores()
    last = -float(len(scores))
    for number, text in _with_bytes(library.fitting(table.size)).items():
        kind = TokenType.BYTE if text in BYTE_TEXTS else TokenType.NORMAL
        table.put(number, text, kind, scores.get(text, last))
    for entry in _others(folder):
        table.declare(entry)
    _declare(table, folder, library.added, whole=True)


def fill_characters(table: Table, folder: Path, library: Library) -> None:
    """Put a BPE whose characters merge by rank, and fall back to bytes."""
    library.check()
    check_merges(library.merges, library.model.get("vocab", ()), str(library.path))
    for number, text in library.fitting(table.size).items():
        table.put(number, text, TokenType.BYTE if text in BYTE_TEXTS else TokenType.NORMAL)
    for entry in _others(folder):
        table.declare(entry)
    _declare(table, folder, library.added, whole=True)


def _with_bytes(texts: Mapping[int, str]) -> dict[int, str]:
    """`texts` with bytes that are spelled as characters among them (a Gemma's tab) as bytes."""
    first = next((number for number, text in texts.items() if text == "<0x00>"), 0)
    spelled = {first + byte: (chr(byte), f"<0x{byte:02X}>") for byte in range(256)}
    return {
        number: spelled[number][1] if number in spelled and text == spelled[number][0] else text
        for number, text in texts.items()
    }


def fill_byte_level(table: Table, folder: Path, library: Library) -> Any:
    """Put a byte-level BPE; the tokenizers library's own object of it."""
    from tokenizers import Tokenizer

    library.check()
    check_merges(library.merges, library.model.get("vocab", ()), str(library.path))
    try:
        tokenizer = Tokenizer.from_file(str(library.path))
    except Exception as error:  # the library raises plain Exception
        raise TokenizerError(f"{library.path}: no tokenizer: {error}") from None
    # What was switched on when the file was saved would become a part of every text.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.model.dropout = None
    for number, text in library.fitting(table.size).items():
        table.put(number, text, TokenType.NORMAL)
    for entry in _others(folder):
        table.declare(entry)
    own = [_rendered(tokenizer, entry) for entry in library.added]
    _declare(table, folder, own, whole=True)
    return tokenizer


def _rendered(tokenizer: Any, entry: Added) -> Added:
    """`entry` with the text that comes out of it, where its text is not normalised before."""
    if entry.normalized:
        return entry
    ids = tokenizer.encode(entry.text, add_special_tokens=False).ids
    return replace(entry, text=tokenizer.decode(ids, skip_special_tokens=False))


def _others(folder: Path) -> list[Added]:
    """What other files than tokenizer.json declare, as transformers reads them: added_tokens.json
    counts where tokenizer_config.json declares nothing."""
    return list(added_tokens_decoder(folder)) or list(added_tokens_file(folder))


def _declare(table: Table, folder: Path, own: Sequence[Added], *, whole: bool) -> None:
    """Take up the entries of tokenizer.json, then what the settings say of single tokens. Where the
    `whole` vocabulary is known, special tokens without an id get the next one, as in transformers.
    """
    for entry in own:
        table.declare(entry)
    for text in special_texts(folder, own):
        if not table.call_special(text) and whole:
            table.append(text)
