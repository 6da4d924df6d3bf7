"""Many files of one reading from Python: the examples of docs/many.md as they stand there."""

import re
from pathlib import Path
from textwrap import dedent

import pytest
from support.checkpoints import DATA
from support.loras import lora

import gpukit

PAGE = Path(__file__).resolve().parents[3] / "docs" / "many.md"


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny-shakespeare").symlink_to(DATA / "tiny-shakespeare")
    lora(DATA / "tiny-shakespeare", tmp_path / "tiny-lora")
    monkeypatch.chdir(tmp_path)
    part = PAGE.read_text().partition("From Python")[2]
    code = dedent(re.sub(r"^(?!    ).*$", "", part, flags=re.MULTILINE))
    for name in ("convert_many", "quantize_many", "merge_many", "plan_many"):
        assert f"gpukit.{name}(" in code
        assert f"gpukit.{name}(" in (getattr(gpukit, name).__doc__ or "")
    exec(compile(code, str(PAGE), "exec"), {})
    made = {path.name for path in tmp_path.glob("*.gguf")}
    assert made == {
        "tiny-F16.gguf", "tiny-Q8_0.gguf", "small-Q4_0.gguf", "small-Q5_0.gguf",
        "merged-F16.gguf", "merged-Q8_0.gguf", "planned-Q4_0.gguf", "planned-Q5_0.gguf",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("types", "options", "told"),
    [
        ([], {}, "no types; give some"),
        (["Q4_0"], {"target_bpw": 4.0}, "several types and --target-bpw 4 exclude each other"),
    ],
)
def test_types_that_are_refused(types: list[str], options: dict[str, float], told: str) -> None:
    with pytest.raises(gpukit.ArgumentError, match=told):
        gpukit.quantize_many(
            "nowhere",
            "x-{type}.gguf",
            types,
            options=gpukit.Options(**options),  # type: ignore[arg-type]
        )
