"""create, list, show, cp and rm as a user calls them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

import pytest
from support import command_line, forked
from support.forked import Forked

from gpukit.formats.gguf_fields import TensorSpec, string, u32
from gpukit.formats.gguf_writer import GGUFWriter
from gpukit_cli.store import human_age

ROOT = Path(__file__).resolve().parents[2]
Done = subprocess.CompletedProcess[str]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a GGUF of 400 KB and a Modelfile."""
    fields = [
        string("general.architecture", "llama"), u32("general.file_type", 1),
        u32("llama.context_length", 128), u32("llama.embedding_length", 64),
    ]  # fmt: skip
    spec = TensorSpec("token_embd.weight", (64, 3200), "F16")
    with GGUFWriter(tmp_path / "tiny.gguf", fields, [spec]) as writer:
        writer.write(0, bytes(spec.nbytes))
    (tmp_path / "Modelfile").write_text(
        "FROM ./tiny.gguf\nPARAMETER temperature 0.6\nPARAMETER num_ctx 4096\n"
        'PARAMETER stop "<|end|>"\nSYSTEM """one\ntwo\nthree"""\nLICENSE MIT\n'
    )
    return tmp_path


def gpukit(folder: Path, *arguments: str, code: int = 0, longest: int | None = None) -> Done:
    """Run a command in `folder` with the store below it; checks the exit code, and of a failure
    that it is told in one line."""
    if longest is not None:
        with TemporaryFile() as said:
            status = _started(folder, said, *arguments, longest=longest).wait()
            said.seek(0)
            done = Done(arguments, status, "", said.read().decode())
    else:
        models = str(folder / "models")
        done = command_line.gpukit(*arguments, folder=folder, GPUKIT_MODELS=models)
    assert done.returncode == code, (done.returncode, done.stderr)
    if code == 1:
        assert done.stderr.splitlines()[-1].startswith("Error: "), done.stderr
        assert "Traceback" not in done.stderr
    return done


def test_a_models_life(folder: Path) -> None:
    created = gpukit(folder, "create", "Tiny", "-f", "Modelfile")
    lines = created.stderr.splitlines()
    assert created.stdout == ""
    assert lines[0] == "parsing GGUF"
    assert sum(line.startswith("creating new layer sha256:") for line in lines) == 4
    assert lines[-2:] == ["writing manifest", "success"]

    (header, row) = gpukit(folder, "list").stdout.splitlines()
    assert header.split() == ["NAME", "ID", "SIZE", "MODIFIED"]
    assert row.split()[0] == "Tiny:latest"
    assert row.split()[2:4] == ["410", "KB"]
    assert row.endswith(" ago")
    assert header.index("ID") == row.index(row.split()[1])

    assert gpukit(folder, "cp", "tiny", "ns/b:2").stdout == "copied 'tiny' to 'ns/b:2'\n"
    listed = json.loads(gpukit(folder, "list", "--json").stdout)["models"]
    assert {model["name"] for model in listed} == {"Tiny:latest", "ns/b:2"}
    assert listed[0]["digest"] == listed[1]["digest"]

    assert gpukit(folder, "rm", "TINY", "ns/b:2").stdout == "deleted 'TINY'\ndeleted 'ns/b:2'\n"
    assert gpukit(folder, "list").stdout.split() == ["NAME", "ID", "SIZE", "MODIFIED"]
    assert list((folder / "models" / "blobs").iterdir()) == []
    gone = gpukit(folder, "rm", "tiny", code=1)
    assert "model 'tiny' not found" in gone.stderr


def foretold(folder: Path, *words: str) -> list[tuple[str, int, str | None, bool | None]]:
    """The layers that a dry run names; fails where it writes anything into the store."""
    before = sorted((folder / "models").rglob("*"))
    plan = json.loads(gpukit(folder, "create", *words, "--dry-run", "--json").stdout)
    assert sorted((folder / "models").rglob("*")) == before
    return [(row["kind"], row["size"], row["digest"], row["new"]) for row in plan["layers"]]


