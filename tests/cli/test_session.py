"""`gpukit run` as a conversation, in a real pseudo-terminal."""

import os
import stat
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from support.checkpoints import DATA
from support.command_line import gpukit
from support.terminal import Terminal

from gpukit.conversion.run import run_plan
from gpukit.formats.gguf_fields import string
from gpukit.planning.planner import plan_quantize
from gpukit.sources.opening import open_source

ROOT = Path(__file__).resolve().parents[2]
MAIN = "from gpukit_cli.app import main; main()"
FAST = ("--temperature", "0", "--num-predict", "12", "--device", "cpu")
GREEDY = "\nHe has a power to be authority"
# llguidance is an extra.
FORMAT = "Set format to 'json' mode." if find_spec("llguidance") else "error: format needs"
# Says the whole conversation, so that answers depend on all of it.
TEMPLATE = "{% for turn in messages %}{{ turn.content }}{% endfor %}"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with chat.gguf and a store that has it as `bard`, with a beginning."""
    folder = tmp_path_factory.mktemp("session")
    with open_source(DATA / "tiny-shakespeare") as source:
        plan = plan_quantize(source, "F16")
        fields = (*plan.fields, string("tokenizer.chat_template", TEMPLATE))
        run_plan(source, replace(plan, fields=fields), folder / "chat.gguf")
    (folder / "Modelfile").write_text(
        "FROM ./chat.gguf\nPARAMETER temperature 0\nPARAMETER num_predict 12\nSYSTEM First\n"
        "MESSAGE user Who?\nMESSAGE assistant Nobody.\n"
    )
    words = ("create", "bard", "-f", "Modelfile")
    done = gpukit(*words, folder=folder, GPUKIT_MODELS=str(folder / "models"))
    assert done.returncode == 0, done.stderr
    return folder


def _environment(folder: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key != "OLLAMA_NOHISTORY"}
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in (".", "kernels", "cli")),
        "GPUKIT_MODELS": str(folder / "models"),
        "HOME": str(folder),
        "INPUTRC": os.devnull,
        "TERM": "xterm",
        "OMP_NUM_THREADS": "1",
    }


def _run(home: Path, *arguments: str, columns: int = 100, **variables: str) -> Terminal:
    environment = {**_environment(home), **variables}
    return Terminal(MAIN, "run", *arguments, folder=home, environment=environment, columns=columns)


def test_messages_commands_and_history(home: Path) -> None:
    (home / ".ollama").mkdir(exist_ok=True)
    (home / ".ollama" / "history").write_text("First Citizen:\n")
    with _run(home, "chat.gguf", *FAST) as terminal:
        assert terminal.until(">>> ").strip() == ">>>"
        terminal.type("\x1b[A")  # what was typed in an earlier session
        terminal.until("First Citizen:")
        assert terminal.say("").strip() == GREEDY.strip()
        terminal.say("/clear")
        # Over several lines; the quotes are no part of it.
        terminal.say('"""First', "... ")
        assert terminal.say(' Citizen:"""').strip() != ""
        terminal.say('/set system """', "... ")
        terminal.say("Two", "... ")
        assert "Set system message." in terminal.say('lines."""')
        assert "\nTwo\nlines.\n" in "\n" + terminal.say("/show system")
        for typed, told in (
            ("/?", "Available Commands:"),
            ("/help set", "/set parameter"),
            ("/? shortcuts", "Ctrl + d"),
            ("/help show", "/show template"),
            ("/set", "/set nohistory"),
            ("/show", "/show license"),
            ("/nothing", "Unknown command '/nothing'. Type /? for help"),
            ("/byebye", "Unknown command '/byebye'"),
            ("/set nothing", "Unknown command '/set nothing'. Type /? for help"),
            ("/show nothing", "Unknown command '/show nothing'. Type /? for help"),
            ("/set parameter", "/set parameter num_ctx"),
            ("/set parameter top_k many", 'Couldn\'t set parameter: "invalid int value [many]'),
            ("/set parameter warmth 1", "Couldn't set parameter: \"unknown parameter 'warmth'"),
            ("/set parameter temperature -1", "temperature is -1"),
            ("/set parameter stop a b", "Set parameter 'stop' to 'a, b'"),
            ("/set nowordwrap", "Set 'nowordwrap' mode."),
            ("/set format", "Invalid or missing format."),
            ("/set format json", FORMAT),
            ("/set noformat", "Disabled format."),
            ("/show parameters", f"  {'stop':<30} a\n  {'stop':<30} b\n"),
            ("/show template", TEMPLATE),
            ("/show license", "No license was specified for this model."),
            ("/show info", "llama"),
            ("/show modelfile", "FROM chat.gguf"),
            ("/list", "bard:latest"),
            ("/load", "Usage:\n  /load <modelname>"),
            ("/load nobody", "Couldn't find model 'nobody'"),
            ("/save", "Usage:\n  /save <modelname>"),
            ("/save a//b", "error: The model name 'a//b' is invalid"),
            ("/set think", 'warning: model "chat.gguf" does not support thinking output\nSet '
             "'think' mode."),
            ("/set think low", "Set 'think' mode to 'low'."),
            ("/set think banana", "error: think is 'banana'; known: true, false, high, medium, lo"),
            ("/set think low max", "error: think is 'low max'; known: true, false"),
            ("/set think false", "Set 'think' mode to 'false'."),
            ("/set nothink", "Set 'nothink' mode."),
            ("/set verbose", "Set 'verbose' mode."),
        ):  # fmt: skip
            assert told in terminal.say(typed), typed
        terminal.say("/set parameter stop zzz")
        assert "eval rate:" in terminal.say("word")
        assert "do not fit into a context" in terminal.say(
            "/set parameter num_ctx 4"
        ) + terminal.say("far too many words for a context of four")
        terminal.say("/set nohistory")
        terminal.say("/set quiet")
        terminal.type("/bye\r")
        assert terminal.end() == 0
    history = home / ".ollama" / "history"
    lines = history.read_text().splitlines()
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    assert lines[:3] == ["First Citizen:", "First Citizen:", "/clear"]
    assert (lines[3], lines[4], lines[-1]) == ('"""First', ' Citizen:"""', "/set nohistory")


