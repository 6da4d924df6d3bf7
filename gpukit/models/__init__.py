"""One file an architecture: import rules as data, metadata to configuration, the forward pass."""
