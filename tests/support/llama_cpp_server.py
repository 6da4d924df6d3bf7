"""What llama.cpp, through xllamacpp, gives for the next token of a model in a GGUF."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch


def probabilities(path: Path, tokens: Sequence[int]) -> tuple[list[int], torch.Tensor]:
    """The ids of the 20 likeliest tokens behind `tokens`, at most 256, and their log-probabilities,
    computed with a float32 cache; skips the test where xllamacpp is not installed."""
    peer = pytest.importorskip("xllamacpp")
    params = peer.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.port, params.warmup = 256, 1, 0, False
    params.cpuparams.n_threads = 1
    params.cache_type_k = params.cache_type_v = peer.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = peer.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    request = {"prompt": list(tokens), "n_predict": 1, "temperature": 0, "n_probs": 20}
    answer = peer.Server(params).handle_completions(request)
    top = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    ids, logprobs = zip(*((entry["id"], entry["logprob"]) for entry in top), strict=True)
    return list(ids), torch.tensor(logprobs)
