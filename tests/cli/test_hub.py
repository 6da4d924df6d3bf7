"""Ids of the Hugging Face hub on the command line, against a hub on this machine."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support import command_line
from support.checkpoints import build
from support.hub import COMMIT, Hub, serve

INDEX = "model.safetensors.index.json"
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = build("plain", tmp_path_factory.mktemp("hub"))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def lora(folder: Path) -> dict[str, bytes]:
    """The files of an adapter of PEFT for the model."""
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"],
              "base_model_name_or_path": "org/tiny-1M"}  # fmt: skip
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    tensors = {name.format("A"): torch.ones(2, 256), name.format("B"): torch.ones(256, 2)}
    save_file(tensors, folder / "adapter_model.safetensors")
    weights = (folder / "adapter_model.safetensors").read_bytes()
    return {
        "adapter_config.json": json.dumps(config).encode(),
        "adapter_model.safetensors": weights,
    }


@pytest.fixture
def hub(files: dict[str, bytes], tmp_path: Path) -> Iterator[Hub]:
    other = {"pytorch_model.bin": b"not wanted", "onnx/model.onnx": b"nor this", "LICENSE": b"MIT"}
    repos = {
        "org/tiny-1M": files | other,
        "org/secret": files,
        "org/empty": {"README.md": b""},
        "org/odd-index": files | {INDEX: b'{"weight_map": [[1], null]}'},
        "org/ggufs": {"a-Q4_K_M.gguf": b"", "a-Q8_0.gguf": b"GGUF", "config.json": b"{}"},
    }
    repos["org/lora"] = lora(tmp_path)
    gated = {"org/gated": files}
    with serve(Hub(repos | gated, private=("org/secret",), gated=("org/gated",))) as hub:
        yield hub


@pytest.fixture
def gpukit(hub: Hub, tmp_path: Path) -> Run:
    def run(*words: object, **variables: str) -> subprocess.CompletedProcess[str]:
        place = {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "home"),
            "GPUKIT_MODELS": str(tmp_path / "store"),
        }
        return command_line.gpukit(*words, **{**place, **variables})

    return run


def test_a_model_of_the_hub_and_again_without_it(gpukit: Run, hub: Hub, tmp_path: Path) -> None:
    out = tmp_path / "a.gguf"
    done = gpukit("convert", "hf.co/org/tiny-1M", out, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["size"] == out.stat().st_size
    assert "fetching hf.co/org/tiny-1M" in done.stderr
    # What a conversion reads and nothing else.
    names = {"config.json", "model.safetensors", "tokenizer.model", "tokenizer_config.json"}
    assert {name.rpartition("/")[2] for name in hub.fetched()} == names
    assert (tmp_path / "home/hub/models--org--tiny-1M/snapshots" / COMMIT).is_dir()
    found = json.loads(gpukit("inspect", out, "--json").stdout)
    assert found["metadata"]["general.name"]["value"] == "Tiny 1M"

    asked = len(hub.asked)
    again = tmp_path / "b.gguf"
    done = gpukit("convert", "org/tiny-1M", again, "--hub", HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert again.read_bytes() == out.read_bytes()
    assert len(hub.asked) == asked
    done = gpukit("convert", "hf.co/org/tiny-1M", again, HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 0, done.stderr
    assert "warning: hf.co/org/tiny-1M: the hub cannot be reached" in done.stderr


def test_a_model_and_its_adapter_of_the_hub(gpukit: Run, tmp_path: Path) -> None:
    path = tmp_path / "Modelfile"
    path.write_text("FROM hf.co/org/tiny-1M\nADAPTER hf.co/org/empty\n")
    done = gpukit("create", "m", "-f", path)
    assert done.returncode == 1
    assert "Error: hf.co/org/empty: no adapter_config.json there, so no adapter" in done.stderr
    assert not (tmp_path / "store").exists()
    path.write_text("FROM hf.co/org/tiny-1M\nADAPTER hf.co/org/lora\n")
    done = gpukit("create", "m", "-f", path)
    assert done.returncode == 0, done.stderr
    assert "made for" not in done.stderr
    (adapter,) = json.loads(gpukit("show", "m", "--json").stdout)["adapters"]
    assert (adapter["name"], adapter["tensors"], adapter["ranks"]) == ("Lora", 1, [2])
    done = gpukit("run", "hf.co/org/tiny-1M", "Once", "--adapter", "hf.co/org/lora:0.5",
                  "--num-predict", "2")  # fmt: skip
    assert (done.returncode, bool(done.stdout.strip())) == (0, True), done.stderr


def test_a_private_one_wants_the_token(gpukit: Run, hub: Hub, tmp_path: Path) -> None:
    words = ("convert", f"https://huggingface.co/org/secret@{COMMIT}", tmp_path / "a.gguf")
    done = gpukit(*words)
    assert done.returncode == 1
    assert "hf.co/org/secret: not on http" in done.stderr
    assert "set HF_TOKEN" in done.stderr
    assert gpukit(*words, HF_TOKEN=hub.token).returncode == 0


def test_create_from_the_hub(gpukit: Run, tmp_path: Path) -> None:
    (tmp_path / "Modelfile").write_text("FROM hf.co/org/tiny-1M\nSYSTEM Hi.\n")
    done = gpukit("create", "tiny", "-f", tmp_path / "Modelfile", "-q", "Q8_0")
    assert done.returncode == 0, done.stderr
    assert "tiny:latest" in gpukit("list").stdout


def test_a_model_of_the_hub_speaks_and_is_looked_into(gpukit: Run, tmp_path: Path) -> None:
    done = gpukit("run", "hf.co/org/tiny-1M", "x", "--num-predict", 2, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["eval_count"] > 0
    done = gpukit("inspect", "org/tiny-1M", "--hub", HF_HUB_OFFLINE="1")
    assert "LlamaForCausalLM" in done.stdout
    (tmp_path / "Modelfile").write_text("FROM org/tiny-1M\n")
    done = gpukit("create", "tiny", "-f", tmp_path / "Modelfile", "--hub", HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr


def test_an_index_that_is_none(gpukit: Run, tmp_path: Path) -> None:
    done = gpukit("convert", "hf.co/org/odd-index", tmp_path / "a.gguf")
    assert done.returncode == 1
    assert f"{INDEX}: no weight_map of file names" in done.stderr


REFUSED = {
    "hf.co/org/nothing": "hf.co/org/nothing: not on http",
    "hf.co/org/gated": "access must be granted on http",
    "hf.co/org/tiny-1M@v9": "no revision 'v9'",
    "hf.co/org/empty": "hf.co/org/empty: no weights there",
    "hf.co/org/ggufs": "2 .gguf files (a-Q4_K_M.gguf, a-Q8_0.gguf): name one, as hf.co/org/",
    "hf.co/org/ggufs/b.gguf": "no b.gguf there",
    "hf.co/org": "hf.co/org: no id on the Hugging Face hub; hf.co/org/name is one",
    "hf.co/or g/name": "no id on the Hugging Face hub",
    "hf.co/org/--x": "hf.co/org/--x: ",
}
# Settings of the hub are read when its package is imported, so each case cannot have its own here.
LOCATE = """
import sys
from gpukit.errors import GpukitError
from gpukit.recipes.references import locate
for name in sys.argv[1:]:
    try:
        print(locate(name).fetch())
    except GpukitError as error:
        print(error.exit_code, error)
