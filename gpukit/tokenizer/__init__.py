"""Vocabularies: from a Hugging Face folder to GGUF metadata, and from there to a tokenizer."""

from gpukit.tokenizer.families import (
    gemma2_vocabulary,
    gemma_vocabulary,
    phi3_vocabulary,
    plain_vocabulary,
)
from gpukit.tokenizer.folder import vocabulary_fields
from gpukit.tokenizer.tokenizer import TextStream, Tokenizer

__all__ = [
    "TextStream",
    "Tokenizer",
    "gemma2_vocabulary",
    "gemma_vocabulary",
    "phi3_vocabulary",
    "plain_vocabulary",
    "vocabulary_fields",
]
