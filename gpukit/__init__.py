"""gpukit: from a Hugging Face checkpoint to a quantised, checked GGUF in one pass."""

__version__ = "0.1.0"
