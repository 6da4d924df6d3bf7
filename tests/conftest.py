"""Without a GPU, Triton kernels run in the interpreter: set before anything imports Triton."""

import os
import subprocess
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
if os.environ.get("TRITON_INTERPRET") == "1":
    from support.interpreter import alike_at_once, keep_shapes_and_types, patch_once_a_launch

    patch_once_a_launch()
    keep_shapes_and_types()
    alike_at_once()
if "PYTEST_XDIST_WORKER" in os.environ:
    # The workers share the cores among themselves.
    torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--all", action="store_true", help="all cases, those marked thorough or sampled, too"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What takes long first: workers that share the rest of the tests end together."""
    by_name = any("::" in word for word in config.args)
    if not config.getoption("--all") and not by_name:
        left = {item for item in items if item.get_closest_marker("thorough")}
        left |= unsampled(item for item in items if item not in left)
        config.hook.pytest_deselected(items=list(left))
        items[:] = [item for item in items if item not in left]
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def unsampled(items: Iterable[pytest.Item]) -> set[pytest.Item]:
    """Of the cases of each test marked sampled(n), which take long, all but an n-th: the same ones
    every time, spread over all parameters."""
    cases = defaultdict(list)
    for item in items:
        if item.get_closest_marker("sampled"):
            cases[item.nodeid.partition("[")[0]].append(item)
    left: set[pytest.Item] = set()
    for found in cases.values():
        (n,) = found[0].get_closest_marker("sampled").args
        found.sort(key=lambda item: zlib.crc32(item.name.encode()))
        left.update(found[-(-len(found) // n) :])
    return left


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 KB."""
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(place)]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except OSError:
        pytest.skip("there is no mount here")
    if done.returncode:
        pytest.skip("file systems can only be mounted by root")
    yield place
    subprocess.run(["umount", str(place)], check=True)
