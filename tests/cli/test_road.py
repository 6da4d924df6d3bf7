"""The main road for every architecture: create at Q4_K_M from a folder, or at MXFP4_MOE where it
has such blocks, show it, run it."""

import io
import json
import sys
from pathlib import Path

import pytest
from support.zoo import ZOO
from support.zoo_build import build

from gpukit_cli.app import main

# One of each class, and what is read in a way of its own.
ROADS = {animal.config["architectures"][0]: name for name, animal in reversed(ZOO.items())}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", ROADS.values())
def test_create_and_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def gpukit(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["gpukit", *arguments])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(), "utf-8"))
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        assert not end.value.code, err
        return out

    build(name, tmp_path)
    (tmp_path / "Modelfile").write_text(f"FROM ./{name}\nPARAMETER temperature 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPUKIT_MODELS", str(tmp_path / "models"))
    pre, kind = ZOO[name].pre, "MXFP4_MOE" if ZOO[name].dtype == "MXFP4" else "Q4_K_M"
    known = ("--pre", pre) if pre else ()
    gpukit("create", "animal", "-f", "Modelfile", "-q", kind, "--device", "cpu", *known)
    assert kind in gpukit("show", "animal")
    run = ("run", "animal", "First Citizen:", "--num-predict", "8", "--device", "cpu", "--json")
    found = json.loads(gpukit(*run))
    assert found["prompt_eval_count"] > 3
    assert found["eval_count"] == 8 or found["done_reason"] == "stop"
    # The weights are random: what it says is the same every time, and nothing more.
    assert json.loads(gpukit(*run))["response"] == found["response"]
