"""`gpukit run` as a user calls it."""

import io
import json
import os
import pty
import re
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from support.checkpoints import DATA
from support.command_line import gpukit as in_fork
from support.gguf_adapters import write_adapter

import gpukit
from gpukit.conversion.run import run_plan
from gpukit.formats.gguf_fields import string
from gpukit.planning.planner import plan_quantize
from gpukit.sources.opening import open_source
from gpukit_cli.answer import duration
from gpukit_cli.app import main

ROOT = Path(__file__).resolve().parents[2]
TINY = DATA / "tiny-shakespeare"
GREEDY = "\nHe has a power to be authority\nWhich he hath made to be aged in re"
FAST = ("--temperature", "0", "--num-predict", "24", "--device", "cpu")
Done = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny.gguf and a store that has it as `tiny`, with parameters."""
    folder = tmp_path_factory.mktemp("run")
    with open_source(TINY) as source:
        run_plan(source, plan_quantize(source, "F16"), folder / "tiny.gguf")
    (folder / "Modelfile").write_text(
        "FROM ./tiny.gguf\nPARAMETER temperature 0\nPARAMETER num_predict 24\n"
        'PARAMETER stop "hath"\nSYSTEM Speak.\n'
    )
    _verb(folder, "create", "tiny", "-f", "Modelfile")
    return folder


def _gpukit(folder: Path, *arguments: str, stdin: str = "") -> Done:
    """The command in a process of its own, as a shell starts it."""
    done = subprocess.run(
        [sys.executable, "-c", "from gpukit_cli.app import main; main()", *arguments],
        cwd=folder, env=_environment(folder), input=stdin, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


def _verb(folder: Path, *words: str) -> Done:
    done = in_fork(*words, folder=folder, GPUKIT_MODELS=str(folder / "models"))
    assert done.returncode == 0, done.stderr
    return done


def _environment(folder: Path) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in (".", "kernels", "cli")),
        "GPUKIT_MODELS": str(folder / "models"),
        "OMP_NUM_THREADS": "1",
    }


class Caller:
    """Calls `gpukit run` in this process, which has torch loaded already."""

    def __init__(
        self, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys
        monkeypatch.chdir(home)
        monkeypatch.setenv("GPUKIT_MODELS", str(home / "models"))

    def __call__(self, *arguments: str, stdin: bytes = b"", code: int = 0) -> Done:
        self._monkeypatch.setattr(sys, "argv", ["gpukit", "run", *arguments])
        self._monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), "utf-8"))
        with pytest.raises(SystemExit) as end:
            main()
        out, err = self._capsys.readouterr()
        assert (end.value.code or 0) == code, err
        if code:
            assert re.fullmatch(r"Error: [^\n]+\n", err), err
            assert not out
        return Done(arguments, code, out, err)


@pytest.fixture
def run(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Caller:
    return Caller(home, monkeypatch, capsys)


def test_a_file_continues_a_prompt_and_tells_its_times(home: Path) -> None:
    done = _gpukit(home, "run", "tiny.gguf", "First", "Citizen:", *FAST, "--verbose")
    assert done.stdout == GREEDY + "\n\n"
    lines = [
        r"total duration:       \d+(\.\d+)?m?s", r"load duration:        \d+(\.\d+)?m?s",
        r"prompt eval count:    4 token\(s\)", r"prompt eval duration: \d+(\.\d+)?m?s",
        r"prompt eval rate:     \d+\.\d\d tokens/s", r"eval count:           24 token\(s\)",
        r"eval duration:        \d+(\.\d+)?m?s", r"eval rate:            \d+\.\d\d tokens/s",
    ]  # fmt: skip
    assert re.fullmatch("\n".join(lines) + "\n", done.stderr), done.stderr


def test_json_loses_nothing_where_there_is_no_utf8(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "tïny.gguf").symlink_to("tiny.gguf")
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    done = _gpukit(home, "run", "tïny.gguf", "First Citizen:", *FAST, "--json")
    assert json.loads(done.stdout)["model"] == "tïny.gguf"


def test_json_is_one_document(run: Caller) -> None:
    done = run("tiny.gguf", "First Citizen:", *FAST, "--json")
    found = json.loads(done.stdout)
    assert found["response"] == GREEDY
    assert (found["model"], found["done_reason"]) == ("tiny.gguf", "length")
    assert (found["prompt_eval_count"], found["eval_count"]) == (4, 24)
    assert found["total_duration"] >= found["load_duration"] + found["eval_duration"] > 0
    assert done.stderr == ""


def test_a_stored_model_brings_its_parameters(run: Caller) -> None:
    done = run("tiny", "First Citizen:")
    assert done.stdout == GREEDY[: GREEDY.index("hath")] + "\n\n"
    told = "warning: the model has no chat template; SYSTEM and MESSAGE are not used\n"
    assert done.stderr == told
    over = run("tiny", "First Citizen:", "--stop", "power", "--stop", "zzz")
    assert over.stdout == GREEDY[: GREEDY.index("power")] + "\n\n"
    seeded = ("tiny", "First Citizen:", "--temperature", "1", "--seed", "7")
    seeds = [run(*seeded).stdout for _ in range(2)]
    assert seeds[0] == seeds[1] != done.stdout


def test_system_replaces_the_models(run: Caller, home: Path) -> None:
    told = "warning: the model has no chat template; SYSTEM and MESSAGE are not used\n"
    assert run("tiny", "First Citizen:", "--system", "").stderr == ""
    assert run("tiny.gguf", "First Citizen:", *FAST, "--system", "Speak.").stderr == told
    assert run("tiny", "First Citizen:", "--system", "Speak.", "--quiet").stderr == ""
    with open_source(home / "tiny.gguf") as source:
        plan = plan_quantize(source)
        every = "{% for turn in messages %}{{ turn.content }}{% endfor %}"
        fields = (*plan.fields, string("tokenizer.chat_template", every))
        run_plan(source, replace(plan, fields=fields), home / "chat.gguf")
    done = run("chat.gguf", "Citizen:", *FAST, "--system", "First ")
    assert (done.stdout, done.stderr) == (GREEDY + "\n\n", "")


def test_a_template_of_the_modelfile_goes_first(
    run: Caller, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_source(home / "tiny.gguf") as source:
        plan = plan_quantize(source)
        fields = (*plan.fields, string("tokenizer.chat_template", "{{ messages[-1].role }}"))
        run_plan(source, replace(plan, fields=fields), home / "jinja.gguf")
    for name in ("tiny", "jinja"):
        template = "{{ .System }}{{ .Prompt }}{{ .Response }} never seen"
        (home / "go").write_text(f'FROM ./{name}.gguf\nTEMPLATE """{template}"""\nSYSTEM First\n')
        _verb(home, "create", f"{name}-go", "-f", "go")
        done = run(f"{name}-go", " Citizen:", *FAST)
        assert (done.stdout, done.stderr) == (GREEDY + "\n\n", "")
    monkeypatch.setenv("OLLAMA_GO_TEMPLATE", "0")
    assert run("tiny-go", " Citizen:", *FAST).stdout == GREEDY + "\n\n"
    assert run("jinja-go", " Citizen:", *FAST).stdout == run("tiny.gguf", "user", *FAST).stdout
    (home / "broken").write_text("FROM ./tiny.gguf\nTEMPLATE {{ .Prompt.X }}\n")
    _verb(home, "create", "broken", "-f", "broken")
    assert "TEMPLATE: (line 1): can't evaluate field X" in run("broken", "x", code=1).stderr


def test_an_answer_fits_a_schema(run: Caller, home: Path) -> None:
    pytest.importorskip("llguidance")
    texts = {"bad": "{", "list": "[]", "type": '{"type": "nope"}', "ref": '{"$ref": "#/x"}',
             "regex": '{"type": "string", "pattern": "(a"}'}  # fmt: skip
    for name, text in texts.items():
        (home / f"{name}.json").write_text(text)
    for word, told in (
        ("none.json", "--format none.json: No such file or directory; json or a file with a JSON"),
        ("bad.json", "--format bad.json: this is no JSON schema"),
        ("type.json", "--format type.json: Invalid type: nope\n"),
        ("ref.json", "--format ref.json: Pointer '/x' does not exist\n"),
        ("regex.json", "--format regex.json: regex parse error: (a: unclosed group\n"),
        ("list.json", "--format list.json: this is no JSON schema: an object is wanted"),
    ):
        assert told in run("tiny.gguf", "x", "--format", word, code=2).stderr
    (home / "schema.json").write_text('{"enum": ["yes, sir", "no"]}')
    done = run("tiny.gguf", "First Citizen:", *FAST, "--format", "schema.json")
    assert json.loads(done.stdout) in ("yes, sir", "no")


def test_a_folder_runs(run: Caller) -> None:
    assert run(str(TINY), "First Citizen:", *FAST).stdout == GREEDY + "\n\n"


def test_adapters_work_beside_the_weights(run: Caller, home: Path) -> None:
    adapted = {f"blk.{n}.attn_v.weight": (128, 256) for n in range(4)}
    write_adapter(home / "a:1.gguf", "llama", adapted, 8.0, 4, size=0.2)
    write_adapter(home / "b.gguf", "llama", adapted, 8.0, 4, seed=1, size=0.2)
    asked = ("tiny.gguf", "First Citizen:", *FAST)
    # A path may end as one with a weight does, and still have one behind it.
    (one,) = {run(*asked, "--adapter", f"a:1.gguf{end}").stdout for end in ("", ":1", ":+1.0e0")}
    assert run(*asked, "--adapter", "a:1.gguf:0", "--adapter", "b.gguf:0").stdout == GREEDY + "\n\n"
    both = run(*asked, "--adapter", "a:1.gguf", "--adapter", "b.gguf:0.5").stdout
    assert len({one, both, GREEDY + "\n\n"}) == 3
    loaded = gpukit.load(home / "tiny.gguf", "cpu", adapters=["a:1.gguf", (home / "b.gguf", 0.5)])
    answer = loaded.generate("First Citizen:", temperature=0, num_predict=24)
    assert answer.text + "\n\n" == both
    for word, code, told in (
        ("none:0.5", 1, "none: no such file or folder"),
        ("org/name", 1, "for an adapter of the Hugging Face hub write hf.co/org/name"),
        ("b.gguf:nan", 2, "b.gguf: a weight of nan; a finite one is needed"),
        ("", 2, "the path of an adapter"),
        (str(TINY), 1, "a whole model is there, not an adapter"),
        ("tiny.gguf", 1, "tiny.gguf: a GGUF of general.type 'model' and adapter.type 'None'"),
    ):
        assert told in run(*asked, "--adapter", word, code=code).stderr


def test_a_stored_model_has_its_adapters(run: Caller, home: Path) -> None:
    adapted = {f"blk.{n}.attn_v.weight": (128, 256) for n in range(4)}
    write_adapter(home / "c.gguf", "llama", adapted, 8.0, 4, size=0.2)
    (home / "adapted").write_text("FROM tiny\nADAPTER ./c.gguf\n")
    _verb(home, "create", "adapted", "-f", "adapted")
    asked = ("First Citizen:", "--quiet")
    told = run("adapted", *asked).stdout
    assert told == run("tiny", *asked, "--adapter", "c.gguf").stdout
    assert told != run("tiny", *asked).stdout
    assert run("adapted", *asked, "--adapter", "c.gguf:-1").stdout == run("tiny", *asked).stdout
    told = run("adapted", *asked, "--adapter", "c.gguf:1.5e38", code=1).stderr
    wanted = r"adapted: a logit is nan with the adapters \S+:1, c\.gguf:1\.5e\+38: use a smaller w"
    assert re.search(wanted, told), told
    shown = _verb(home, "show", "adapted").stdout
    digest = sha256((home / "c.gguf").read_bytes()).hexdigest()
    row = rf"  Adapters\n    {digest[:12]}    rank 4    4 tensors    \d\d KB\n\n"
    assert re.search(row, shown), shown
    lines = _verb(home, "show", "adapted", "--modelfile").stdout.splitlines()
    assert lines[5] == f"ADAPTER {home / 'models' / 'blobs' / f'sha256-{digest}'}"


def test_stdin_is_the_prompt_or_goes_before_it(run: Caller) -> None:
    assert run("tiny.gguf", *FAST, stdin=b"First Citizen:").stdout.startswith(GREEDY)
    both = run("tiny.gguf", "Citizen:", *FAST, stdin=b"First")
    assert both.stdout.startswith(GREEDY)


def test_what_cannot_be_run_is_told_in_one_line(run: Caller, home: Path) -> None:
    (home / "empty").mkdir()
    (home / "cut.gguf").write_bytes((home / "tiny.gguf").read_bytes()[:100_000])
    for arguments, stdin, code, told in (
        (("none", "x"), b"", 1, "none: no such file or folder, and no model of that name in "),
        (("none.gguf", "x"), b"", 1, "none.gguf"),
        (("./empty", "x"), b"", 1, "empty"),
        (("empty", "x"), b"", 1, "empty: no config.json"),
        (("cut.gguf", "x"), b"", 1, "cut.gguf"),
        (("tiny.gguf",), b"", 2, "no prompt"),
        (("tiny.gguf",), b"a\xff", 2, "standard input: byte 1 is no UTF-8: a prompt in UTF"),
        (("tiny.gguf", "x", "a\udcff"), b"", 2, "PROMPT: byte 3 is no UTF-8: a prompt in UTF-8"),
        (("tiny.gguf", "x", "--device", "gpu"), b"", 2, "unknown device 'gpu'"),
        (("tiny.gguf", "x", "--temperature", "-1"), b"", 2, "temperature is -1"),
        (("tiny.gguf", "x", "--num-ctx", "0"), b"", 2, "num_ctx is 0"),
        (("tiny.gguf", "First Citizen:", "--num-ctx", "2"), b"", 2, "4 tokens do not fit"),
    ):
        assert told in run(*arguments, stdin=stdin, code=code).stderr


def test_a_terminal_without_a_prompt_is_told(home: Path) -> None:
    leader, follower = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-c", "from gpukit_cli.app import main; main()", "run", "tiny.gguf"],
            stdin=follower, cwd=home, env=_environment(home), capture_output=True, text=True,
            check=False,
        )  # fmt: skip
    finally:
        os.close(leader)
        os.close(follower)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: no prompt; give one")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0ns"), (7e-9, "7ns"), (1.5e-6, "1.5µs"), (0.0123456, "12.3456ms"), (1, "1s"),
        (1.734567891, "1.734567891s"), (59.9999999999, "1m0s"), (62.03, "1m2.03s"),
        (3723.5, "1h2m3.5s"),
    ],
)  # fmt: skip
def test_durations_read_as_in_go(seconds: float, text: str) -> None:
    assert duration(seconds) == text
