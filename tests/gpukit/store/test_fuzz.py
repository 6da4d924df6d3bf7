"""Manifests and Modelfiles that are nearly right, and rubbish: read, or refused in one line."""

import json
from pathlib import Path
from typing import Any

from hypothesis import given, settings, strategies as st
from support.stores import add

from gpukit import GpukitError, ModelfileError, RegistryError, Store, StoreError
from gpukit.events import ignore
from gpukit.remote.pull import checked_manifest
from gpukit.store.blobs import blob_path
from gpukit.store.manifest import CONFIG_TYPE, LAYER_PREFIX, decode, mentioned
from gpukit.store.modelfile import commands, parse, read, write

DIGEST = f"sha256:{'a' * 64}"
# What a value of a manifest may be instead of what it should be.
VALUES: list[Any] = [
    None, True, -1, 0, 1, 2**63, 10**400, 1.5, 1e308, "", "a", "\ud800", "\0", [], {}, [[]], [{}],
    DIGEST, DIGEST.upper(), DIGEST.replace(":", "-"), "sha256:../../etc/passwd", f"{DIGEST}\n",
    f"sha256:{'١' * 64}", "../../x", CONFIG_TYPE, *(LAYER_PREFIX + kind for kind in ("model", "")),
]  # fmt: skip
KEYS = ["mediaType", "digest", "size", "from", "name", "config", "layers", "manifests", "x"]
value = st.recursive(
    st.sampled_from(VALUES) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=6)
    ),
    max_leaves=12,
)
layer = st.fixed_dictionaries(
    {"mediaType": st.just(LAYER_PREFIX + "model"), "digest": st.just(DIGEST), "size": st.just(1)}
)


@st.composite
def manifests(draw: st.DrawFn) -> bytes:
    """A manifest with up to three things changed, as bytes of which a few may be others, too."""
    one = {"mediaType": LAYER_PREFIX + "model", "digest": DIGEST, "size": 1}
    root: Any = {"schemaVersion": 2, "config": dict(one), "layers": [dict(one), dict(one)]}
    for _ in range(draw(st.integers(0, 3))):
        places = [root, root["config"], *root["layers"]] if _is_whole(root) else [root]
        place = draw(st.sampled_from([each for each in places if isinstance(each, dict)]))
        place[draw(st.sampled_from(KEYS))] = draw(value)
    data = bytearray(json.dumps(root).encode())
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 9))] = draw(st.binary(max_size=4))
    return bytes(data)


def _is_whole(root: dict[str, Any]) -> bool:
    return isinstance(root.get("config"), dict) and isinstance(root.get("layers"), list)


@settings(deadline=None)
@given(manifests() | st.binary(max_size=99) | value.map(lambda each: json.dumps(each).encode()))
def test_no_manifest_breaks_its_readers(data: bytes) -> None:
    assert all(blob_path(Path("b"), digest).parent == Path("b") for digest in mentioned(data))
    try:
        found = decode(data, "model 'm'")
    except StoreError as error:
        check_line(error)
    else:
        for each in found.blobs:
            assert blob_path(Path("b"), each.digest).parent == Path("b")
            assert each.digest in mentioned(data) or b"\\u" in data
            assert 0 <= each.size < 2**63
    try:
        assert checked_manifest(data, "registry: model 'm'", ignore).layers
    except RegistryError as error:
        check_line(error)


@settings(max_examples=25, deadline=None)
@given(data=manifests())
def test_no_manifest_breaks_the_store(tmp_path_factory: Any, data: bytes) -> None:
    store = Store(tmp_path_factory.mktemp("fuzz"))
    add(store, "good", "MIT")
    add(store, "bad", model=b"x")
    store.manifest_path(store.find("bad")).write_bytes(data)
    for look in (
        store.list, store.gc, lambda: store.resolve("bad"), lambda: store.show("bad"),
        store.verify, lambda: store.copy("bad", "worse"), lambda: store.remove("bad"),
    ):  # fmt: skip
        try:
            look()
        except GpukitError as error:
            check_line(error)
    assert [model.whole for model in store.verify("good")] == [True]


def check_line(error: GpukitError, told: str = "") -> None:
    """An error is a line that any terminal shows, and says `told`."""
    text = str(error)
    assert "\n" not in text
    assert told in text
    assert len(text) < 1000
    text.encode()


PIECES = [
    "FROM", "from", "SYSTEM", "TEMPLATE", "LICENSE", "PARAMETER", "MESSAGE", "ADAPTER", "DRAFT",
    "REQUIRES", "RENDERER", "stop", "temperature", "num_ctx", "user", "assistant", "x", "0.5",
    "1e9", " ", "\t", "\n", "\r\n", "\r", '"', '"""', '""', "#", "\\", "'", "\0", "\u2028",
    "\x85", "\x1c", "é", "\ufeff", "{{", "}}", "{{ if .System }}", "{{ end }}",
    "{{- range .Messages }}", "`", ".Prompt", "|", "(", "/*", "-", "9" * 50, "v1.2.3",
]  # fmt: skip
texts = st.text(max_size=60) | st.lists(st.sampled_from(PIECES), max_size=25).map("".join)
line = st.tuples(
    st.sampled_from(["SYSTEM", "LICENSE", "PARAMETER stop", "MESSAGE user", "RENDERER"]), texts
).map(" ".join)


@settings(deadline=None)
@given(texts | st.lists(line, max_size=4).map(lambda lines: "\n".join(["FROM x", *lines])))
def test_no_modelfile_breaks_the_parser(text: str) -> None:
    try:
        found = parse(text)
    except ModelfileError as error:
        check_line(error)
        return
    lines = text.count("\n") + text.count("\r") + 1
    assert all(command.line <= lines for command in commands(text))
    try:
        again = write(found)
    except ModelfileError as error:
        check_line(error, "no quoting can hold")
    else:
        assert parse(again) == found


@settings(max_examples=50, deadline=None)
@given(data=st.binary(max_size=60) | texts.map(lambda t: t.encode("utf-16")))
def test_no_file_breaks_the_reader(tmp_path_factory: Any, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "Modelfile"
    path.write_bytes(data)
    try:
        read(path)
    except ModelfileError as error:
        check_line(error)
