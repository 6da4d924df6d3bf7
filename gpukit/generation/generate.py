"""A loaded model speaks: prefill, decode with a cache, text as it becomes whole."""

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any

from gpukit.chat import Message, accepted, render
from gpukit.errors import ArgumentError, GpukitError
from gpukit.events import Report, Warned, ignore
from gpukit.generation.loading import LoadedModel
from gpukit.generation.sampling import Sampler, SamplingOptions
from gpukit.generation.stopping import StopWatch
from gpukit.models.decoder import Decoder
from gpukit.store.parameters import TYPES
from gpukit.tokenizer import Tokenizer

# The context that a generation gets unless it asks for another, as Ollama on small machines.
DEFAULT_CONTEXT = 4096

# Numbers that say what comes out beside those of the sampling.
OWN = frozenset(("num_predict", "num_ctx"))
# Parameters of a Modelfile that say how a machine is used, not what comes out.
MACHINE_PARAMETERS = frozenset({
    "num_batch", "num_gpu", "main_gpu", "num_thread", "use_mmap", "num_keep", "draft_num_predict",
})  # fmt: skip


@dataclass(frozen=True)
class GenerateOptions:
    """What a generation may do: `num_predict` tokens at most (negative: until the model ends or the
    context is full), a context of `num_ctx` tokens, texts that stop it, and tokens that do beside
    those of the model."""

    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    num_predict: int = -1
    num_ctx: int | None = None
    stop: tuple[str, ...] = ()
    stop_ids: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        if self.num_ctx is not None and self.num_ctx < 1:
            raise ArgumentError(f"num_ctx is {self.num_ctx}; at least 1 token is needed")


@dataclass(frozen=True)
class Generation:
    """What came out: the text, the tokens, why it ended (stop or length), times in seconds."""

    text: str
    tokens: tuple[int, ...]
    done_reason: str
    prompt_tokens: int
    load_seconds: float
    prompt_seconds: float
    seconds: float

    @property
    def total_seconds(self) -> float:
        return self.load_seconds + self.prompt_seconds + self.seconds

    def as_json(self) -> dict[str, Any]:
        """Ollama's names; durations in nanoseconds."""
        return {
            "response": self.text,
            "done": True,
            "done_reason": self.done_reason,
            "total_duration": _ns(self.total_seconds),
            "load_duration": _ns(self.load_seconds),
            "prompt_eval_count": self.prompt_tokens,
            "prompt_eval_duration": _ns(self.prompt_seconds),
            "eval_count": len(self.tokens),
            "eval_duration": _ns(self.seconds),
        }


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)


def options_from(
    params: Mapping[str, Any], given: Mapping[str, Any], report: Report = ignore
) -> GenerateOptions:
    """Options from a model's parameters, over them what was `given` (None: not given).

    Parameters that change nothing here are passed over; those that would and cannot are told.
    """
    merged = {**params, **{key: value for key, value in given.items() if value is not None}}
    known = {f.name for f in fields(SamplingOptions)}
    sampling: dict[str, Any] = {key: merged.pop(key) for key in known & merged.keys()}
    stop = merged.pop("stop", ())
    own = {key: merged.pop(key) for key in OWN & merged.keys()}
    for key in sorted(merged.keys() - MACHINE_PARAMETERS):
        report(Warned(f"parameter {key} is not used by gpukit run"))
    for key, value in (*sampling.items(), *own.items()):
        kind = Integral if TYPES[key] is int else Real
        if not isinstance(value, kind) or isinstance(value, bool):
            wanted = "a whole number" if kind is Integral else "a number"
            raise ArgumentError(f"{key} has a value of the wrong kind: {value!r}, not {wanted}")
    stop = (stop,) if isinstance(stop, str) else stop
    if not isinstance(stop, list | tuple) or not all(isinstance(text, str) for text in stop):
        raise ArgumentError(f"stop has a value of the wrong kind: {stop!r}, not a list of texts")
    return GenerateOptions(sampling=SamplingOptions(**sampling), stop=tuple(stop), **own)


