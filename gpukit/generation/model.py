"""A model that speaks: what is loaded, with what a Modelfile set beside it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypedDict, Unpack

from torch import Tensor

from gpukit.chat import Message
from gpukit.errors import ArgumentError, did_you_mean
from gpukit.events import Report, ignore
from gpukit.generation import generate, prompts
from gpukit.generation.generate import Generation, Stream
from gpukit.generation.loading import LoadedModel
from gpukit.models.decoder import Decoder
from gpukit.store.parameters import Value
from gpukit.tokenizer import Tokenizer


class Parameters(TypedDict, total=False):
    """How a model speaks, by Ollama's names; None is the model's own, else Ollama's default.

    What each does: `SamplingOptions` and `GenerateOptions`.
    """

    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    typical_p: float | None
    repeat_penalty: float | None
    repeat_last_n: int | None
    presence_penalty: float | None
    frequency_penalty: float | None
    seed: int | None
    stop: str | Sequence[str] | None
    num_predict: int | None
    num_ctx: int | None


def check_names(given: Iterable[str]) -> None:
    """`ArgumentError` for a name that is none of `Parameters`."""
    known = Parameters.__annotations__
    if unknown := sorted(set(given) - known.keys()):
        hint = did_you_mean(unknown[0], known)
        raise ArgumentError(f"unknown parameter {unknown[0]!r}; known: {', '.join(known)}{hint}")


@dataclass(frozen=True)
class Model:
    """A model on its device, and the parameters, system text and messages that it begins with;
    `template` is its TEMPLATE in Go's syntax, which goes before the tokenizer's own.

    `decoder` and `tokenizer` are its parts. Nothing of a generation stays in it.
    """

    loaded: LoadedModel
    params: Mapping[str, Value] = field(default_factory=dict)
    system: str = ""
    messages: tuple[Message, ...] = ()
    template: str = ""

    @property
    def decoder(self) -> Decoder:
        return self.loaded.decoder

    @property
    def tokenizer(self) -> Tokenizer:
        return self.loaded.tokenizer

    def generate(
        self,
        prompt: str | Sequence[Message],
        *,
        system: str | None = None,
        report: Report = ignore,
        **parameters: Unpack[Parameters],
    ) -> Generation:
        """The whole answer to `prompt`: `.text`, `.tokens`, `.done_reason`, times in seconds.

        Arguments and errors as those of `stream`.

            model.generate("First Citizen:", temperature=0, num_predict=24).text
        """
        return self.stream(prompt, system=system, report=report, **parameters).result

    def stream(
        self,
        prompt: str | Sequence[Message],
        *,
        system: str | None = None,
        report: Report = ignore,
        **parameters: Unpack[Parameters],
    ) -> Stream:
        """The answer to `prompt` piece by piece, an iterator of texts; `.result` is the whole.

        `prompt` is a text, or a conversation: messages with `role` and `content` each, which need
        a model with a chat template. `system` replaces the model's own system text; `parameters`
        go over the model's own. `report` hears warnings, such as of a context that is full.
        `ArgumentError` for parameters that make no sense and a prompt that is empty or too long,
        `CheckpointError` where the chat template refuses the messages.

            for piece in model.stream([{"role": "user", "content": "Why?"}], seed=1):
                print(piece, end="")
        """
        check_names(parameters)
        options = generate.options_from(self.params, parameters, report)
        ids = prompts.prompt_ids(
            self.loaded,
            prompt,
            system=self.system if system is None else system,
            messages=self.messages,
            template=self.template,
            report=report,
        )
        return generate.stream(self.loaded, ids, options, report)

    def logits(self, ids: Sequence[int]) -> Tensor:
        """float32 `[len(ids), vocabulary]`: what the model expects behind each of `ids`.

        On the model's device. `ArgumentError` for ids that are none, or too many for the model.

            model.logits(model.tokenizer.encode("First Citizen:"))[-1].argmax()
        """
        size = self.decoder.config.vocab_size
        if outside := [number for number in ids if not 0 <= number < size]:
            raise ArgumentError(f"token {outside[0]}: the vocabulary has {size}, from 0 on")
        most = self.decoder.config.n_ctx
        cache = self.decoder.cache(min(most, max(len(ids), generate.DEFAULT_CONTEXT)))
        return self.decoder.forward(ids, cache, every=True)
