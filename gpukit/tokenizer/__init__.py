"""Vocabularies: from a Hugging Face folder to GGUF metadata, and from there to a tokenizer."""

from typing import TYPE_CHECKING

from gpukit_kernels.lazy import lazily

if TYPE_CHECKING:
    from gpukit.tokenizer.families import (
        gemma2_vocabulary,
        gemma4_vocabulary,
        gemma_vocabulary,
        glm_vocabulary,
        phi3_vocabulary,
        plain_vocabulary,
    )
    from gpukit.tokenizer.folder import vocabulary_fields
    from gpukit.tokenizer.tokenizer import TextStream, Tokenizer

# Names are imported when they are first used: pre-tokenizers are looked at without a vocabulary.
_MODULES = {
    "families": [
        "gemma2_vocabulary", "gemma4_vocabulary", "gemma_vocabulary", "glm_vocabulary",
        "phi3_vocabulary", "plain_vocabulary",
    ],
    "folder": ["vocabulary_fields"],
    "tokenizer": ["TextStream", "Tokenizer"],
}  # fmt: skip

__all__ = [
    "TextStream",
    "Tokenizer",
    "gemma2_vocabulary",
    "gemma4_vocabulary",
    "gemma_vocabulary",
    "glm_vocabulary",
    "phi3_vocabulary",
    "plain_vocabulary",
    "vocabulary_fields",
]

__getattr__, __dir__ = lazily(globals(), _MODULES)
