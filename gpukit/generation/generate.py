"""A loaded model speaks: prefill, decode with a cache, text as it becomes whole."""

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any

from gpukit.errors import ArgumentError, GpukitError
from gpukit.events import Report, Warned, ignore
from gpukit.generation.drawing import Drawing
from gpukit.generation.form import Form, Format, grammar_of
from gpukit.generation.loading import LoadedModel
from gpukit.generation.memory import Memory
from gpukit.generation.sampling import Sampler, SamplingOptions
from gpukit.generation.stopping import StopWatch
from gpukit.models.cache import KVCache
from gpukit.models.decoder import Decoder
from gpukit.store import parameters

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
    context is full), a context of `num_ctx` tokens, texts that stop it, the form of its text, and
    tokens that end it beside those of the model."""

    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    num_predict: int = -1
    num_ctx: int | None = None
    stop: tuple[str, ...] = ()
    format: Format | None = None
    stop_ids: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        if self.num_ctx is not None:
            parameters.check("num_ctx", self.num_ctx)


@dataclass(frozen=True)
class Generation:
    """What came out: the text, the tokens, why it ended (stop or length), times in seconds; of the
    prompt's tokens `remembered_tokens` were computed before, for the last answer."""

    text: str
    tokens: tuple[int, ...]
    done_reason: str
    prompt_tokens: int
    load_seconds: float
    prompt_seconds: float
    seconds: float
    remembered_tokens: int = 0

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
    stop, form = merged.pop("stop", ()), merged.pop("format", None)
    if form is not None:
        grammar_of(form)
    own = {key: merged.pop(key) for key in OWN & merged.keys()}
    for key in sorted(merged.keys() - MACHINE_PARAMETERS):
        report(Warned(f"parameter {key} is not used by gpukit run"))
    for key, value in (*sampling.items(), *own.items()):
        kind = Integral if parameters.TYPES[key] is int else Real
        if not isinstance(value, kind) or isinstance(value, bool):
            wanted = "a whole number" if kind is Integral else "a number"
            raise ArgumentError(f"{key} has a value of the wrong kind: {value!r}, not {wanted}")
        parameters.check(key, value, "" if given.get(key) is not None else "the model's parameter ")
    stop = (stop,) if isinstance(stop, str) else stop
    if not isinstance(stop, list | tuple) or not all(isinstance(text, str) for text in stop):
        raise ArgumentError(f"stop has a value of the wrong kind: {stop!r}, not a list of texts")
    return GenerateOptions(
        sampling=SamplingOptions(**sampling), stop=tuple(stop), format=form, **own
    )


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

    def close(self) -> None:
        """End it here; without a result, if it had not ended."""
        self._pieces.close()


def stream(
    model: LoadedModel,
    ids: Sequence[int],
    options: GenerateOptions | None = None,
    report: Report = ignore,
    memory: Memory | None = None,
) -> Stream:
    """What continues the tokens `ids`, stop texts left out; it is computed as it is read, but for
    what `memory` has of an earlier one.

    `ArgumentError` where the prompt is empty or, when the first piece is asked for, does not fit
    into the context.
    """
    options = options or GenerateOptions()
    if not ids:
        raise ArgumentError("the prompt is empty; there is nothing to continue")
    return Stream(_remembering(model, ids, options, report, memory or Memory()))


def _remembering(
    model: LoadedModel,
    ids: Sequence[int],
    options: GenerateOptions,
    report: Report,
    memory: Memory,
) -> Generator[str, None, Generation]:
    cache = memory.begin(model.decoder, context_of(model.decoder, options, report), ids)
    seen = list(ids)
    try:
        return (yield from _pieces(model, seen, options, report, cache))
    finally:
        # However it ends: what has its place in the cache is there.
        memory.keep(seen)


def _pieces(
    model: LoadedModel, seen: list[int], options: GenerateOptions, report: Report, cache: KVCache
) -> Generator[str, None, Generation]:
    """The pieces behind the tokens `seen`, which grow with them."""
    tokenizer = model.tokenizer
    count, remembered = len(seen), cache.length
    ends = tokenizer.eog_ids | options.stop_ids
    form = None if options.format is None else Form(options.format, tokenizer)
    text, decoded = StopWatch(options.stop), tokenizer.stream().continued()
    started = time.monotonic()
    sampler = Sampler(options.sampling, model.name, model.adapters)
    drawing = Drawing(model.decoder, model.steps, cache, sampler, form, tokenizer.suppress_ids)
    drawing.begin(seen[remembered:])
    reason = "length"
    prompted = time.monotonic()
    while options.num_predict < 0 or len(seen) - count < options.num_predict:
        token = drawing.pick(seen)
        seen.append(token)
        if token in ends:
            reason = "stop"
            break
        if piece := text.push(decoded.push(token)):
            yield piece
        if form:
            form.take(token)
        if text.stopped or (form and form.done):
            reason = "stop"
            break
        if cache.length == cache.n_ctx:
            report(Warned(f"the context of {cache.n_ctx} tokens is full; {cache.limit}"))
            break
        if len(seen) - count != options.num_predict:
            drawing.take(token)
    if piece := text.push(decoded.flush()) + text.flush():
        yield piece
    return Generation(
        text=text.text,
        tokens=tuple(seen[count:]),
        done_reason=reason,
        prompt_tokens=count,
        load_seconds=model.seconds,
        prompt_seconds=prompted - started,
        seconds=time.monotonic() - prompted,
        remembered_tokens=remembered,
    )


def context_of(decoder: Decoder, options: GenerateOptions, report: Report = ignore) -> int:
    """Tokens of the context that `options` get; a warning where the model was made for fewer."""
    most = decoder.config.n_ctx
    if options.num_ctx is None:
        return min(most, DEFAULT_CONTEXT)
    if options.num_ctx > most:
        report(Warned(f"a context of {options.num_ctx} tokens; the model was made for {most}"))
    return min(options.num_ctx, most)