def prompt_ids(
    model: LoadedModel,
    prompt: str | Sequence[Message],
    *,
    system: str = "",
    messages: Sequence[Message] = (),
    report: Report = ignore,
) -> list[int]:
    """The tokens of a prompt: through the model's chat template when it has one, else as it is.

    `prompt` is a text or messages (role and content each). `system` and `messages` come before it,
    `system` only where the prompt brings none; without a template they cannot, which a warning
    tells. `ArgumentError` for messages without a template, `CheckpointError` where it refuses them.
    """
    tokenizer = model.tokenizer
    if tokenizer.chat_template is None:
        if not isinstance(prompt, str):
            raise ArgumentError("the model has no chat template; give a text instead of messages")
        if system or messages:
            report(Warned("the model has no chat template; SYSTEM and MESSAGE are not used"))
        ids = tokenizer.encode(prompt)
    else:
        text = _conversation(tokenizer.chat_template, tokenizer, prompt, system, messages)
        bos = _spelled(tokenizer, tokenizer.bos_id)
        # Many templates write BOS themselves, and it must not stand there twice.
        has_bos = bool(bos) and text.startswith(bos)
        ids = tokenizer.encode(text, add_special=not has_bos, parse_special=True)
    if tokenizer.add_eos and ids and ids[-1] == tokenizer.eos_id:
        del ids[-1]  # An end behind the prompt would leave nothing to say.
    return ids


def _conversation(
    template: str,
    tokenizer: Tokenizer,
    prompt: str | Sequence[Message],
    system: str,
    messages: Sequence[Message],
) -> str:
    """What the template makes of all turns."""
    said = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    if not said:
        raise ArgumentError("no messages; there is nothing to answer")
    for number, turn in enumerate(said):
        if not isinstance(turn, Mapping) or not {"role", "content"} <= turn.keys():
            raise ArgumentError(f"message {number} is {turn!r}; role and content are needed")
    turns = [*messages, *said]
    if system and said[0]["role"] != "system":
        turns.insert(0, {"role": "system", "content": system})
    bos, eos = (_spelled(tokenizer, number) for number in (tokenizer.bos_id, tokenizer.eos_id))
    return render(template, accepted(template, turns), bos_token=bos, eos_token=eos)


def _spelled(tokenizer: Tokenizer, number: int | None) -> str:
    return "" if number is None else tokenizer.token_text(number)


class Stream(Iterator[str]):
    """The text of a generation, piece by piece as it becomes whole.

    `result` is the whole generation; what nobody has read yet is generated for it.
    """

    def __init__(self, pieces: Generator[str, None, Generation]) -> None:
        self._pieces = pieces
        self._result: Generation | None = None

    def __next__(self) -> str:
        try:
            return next(self._pieces)
        except StopIteration as end:
            self._result = self._result or end.value
            raise StopIteration from None

    @property
    def result(self) -> Generation:
        for _ in self:
            pass
        if self._result is None:
            raise GpukitError("the generation ended with an error; it has no result")
        return self._result


def stream(
    model: LoadedModel,
    ids: Sequence[int],
    options: GenerateOptions | None = None,
    report: Report = ignore,
) -> Stream:
    """What continues the tokens `ids`, stop texts left out; it is computed as it is read.

    `ArgumentError` where the prompt is empty or, when the first piece is asked for, does not fit
    into the context.
    """
    options = options or GenerateOptions()
    if not ids:
        raise ArgumentError("the prompt is empty; there is nothing to continue")
    return Stream(_pieces(model, ids, options, report))


def _pieces(
    model: LoadedModel, ids: Sequence[int], options: GenerateOptions, report: Report
) -> Generator[str, None, Generation]:
    decoder, tokenizer = model.decoder, model.tokenizer
    cache = decoder.cache(_context(decoder, options, report))
    sampler, ends = Sampler(options.sampling), tokenizer.eog_ids | options.stop_ids
    text, decoded = StopWatch(options.stop), tokenizer.stream().continued()
    started = time.monotonic()
    logits = decoder.forward(ids, cache)
    seen, reason = list(ids), "length"
    prompted = time.monotonic()
    while options.num_predict < 0 or len(seen) - len(ids) < options.num_predict:
        token = sampler.pick(logits, seen)
        seen.append(token)
        if token in ends:
            reason = "stop"
            break
        if piece := text.push(decoded.push(token)):
            yield piece
        if text.stopped:
            reason = "stop"
            break
        if cache.length == cache.n_ctx:
            report(Warned(f"the context of {cache.n_ctx} tokens is full; {cache.limit}"))
            break
        if len(seen) - len(ids) != options.num_predict:
            logits = decoder.forward([token], cache)
    if piece := text.push(decoded.flush()) + text.flush():
        yield piece
    return Generation(
        text=text.text,
        tokens=tuple(seen[len(ids) :]),
        done_reason=reason,
        prompt_tokens=len(ids),
        load_seconds=model.seconds,
        prompt_seconds=prompted - started,
        seconds=time.monotonic() - prompted,
    )


def _context(decoder: Decoder, options: GenerateOptions, report: Report) -> int:
    most = decoder.config.n_ctx
    if options.num_ctx is None:
        return min(most, DEFAULT_CONTEXT)
    if options.num_ctx > most:
        report(Warned(f"a context of {options.num_ctx} tokens; the model was made for {most}"))
    return min(options.num_ctx, most)
