"""Names: what is accepted, what they mean, how they are shown and matched."""

from pathlib import PurePosixPath

import pytest

from gpukit.errors import ArgumentError
from gpukit.store.names import ModelName


@pytest.mark.parametrize(
    ("text", "full", "display"),
    [
        ("m", "registry.ollama.ai/library/m:latest", "m:latest"),
        ("m:1b", "registry.ollama.ai/library/m:1b", "m:1b"),
        ("ns/m", "registry.ollama.ai/ns/m:latest", "ns/m:latest"),
        ("host/ns/m:t", "host/ns/m:t", "host/ns/m:t"),
        ("localhost:5000/ns/m", "localhost:5000/ns/m:latest", "localhost:5000/ns/m:latest"),
        ("https://h.io/ns/m:t", "h.io/ns/m:t", "h.io/ns/m:t"),
        ("hf.co/library/m", "hf.co/library/m:latest", "hf.co/library/m:latest"),
        ("_a.b-c:_1.2-3", "registry.ollama.ai/library/_a.b-c:_1.2-3", "_a.b-c:_1.2-3"),
        ("M" * 80, f"registry.ollama.ai/library/{'M' * 80}:latest", f"{'M' * 80}:latest"),
    ],
)
def test_parse(text: str, full: str, display: str) -> None:
    name = ModelName.parse(text)
    assert str(name) == full
    assert name.display == display
    assert ModelName.parse(display) == name
    assert ModelName.from_path(name.path) == name


@pytest.mark.parametrize(
    "text",
    ["", "/", ":", "/m", "m:", "ns/", "ns//m", "../x", "..", ".", "a/../b", "../../etc/passwd",
     "a/b/c/d", "-m", ".m", "m:.t", "m:-t", "n.s/m", "m m", "m\n", "m\x00", "é", "a\\b", "m:t:u",
     "M" * 81, "m:" + "t" * 81, "n" * 81 + "/m", "h" * 351 + "/n/m", "m@sha256:ab", "://h/n/m",
     "~/m", "m:t/u", "host/ns/:t", "host:/ns/m:"],
)  # fmt: skip
def test_invalid(text: str) -> None:
    with pytest.raises(ArgumentError, match=r"^invalid model name: ") as caught:
        ModelName.parse(text)
    assert caught.value.exit_code == 2
    assert len(str(caught.value)) < 400


def test_path_stays_below_the_manifests() -> None:
    assert ModelName.parse("m").path == PurePosixPath("registry.ollama.ai/library/m/latest")
    assert ModelName.from_path(PurePosixPath("a/b/c")) is None
    assert ModelName.from_path(PurePosixPath("a/b/c/.d")) is None


def test_casing_of_an_existing_manifest_wins() -> None:
    existing = [ModelName.parse(text) for text in ("Team/Llama:Q4", "other/llama:q8")]
    assert ModelName.parse("team/LLAMA:q4").in_casing_of(existing).display == "Team/Llama:Q4"
    assert ModelName.parse("OTHER/llama:q8").in_casing_of(existing).display == "other/llama:q8"
    # No such model yet: each part in any spelling that is there.
    assert ModelName.parse("TEAM/new:Q8").in_casing_of(existing).display == "Team/new:q8"
    assert ModelName.parse("Fresh").in_casing_of(existing).display == "Fresh:latest"


def test_exact_casing_wins_over_a_twin() -> None:
    existing = [ModelName.parse("A"), ModelName.parse("a")]
    assert ModelName.parse("a").in_casing_of(existing).display == "a:latest"
    assert ModelName.parse("A").in_casing_of(existing).display == "A:latest"
