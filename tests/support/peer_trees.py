"""Sources of llama.cpp that tests are compared with: GPUKIT_LLAMA_CPP, a folder that has
convert_hf_to_gguf.py, or several with ':' between them."""

import os
from pathlib import Path

import pytest

TREES = [Path(word) for word in os.environ.get("GPUKIT_LLAMA_CPP", "").split(os.pathsep) if word]
TREE = TREES[0] if TREES else None
needs_tree = pytest.mark.skipif(not TREES, reason="GPUKIT_LLAMA_CPP names no llama.cpp source")

# A fixture that is made anew for each of them.
for_each_tree = pytest.fixture(
    scope="module", params=TREES or [Path()], ids=lambda tree: "/".join(tree.parts[-3:])
)
