"""Searches for the scales of blocks: each in torch, the reference, and its twin in Triton."""
