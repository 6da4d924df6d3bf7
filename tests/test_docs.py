"""The documentation: every example runs as it stands there, every link leads somewhere, and the
reference has every command."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import DATA
from support.command_line import gpukit
from support.doc_pages import DOCS, PAGES, README, ROOT, Block, blocks
from support.hub_uploads import serve as serve_hub
from support.loras import lora
from support.registry import serve as serve_registry

from gpukit_kernels.facts import MATCHED

# Files that a page needs before its first example: what a reader has already.
BEFORE = {
    "batch": ["llama3.2:1b-f16"],
    "importance": ["shakespeare-train.txt", "shakespeare-valid.txt"],
    "importing": [],
    "many": ["llama-f16.gguf", "imatrix.gguf"],
    "measuring": ["shakespeare-valid.txt", "q4.gguf", "bf16.gguf", "imatrix.gguf"],
    "merging": ["llama.gguf"],
    "quantising": ["llama-f16.gguf"],
    "resuming": ["llama-70b-bf16.gguf"],
    "running": ["llama.gguf", "llama3.2:1b"],
    "share": ["llama-q4.gguf", "llama:q4", "merged"],
    "store": ["llama.gguf", "llama3.2:1b"],
    "verify": ["llama-q4.gguf", "merged.gguf", "llama-bf16.gguf", "llama-iq4.gguf", "imatrix.gguf"],
}
FOLDERS = ("Llama-3.2-1B-Instruct", "Llama-3.2-1B", "models")
ADAPTERS = ("my-lora", "tiny-lora", "a", "b", "loras/chat", "loras/code")
TEXTS = ("wiki.test.raw", "calibration.txt", "shakespeare-train.txt", "shakespeare-valid.txt")
# Characters of each, two windows of the largest context on the pages and a rest.
TEXT = 2700
MADE = {
    "llama-f16.gguf": ("F16",),
    "llama-bf16.gguf": ("BF16",),
    "bf16.gguf": ("BF16",),
    "llama-70b-bf16.gguf": ("BF16",),
    "q4.gguf": ("Q4_K_M",),
    "llama.gguf": ("Q8_0",),
    "llama-q4.gguf": ("Q4_K_M",),
    "llama-iq4.gguf": ("IQ4_XS", "--imatrix", "imatrix.gguf"),
}


def world(folder: Path, variables: dict[str, str], page: Path) -> None:
    """What a page calls by names of larger models, made of a small one."""
    needed, text = BEFORE.get(page.stem, []), page.read_text()
    (folder / "tiny-shakespeare").symlink_to(DATA / "tiny-shakespeare")
    for name in filter(text.__contains__, FOLDERS):
        there = folder / name / "small" if name == "models" else folder / name
        there.parent.mkdir(exist_ok=True)
        there.symlink_to(DATA / "tiny-shakespeare")
    for number, name in enumerate(ADAPTERS):
        if re.search(rf"\b{name}\b", text) or (name == "my-lora" and "merged" in needed):
            lora(DATA / "tiny-shakespeare", folder / name, seed=number)
    for name in filter(text.__contains__, TEXTS):
        (folder / name).write_text((DATA / "shakespeare.txt").read_text()[:TEXT])
    shutil.copy(DATA / "imatrix" / "tiny-shakespeare.gguf", folder / "imatrix.gguf")
    for name in needed:
        if name in MADE:
            kind, *more = MADE[name]
            words = ["convert", "tiny-shakespeare", name, "--type", kind, *more]
        elif name == "merged.gguf":
            words = [
                "merge",
                "tiny-shakespeare",
                name,
                "--adapter",
                "my-lora:0.8",
                "--type",
                "Q8_0",
            ]
        elif name == "merged":
            words = ["merge", "tiny-shakespeare", name, "--adapter", "my-lora"]
        elif ":" in name:
            (folder / "made").write_text("FROM ./tiny-shakespeare\n")
            words = ["create", name, "-f", "made", "-q", "F16" if "f16" in name else "Q4_K_M"]
        else:
            continue
        run(words, folder, variables)


def run(words: list[str], folder: Path, variables: dict[str, str]) -> str:
    done = gpukit(*words, folder=folder, **variables)
    assert done.returncode == 0, f"gpukit {' '.join(words)}\n{done.stderr}"
    return done.stdout


@pytest.fixture
def variables(tmp_path: Path) -> Iterator[dict[str, str]]:
    with serve_registry() as registry, serve_hub() as hub:
        yield {
            "HOME": str(tmp_path / "home"), "GPUKIT_MODELS": str(tmp_path / "store"),
            "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache")),
            "HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_secret",
            "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1,localhost",
            "REGISTRY": registry.host,
        }  # fmt: skip


def run_block(block: Block, page: Path, folder: Path, variables: dict[str, str]) -> None:
    """The commands of a block, each of which has to succeed."""
    for words in block.commands():
        where = f"{page.name}:{block.line}: {' '.join(words)}"
        assert words[0] == "gpukit", f"{where}: no command of gpukit"
        words = [word.replace("localhost:5000", variables["REGISTRY"]) for word in words[1:]]
        done = gpukit(*words, folder=folder, **variables)
        assert done.returncode == 0, f"{where}\n{done.stderr}"


@pytest.mark.parametrize("page", [
    *(pytest.param(page, marks=pytest.mark.sampled(6)) for page in PAGES), README
], ids=lambda page: page.stem)  # fmt: skip
def test_the_examples_run(
    page: Path, tmp_path: Path, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [each for each in blocks(page) if not each.not_run]
    if not {each.language for each in found} & {"console", "python"}:
        pytest.skip("the page has no examples")
    folder = tmp_path / "here"
    folder.mkdir()
    world(folder, variables, page)
    monkeypatch.chdir(folder)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for block in found:  # a page may use a file before it shows it
        if block.title:
            (folder / block.title).write_text(block.text)
    names: dict[str, Any] = {}
    for block in found:
        if block.language == "console":
            run_block(block, page, folder, variables)
        elif block.language == "python":
            text = block.text.replace("localhost:5000", variables["REGISTRY"])
            exec(compile("\n" * (block.line - 1) + text, str(page), "exec"), names)


def test_the_recording_is_what_the_commands_print(tmp_path: Path) -> None:
    (block,) = (each for each in blocks(README) if each.title == "recording")
    store = {"GPUKIT_MODELS": str(tmp_path)}
    for recorded in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        command, _, wanted = recorded.partition("\n")
        done = gpukit(*shlex.split(command)[1:], folder=ROOT, **store)
        said = re.sub(r"\S+ \S+ ago|Less than a second ago", "…", done.stderr + done.stdout)
        assert said.split() == re.sub(r"\d+ seconds ago", "…", wanted).split(), command


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_is_not_run_says_why(page: Path) -> None:
    for block in blocks(page):
        calls = re.search(r"^(\$ )?gpukit ", block.text, re.MULTILINE)
        assert block.language, f"{page.name}:{block.line}: a block without a language"
        if calls and block.language != "console":
            assert block.not_run, f"{page.name}:{block.line}: commands that no test runs"
    outside = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert not re.search(r"^    \S", outside, re.MULTILINE), f"{page.name}: a block without a fence"


def anchors(page: Path) -> set[str]:
    """The ids of a page's headings."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    heads = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", head.lower()).strip()) for head in heads}