def made(folder: Path, name: str) -> list[tuple[str, int, str]]:
    path = folder / "models" / "manifests" / "registry.ollama.ai" / "library" / name / "latest"
    rows = json.loads(path.read_text())["layers"]
    return [(row["mediaType"].rpartition(".")[2], row["size"], row["digest"]) for row in rows]


def test_a_dry_run_foretells_the_layers(folder: Path) -> None:
    """Of a file taken as it is, of one that is quantised and of a stored model."""
    (folder / "again").write_text("FROM taken\nSYSTEM other\n")
    for name, words in (
        ("taken", ()),
        ("small", ("-q", "Q8_0")),
        ("again", ("-f", "again")),
        ("less", ("-f", "again", "-q", "Q4_0")),
    ):
        rows = foretold(folder, name, *words)
        gpukit(folder, "create", name, *words)
        layers = made(folder, name)
        assert [row[:2] for row in rows] == [layer[:2] for layer in layers]
        assert all(row[2] in (None, layer[2]) for row, layer in zip(rows, layers, strict=True))
        weights = [row[2] for row in rows if row[0] == "model"]
        assert (weights == [None]) == (name != "again")
    assert [row[3] for row in foretold(folder, "taken")] == [None, False, False, False]


def test_a_dry_run_of_create_prints_the_plan(folder: Path) -> None:
    done = gpukit(folder, "create", "tiny", "-q", "Q8_0", "--dry-run")
    lines = done.stdout.splitlines()
    assert " ".join(lines[0].split()) == "token_embd.weight 64 x 3200 F16 -> Q8_0 217 KB"
    rows = [line.split() for line in lines[-6:-1]]
    assert [row[0] for row in rows] == ["LAYER", "model", "system", "license", "params"]
    assert [row[-1] for row in rows[1:]] == ["-", "no", "no", "no"]
    assert lines[-1] == "tiny:latest: 4 layers of 217 KB; nothing was written"
    assert not (folder / "models").exists()
    assert done.stderr == ""
    gpukit(folder, "create", "tiny", "-q", "Q8_O", "--dry-run", code=2)


def test_rm_goes_on_after_a_missing_name(folder: Path) -> None:
    gpukit(folder, "create", "tiny")
    gpukit(folder, "cp", "tiny", "other")
    done = gpukit(folder, "rm", "none", "tiny", "nobody", "other", code=1)
    assert done.stdout == "deleted 'tiny'\ndeleted 'other'\n"
    lines = done.stderr.splitlines()
    assert [line[:29] for line in lines] == [
        "Error: model 'none' not found",
        "Error: model 'nobody' not fou",
    ]
    assert len(gpukit(folder, "list").stdout.splitlines()) == 1


def test_rm_of_what_is_no_name_removes_nothing(folder: Path) -> None:
    gpukit(folder, "create", "tiny")
    done = gpukit(folder, "rm", "tiny", "a/b/c/d", code=2)
    assert done.stdout == ""
    assert "invalid model name" in done.stderr
    assert len(gpukit(folder, "list").stdout.splitlines()) == 2


def test_list_shows_what_begins_so(folder: Path) -> None:
    gpukit(folder, "create", "Tiny:1b")
    for name in ("tinyless", "ns/tinier", "other"):
        gpukit(folder, "cp", "tiny:1b", name)

    def listed(*prefix: str) -> set[str]:
        return {line.split()[0] for line in gpukit(folder, "list", *prefix).stdout.splitlines()[1:]}

    assert listed() == {"Tiny:1b", "tinyless:latest", "ns/tinier:latest", "other:latest"}
    assert listed("TINY") == {"Tiny:1b", "tinyless:latest"}
    assert listed("tiny:1") == {"Tiny:1b"}
    assert listed("ns/") == {"ns/tinier:latest"}
    assert listed("none") == set()
    (found,) = json.loads(gpukit(folder, "list", "o", "--json").stdout)["models"]
    assert found["name"] == "other:latest"