"""


def test_what_the_hub_does_not_give(hub: Hub, tmp_path: Path) -> None:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", LOCATE, *REFUSED, "hf.co/org/ggufs/a-Q8_0.gguf", "org/tiny-1M"],
        capture_output=True,
        text=True,
        check=True,
        env=kept | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path)},
    )
    *refused, gguf, here = done.stdout.splitlines()
    for line, words in zip(refused, REFUSED.values(), strict=True):
        assert words in line
        assert line.startswith("2 " if "no id" in words or "--x" in words else "1 ")
    assert Path(gguf).read_bytes() == b"GGUF"
    # Without being asked nothing is looked for on the hub.
    assert here.startswith("1 org/tiny-1M: no such file or folder")
    assert here.endswith("; for a model of the Hugging Face hub write hf.co/org/tiny-1M")


def test_nothing_cached_and_nobody_there(gpukit: Run, tmp_path: Path) -> None:
    words = ("convert", "hf.co/org/tiny-1M", tmp_path / "a.gguf")
    done = gpukit(*words, HF_HUB_OFFLINE="1")
    assert "not in the cache, and HF_HUB_OFFLINE is set" in done.stderr
    done = gpukit(*words, HF_ENDPOINT="http://127.0.0.1:9")
    assert "http://127.0.0.1:9 cannot be reached" in done.stderr


CALLS = """
import json, sys
from gpukit_cli.app import main
for words in json.load(sys.stdin):
    sys.argv[1:] = words
    try:
        main()
    except SystemExit as end:
        print(end.code)
