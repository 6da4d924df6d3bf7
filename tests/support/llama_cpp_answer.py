"""A process of its own that asks llama.cpp's server one question about one model, and ends.

stdin has JSON: `model`, a GGUF's path; `adapters`, pairs of a GGUF's path and its scale; `path`,
what is asked for, such as /completions; `body`.
stdout has the answer as JSON.
"""

import json
import os
import sys
import urllib.request

import xllamacpp


def main() -> None:
    """Ask, print, and leave at once: the server's threads do not always end when it is closed."""
    asked = json.load(sys.stdin)
    params = xllamacpp.CommonParams()
    params.model.path = asked["model"]
    params.n_ctx, params.n_parallel, params.port, params.warmup = 256, 1, 0, False
    params.cpuparams.n_threads = 1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(*pair) for pair in asked["adapters"]]
    server = xllamacpp.Server(params)
    request = urllib.request.Request(
        server.listening_address + asked["path"],
        json.dumps(asked["body"]).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        sys.stdout.write(answer.read().decode())
        sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
