"""The packaging facts that break users when they slip."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("root", ["kernels", "cli"])
def test_source_roots_are_no_packages(root: str) -> None:
    # A package importable as plain `kernels` breaks `import transformers`.
    assert not (ROOT / root / "__init__.py").exists()


def test_scripts_without_an_ending_are_linted() -> None:
    ruff = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]
    plain = [path for path in (ROOT / "scripts").iterdir() if path.is_file() and not path.suffix]
    python = {path for path in plain if "python" in path.read_text().splitlines()[0]}
    assert {f"scripts/{path.name}" for path in python} == set(ruff["extend-include"])


def test_transformers_range() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "transformers>=5.10.1" in project["optional-dependencies"]["peers"]


def test_wheel_top_level(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        "gpukit",
        "gpukit_kernels",
        "gpukit_cli",
    }
    assert not [name for name in names if name.endswith(".pyc")]
    # The files that are no modules: a table, a page, C, and what tells type checkers to look.
    assert "gpukit_kernels/grids.bin" in names
    assert "gpukit/evaluation/report_page.html" in names
    c = {"vectors.h", "encode.h", "decode.h", "near.h", "pool.c"}
    assert {f"gpukit_kernels/cpu/{name}" for name in c} <= {*names}
    assert {f"{top}/py.typed" for top in ("gpukit", "gpukit_kernels", "gpukit_cli")} <= {*names}


@pytest.mark.parametrize(
    "module", ["gpukit", "gpukit.formats.gguf_reader", "gpukit.store", "gpukit_cli.app"]
)
def test_light_modules_leave_torch_alone(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_rules_of_import_leave_torch_alone() -> None:
    code = (
        "import sys; from gpukit.models.registry import architectures\n"
        "assert len(architectures()) > 15; sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_help_loads_no_heavy_library() -> None:
    code = (
        "import sys\n"
        "from gpukit_cli.app import main\n"
        "sys.argv = ['gpukit', '--help']\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0, end.code\n"
        "heavy = {'torch', 'triton', 'numpy', 'transformers', 'gguf', 'pydantic', 'yaml'}\n"
        "heavy &= set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_table_on_the_page_is_the_table() -> None:
    from gpukit_kernels import QUANTS

    rows = set()
    for row in QUANTS.values():
        name = row.name if row.encodable else f"{row.name} (read only)"
        rows.add(f"| {name} | {row.block} | {row.nbytes} | {row.bits_per_weight:g} |")
    page = (ROOT / "docs" / "quantising.md").read_text()
    text = page.partition("## Types")[2].partition("##")[0]
    # Not the two lines at the top of the table.
    assert {line for line in text.splitlines() if re.match(r"\| [A-Z]", line)} == rows
