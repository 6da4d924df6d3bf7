"""A conversation on the terminal, as Ollama's: lines, answers, commands that begin with /."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from gpukit.errors import ArgumentError, GpukitError, NotFoundError
from gpukit_cli import answer, session_help
from gpukit_cli.line_editor import Interrupted, LineEditor, history_file, interruptible
from gpukit_cli.progress import reporter, without_statuses
from gpukit_cli.session_show import shown
from gpukit_cli.wrapping import Wrapper

if TYPE_CHECKING:
    from gpukit.events import Event
    from gpukit.generation.generate import Generation, Stream
    from gpukit.generation.model import Model, Parameters
    from gpukit.generation.session import Session
    from gpukit.store.modelfile import Modelfile

PROMPT, CONTINUED, QUOTES = ">>> ", "... ", '"""'


@dataclass(frozen=True)
class Conversation:
    """What a conversation begins with: the word for its model and how it was loaded, and how it is
    shown. One with adapters of its own cannot be saved."""

    word: str
    hub: bool = False
    device: str = "auto"
    adapted: bool = False
    verbose: bool = False
    quiet: bool = False
    wraps: bool = True


class Left(Exception):
    """The user has said goodbye."""


def talk(begun: Conversation, model: "Model", system: str | None, parameters: "Parameters") -> None:
    """Talk until the user leaves."""
    with interruptible():
        talker = Talker(begun, model, system, parameters)
        talker.replay()
        while True:
            try:
                talker.turn()
            except Interrupted as interrupt:
                print("" if interrupt.line else "\nUse Ctrl + d or /bye to exit.")
            except (EOFError, Left) as end:
                if isinstance(end, EOFError):
                    print()
                return


