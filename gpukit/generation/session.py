"""A conversation with a model: what was said, within the context, computed once."""

from bisect import bisect_left
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Unpack

from gpukit import chat
from gpukit.chat import Message, Think
from gpukit.errors import GpukitError
from gpukit.events import Report, ignore
from gpukit.generation import generate, prompts
from gpukit.generation.generate import GenerateOptions, Generation, Stream
from gpukit.generation.memory import Memory
from gpukit.generation.model import Model, Parameters, check_names

# The part of the context that is left for the answer, and the part that is still filled after old
# messages had to go: the more go at once, the less often everything is computed anew.
FOR_THE_ANSWER = 8
FILLED = 2 / 3


class Session:
    """A conversation, which begins as the model's Modelfile says.

    `messages` is what was said so far, `system` the system text before it, `parameters` what is set
    over the model's own parameters. `tools` are JSON schemas that a chat template shows the model;
    `think` says whether it shall think before it answers, or how hard (high, medium, low or max),
    where its template knows that (`knows_thinking`); None is the template's own way. What of the
    next prompt the last one had is not computed again.
    `report` hears warnings, such as of a context that is full.
    `ArgumentError` for parameters that make no sense and an unknown level of thinking.

        session = gpukit.Session(gpukit.load("llama3.2:1b"), temperature=0)
        for piece in session.say("Why is the sky blue?"):
            print(piece, end="")
    """

    def __init__(
        self,
        model: Model,
        *,
        system: str | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
        think: Think = None,
        report: Report = ignore,
        **parameters: Unpack[Parameters],
    ) -> None:
        check_names(parameters)
        self.model = model
        self.system = model.system if system is None else system
        self.tools, self.think = tools, think
        self.messages: list[Message] = [dict(message) for message in model.messages]
        given: dict[str, Any] = dict(parameters)
        self.parameters = {key: value for key, value in given.items() if value is not None}
        self._report = report
        self._memory = Memory()
        self._load_seconds = model.loaded.seconds
        self._dropped = 0
        generate.options_from(model.params, self.parameters, report)

    @property
    def think(self) -> Think:
        return self._think

    @think.setter
    def think(self, think: Think) -> None:
        chat.check_think(think)
        self._think = think

    def set(self, name: str, value: Any) -> None:
        """Set a parameter from here on, None as the model has it; `ArgumentError` for a value that
        makes no sense."""
        parameters = {**self.parameters, name: value}
        if value is None:
            del parameters[name]
        generate.options_from(self.model.params, parameters, self._report)
        self.parameters = parameters

    def clear(self) -> None:
        """Forget what was said; the system text and the parameters stay."""
        self.messages, self._dropped = [], 0

    @property
    def knows_thinking(self) -> bool:
        """Whether the model's template looks at `think`."""
        return prompts.knows_thinking(self.model.loaded, self.model.template)

    def say(self, text: str, role: str = "user") -> Stream:
        """The answer to `text`, which the user says, or a tool that the model called (role "tool"),
        piece by piece; with what there was of it at its end, or when it is
        closed before, it becomes a part of the conversation.

        Where the conversation outgrows the context, the oldest messages are left out, but never a
        system text nor the last message. `ArgumentError` where that alone is too long or tools are
        for no template, and
        `CheckpointError` where the template refuses it: then nothing was said.
        """
        options = generate.options_from(self.model.params, self.parameters)
        self.messages.append({"role": role, "content": text})
        try:
            ids = self._fitted(options)
            pieces = generate.stream(self.model.loaded, ids, options, self._report, self._memory)
        except GpukitError:
            self.messages.pop()
            raise
        return Stream(self._answered(pieces))

    def _answered(self, pieces: Stream) -> Generator[str, None, Generation]:
        said: list[str] = []
        try:
            for piece in pieces:
                said.append(piece)
                yield piece
        except GpukitError:
            if not said:
                self.messages.pop()
            raise
        finally:
            pieces.close()
            if said:
                self.messages.append({"role": "assistant", "content": "".join(said)})
        # The model was loaded once, for the first answer.
        load, self._load_seconds = self._load_seconds, 0.0
        return replace(pieces.result, load_seconds=load)

    def _fitted(self, options: GenerateOptions) -> list[int]:
        """The tokens of the conversation, without as many old messages as the context asks for."""
        context = generate.context_of(self.model.decoder, options)
        most = context - context // FOR_THE_ANSWER
        ids = self._ids(self._dropped)
        # An answer without its question would be the first that the template sees.
        starts = [
            number
            for number, turn in enumerate(self.messages)
            if number > self._dropped and turn["role"] == "user"
        ]
        if len(ids) <= most or not starts:
            return ids
        at = bisect_left(starts, True, key=lambda start: len(self._ids(start)) <= most * FILLED)
        self._dropped = starts[min(at, len(starts) - 1)]
        return self._ids(self._dropped)

    def _ids(self, dropped: int) -> list[int]:
        """The tokens without the messages before `dropped`, system texts excepted."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        old = (turn for turn in self.messages[:dropped] if turn["role"] == "system")
        turns = joined([*system, *old, *self.messages[dropped:]])
        return prompts.turn_ids(
            self.model.loaded, turns, self.model.template, tools=self.tools, think=self.think
        )


def joined(turns: Iterable[Message]) -> list[Message]:
    """`turns` with those of one role in a row made one, a blank line between them: templates want
    user and assistant by turns."""
    found: list[Message] = []
    for turn in turns:
        if found and found[-1]["role"] == turn["role"] != "tool" and not _calls(found[-1], turn):
            both = f"{found[-1]['content']}\n\n{turn['content']}"
            found[-1] = {**found[-1], "content": both}
        else:
            found.append(turn)
    return found


def _calls(*turns: Message) -> bool:
    """Whether one of `turns` calls tools."""
    return any("tool_calls" in turn for turn in turns)
