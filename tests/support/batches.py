"""What a batch leaves in its folders."""

from pathlib import Path

from gpukit.batches.journal import journal_of
from gpukit.batches.logs import log_of


def assert_only_outputs(folder: Path, count: int) -> None:
    """`folder` has so many outputs, a journal of each, a log of some, and nothing else.

    A kill may come between the journal's last line and the first of the log.
    """
    files = {path for path in folder.rglob("*") if path.is_file()}
    outputs = {path for path in files if path.suffix == ".gguf"}
    journals = {journal_of(path) for path in outputs}
    logs = {log_of(path) for path in journals}
    assert len(outputs) == count, outputs
    assert journals <= files
    assert files <= outputs | journals | logs, files - outputs - journals - logs