def test_the_readme_names_the_build_that_is_matched() -> None:
    assert f"(build {MATCHED.removeprefix('llama.cpp ')})" in README.read_text()


@pytest.mark.parametrize("page", [*PAGES, README, ROOT / "CONTRIBUTING.md"],
                         ids=lambda page: page.stem)  # fmt: skip
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"`[^`\n]*`", "", page.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        there = page.parent / path if path else page
        assert path == "commands.md" or there.exists(), f"{page.name}: {target}"
        if anchor and path != "commands.md":
            assert anchor in anchors(there), f"{page.name}: {target}"


def test_every_page_is_in_the_menu() -> None:
    menu = (ROOT / "zensical.toml").read_text()
    assert tomllib.loads(menu)["project"]["docs_dir"] == "docs"
    named = set(re.findall(r'"([\w-]+\.md)"', menu))
    assert named == {page.name for page in PAGES} | {"commands.md"}


def test_the_reference_has_every_command_and_option() -> None:
    script = ROOT / "scripts" / "lib" / "docs_commands.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    import typer.main

    from gpukit_cli.app import command_line

    group: Any = typer.main.get_command(command_line())
    for name, command in group.commands.items():
        part = done.stdout.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        assert part, name
        for parameter in command.params:
            if parameter.param_type_name == "option":
                for word in (*parameter.opts, *parameter.secondary_opts):
                    assert re.search(rf"\| (.*, )?`{word}[ `]", part), (name, word)
            assert (parameter.help or "").split(".")[0][:20].split("-")[0] in part, (
                name,
                parameter,
            )


def test_every_verb_of_the_face_has_an_example() -> None:
    text = (DOCS / "python.md").read_text()
    for name in (
        "convert", "quantize", "merge", "plan", "load", "inspect", "verify", "perplexity",
        "perplexities", "imatrix", "Session", "Store", "Modelfile", "Options",
    ):  # fmt: skip
        assert f"gpukit.{name}(" in text, name
