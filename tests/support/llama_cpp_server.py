"""What llama.cpp, through xllamacpp, makes of a model in a GGUF; tests that ask are skipped where
it is not installed."""

import json
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch


def probabilities(path: Path, tokens: Sequence[int]) -> tuple[list[int], torch.Tensor]:
    """The ids of the 20 likeliest tokens behind `tokens`, at most 256, and their log-probabilities,
    computed with a float32 cache."""
    request = {"prompt": list(tokens), "n_predict": 1, "temperature": 0, "n_probs": 20}
    answer = _server(path).handle_completions(request)
    top = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    ids, logprobs = zip(*((entry["id"], entry["logprob"]) for entry in top), strict=True)
    return list(ids), torch.tensor(logprobs)


def applied_template(path: Path, messages: Sequence[Mapping[str, str]]) -> str:
    """The prompt that the chat template of a model makes of `messages`."""
    server, body = _server(path), json.dumps({"messages": list(messages)}).encode()
    kind = {"Content-Type": "application/json"}
    address = f"{server.listening_address}/apply-template"
    request = urllib.request.Request(address, body, kind)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return str(json.loads(answer.read())["prompt"])


def _server(path: Path) -> Any:
    peer = pytest.importorskip("xllamacpp")
    params = peer.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.port, params.warmup = 256, 1, 0, False
    params.cpuparams.n_threads = 1
    params.cache_type_k = params.cache_type_v = peer.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = peer.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return peer.Server(params)
