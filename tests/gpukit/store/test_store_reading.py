"""What a store says of a model that is in it, whole or damaged."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from support.stores import add

from gpukit.errors import NotFoundError, StoreError
from gpukit.store import ModelName, Store, change
from gpukit.store.manifest import CONFIG_TYPE, Manifest


def test_resolve(store: Store) -> None:
    add(
        store, "m",
        model=b"GGUF", system=b"Be brief.", template=b"{{ .Prompt }}",
        params=b'{"num_ctx":4096,"stop":["\\u003cend\\u003e"],"temperature":0.6}\n',
        messages=b'[{"role":"user","content":"Hi"}]\n',
    )  # fmt: skip
    model = store.resolve("M:Latest")
    assert model.gguf.read_bytes() == b"GGUF"
    assert model.name is not None
    assert model.name.display == "m:latest"
    assert model.params == {"num_ctx": 4096, "stop": ["<end>"], "temperature": 0.6}
    assert (model.system, model.template) == ("Be brief.", "{{ .Prompt }}")
    assert [(turn.role, turn.content) for turn in model.messages] == [("user", "Hi")]

    with pytest.raises(NotFoundError, match=r"model 'nope' not found in .*: `gpukit list` shows"):
        store.resolve("nope")


def test_a_name_that_is_nearly_right(store: Store) -> None:
    for name in ("llama3.2:1b", "mistral"):
        add(store, name, model=b"GGUF")
    for word, meant in (("lama3.2", "llama3.2:1b"), ("Mistrl", "mistral:latest")):
        with pytest.raises(NotFoundError, match=f"did you mean '{meant}'\\?$"):
            store.existing(word)
    assert store.similar("gemma") == ""


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (Path.unlink, "blob sha256:.* is missing"),
        (lambda path: path.write_bytes(b"GG"), "is damaged: .* has 2 bytes, the manifest says 4"),
    ],
)
def test_missing_and_cut_off_weights(
    store: Store, harm: Callable[[Path], object], message: str
) -> None:
    manifest = add(store, "m", model=b"GGUF")
    harm(store.blobs / f"sha256-{manifest.layers[0].digest[7:]}")
    with pytest.raises(StoreError, match=message) as caught:
        store.resolve("m")
    assert "create or pull" in str(caught.value)
    assert "model 'm:latest'" in str(caught.value)


def test_small_blobs_are_hashed(store: Store) -> None:
    manifest = add(store, "m", model=b"GGUF", params=b'{"top_k":1}\n')
    (store.blobs / f"sha256-{manifest.layers[1].digest[7:]}").write_bytes(b'{"top_k":2}\n')
    with pytest.raises(StoreError, match=r"is damaged: .* hashes to sha256:"):
        store.resolve("m")


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({"params": b"{"}, "params blob .* cannot be read"),
        ({"params": b'{"num_ctx":"1"}'}, 'option "num_ctx" must be of type int'),
        ({"params": b'{"top_k":1e400}'}, "params blob .*: 1e400 is no number of JSON"),
        ({"params": b'{"temperature":' + b"9" * 400 + b"}"}, "params blob .*is no number of JSON"),
        ({"params": b'{"a":' + b"[" * 99_999}, "params blob .* nested too deeply"),
        ({"messages": b'{"a":1}'}, "messages blob .* cannot be read"),
        ({"messages": b"[" * 99_999}, "messages blob .* nested too deeply"),
        ({"messages": b"\xff\xfe"}, "messages blob .* cannot be read"),
    ],
)
def test_layers_that_cannot_be_read(store: Store, layers: dict[str, bytes], message: str) -> None:
    add(store, "m", model=b"GGUF", **layers)
    with pytest.raises(StoreError, match=message):
        store.resolve("m")


def test_an_adapter_whose_blob_is_gone_or_cut(store: Store) -> None:
    add(store, "m", model=b"GGUF", adapter=b"GGUF too")
    (path,) = store.resolve("m").adapters
    path.write_bytes(b"GGUF")
    with pytest.raises(StoreError, match=r"blob sha256:\w+ is damaged: .* 4 bytes, .* says 8"):
        store.resolve("m")
    path.unlink()
    with pytest.raises(StoreError, match=r"blob sha256:\w+ is missing"):
        store.resolve("m")


def test_text_that_is_no_utf8_is_shown_as_well_as_it_can(store: Store) -> None:
    add(
        store, "m", model=b"GGUF", system=b"a\xff", template=b"\xed\xa0\x80",
        messages=b'[{"role":"user","content":"\xffb\\ud800"}]',
        params=b'{"stop":["\xff","\\ud800"]}',
    )  # fmt: skip
    found = store.resolve("m")
    assert (found.system, found.messages[0].content) == ("a\ufffd", "\ufffdb\ufffd")
    assert found.params == {"stop": ["\ufffd", "\ufffd"]}
    for text in (found.system, found.template, found.messages[0].content):
        text.encode()


def test_a_layer_of_text_that_is_as_large_as_a_model(store: Store) -> None:
    manifest = add(store, "m", model=b"GGUF", system=b"Be brief.")
    blob = store.blobs / f"sha256-{manifest.layers[1].digest[7:]}"
    os.truncate(blob, (16 << 20) + 1)
    path = store.manifest_path(store.find("m"))
    path.write_bytes(path.read_bytes().replace(b'"size":9', b'"size":16777217'))
    with pytest.raises(StoreError, match=r"system blob .* has 16777217 bytes"):
        store.resolve("m")
    os.truncate(path, (4 << 20) + 1)
    with pytest.raises(StoreError, match="cannot be read: over 4,194,304 bytes"):
        store.resolve("m")


def test_models_without_weights(store: Store) -> None:
    add(store, "tensors", tensor=b"x")
    with pytest.raises(StoreError, match="single tensors"):
        store.resolve("tensors")
    with change(store) as changes:
        config = changes.add_bytes(b'{"remote_host":"https://h"}\n', CONFIG_TYPE)
        changes.publish(ModelName.parse("stub"), Manifest(config, ()))
    with pytest.raises(StoreError, match="no weights in this store: it runs at https://h"):
        store.resolve("stub")


def test_legacy_prompt_is_the_template(store: Store) -> None:
    add(store, "m", model=b"GGUF", prompt=b"{{ .Prompt }}")
    assert store.resolve("m").template == "{{ .Prompt }}"
