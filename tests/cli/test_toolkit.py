"""convert, quantize, inspect and doctor as a user meets them."""

import json
import math
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file
from support.checkpoints import build
from support.command_line import gpukit

from gpukit.formats.gguf_fields import ValueType, array, f32, string
from gpukit.formats.gguf_writer import GGUFWriter


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("plain", tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def file(folder: Path) -> Path:
    out = folder.parent / "plain.gguf"
    done = gpukit("convert", folder, out)
    assert done.returncode == 0, done.stderr
    return out


def test_convert_prints_a_table(folder: Path, tmp_path: Path) -> None:
    done = gpukit("convert", folder, tmp_path / "x.gguf", "--type", "q8_0")
    assert done.returncode == 0
    assert done.stderr.splitlines() == ["quantizing BF16 model to Q8_0", "verifying conversion"]
    assert "bits per weight" in done.stdout
    assert f"{tmp_path / 'x.gguf'}: " in done.stdout


def test_convert_in_json(folder: Path, tmp_path: Path) -> None:
    done = gpukit("convert", folder, tmp_path / "x.gguf", "--type", "Q4_K_M", "--json")
    found = json.loads(done.stdout)
    assert found["size"] == (tmp_path / "x.gguf").stat().st_size
    assert set(found["types"]) == {"Q4_K", "Q6_K", "F32"}
    assert found["types"]["Q6_K"]["bits_per_weight"] == 6.5625
    assert found["written_bytes_per_second"] == pytest.approx(
        found["size"] / found["seconds"], rel=0.02
    )


def test_a_dry_run_writes_nothing(file: Path, tmp_path: Path) -> None:
    done = gpukit("quantize", file, tmp_path / "x.gguf", "Q4_K_M", "--dry-run")
    assert done.returncode == 0
    assert "token_embd.weight" in done.stdout
    assert "nothing was written" in done.stdout
    assert list(tmp_path.iterdir()) == []
    words = ("--tensor-type", "attn_v=Q8_0", "--dry-run", "--json")
    done = gpukit("quantize", file, tmp_path / "x.gguf", "Q4_K_M", *words)
    rows = {row["name"]: row for row in json.loads(done.stdout)["tensors"]}
    assert rows["blk.0.attn_v.weight"]["to"] == "Q8_0"


def test_inspect(file: Path) -> None:
    done = gpukit("inspect", file)
    assert done.returncode == 0
    for words in (
        "GGUF v3",
        "file type BF16",
        "llama.block_count",
        "Tokenizer",
        '1 "<s>"',
        "all  ",
    ):
        assert words in done.stdout
    assert "blk.1.ffn_down.weight" not in done.stdout
    assert "blk.1.ffn_down.weight" in gpukit("inspect", file, "--tensors").stdout
    found = json.loads(gpukit("inspect", file, "--json").stdout)
    assert found["metadata"]["llama.block_count"] == {"type": "u32", "value": 2}
    assert len(found["metadata"]["tokenizer.ggml.tokens"]["value"]) == 2048
    assert found["tokenizer"]["special"]["eos"] == {"id": 2, "text": "</s>"}
    assert found["parameters"] == sum(t["elements"] for t in found["types"].values())
    assert {"name", "shape", "type", "nbytes", "offset"} == found["tensors"][0].keys()


def test_inspect_a_folder_and_its_weights(folder: Path) -> None:
    done = gpukit("inspect", folder)
    assert done.returncode == 0, done.stderr
    for words in ("model folder", "LlamaForCausalLM", "hidden_size", "Tokenizer", "BF16"):
        assert words in done.stdout
    done = gpukit("inspect", folder / "model.safetensors", "--tensors")
    assert "model.layers.1.mlp.down_proj.weight" in done.stdout
    assert "256 x 512  BF16" in done.stdout


def not_in_json(word: str) -> None:
    raise AssertionError(f"{word} is no JSON")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_inspect_prints_json_whatever_a_file_holds(encoding: str, tmp_path: Path) -> None:
    fields = [
        string("general.architecture", "né"),
        f32("a", math.nan),
        array("b", ValueType.FLOAT32, [math.inf, -math.inf, 0.5]),
        array("tokenizer.ggml.tokens", ValueType.STRING, ["\x1b[31m", "\udcff"]),
    ]
    with GGUFWriter(tmp_path / "odd.gguf", fields, []):
        pass
    done = gpukit("inspect", tmp_path / "odd.gguf", "--json", PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout, parse_constant=not_in_json)
    assert found["architecture"] == "né"
    values = {key: entry["value"] for key, entry in found["metadata"].items()}
    assert values["a"] == "NaN"
    assert values["b"] == ["Infinity", "-Infinity", 0.5]
    assert values["tokenizer.ggml.tokens"] == ["\x1b[31m", "\udcff"]
    shown = gpukit("inspect", tmp_path / "odd.gguf", PYTHONIOENCODING=encoding)
    assert shown.returncode == 0, shown.stderr
    assert "no file type" in shown.stdout


def test_names_of_the_store_are_read_like_files(file: Path, tmp_path: Path) -> None:
    place = {"GPUKIT_MODELS": str(tmp_path / "store")}
    (tmp_path / "Modelfile").write_text(f"FROM {file}\n")
    done = gpukit("create", "mine", "-f", tmp_path / "Modelfile", **place)
    assert done.returncode == 0, done.stderr
    for name, out in (("mine", "a.gguf"), ("mine:latest", "b.gguf")):
        done = gpukit("quantize", name, tmp_path / out, "Q8_0", **place)
        assert done.returncode == 0, done.stderr
    gpukit("quantize", file, tmp_path / "c.gguf", "Q8_0")
    assert len({(tmp_path / f"{out}.gguf").read_bytes() for out in "abc"}) == 1
    assert json.loads(gpukit("inspect", "mine", "--json", **place).stdout)["parameters"] > 0
    done = gpukit("inspect", "yours", **place)
    assert done.returncode == 1
    assert f"yours: no such file or folder, and no model of that name in {tmp_path}" in done.stderr


def test_what_an_index_does_not_list_is_named(folder: Path, tmp_path: Path) -> None:
    there = tmp_path / "model"
    shutil.copytree(folder, there)
    weights = there / "model-1.safetensors"
    (there / "model.safetensors").rename(weights)
    names = load_file(weights)
    index = {"weight_map": dict.fromkeys(names, weights.name)}
    (there / "model.safetensors.index.json").write_text(json.dumps(index))
    shutil.copyfile(weights, there / "model.safetensors")
    done = gpukit("convert", there, tmp_path / "x.gguf")
    assert done.returncode == 0
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert line.startswith(f"warning: {there / 'model.safetensors'}: not read: the index of")


def test_quiet_leaves_errors_and_what_is_asked_for(folder: Path, tmp_path: Path) -> None:
    there = tmp_path / "model"
    shutil.copytree(folder, there)
    shutil.copyfile(there / "model.safetensors", there / "model-2.safetensors")
    index = {
        "weight_map": dict.fromkeys(load_file(there / "model.safetensors"), "model.safetensors")
    }
    (there / "model.safetensors.index.json").write_text(json.dumps(index))
    loud = gpukit("convert", there, tmp_path / "a.gguf")
    assert "warning: " in loud.stderr
    done = gpukit("convert", there, tmp_path / "b.gguf", "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = gpukit("quantize", there, tmp_path / "c.gguf", "Q8_0", "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = gpukit("quantize", there, tmp_path / "c.gguf", "Q8_0", "--quiet", "--dry-run")
    assert done.stdout.endswith("; nothing was written\n")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    done = gpukit("quantize", tmp_path / "b.gguf", tmp_path / "b.gguf", "Q8_0", "--quiet")
    assert done.returncode == 2
    assert done.stderr.startswith("Error: ")


def test_an_output_that_is_there_is_replaced_at_the_end(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.gguf"
    out.write_text("before")
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(file.read_bytes()[:-1])
    assert gpukit("quantize", broken, out, "Q8_0").returncode == 1
    assert out.read_text() == "before"
    assert gpukit("quantize", file, out, "Q8_0").returncode == 0
    assert out.read_bytes()[:4] == b"GGUF"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.gguf", "x.gguf"]


def test_doctor(tmp_path: Path) -> None:
    done = gpukit("doctor", GPUKIT_MODELS=str(tmp_path / "store"))
    assert done.returncode == 0
    for word in (
        "torch",
        "triton",
        "bytes of llama.cpp 0c1e5709",
        "C compiler",
        str(tmp_path / "store"),
        "free",
    ):
        assert word in done.stdout
    found = json.loads(gpukit("doctor", "--json", GPUKIT_MODELS=str(tmp_path)).stdout)
    assert found["devices"][0]["name"] == "cpu"
    assert found["matches"] == "llama.cpp 0c1e5709"


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("convert", "FOLDER", "OUT", "--type", "Q9"), 2, "unknown type 'Q9'; known: F32"),
        (("convert", "FOLDER", "OUT", "--pre", "qwen2"), 2, "--pre qwen2: this vocabulary is no"),
        (("quantize", "FILE", "OUT", "Q8_0", "--pre", "qwen2"), 2, "--pre is for model folders"),
        (("convert", "/no/such", "OUT"), 1, "/no/such: no such file or folder"),
        (("quantize", "README", "OUT", "Q8_0"), 1, "no GGUF file"),
        (("inspect", "/no/such.gguf"), 1, "/no/such.gguf: no such file or folder"),
        (("convert", "WEIGHTS", "OUT"), 2, "weights without their model; name the folder"),
        (("inspect", "/no/such"), 1, "/no/such: no such file or folder"),
        (("inspect", "a:b:c"), 1, "a:b:c: no such file or folder, and "),
        (("inspect", "README"), 1, "no GGUF file: it begins with b'This'"),
        (("inspect", "/etc"), 1, "/etc: no config.json"),
        (("quantize", "FOLDER", "OUT", "Q8_0", "--tensor-type", "x"), 2, "REGEX=TYPE"),
        (
            ("quantize", "FILE", "OUT", "Q8_0", "--tensor-type", "(=Q8_0"),
            2,
            "no regular expression",
        ),
        (("quantize", "FILE", "OUT", "Q8_0", "--tensor-type", "a=Q1_0"), 2, "tensor type 'Q1_0'"),
        (("quantize", "FILE", "OUT", "Q8_0", "--output-tensor-type", "Q9"), 2, "tensor type 'Q9'"),
        (("quantize", "FILE", "OUT", "Q8_0", "--imatrix", "README"), 1, "no importance matrix"),
        (("quantize", "FILE", "OUT", "Q8_0", "--imatrix", "/no/such"), 1, "/no/such: no such file"),
        (("quantize", "FILE", "OUT", "Q2_K_S"), 2, "give --imatrix FILE"),
        (("quantize", "FILE", "OUT", "Q8_0", "--keep-split"), 2, "in several parts"),
        (("quantize", "FILE", "OUT", "Q8_0", "--split-max-size", "2T"), 2, "'2T' is no size"),
        (("quantize", "FILE", "FILE", "Q8_0"), 2, "input and output are the same file"),
        (("bench", "train"), 2, "cannot be timed"),
        (("convert", "FOLDER", "OUT", "--device", "tpu"), 2, "unknown device 'tpu'"),
        (("convert", "FOLDER"), 2, "Missing argument"),
        (("nonsense",), 2, "No such command"),
    ],
)
def test_bad_input_is_one_line(
    words: tuple[str, ...], code: int, text: str, folder: Path, file: Path, tmp_path: Path
) -> None:
    readme = tmp_path / "README"
    readme.write_text("This is no model.")
    weights = folder / "model.safetensors"
    places = {
        "WEIGHTS": weights,
        "FOLDER": folder,
        "FILE": file,
        "OUT": tmp_path / "x.gguf",
        "README": readme,
    }
    done = gpukit(*(places.get(word, word) for word in words))
    assert done.returncode == code, done.stderr
    assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "x.gguf").exists()
    assert "Usage" not in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("Error: ")]) == 1