def test_interrupts_and_a_window_that_changes(home: Path) -> None:
    with _run(home, "chat.gguf", "--temperature", "0", "--device", "cpu", columns=30) as terminal:
        terminal.until(">>> ")
        terminal.interrupt()
        assert "Use Ctrl + d or /bye to exit." in terminal.until(">>> ")
        terminal.type("half a line")
        terminal.until("half a line")
        terminal.interrupt()
        assert "Use Ctrl" not in terminal.until(">>> ")
        terminal.type('"""one\r')
        terminal.until("... ")
        terminal.interrupt()
        terminal.until(">>> ")
        terminal.type("First Citizen:\r")
        terminal.until("First Citizen:\n")
        narrow = "".join(terminal.until("\n") for _ in range(8))
        terminal.resize(100)
        wide = "".join(terminal.until("\n") for _ in range(16))
        terminal.interrupt()
        terminal.until(">>> ")
        assert max(map(len, narrow.split("\n"))) <= 30 < max(map(len, wide.split("\n")))
        # No word is cut, and what was said before the interrupt belongs to the conversation.
        assert "Their baby and to the people's\nofficer.\n" in narrow
        terminal.say("/set parameter num_predict 3")
        terminal.say("/set verbose")
        told = terminal.say("Go on")
        assert int(told.partition("prompt eval count:")[2].split()[0]) > 60
        terminal.type("\x04")
        assert terminal.end() == 0


def test_pasted_lines_and_an_editor(home: Path) -> None:
    (home / "editor.py").write_text(
        "import sys\nfrom pathlib import Path\nfile = Path(sys.argv[1])\ntext = file.read_text()\n"
        "if text == 'no':\n    sys.exit(3)\nfile.write_text(f'First\\n{text}\\n')\n"
    )
    editor = {"OLLAMA_EDITOR": "", "VISUAL": f"{sys.executable} editor.py"}
    with _run(home, "chat.gguf", *FAST, **editor) as terminal:
        terminal.until(">>> ")
        terminal.say("/set nowordwrap")
        wanted = terminal.say('"""First', "... ") and terminal.say('Citizen:"""')
        terminal.say("/clear")
        terminal.type("\x1b[200~First\rCitizen:\x1b[201~\r")
        terminal.until("Citizen:\n")
        assert terminal.until(">>> ").removesuffix(">>> ") == wanted
        terminal.say("/clear")
        terminal.type("Citizen:\x07")
        terminal.until("First\n")
        terminal.until("Citizen:")
        terminal.type("\r")
        terminal.until("\n")
        assert terminal.until(">>> ").removesuffix(">>> ") == wanted
        terminal.type("no\x07")
        assert "editor.py ended with 3; nothing was said\n" in terminal.until(">>> ")
        # A path in a pasted text is no command.
        terminal.say("/clear")
        terminal.type("\x1b[200~/usr\r/lib\x1b[201~\r")
        terminal.until("/lib\n")
        assert "Unknown command" not in terminal.until(">>> ")
        terminal.type("/bye\r")
        assert terminal.end() == 0
    lines = (home / ".ollama" / "history").read_text().splitlines()
    assert [lines[at : at + 2] for at, line in enumerate(lines) if line == "/usr"] == [
        ["/usr", "/lib"]
    ]


def test_a_session_is_saved_and_loaded(home: Path) -> None:
    with _run(home, "bard", "--device", "cpu") as terminal:
        begun = terminal.until("Nobody.\n\n>>> ")
        assert begun.endswith(">>> Who?\nNobody.\n\n>>> ")
        assert "First" in terminal.say("/show system")
        assert "temperature                    0" in terminal.say("/show parameters")
        answer = terminal.say("Citizen:").strip()
        terminal.say("/set parameter num_predict 5")
        terminal.say("/set system Second")
        assert "Created new model 'kept'" in terminal.say("/save kept")
        assert "Cleared session context" in terminal.say("/clear")
        assert "MESSAGE assistant Nobody." in terminal.say("/show modelfile")
        terminal.type("/load kept\r")
        terminal.until("Loading model 'kept'")
        terminal.until(">>> Who?\nNobody.\n\n>>> Citizen:\n")
        assert answer in terminal.until(">>> ")
        assert "Second" in terminal.say("/show system")
        assert "num_predict                    5" in terminal.say("/show parameters")
        terminal.type("/exit\r")
        assert terminal.end() == 0
