"""A text cut into windows of tokens, as llama-perplexity and llama-imatrix cut it.

    the text          one newline at its end is dropped; ids with BOS where the vocabulary adds it
    windows           num_ctx tokens each, one behind the other; what is left at the end is dropped
    what goes in      of each window its own tokens, the first of them replaced by BOS where the
                      vocabulary adds it
    what is scored    the tokens behind the positions num_ctx / 2 to num_ctx - 2

With a stride windows begin every so many tokens and only as many at the end of each are scored;
no BOS is put in. Source: llama.cpp, tools/perplexity/perplexity.cpp.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gpukit.errors import ArgumentError, DiskError, counted
from gpukit.tokenizer import Tokenizer

Ids = npt.NDArray[np.int32]

NUM_CTX = 512
# What makes windows smaller, for messages.
NUM_CTX_OPTION = "--num-ctx"
# A window of 3 scores one token, a smaller one none.
LEAST = 3


@dataclass(frozen=True)
class Windows:
    """Windows of a text, in order.

    ids    int32 `[count, num_ctx]`, as the text has them
    first  the first position of a window whose next token is scored; those behind it are, too
    bos    what takes the place of each window's first token, if anything does
    """

    ids: Ids
    first: int
    bos: int | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[list[int]]:
        return (self.inputs(number) for number in range(len(self)))

    @property
    def num_ctx(self) -> int:
        """Tokens of a window."""
        return int(self.ids.shape[1])

    @property
    def scored(self) -> int:
        """How many tokens of each window are scored."""
        return self.num_ctx - 1 - self.first

    def inputs(self, number: int) -> list[int]:
        """The ids of a window as the model gets them, from an empty cache and position 0 on."""
        found: list[int] = self.ids[number].tolist()
        if self.bos is not None:
            found[0] = self.bos
        return found

    def targets(self, number: int) -> list[int]:
        """The ids that are scored: those behind the positions from `first` on, but the last."""
        found: list[int] = self.ids[number, self.first + 1 :].tolist()
        return found


def read_text(path: Path) -> str:
    """The text in a file, every byte of it. `ArgumentError` for what is no UTF-8 or no file,
    `DiskError` for what cannot be read."""
    try:
        return decoded(path.read_bytes(), str(path))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise ArgumentError(f"{path}: {error.strerror}; name a file with text") from None
    except OSError as error:
        raise DiskError(f"{path}: {error.strerror or error}") from None


def decoded(
    data: bytes, where: str, wanted: str = "a text is wanted, such as wiki.test.raw"
) -> str:
    """The text of `data`; `ArgumentError`, which begins with `where`, where it is no UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ArgumentError(f"{where}: byte {error.start} is no UTF-8: {wanted}") from None


def check_window(num_ctx: int, chunks: int | None = None, stride: int | None = None) -> None:
    """`ArgumentError` for sizes that no text can be cut into."""
    if num_ctx < LEAST:
        raise ArgumentError(f"num_ctx is {num_ctx}; windows have {LEAST} tokens at least")
    if chunks is not None and chunks < 1:
        raise ArgumentError(f"chunks is {chunks}; at least 1 is needed")
    if stride is not None and not 1 <= stride < num_ctx:
        raise ArgumentError(
            f"stride is {stride}; from 1 to {num_ctx - 1} tokens for windows of {num_ctx}"
        )


def text_ids(text: str, tokenizer: Tokenizer, *, parse_special: bool = False) -> list[int]:
    """The ids of a text as llama-perplexity has them, but for an EOS that the vocabulary adds at
    the end, which is left out: llama-perplexity has no place for one and stops. With
    `parse_special` control tokens that stand in the text become their ids."""
    ids = tokenizer.encode(text.removesuffix("\n"), parse_special=parse_special)
    if tokenizer.add_eos and tokenizer.eos_id is not None:
        ids.pop()
    return ids


def lost_bytes(text: str, tokenizer: Tokenizer) -> int:
    """How many bytes of `text` no token stands for: the vocabulary has holes there."""
    data = text.removesuffix("\n").encode()
    found = sum(len(tokenizer.token_bytes(number)) for number in text_ids(text, tokenizer))
    return max(len(data) - found, 0)


def cut(
    text: str,
    tokenizer: Tokenizer,
    num_ctx: int = NUM_CTX,
    *,
    chunks: int | None = None,
    stride: int | None = None,
    where: str = "",
    option: str = NUM_CTX_OPTION,
) -> Windows:
    """The windows of `text`, at most `chunks` of them; `ArgumentError` for a text that is shorter
    than two windows, and the errors of `check_window`. The message begins with `where` the text is,
    and names the `option` that makes windows smaller, if one does."""
    ids = text_ids(text, tokenizer)
    bos = tokenizer.bos_id if tokenizer.add_bos else None
    return cut_ids(
        ids, bos, num_ctx, chunks=chunks, stride=stride, where=where, option=option
    )  # fmt: skip


def cut_ids(
    ids: Sequence[int] | Ids,
    bos: int | None,
    num_ctx: int = NUM_CTX,
    *,
    chunks: int | None = None,
    stride: int | None = None,
    where: str = "",
    option: str = NUM_CTX_OPTION,
) -> Windows:
    """The same of a text's ids; `bos` is what the vocabulary begins a text with, if anything."""
    check_window(num_ctx, chunks, stride)
    if len(ids) < 2 * num_ctx:
        most = len(ids) // 2
        smaller = f", or {option} {most} or less" if option and most >= LEAST else ""
        is_empty = len(ids) <= (bos is not None)
        size = "is empty" if is_empty else f"has {counted(len(ids), 'token')}"
        raise ArgumentError(
            f"{where}{': ' if where else ''}the text {size}; two windows of {num_ctx} tokens are "
            f"{2 * num_ctx}: give a longer text{smaller}"
        )
    tokens = np.asarray(ids, np.int32)
    if stride is None:
        count = min(len(tokens) // num_ctx, chunks or len(tokens))
        return Windows(tokens[: count * num_ctx].reshape(count, num_ctx), num_ctx // 2, bos)
    count = min(-(-(len(tokens) - num_ctx) // stride), chunks or len(tokens))
    # The last of these can end behind the text, where llama-perplexity reads what is no token.
    count = min(count, (len(tokens) - num_ctx) // stride + 1)
    starts = np.lib.stride_tricks.sliding_window_view(tokens, num_ctx)[::stride]
    return Windows(starts[:count], num_ctx - stride - 1)