def test_quiet_leaves_results_and_errors(folder: Path) -> None:
    assert gpukit(folder, "create", "tiny", "--quiet").stderr == ""
    manifest = folder / "models/manifests/registry.ollama.ai/library/broken/latest"
    manifest.parent.mkdir()
    manifest.write_text("{")
    assert "warning: " in gpukit(folder, "list").stderr
    done = gpukit(folder, "list", "--quiet")
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 2
    (folder / "Modelfile").write_text("FROM ./none.gguf\n")
    assert gpukit(folder, "create", "m", "--quiet", code=1).stderr.startswith("Error: ")


def test_show(folder: Path) -> None:
    gpukit(folder, "create", "tiny")
    assert gpukit(folder, "show", "tiny").stdout == (
        "  Model\n"
        "    architecture        llama\n"
        "    parameters          205K\n"
        "    context length      128\n"
        "    embedding length    64\n"
        "    quantization        F16\n"
        "\n"
        "  Capabilities\n"
        "    completion\n"
        "\n"
        "  Parameters\n"
        "    num_ctx        4096\n"
        '    stop           "<|end|>"\n'
        "    temperature    0.6\n"
        "\n"
        "  System\n"
        "    one\n"
        "    two\n"
        "    ...\n"
        "\n"
        "  License\n"
        "    MIT\n"
        "\n"
    )
    assert gpukit(folder, "show", "tiny", "--system").stdout == "one\ntwo\nthree"
    assert gpukit(folder, "show", "tiny", "--template").stdout == ""
    assert gpukit(folder, "show", "tiny", "--license").stdout == "MIT\n"
    assert gpukit(folder, "show", "tiny", "--parameters").stdout.splitlines() == [
        f"{'num_ctx':<30} 4096", f"{'stop':<30} \"<|end|>\"", f"{'temperature':<30} 0.6",
    ]  # fmt: skip
    shown = gpukit(folder, "show", "tiny", "--modelfile").stdout
    assert "# FROM tiny:latest" in shown
    assert 'SYSTEM "one\ntwo\nthree"\n' in shown
    verbose = gpukit(folder, "show", "tiny", "-v").stdout
    assert "token_embd.weight    F16    [64, 3200]" in verbose
    assert (
        json.loads(gpukit(folder, "show", "tiny", "--json").stdout)["system"] == "one\ntwo\nthree"
    )
    parameters = {"temperature": 0.6, "stop": ["<|end|>"], "num_ctx": 4096}
    sections = {"system": "one\ntwo\nthree", "template": "", "license": ["MIT"], "modelfile": shown,
                "parameters": parameters}  # fmt: skip
    for name, value in sections.items():
        alone = gpukit(folder, "show", "tiny", "--json", f"--{name}").stdout
        assert json.loads(alone) == {name: value}
    both = gpukit(folder, "show", "tiny", "--system", "--license", code=2)
    assert "only one of '--license'" in both.stderr


