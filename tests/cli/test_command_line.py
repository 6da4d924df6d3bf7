"""The command line as a whole: help, defaults, one line for wrong words, completion."""

import io
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from gpukit.formats.file_types import FILE_TYPES
from gpukit.generation.sampling import SamplingOptions
from gpukit_cli.app import command_line, main
from gpukit_cli.examples import EXAMPLES

COMMANDS = tuple(EXAMPLES)


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")


class Said:
    """How a command ended and what it printed."""

    def __init__(self, code: object, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def gpukit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*words: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["gpukit", *words])
        monkeypatch.setattr(sys, "stdin", io.StringIO())
        with pytest.raises(SystemExit) as end:
            main()
        return Said(end.value.code or 0, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def commands() -> dict[str, Any]:
    """Typer's commands by name."""
    return dict(typer.main.get_command(command_line()).commands)  # type: ignore[attr-defined]


def test_gpukit_alone_prints_help(gpukit: Any) -> None:
    alone, asked = gpukit(), gpukit("--help")
    assert (alone.code, asked.code) == (2, 0)
    assert alone.out == asked.out
    assert alone.err == ""
    assert all(f" {name} " in asked.out for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(gpukit: Any, name: str) -> None:
    said = gpukit(name, "--help")
    assert said.code == 0
    assert all(f"gpukit {name}" in line and line in said.out for line in EXAMPLES[name])
    assert gpukit("help", name).out == said.out


def test_examples_are_examples(commands: dict[str, Any]) -> None:
    assert commands.keys() == EXAMPLES.keys()
    for name, lines in EXAMPLES.items():
        for line in lines:
            words = shlex.split(line.partition(">")[0].partition("<")[0])
            assert words[:2] == ["gpukit", name]
            commands[name].make_context(name, words[2:])


@pytest.mark.parametrize("name", ["convert", "quantize", "create"])
def test_help_lists_the_file_types(gpukit: Any, name: str) -> None:
    assert f": {', '.join(FILE_TYPES)}." in gpukit(name, "--help").out


@pytest.mark.parametrize("name", ["convert", "quantize"])
def test_help_says_what_becomes_of_an_output_that_is_there(gpukit: Any, name: str) -> None:
    said = gpukit(name, "--help").out
    assert "A file that is there is replaced, whole and at the end; IN never is." in said


def test_every_parameter_tells_what_it_is_and_its_default(commands: dict[str, Any]) -> None:
    for name, command in commands.items():
        for param in command.params:
            assert param.help, (name, param.name)
            assert param.help.endswith("."), (name, param.help)
            assert "[" not in param.help, (name, "read as markup, so not shown")
            if param.required or getattr(param, "is_flag", False):
                continue
            shown = isinstance(param.show_default, str) or param.default not in (None, "")
            assert shown, (name, param.name)


def test_the_defaults_of_sampling_are_those_of_the_library(commands: dict[str, Any]) -> None:
    for param in commands["run"].params:
        value = getattr(SamplingOptions(), param.name, None)
        if isinstance(value, int | float) and value >= 0:
            assert param.show_default == f"the Modelfile's, else {value:g}"


def test_an_option_is_the_same_in_every_command(commands: dict[str, Any]) -> None:
    shared = ("device", "json", "quiet", "pre", "hub", "imatrix", "dry_run", "split_max_size")
    found: dict[str, set[Any]] = {name: set() for name in shared}
    for command in commands.values():
        for param in command.params:
            if param.name in found:
                found[param.name].add((*param.opts, param.metavar, param.help))
    # Some take one device, some several.
    assert {name: len(kinds) for name, kinds in found.items()} == {
        name: 1 + (name == "device") for name in shared
    }


def test_what_shows_progress_can_be_quiet(commands: dict[str, Any]) -> None:
    quiet = {n for n, c in commands.items() if "quiet" in {p.name for p in c.params}}
    assert quiet == {
        "adapter", "create", "run", "list", "convert", "quantize", "merge", "imatrix", "inspect",
        "perplexity", "batch", "verify", "push", "pull", "gc",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("convert", "Missing argument 'IN' (see gpukit convert --help)"),
        ("convert a", "Missing argument 'OUT' (see gpukit convert --help)"),
        (
            "convert a b --tpye Q8_0",
            "No such option: --tpye; did you mean --pre or --type or --ty",
        ),
        ("create a --devise cpu", "No such option: --devise; did you mean --device? (see"),
        ("list --frog", "No such option: --frog (see gpukit list --help)"),
        ("--frog", "No such option: --frog (see gpukit --help)"),
        ("nonsense", "No such command 'nonsense' (see gpukit --help)"),
        ("quantise a b c", "No such command 'quantise'. Did you mean 'quantize'? (see"),
        ("help nonsense", "No such command 'nonsense' (see gpukit --help)"),
        ("run x --seed 1.5", "Invalid value for '--seed': "),
        ("convert a b --json=x", "Option '--json' does not take a value"),
        ("convert a b --type Q4_KM", "unknown type 'Q4_KM'; known: F32, "),
        ("list a b", "Got unexpected extra argument(s) (b) (see gpukit list --help)"),
        ("list a\x1b[31m b\nc", "Got unexpected extra argument(s) (b"),
    ],
)
def test_wrong_words_are_one_line(gpukit: Any, line: str, text: str) -> None:
    said = gpukit(*line.split(" "))
    assert said.code == 2
    assert said.out == ""
    assert said.err.startswith(f"Error: {text}")
    assert said.err.endswith("\n")
    assert said.err[:-1].isprintable()


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("convert a b --type Q4_KM", "Q4_K_M"),
        ("quantize a b q4-k-m", "Q4_K_M"),
        ("create a -q Q80", "Q8_0"),
        ("quantize a b Q8_0 --output-tensor-type Q6K", "Q6_K"),
        ("quantize a b Q8_0 --tensor-type x=IQ4-XS", "IQ4_XS"),
        ("convert a b --pre lama-bpe", "llama-bpe"),
        ("convert a b --device cude", "cuda"),
        ("bench quantise", "quantize"),
        ("bench quantize --type Q4K", "Q4_K"),
        ("rm minne", "mine:latest"),
        ("show nime:latest", "mine:latest"),
        ("run mine:lates x", "mine:latest"),
        ("inspect min", "mine:latest"),
    ],
)
def test_what_was_meant_is_told(
    gpukit: Any, line: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "store" / "manifests" / "registry.ollama.ai" / "library" / "mine" / "latest"
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    monkeypatch.setenv("GPUKIT_MODELS", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    said = gpukit(*line.split())
    assert said.code in (1, 2)
    assert said.err.endswith(f": did you mean '{meant}'?\n")
    assert len(said.err.splitlines()) == 1


def bash_asks(*words: str) -> dict[str, str]:
    """What bash sets when it wants the last of `words` completed."""
    return {
        "_GPUKIT_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(("gpukit", *words)),
        "COMP_CWORD": str(len(words)),
    }


@pytest.fixture
def completed(gpukit: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    def run(*words: str) -> list[str]:
        for name, value in bash_asks(*words).items():
            monkeypatch.setenv(name, value)
        said = gpukit()
        assert (said.code, said.err) == (0, "")
        return str(said.out).split()

    return run


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("quantize a b Q4_K", ["Q4_K_S", "Q4_K_M", "Q4_K"]),
        ("convert a b --type q3_k_m", ["q3_k_m"]),
        ("create a -q mx", ["mxFP4_MOE"]),
        ("quantize a b Q8_0 --output-tensor-type IQ4", ["IQ4_NL", "IQ4_XS"]),
        ("run a --device cp", ["cpu"]),
        ("quantize a b Q8_0 --dev", ["--device"]),
        ("qua", ["quantize"]),
    ],
)
def test_a_shell_completes(completed: Any, line: str, offered: list[str]) -> None:
    assert completed(*line.split()) == offered


@pytest.mark.parametrize("command", ["run", "show", "cp", "rm", "inspect", "convert", "list"])
def test_a_shell_completes_names_of_the_store(
    completed: Any, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("library/tiny/latest", "library/tiny/1b", "me/other/latest"):
        path = tmp_path / "manifests" / "registry.ollama.ai" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    monkeypatch.setenv("GPUKIT_MODELS", str(tmp_path))
    assert completed(command, "ti") == ["tiny:1b", "tiny"]
    assert completed(command, "ME") == ["ME/other"]
    assert completed(command, "none") == []
    monkeypatch.setenv("GPUKIT_MODELS", "/dev/null")
    assert completed(command, "ti") == []


def test_completing_loads_no_heavy_library() -> None:
    code = (
        "import sys\n"
        "from gpukit_cli.app import main\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    assert not {'torch', 'numpy', 'gguf'} & set(sys.modules)\n"
    )
    asked = bash_asks("quantize", "a", "b", "Q8_0", "--output-tensor-type", "Q8")
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **asked},
    )
    assert done.stdout.split() == ["Q8_0"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_can_be_shown(gpukit: Any, shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("typer.completion._get_shell_name", lambda: shell)
    said = gpukit("--show-completion")
    assert said.code == 0
    assert f"_GPUKIT_COMPLETE=complete_{shell}" in said.out


def test_words_that_are_listed_for_help_are_the_librarys() -> None:
    from gpukit.adapters import file
    from gpukit.adapters.experts import Layout
    from gpukit.adapters.mixing import METHODS
    from gpukit_cli import adapter, merge, options

    assert tuple(METHODS) == merge.METHODS
    assert file.TYPES == adapter.TYPES
    assert tuple(layout.value for layout in Layout) == options.LAYOUTS
