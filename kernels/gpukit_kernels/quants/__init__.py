"""One file a quant type: byte layout, torch decode and encode, the Triton pair, the row."""
