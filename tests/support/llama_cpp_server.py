"""What llama.cpp, through xllamacpp, makes of a model in a GGUF; tests that ask are skipped where
it is not installed."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

MOST_SECONDS = 120


Adapters = Sequence[Path | tuple[Path, float]]


def probabilities(
    path: Path, tokens: Sequence[int], adapters: Adapters = ()
) -> tuple[list[int], torch.Tensor]:
    """The ids of the 20 likeliest tokens behind `tokens`, at most 256, and their log-probabilities,
    computed with a float32 cache; with GGUF `adapters`, at their scales or at 1."""
    request = {"prompt": list(tokens), "n_predict": 1, "temperature": 0, "logprobs": 20}
    answer = _ask(path, "/v1/completions", request, adapters)
    top = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    ids, logprobs = zip(*((entry["id"], entry["logprob"]) for entry in top), strict=True)
    return list(ids), torch.tensor(logprobs)


def greedy(path: Path, prompt: str, count: int, adapters: Adapters = ()) -> str:
    """What the likeliest tokens say behind `prompt`, `count` of them."""
    request = {"prompt": prompt, "n_predict": count, "temperature": 0}
    return str(_ask(path, "/completion", request, adapters)["content"])


def applied_template(path: Path, messages: Sequence[Mapping[str, str]]) -> str:
    """The prompt that the chat template of a model makes of `messages`."""
    return str(_ask(path, "/apply-template", {"messages": list(messages)})["prompt"])


def _ask(path: Path, what: str, body: Mapping[str, Any], adapters: Adapters = ()) -> Any:
    pytest.importorskip("xllamacpp")
    scaled = (each if isinstance(each, tuple) else (each, 1.0) for each in adapters)
    pairs = [(str(adapter), scale) for adapter, scale in scaled]
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("llama_cpp_answer.py"))],
        input=json.dumps({"model": str(path), "path": what, "body": body, "adapters": pairs}),
        capture_output=True,
        text=True,
        check=False,
        timeout=MOST_SECONDS,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)
