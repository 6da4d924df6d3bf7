"""A vocabulary in a few facts, from its metadata alone."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from gpukit.formats.gguf_fields import Field
from gpukit.tokenizer.specials import FILL_TEXTS, corrected
from gpukit.tokenizer.types import TokenType

PREFIX = "tokenizer.ggml."
# Special tokens in the order in which they are shown, by the key that names them.
KINDS = {
    "bos": "bos", "eos": "eos", "eot": "eot", "eom": "eom", "unknown": "unknown",
    "padding": "padding", "separator": "seperator", "mask": "mask",
}  # fmt: skip


@dataclass(frozen=True)
class Named:
    """A token by its id and text."""

    id: int
    text: str


@dataclass(frozen=True)
class TokenizerSummary:
    """`model` and `pre` as GGUF spells them; `types` counts tokens by their type; `special` are the
    tokens that the metadata name; `ends` end a generation; `adds` are the flags that are set."""

    model: str
    pre: str | None
    tokens: int
    merges: int
    types: dict[str, int]
    special: dict[str, Named]
    ends: tuple[Named, ...]
    adds: dict[str, bool]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def summarise(fields: Mapping[str, Field]) -> TokenizerSummary | None:
    """The vocabulary in the metadata of a GGUF; None where there is none or it makes no sense."""

    def get(key: str) -> Any:
        field = fields.get(PREFIX + key)
        return None if field is None else field.value

    tokens, model = get("tokens"), get("model")
    if not _all(tokens, str) or not isinstance(model, str):
        return None
    numbers = get("token_type")
    kinds = numbers if _all(numbers, int) and len(numbers) >= len(tokens) else [1] * len(tokens)
    known = {int(kind): kind for kind in TokenType}
    types = [known.get(number, TokenType.NORMAL) for number in kinds[: len(tokens)]]
    ids = {kind: _id(get(f"{key}_token_id"), tokens) for kind, key in KINDS.items()}
    fills = {kind: _id(get(f"{kind}_token_id"), tokens) for kind in FILL_TEXTS}
    _, ends = corrected(tokens, types, ids | fills)
    counted = Counter(kind.name.lower() for kind in types)
    flags = ((key, get(key)) for key in ("add_bos_token", "add_eos_token", "add_space_prefix"))
    return TokenizerSummary(
        model=model,
        pre=get("pre") if isinstance(get("pre"), str) else None,
        tokens=len(tokens),
        merges=len(get("merges")) if _all(get("merges"), str) else 0,
        types=dict(counted.most_common()),
        special={k: Named(n, tokens[n]) for k, n in ids.items() if n is not None},
        ends=tuple(Named(number, tokens[number]) for number in sorted(ends)),
        adds={key: flag for key, flag in flags if isinstance(flag, bool)},
    )


def _all(values: Any, kind: type) -> bool:
    return isinstance(values, list) and bool(values) and isinstance(values[0], kind)


def _id(value: Any, tokens: list[str]) -> int | None:
    return value if isinstance(value, int) and 0 <= value < len(tokens) else None
