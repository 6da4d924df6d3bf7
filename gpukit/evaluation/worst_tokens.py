"""The tokens on which a model is farthest from its reference, with the text around them."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gpukit.evaluation.scoring import Scores
from gpukit.evaluation.windows import Windows
from gpukit.tokenizer import Tokenizer

COUNT = 20
# Tokens of context in front of one and behind it, and characters of it that are kept.
BEFORE, AFTER = 16, 6
MOST = 120


@dataclass(frozen=True)
class WorstToken:
    """A scored token: `position` in window `chunk` (from 1 on), its probability `p` by the model,
    and beside a reference by that and the divergence there. Texts are as they are: hostile."""

    chunk: int
    position: int
    before: str
    token: str
    after: str
    p: float
    p_base: float | None
    kld: float | None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def worst_tokens(
    scores: Scores, windows: Windows, tokenizer: Tokenizer, count: int = COUNT
) -> tuple[WorstToken, ...]:
    """The `count` tokens with the largest divergence, largest first; without a reference those that
    the model expects least."""
    ranked = scores.nll if scores.kld is None else scores.kld
    order = np.argsort(-np.nan_to_num(ranked, nan=-math.inf), kind="stable")
    found = []
    for number in order[:count].tolist():
        chunk, place = divmod(number, windows.scored)
        at = windows.first + 1 + place
        ids: list[int] = windows.ids[chunk].tolist()
        found.append(WorstToken(
            chunk=chunk + 1,
            position=at,
            before=_text(ids[max(at - BEFORE, 0) : at], tokenizer)[-MOST:],
            token=_text(ids[at : at + 1], tokenizer)[:MOST],
            after=_text(ids[at + 1 : at + 1 + AFTER], tokenizer)[:MOST],
            p=math.exp(-scores.nll[number]),
            p_base=None if scores.nll_base is None else math.exp(-scores.nll_base[number]),
            kld=None if scores.kld is None else float(scores.kld[number]),
        ))  # fmt: skip
    return tuple(found)


def _text(ids: list[int], tokenizer: Tokenizer) -> str:
    """What the tokens stand for; a control token is its name, a part of a character its bytes."""
    parts = [
        tokenizer.token_bytes(each) or tokenizer.tokens[each].encode("utf-8", "surrogateescape")
        for each in ids
    ]
    return b"".join(parts).decode("utf-8", "backslashreplace")
