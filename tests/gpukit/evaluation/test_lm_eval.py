"""lm-evaluation-harness with our model class beside its own for transformers; and what the class
makes of arguments, which needs no lm_eval."""

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import DATA

import gpukit
from gpukit.errors import ArgumentError
from gpukit.generation.loading import LoadedModel, load_model
from gpukit.lm_eval.arguments import adapters_of, batch_of, generate_options, stop_ids

TINY = DATA / "tiny-shakespeare"
TASK = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{q}}}}"
doc_to_target: "{{{{a}}}}"
target_delimiter: ""
{more}
metadata: {{version: 1.0}}
"""
CHOICE = 'doc_to_choice: "{{c}}"\nmetric_list: [{metric: acc}]'
ROLLING = "metric_list: [{metric: bits_per_byte}]"
UNTIL = (
    'generation_kwargs: {until: ["\\n\\n"], max_gen_toks: 12, do_sample: false}\n'
    "metric_list: [{metric: exact_match}]"
)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lm-eval") / "f32.gguf"
    gpukit.convert(TINY, path, "F32", device="cpu")
    return path


@pytest.fixture(scope="module")
def model(file: Path) -> LoadedModel:
    return load_model(file, "cpu")


def test_greedy_unless_asked_otherwise(model: LoadedModel) -> None:
    found = generate_options({"until": ["\n", ""], "do_sample": False, "temperature": 0.7},
                             model.tokenizer, 5)  # fmt: skip
    assert (found.sampling.temperature, found.stop, found.num_predict) == (0, ("\n",), 256)
    found = generate_options({"temperature": 0.7, "top_p": "0.5", "max_tokens": 9, "seed": 2},
                             model.tokenizer, 5)  # fmt: skip
    assert (found.sampling.temperature, found.sampling.top_p, found.num_predict) == (0.7, 0.5, 9)
    assert (found.sampling.top_k, found.sampling.seed) == (0, 7)
    assert generate_options({}, model.tokenizer, 0, 32).num_predict == 32


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"num_beams": 4}, "num_beams is 4; only 1 can be had"),
        ({"untill": "x"}, "generation argument untill is not known"),
        ({"until": [3]}, r"until is \[3\]; a text or a list of texts"),
        ({"temperature": "hot"}, "could not convert"),
        ({"temperature": -1}, "temperature is -1"),
    ],
)
def test_generation_arguments_that_cannot_be_had(
    model: LoadedModel, asked: dict[str, Any], message: str
) -> None:
    with pytest.raises(ArgumentError, match=message):
        generate_options(asked, model.tokenizer, 0)


def test_texts_of_control_tokens_stop_as_tokens(model: LoadedModel) -> None:
    tokenizer = model.tokenizer
    assert stop_ids(["</s>", "\n", "a"], tokenizer) == {tokenizer.eos_id}


def test_batches_and_adapters() -> None:
    asked = [("auto", None), ("auto:4", 8), (None, None), (3, 64), ("5", None)]
    assert [batch_of(*one) for one in asked] == [None, 8, None, 3, 5]
    with pytest.raises(ArgumentError, match="batch_size is 'many'"):
        batch_of("many", None)
    assert adapters_of("a:0.5; b") == ("a:0.5", "b")
    assert adapters_of([Path("a")]) == ("a",)
    assert adapters_of(None) == ()


def _run(module: str, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    settings = {**os.environ, "HF_HOME": str(folder / "hub"), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-m", module, *words],
        env=settings, cwd=folder, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


@pytest.mark.skipif(find_spec("lm_eval") is not None, reason="lm_eval is there")
def test_without_lm_eval_the_remedy_is_told(tmp_path: Path) -> None:
    found = _run("gpukit.lm_eval", tmp_path, "--model", "gpukit")
    assert found.returncode == 1
    assert found.stderr == "Error: lm_eval is not installed; pip install 'gpukit[lm-eval]'\n"


def _tasks(folder: Path) -> None:
    text = (DATA / "shakespeare.txt").read_text()
    parts = [part for part in text.split("\n\n") if len(part) > 60][:5]
    docs = {
        "choice": [
            {"q": part[:40], "c": [part[40:55], " the king", " a"], "a": 0} for part in parts
        ] + [{"q": "", "c": ["ROMEO", "the"], "a": 0}],
        "rolling": [{"q": "", "a": text[:1500]}, {"q": "", "a": "x"}],
        "until": [{"q": text[:1200], "a": "x"}, {"q": "First Citizen:", "a": "x"}],
    }  # fmt: skip
    kinds = {
        "choice": ("multiple_choice", CHOICE),
        "rolling": ("loglikelihood_rolling", ROLLING),
        "until": ("generate_until", UNTIL),
    }
    for name, (kind, more) in kinds.items():
        data = folder / f"{name}.json"
        data.write_text("\n".join(map(json.dumps, docs[name])))
        task = TASK.format(name=f"tiny_{name}", data=data, kind=kind, more=more)
        (folder / f"{name}.yaml").write_text(task)


def _answers(folder: Path, module: str, *words: str) -> dict[str, Any]:
    """What a run printed as a table, and every answer by its task."""
    out = folder / words[1]
    found = _run(
        module, folder, *words, "--include_path", str(folder), "--log_samples",
        "--tasks", "tiny_choice,tiny_rolling,tiny_until", "--output_path", str(out),
    )  # fmt: skip
    assert found.returncode == 0, found.stderr[-2000:]
    answers: dict[str, Any] = {"table": re.findall(r"\|\s+([\d.]+)\|±", found.stdout)}
    for name in ("choice", "rolling", "until"):
        (path,) = out.glob(f"*/samples_tiny_{name}_*.jsonl")
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        answers[name] = [line["resps"] for line in sorted(lines, key=lambda x: x["doc_id"])]
    return answers


@pytest.mark.peer
@pytest.mark.slow
@pytest.mark.parametrize("batch", ["auto", "2"])
def test_tasks_beside_the_harness_own_class(file: Path, tmp_path: Path, batch: str) -> None:
    for peer in ("lm_eval", "transformers", "accelerate"):
        pytest.importorskip(peer)
    _tasks(tmp_path)
    common = ("--batch_size", batch)
    ours = _answers(
        tmp_path, "gpukit.lm_eval", "--model", "gpukit", "--model_args",
        f"pretrained={file},device=cpu,max_length=128", *common,
    )  # fmt: skip
    theirs = _answers(
        tmp_path, "lm_eval", "--model", "hf", "--device", "cpu", "--model_args",
        f"pretrained={TINY},dtype=float32,max_length=128", "--batch_size", "2",
    )  # fmt: skip
    assert ours["table"] == theirs["table"]
    for name in ("choice", "rolling"):
        for mine, other in zip(ours[name], theirs[name], strict=True):
            # Answers are written as texts; a continuation's is [ln p, greedy].
            assert _numbers(mine) == pytest.approx(_numbers(other), rel=1e-5, abs=1e-3)
    stripped = [[[text.strip() for text in one] for one in doc] for doc in ours["until"]]
    # transformers takes off the blank before the first token of what it decodes.
    assert stripped == [[[t.strip() for t in one] for one in doc] for doc in theirs["until"]]


def _numbers(answer: Any) -> list[float]:
    if isinstance(answer, list):
        return [number for part in answer for number in _numbers(part)]
    return [float({"True": 1, "False": 0}.get(str(answer), answer))]


@pytest.mark.peer
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("pretrained=nowhere.gguf", "Error: nowhere.gguf"),
        ("pretrained=x,dtype=float16", "Error: unknown model argument 'dtype'"),
        ("device=cpu", "Error: no model; --model_args pretrained=FILE names one"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, words: str, message: str) -> None:
    pytest.importorskip("lm_eval")
    _tasks(tmp_path)
    found = _run(
        "gpukit.lm_eval", tmp_path, "--model", "gpukit", "--model_args", words,
        "--include_path", str(tmp_path), "--tasks", "tiny_choice",
    )  # fmt: skip
    assert found.returncode > 0
    assert found.stderr.splitlines()[-1].startswith(message)
    assert "Traceback" not in found.stderr