def test_create_answers_with_json(folder: Path) -> None:
    made = json.loads(gpukit(folder, "create", "tiny", "--json").stdout)
    (listed,) = json.loads(gpukit(folder, "list", "--json").stdout)["models"]
    assert made == {key: listed[key] for key in ("name", "digest", "size")}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("create", "../x"), 2, "invalid model name: ../x"),
        (("create", "m", "-f", "typo"), 2, "typo: No such file or directory: name a Modelfile"),
        (("create", "m", "-f", "bad"), 2, "bad: (line 2): command must be one of"),
        (("create", "m", "-f", "lost"), 1, "FROM ./lost.gguf: "),
        (("create", "m", "-f", "adapted"), 1, "ADAPTER ./lora: "),
        (("show", "none"), 1, "model 'none' not found"),
        (("show", "a/b/c/d"), 2, "invalid model name"),
        (("cp", "none", "m"), 1, "model 'none' not found"),
        (("rm", "none"), 1, "model 'none' not found"),
    ],
)
def test_faults_are_one_line(
    folder: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    (folder / "bad").write_text("FROM ./tiny.gguf\nBADCOMMAND x\n")
    (folder / "lost").write_text("FROM ./lost.gguf\n")
    (folder / "adapted").write_text("FROM ./tiny.gguf\nADAPTER ./lora\n")
    done = gpukit(folder, *arguments, code=code)
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("Error: ")
    assert message in done.stderr
    assert not (folder / "models").exists()


def test_a_full_disk_leaves_the_store_as_it_was(folder: Path) -> None:
    gpukit(folder, "create", "before")
    store = folder / "models"
    # Another tensor, so that there is something to write.
    spec = TensorSpec("token_embd.weight", (64, 3200), "F16")
    with GGUFWriter(folder / "tiny.gguf", [string("general.architecture", "a")], [spec]) as writer:
        writer.write(0, b"\1" * spec.nbytes)
    there = sorted(path for path in store.rglob("*"))
    failed = gpukit(folder, "create", "after", code=1, longest=100_000)
    assert failed.stderr.splitlines()[-1].startswith("Error: ")
    assert "File too large" in failed.stderr
    assert len([line for line in failed.stderr.splitlines() if "rror" in line]) == 1
    assert sorted(path for path in store.rglob("*")) == there
    gpukit(folder, "create", "after")
    assert len(gpukit(folder, "list").stdout.splitlines()) == 3


def test_no_modelfile_means_this_folder(folder: Path) -> None:
    (folder / "Modelfile").unlink()
    gpukit(folder, "create", "tiny")
    assert gpukit(folder, "show", "tiny", "--parameters").stdout == ""


def test_light_commands_load_no_torch(folder: Path) -> None:
    gpukit(folder, "create", "tiny")
    code = (
        "import sys\nfrom gpukit_cli import store\n"
        "store.list_models(); store.cp('tiny', 'b'); store.show('b'); store.rm(['b'])\n"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in (".", "kernels", "cli")),
            "GPUKIT_MODELS": str(folder / "models"),
        },
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.5, "Less than a second ago"), (1, "1 second ago"), (59.9, "59 seconds ago"),
     (60, "About a minute ago"), (150, "2 minutes ago"), (3599, "59 minutes ago"),
     (3600, "About an hour ago"), (47 * 3600, "47 hours ago"), (50 * 3600, "2 days ago"),
     (15 * 86400, "2 weeks ago"), (70 * 86400, "2 months ago"), (900 * 86400, "2 years ago"),
     (-5, "Less than a second ago")],
)  # fmt: skip
def test_ages(seconds: float, text: str) -> None:
    assert human_age(seconds) == text


def test_a_full_disk_in_the_middle_of_a_conversion(folder: Path) -> None:
    source = ROOT / "tests" / "data" / "tiny-shakespeare"
    (folder / "Modelfile").write_text(f"FROM {source}\n")
    failed = gpukit(folder, "create", "tiny", "-q", "Q8_0", code=1, longest=1_000_000)
    assert "File too large" in failed.stderr.splitlines()[-1]
    assert list((folder / "models" / "blobs").iterdir()) == []
    assert [path.name for path in (folder / "models" / ".gpukit").iterdir()] == ["lock"]
    gpukit(folder, "create", "tiny", "-q", "Q8_0")


def _started(folder: Path, said: IO[bytes], *words: str, longest: int | None = None) -> Forked:
    environment = command_line.surroundings(GPUKIT_MODELS=str(folder / "models"))
    return forked.command(
        *words, folder=folder, out=said, err=said, longest=longest, environment=environment
    )


def test_two_creates_at_once_share_their_blobs(folder: Path) -> None:
    with TemporaryFile() as said:
        started = [_started(folder, said, "create", name) for name in "abcd"]
        codes = [process.wait() for process in started]
        said.seek(0)
        assert codes == [0] * 4, said.read().decode()
    assert len(gpukit(folder, "list").stdout.splitlines()) == 5
    blobs = folder / "models" / "blobs"
    assert len(list(blobs.iterdir())) == 5
    gpukit(folder, "rm", "a", "b", "c")
    assert len(list(blobs.iterdir())) == 5
    gpukit(folder, "rm", "d")
    assert list(blobs.iterdir()) == []
