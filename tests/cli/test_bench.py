"""`gpukit bench`."""

import json

import pytest
from typer.testing import CliRunner

from gpukit.errors import ArgumentError
from gpukit.recipes.bench import WHATS, plan_bench
from gpukit_cli import bench
from gpukit_cli.app import command_line


def test_every_type_has_a_rate() -> None:
    plan = plan_bench("dequantize", weights=8192)
    rates = list(plan.rates())
    assert len(rates) == 26
    assert all(rate.seconds > 0 and rate.copy_share > 0 for rate in rates)
    assert {rate.weights for rate in rates} == {8192}


def test_json_and_table() -> None:
    run, app = CliRunner().invoke, command_line()
    words = ["bench", "quantize", "--type", "q8_0", "--weights", "8192", "--device", "cpu"]
    document = json.loads(run(app, [*words, "--json"]).stdout)
    (rate,) = document["rates"]
    assert rate["type"] == "Q8_0"
    assert rate["weights_per_second"] == pytest.approx(8192 / rate["seconds"])
    assert "Q8_0" in run(app, words).stdout


def test_a_shell_is_offered_what_can_be_timed() -> None:
    assert bench.WHATS == WHATS


def test_what_cannot_be_timed() -> None:
    for words, what in (
        (("train",), "cannot be timed; known: quantize, dequantize"),
        (("quantize", ["Q9_9"]), "unknown quant type"),
        (("quantize", [], "cuda:99"), "cuda:99 is not here"),
    ):
        with pytest.raises(ArgumentError, match=what):
            plan_bench(*words)  # type: ignore[arg-type]
