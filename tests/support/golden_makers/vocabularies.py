"""The ids that llama.cpp gives to the texts of tests/support/vocabularies.py, as digests.

vocabularies.json: pre -> name -> digest, altered -> kind -> digest, and what ends a generation.
Needs a Python that has llama-cpp-python (GPUKIT_PEER_PYTHON), which scripts/bench makes.
"""

import hashlib
import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from support.vocabularies import ALTERED, altered, byte_level, texts

from gpukit.formats.gguf_fields import Field
from gpukit.formats.gguf_writer import GGUFWriter
from gpukit.tokenizer.pretokenizers import PRE_TOKENIZERS

TEXTS = 300

# Reads [file, texts] from stdin; prints ids without and with special tokens, and the ends.
TOKENIZE = """
import ctypes, json, sys, llama_cpp as llama
@llama.llama_log_callback
def quiet(level, text, data): pass
llama.llama_log_set(quiet, ctypes.c_void_p(0))
for line in sys.stdin:
    path, texts = json.loads(line)
    how = llama.llama_model_default_params()
    how.vocab_only = True
    model = llama.llama_model_load_from_file(path.encode(), how)
    if not model:
        sys.exit(path)
    vocab = llama.llama_model_get_vocab(model)
    found = []
    for special in (False, True):
        for text in texts:
            data = text.encode()
            room = 3 * len(data) + 8
            ids = (llama.llama_token * room)()
            count = llama.llama_tokenize(vocab, data, len(data), ids, room, special, special)
            assert count >= 0
            found.append(ids[:count])
    count = llama.llama_vocab_n_tokens(vocab)
    ends = [i for i in range(count) if llama.llama_vocab_is_eog(vocab, i)]
    print(json.dumps([found, ends]), flush=True)
    llama.llama_model_free(model)
"""


def make(folder: Path) -> list[Path]:
    """Write vocabularies.json into `folder`; its path."""
    named = {f"pre {name}": byte_level(name) for name in PRE_TOKENIZERS}
    named |= {f"altered {kind}": altered(kind) for kind in ALTERED}
    found: dict[str, dict[str, Any]] = {"pre": {}, "altered": {}}
    for name, (ids, ends) in zip(named, tokenized(list(named.values())), strict=True):
        group, _, name = name.partition(" ")
        found[group][name] = [digest(ids), ends]
    path = folder / "vocabularies.json"
    path.write_text(json.dumps(found, indent=1) + "\n")
    return [path]


def tokenized(vocabularies: Sequence[list[Field]]) -> list[tuple[list[list[int]], list[int]]]:
    """The ids of all texts, without and with special tokens, and the ends, for each vocabulary."""
    with tempfile.TemporaryDirectory() as scratch:
        lines = []
        for number, fields in enumerate(vocabularies):
            path = Path(scratch) / f"{number}.gguf"
            with GGUFWriter(path, fields, []):
                pass
            lines.append(json.dumps([str(path), texts(TEXTS, "ids")]))
        done = subprocess.run(
            [os.environ["GPUKIT_PEER_PYTHON"], "-c", TOKENIZE],
            input="\n".join(lines),
            text=True,
            stdout=subprocess.PIPE,
            check=True,
        )
    return [json.loads(line) for line in done.stdout.splitlines()]


def digest(ids: list[list[int]]) -> str:
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:24]
