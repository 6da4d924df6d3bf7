"""Many files of one reading from Python; tests/test_docs.py runs the examples of docs/many.md."""

from pathlib import Path

import pytest

import gpukit

PAGE = Path(__file__).resolve().parents[3] / "docs" / "many.md"


def test_docstrings_have_the_examples_of_the_page() -> None:
    for name in ("convert_many", "quantize_many", "merge_many", "plan_many"):
        assert f"gpukit.{name}(" in PAGE.read_text()
        assert f"gpukit.{name}(" in (getattr(gpukit, name).__doc__ or "")


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