"""
IN = "hf.co/org/tiny-1M"
MISTAKES = {
    "unknown type 'Q9'": ("convert", IN, "OUT", "--type", "Q9"),
    "unknown type 'Q8'": ("quantize", IN, "OUT", "Q8"),
    "there is no folder": ("convert", IN, "OUT/a.gguf"),
    "a folder; name the file": ("quantize", IN, ".", "Q8_0"),
    "cannot hold Q4_0": ("convert", IN, "OUT.safetensors", "--type", "q4_0"),
    "only a GGUF is split": ("convert", IN, "OUT.safetensors", "--split-max-size", "1G"),
    "unknown device 'tpu'": ("convert", IN, "OUT", "--device", "tpu"),
    "device cuda:99 is not here": ("quantize", IN, "OUT", "Q8_0", "--device", "cuda:99"),
    "'1X' is no size": ("convert", IN, "OUT", "--split-max-size", "1X"),
    "exclude each other": (
        "quantize", IN, "OUT", "Q8_0", "--keep-split", "--split-max-size", "1G",
    ),
    "REGEX=TYPE": ("quantize", IN, "OUT", "Q8_0", "--tensor-type", "x"),
    "tensor type 'Q9'": ("quantize", IN, "OUT", "Q8_0", "--output-tensor-type", "Q9"),
    "/no/such: no such file": ("quantize", IN, "OUT", "Q8_0", "--imatrix", "/no/such"),
    "--pre nobody: unknown": ("convert", "org/tiny-1M", "OUT", "--hub", "--pre", "nobody"),
    "unknown type 'Q7'": ("convert", IN, "OUT", "--type", "Q7", "--dry-run"),
    "--pre nothing: unknown": ("create", "m", "-f", "MODELFILE", "--pre", "nothing"),
    "unknown type 'Q6'": ("create", "m", "-f", "MODELFILE", "-q", "Q6"),
    "unknown device 'npu'": ("create", "m", "-f", "MODELFILE", "-q", "Q8_0", "--device", "npu"),
    "/nor/such: no such": (
        "create", "m", "-f", "MODELFILE", "-q", "Q8_0", "--imatrix", "/nor/such",
    ),
    "unknown device 'gpu'": ("run", IN, "x", "--device", "gpu"),
    "--pre no-one: unknown": ("run", IN, "x", "--pre", "no-one"),
    "temperature is -1": ("run", IN, "x", "--temperature", "-1"),
    "no prompt": ("run", IN),
}  # fmt: skip


def test_a_mistake_fetches_nothing(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "Modelfile").write_text(f"FROM {IN}\n")
    places = {"OUT": str(tmp_path / "x.gguf"), "MODELFILE": str(tmp_path / "Modelfile")}
    places |= {"OUT/a.gguf": f"{tmp_path}/x/a.gguf", "OUT.safetensors": f"{tmp_path}/x.safetensors"}
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    place = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "GPUKIT_MODELS": str(tmp_path / "m")}

    def call(*calls: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", CALLS],
            input=json.dumps([[places.get(word, word) for word in words] for words in calls]),
            capture_output=True,
            text=True,
            check=True,
            env=kept | place,
        )

    done = call(*MISTAKES.values())
    lines = done.stderr.splitlines()
    for line, told in zip(lines, MISTAKES, strict=True):
        assert told in line
    codes = ["1" if "such: no such" in told else "2" for told in MISTAKES]
    assert done.stdout.split() == codes
    assert hub.asked == []
    # Without the mistake the hub is asked.
    assert call(("run", "org/nothing", "x", "--hub")).stdout.split() == ["1"]
    assert hub.asked
