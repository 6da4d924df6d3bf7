"""Weights by name, as they are stored, from a checkpoint or a GGUF."""
