"""What lm_eval says of a generation and of a model, in gpukit's terms."""

from collections.abc import Mapping, Sequence
from typing import Any

from gpukit.errors import ArgumentError, did_you_mean
from gpukit.generation.generate import GenerateOptions
from gpukit.generation.sampling import SamplingOptions
from gpukit.tokenizer import Tokenizer

MAX_GEN_TOKS = 256
# The first of these that is given says how many tokens; lm_eval's order.
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
SAMPLING = {
    "top_k": ("top_k", int),
    "top_p": ("top_p", float),
    "min_p": ("min_p", float),
    "typical_p": ("typical_p", float),
    "repetition_penalty": ("repeat_penalty", float),
    "presence_penalty": ("presence_penalty", float),
    "frequency_penalty": ("frequency_penalty", float),
    "seed": ("seed", int),
}
# What changes nothing with these values.
PLAIN = {"num_beams": 1, "num_return_sequences": 1, "use_cache": True}
OTHER = ("until", "do_sample", "temperature")


def generate_options(
    asked: Mapping[str, Any], tokenizer: Tokenizer, seed: int, count: int = MAX_GEN_TOKS
) -> GenerateOptions:
    """Options of a request's `asked`, which generates `count` tokens where it does not say. Greedy
    without do_sample or a temperature; else all tokens can be drawn unless top_k, top_p and so on
    leave some out, from `seed` plus the one asked for.

    `ArgumentError` for what is unknown or makes no sense.
    """
    known = {*LENGTHS, *SAMPLING, *PLAIN, *OTHER}
    for key, value in asked.items():
        if key not in known:
            hint = did_you_mean(key, known)
            raise ArgumentError(f"generation argument {key} is not known{hint}")
        if key in PLAIN and value not in (None, PLAIN[key]):
            raise ArgumentError(f"{key} is {value}; only {PLAIN[key]} can be had")
    try:
        temperature = float(asked.get("temperature") or 0)
        count = next((int(asked[k]) for k in LENGTHS if asked.get(k) is not None), count)
        chosen = {
            name: kind(asked[key])
            for key, (name, kind) in SAMPLING.items()
            if asked.get(key) is not None
        }
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"generation arguments {dict(asked)}: {error}") from None
    if asked.get("do_sample") is False:
        temperature = 0.0
    numbers = {"top_k": 0, "top_p": 1.0, **chosen, "seed": seed + chosen.get("seed", 0)}
    stops = texts(asked.get("until"))
    return GenerateOptions(
        sampling=SamplingOptions(temperature=temperature, **numbers),
        num_predict=count, stop=stops, stop_ids=stop_ids(stops, tokenizer),
    )  # fmt: skip


def texts(until: Any) -> tuple[str, ...]:
    """The texts that end a generation; `ArgumentError` for what are none."""
    found = [until] if isinstance(until, str) else until or []
    if not isinstance(found, list | tuple) or not all(isinstance(text, str) for text in found):
        raise ArgumentError(f"until is {until!r}; a text or a list of texts is needed")
    return tuple(text for text in found if text)


def stop_ids(stops: Sequence[str], tokenizer: Tokenizer) -> frozenset[int]:
    """The control tokens among texts that end a generation; they are silent: no text has them."""
    found = [tokenizer.encode(text, add_special=False, parse_special=True) for text in stops]
    return frozenset(ids[0] for ids in found if len(ids) == 1 and not tokenizer.token_bytes(ids[0]))


def batch_of(batch_size: Any, max_batch_size: Any) -> int | None:
    """The most sequences that go through the model together; None for auto. `ArgumentError` for
    what is neither a whole number nor auto."""
    wanted = batch_size
    if batch_size is None or str(batch_size).partition(":")[0] == "auto":
        wanted = max_batch_size
    try:
        return None if wanted is None else int(wanted)
    except (TypeError, ValueError):
        raise ArgumentError(f"batch_size is {wanted!r}; a whole number or auto is needed") from None


def adapters_of(adapters: Any) -> tuple[str, ...]:
    """The adapters in a text, where ; stands between them, or in a list."""
    if adapters is None:
        return ()
    found = adapters.split(";") if isinstance(adapters, str) else list(adapters)
    return tuple(str(word).strip() for word in found if str(word).strip())
