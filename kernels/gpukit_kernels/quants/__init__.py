"""One file a quant type: byte layout, torch decode and encode, the Triton pair, the row."""

# The table imports every module here: whoever imports one of them first has it begin.
import gpukit_kernels.table  # noqa: F401
