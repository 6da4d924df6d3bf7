"""One file a quant type: byte layout, torch decode and encode, their Triton pair, the table's row."""
