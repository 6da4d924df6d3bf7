"""The command line of gpukit: argument parsing and printing, nothing else."""
