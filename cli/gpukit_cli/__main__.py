"""`python -m gpukit_cli`."""

from gpukit_cli.app import main

main()
