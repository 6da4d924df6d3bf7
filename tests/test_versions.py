"""The versions that are tried together belong together, and each dependency is there for a use."""

import ast
import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parent.parent

# What the metadata of torch's wheels on PyPI (Requires-Dist, Linux) says of Triton. The CPU builds
# of torch name no Triton, so where one is installed only this table tells.
TRITON_OF_TORCH = {
    "2.10.0": "==3.6.0",
    "2.11.0": "==3.6.0",
    "2.12.0": "==3.7.0",
    "2.12.1": "==3.7.1",
    "2.13.0": "==3.7.1",
    "2.14.0": "~=3.8.0",
    "2.14.1": "~=3.8.0",
}
# Who needs a dependency that no file of ours imports by its name.
NEEDED_BY = {
    "protobuf": "sentencepiece's sentencepiece_model_pb2",
    "safetensors": "peft and the tests, which write checkpoints with it",
}
# What those are imported as that have another name there.
MODULE_OF = {"PyYAML": "yaml"}


def requirements() -> dict[str, Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {r.name: r for r in map(Requirement, project["dependencies"])}


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def imported() -> set[str]:
    """The top modules that any file of the three packages imports."""
    found = set()
    for folder in ("gpukit", "kernels", "cli"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    found |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module:
                    found.add(node.module.split(".")[0])
    return found


def test_constraints_pin_what_pyproject_names() -> None:
    for name, requirement in requirements().items():
        assert name in constraints()
        assert constraints()[name] in requirement.specifier, name


def test_constraints_pin_a_pair_that_torch_makes() -> None:
    pins = constraints()
    assert pins["triton"] in SpecifierSet(TRITON_OF_TORCH[pins["torch"]])


@pytest.mark.parametrize("torch", TRITON_OF_TORCH)
def test_the_ranges_admit_every_pair(torch: str) -> None:
    ranges = requirements()
    assert torch in ranges["torch"].specifier
    (triton,) = re.findall(r"[\d.]+", TRITON_OF_TORCH[torch])
    assert triton in ranges["triton"].specifier


def test_the_installed_torch_agrees_with_the_table() -> None:
    torch = importlib.metadata.distribution("torch")
    named = [
        requirement
        for requirement in map(Requirement, torch.requires or [])
        if requirement.name == "triton"
        and (requirement.marker is None or requirement.marker.evaluate({"extra": ""}))
    ]
    version = torch.version.partition("+")[0]
    if not named:
        pytest.skip(f"torch {torch.version} names no Triton")
    if version not in TRITON_OF_TORCH:
        pytest.skip(f"torch {version} is newer than the table")
    assert [str(requirement.specifier) for requirement in named] == [TRITON_OF_TORCH[version]]


def test_every_dependency_is_imported() -> None:
    modules = imported()
    unused = {name for name in requirements() if MODULE_OF.get(name, name) not in modules}
    assert unused == set(NEEDED_BY)