def test_a_target_a_template_and_a_file_of_types(file: Path, tmp_path: Path) -> None:
    out, types = tmp_path / "x.gguf", tmp_path / "types.txt"
    done = gpukit("quantize", file, out, "--target-bpw", "9.5", "--dry-run", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "--target-bpw 9.5: types chosen for the least squared error, without" in done.stdout
    assert "nothing was written" in done.stdout
    assert not out.exists()
    words = ("--target-size", "0.1M", "--device", "cpu", "--dry-run")
    told = "--target-size of 100,000 bytes cannot be reached"
    assert told in gpukit("quantize", file, out, *words).stderr
    types.write_text("attn_v=Q8_0\nffn_down=Q6_K ")
    done = gpukit("quantize", file, out, "Q4_0", "--tensor-type-file", types, "--json")
    assert {"Q8_0", "Q4_0"} <= set(json.loads(done.stdout)["types"])
    again = tmp_path / "again.gguf"
    done = gpukit("quantize", file, again, "--like", out, "--json")
    assert done.returncode == 0, done.stderr
    assert again.read_bytes() == out.read_bytes()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "no type; give a file type such as Q4_K_M, or --target-bpw, --target-size or --like"),
        (("Q4_0", "--target-bpw", "4"), "--target-bpw 4 chooses the types itself; leave Q4_0 out"),
        (("--target-bpw", "0.1"), "--target-bpw 0.1 cannot be reached: from "),
        (("--target-size", "1e9"), "'1e9' is no size"),
        (("--like", "nowhere.gguf"), "nowhere.gguf"),
        (("Q4_0", "--tensor-type-file", "nowhere"), "nowhere: cannot be read"),
    ],
)
def test_targets_that_cannot_be_are_one_line(
    words: tuple[str, ...], told: str, file: Path, tmp_path: Path
) -> None:
    done = gpukit("quantize", file, tmp_path / "x.gguf", *words, "--device", "cpu")
    assert done.returncode != 0
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("Error: ")]) == 1
    assert list(tmp_path.iterdir()) == []