class Talker:
    """The state of a conversation, and what its commands do to it."""

    def __init__(
        self,
        begun: Conversation,
        model: "Model",
        system: str | None,
        parameters: "Parameters",
    ) -> None:
        self.begun = begun
        self._told: list[Event] = []
        self._editor = LineEditor(history_file())
        self._session = self._opened(model, system, parameters)

    def _opened(self, model: "Model", system: str | None, parameters: "Parameters") -> "Session":
        from gpukit.generation.session import Session

        opened = Session(model, system=system, report=self._told.append, **parameters)
        answer.tell(self._told, self.begun.quiet)
        return opened

    def replay(self) -> None:
        """Show the messages that the model begins with as if they had been said here."""
        for turn in self._session.messages:
            match turn["role"]:
                case "user":
                    print(f"{PROMPT}{turn['content']}")
                case "assistant":
                    print(f"{turn['content']}\n")

    def turn(self) -> None:
        """One message or command."""
        try:
            line = self._editor.line(PROMPT)
            if line.startswith(QUOTES):
                self._say(self._block(line.removeprefix(QUOTES)))
            elif line.startswith("/") and "\n" not in line:
                self._command(line)
            elif line:
                self._say(line)
        except (UnicodeDecodeError, UnicodeEncodeError) as error:
            print(f"error: {_no_utf8(error)}")
        except GpukitError as error:
            print(f"error: {error}")
        finally:
            answer.tell(self._told, self.begun.quiet)

    def _block(self, first: str) -> str:
        """The text up to the quotes that end it, which may be in the first line."""
        lines = [first]
        while not lines[-1].endswith(QUOTES):
            lines.append(self._editor.line(CONTINUED))
        return "\n".join(lines).removesuffix(QUOTES)

    def _say(self, text: str) -> None:
        if not text:
            return
        pieces = self._session.say(text)
        wrapper = Wrapper() if self.begun.wraps else None
        try:
            result = self._shown(pieces, wrapper)
        except Interrupted:
            # What has come stays, here and in the conversation.
            pieces.close()
            answer.write((wrapper.flush() if wrapper else "") + "\n\n")
            return
        answer.write("\n\n")
        answer.tell(self._told, self.begun.quiet)
        if self.begun.verbose:
            answer.print_times(result)

    def _shown(self, pieces: "Stream", wrapper: Wrapper | None) -> "Generation":
        if wrapper is None:
            return answer.show(pieces, answer.write)
        result = answer.show(pieces, lambda piece: answer.write(wrapper.push(piece)))
        answer.write(wrapper.flush())
        return result

    def _command(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        commands: dict[str, Callable[[str], None]] = {
            "/set": self._set, "/show": self._show, "/load": self._load, "/save": self._save,
            "/clear": self._clear, "/list": self._list, "/bye": self._leave, "/exit": self._leave,
            "/?": self._help, "/help": self._help,
        }  # fmt: skip
        if word not in commands:
            print(f"Unknown command '{word}'. Type /? for help")
            return
        commands[word](rest.strip())

    def _help(self, topic: str) -> None:
        print(session_help.TOPICS.get(topic.lstrip("/"), session_help.COMMANDS))

    def _leave(self, _rest: str) -> None:
        raise Left

    def _clear(self, _rest: str) -> None:
        self._session.clear()
        print("Cleared session context")

    def _list(self, prefix: str) -> None:
        from gpukit_cli.store import list_models

        list_models(prefix)

    def _set(self, rest: str) -> None:
        word, _, value = rest.partition(" ")
        match word, value.split():
            case "", _:
                print(session_help.SET)
            case "parameter", [name, *values] if values:
                self._set_parameter(name, values)
            case "parameter", _:
                print(session_help.PARAMETERS)
            case "system", []:
                print(session_help.SET)
            case "system", _:
                text = value.strip()
                block = text.startswith(QUOTES)
                self._session.system = self._block(text.removeprefix(QUOTES)) if block else text
                print("Set system message.")
            case "history" | "nohistory", _:
                self._editor.remembers = word == "history"
            case "wordwrap" | "nowordwrap", _:
                self.begun = replace(self.begun, wraps=word == "wordwrap")
                print(f"Set '{word}' mode.")
            case "format", ["json"]:
                self._session.set("format", "json")
                print("Set format to 'json' mode.")
            case "format", _:
                print("Invalid or missing format. For 'json' mode use '/set format json'")
            case "noformat", _:
                self._session.set("format", None)
                print("Disabled format.")
            case "think" | "nothink", levels:
                self._set_think(word == "think", levels)
            case "verbose" | "quiet", _:
                self.begun = replace(self.begun, verbose=word == "verbose")
                print(f"Set '{word}' mode.")
            case _:
                print(f"Unknown command '/set {word}'. Type /? for help")

    def _set_think(self, wanted: bool, levels: list[str]) -> None:
        level = " ".join(levels) if wanted else ""
        self._session.think = {"": wanted, "true": True, "false": False}.get(level, level)
        if not self._session.knows_thinking:
            print(f'warning: model "{self.begun.word}" does not support thinking output')
        mode = (
            f"'think' mode to '{level}'" if level else f"'{'think' if wanted else 'nothink'}' mode"
        )
        print(f"Set {mode}.")

    def _set_parameter(self, name: str, values: list[str]) -> None:
        from gpukit.store import parameters

        try:
            whole = values if name == "stop" else parameters.parse(name, " ".join(values))
            self._session.set(name, whole)
        except ArgumentError as error:
            print(f'Couldn\'t set parameter: "{error}"')
        else:
            print(f"Set parameter '{name}' to '{', '.join(values)}'")

    def _show(self, what: str) -> None:
        for line in shown(what, self.begun.word, self._session, hub=self.begun.hub):
            print(line)

    def _load(self, word: str) -> None:
        import gpukit

        if len(word.split()) != 1:
            print("Usage:\n  /load <modelname>")
            return
        print(f"Loading model '{word}'")
        try:
            with reporter(self.begun.quiet) as report:
                model = gpukit.load(word, self.begun.device, report=report)
        except NotFoundError:
            print(f"Couldn't find model '{word}'")
            return
        before, self._session = self._session, self._opened(model, None, {})
        for name, value in before.parameters.items():
            # What was set by hand stays; what the other model says of itself comes with it.
            self._session.set(name, value)
        self._session.think = before.think
        self.begun = replace(self.begun, word=word, hub=False, adapted=False)
        self.replay()

    def _save(self, name: str) -> None:
        import gpukit
        from gpukit.store.names import ModelName

        if len(name.split()) != 1:
            print("Usage:\n  /save <modelname>")
            return
        try:
            ModelName.parse(name)
        except ArgumentError:
            print(f"error: The model name '{name}' is invalid")
            return
        if self.begun.adapted:
            raise ArgumentError("a session with --adapter cannot be saved: create a model with it")
        with reporter(self.begun.quiet) as report:
            gpukit.Store().create(
                name, self._modelfile(), hub=self.begun.hub, report=without_statuses(report)
            )
        print(f"Created new model '{name}'")

    def _modelfile(self) -> "Modelfile":
        from gpukit.store.modelfile import Message, Modelfile

        session = self._session
        return Modelfile(
            source=self.begun.word,
            folder=Path.cwd(),
            # The form of answers belongs to the session alone, as in Ollama.
            parameters={k: v for k, v in session.parameters.items() if k != "format"},
            system=session.system,
            messages=tuple(
                Message(str(turn["role"]), str(turn["content"])) for turn in session.messages
            ),
        )


def _no_utf8(error: UnicodeDecodeError | UnicodeEncodeError) -> str:
    """What is wrong with a line that the terminal sent, and where."""
    at = error.start
    if isinstance(error, UnicodeEncodeError):  # counts characters
        at = len(error.object[:at].encode("utf-8", "surrogateescape"))
    return f"the line: byte {at} is no UTF-8: a text in UTF-8 is wanted"
