"""Adapters of PEFT, MLX and llama.cpp, as named low-rank deltas of a base's tensors."""
