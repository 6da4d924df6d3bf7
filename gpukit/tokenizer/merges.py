"""Merges of a BPE: pairs of texts whose joint text is a token, the first pair before the others."""

from collections.abc import Container, Iterable

from gpukit.errors import TokenizerError

Pair = tuple[str, str]


def check_merges(pairs: Iterable[Pair], tokens: Container[str], where: str) -> None:
    """`TokenizerError` for a merge of what is no token, or that makes none.

    The tokenizers library refuses the first and some of the second; where the joint text is longer
    than every token it does not return.
    """
    for pair in pairs:
        for text in (*pair, "".join(pair)):
            if text not in tokens:
                shown = " ".join(pair)[:60]
                raise TokenizerError(f"{where}: merge {shown!r}: {text[:60]!r} is no token")
