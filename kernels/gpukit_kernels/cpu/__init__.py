"""The compiled CPU path: torch functions of tiles, traced, written as C, built, kept and run."""
