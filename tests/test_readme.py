"""The examples of the README's Python part run, one after the other, as they stand there."""

import re
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from support.checkpoints import DATA
from support.loras import lora

ROOT = Path(__file__).resolve().parent.parent


def _examples() -> str:
    """All indented blocks of the part, with the lines where they stand."""
    before, _, rest = (ROOT / "README.md").read_text().partition("## From Python\n")
    part = rest.partition("\n## ")[0]
    # What is no code becomes empty lines, so that a traceback names the line of the README.
    code = re.sub(r"^(?!    ).*$", "", part, flags=re.MULTILINE)
    return "\n" * (before.count("\n") + 1) + dedent(code)


def test_the_examples_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny-shakespeare").symlink_to(DATA / "tiny-shakespeare")
    lora(DATA / "tiny-shakespeare", tmp_path / "tiny-lora")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(_examples(), str(ROOT / "README.md"), "exec"), names)
    printed = capsys.readouterr().out
    assert "'Q9'" in printed
    assert "['tiny:q8'] 4." in printed
    assert names["answer"].text.startswith("\nHe has a power")
    assert names["logits"].shape == (len(names["ids"]), 2048)
    assert names["y"].shape == (2, 64)
    made = {path.name for path in tmp_path.iterdir()}
    assert made == {
        "tiny-shakespeare", "tiny.gguf", "tiny-q4.gguf", "models", "tiny-lora", "merged.gguf",
        "imatrix.gguf", "tiny-q2.gguf",
    }  # fmt: skip


def test_every_verb_of_the_face_has_an_example() -> None:
    text = _examples()
    for name in (
        "convert",
        "quantize",
        "merge",
        "plan",
        "load",
        "inspect",
        "verify",
        "perplexity",
        "perplexities",
        "imatrix",
        "Session",
        "Store",
        "Modelfile",
        "Options",
    ):
        assert f"gpukit.{name}(" in text, name
