"""The bytes that Ollama writes: JSON form, config, params, messages and manifests."""

import hashlib
import struct
from typing import Any

import pytest
from gguf import LlamaFileType

from gpukit.errors import ArgumentError, StoreError
from gpukit.formats.file_types import file_type_name
from gpukit.store import config, gojson, parameters
from gpukit.store.manifest import CONFIG_TYPE, LAYER_PREFIX, Layer, Manifest, decode, mentioned


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def params(**texts: str | list[str]) -> dict[str, parameters.Value]:
    return {
        key: text if isinstance(text, list) else parameters.parse(key, text)
        for key, text in texts.items()
    }


FIRST = params(stop=["USER:", "ASSISTANT:"], temperature="1", top_k="10")
SECOND = params(temperature="0.6", top_p="0.7")
THIRD = params(stop=["<|endoftext|>"])
TINY_GGUF = (
    b"GGUF" + struct.pack("<IQQ", 3, 0, 1)
    + struct.pack("<Q", 20) + b"general.architecture" + struct.pack("<IQ", 8, 4) + b"test"
)  # fmt: skip

# Digests that Ollama's own tests expect (Ollama spec 2.5).
VECTORS: dict[str, tuple[bytes, str]] = {
    "gguf": (TINY_GGUF, "89a2116c3a82d6a97f59f748d86ed4417214353fd178ee54df418fde32495fad"),
    "config": (
        config.Config(
            model_format="gguf",
            model_family="test",
            model_families=("test",),
            model_type=config.human_count(0),
            file_type=file_type_name(None),
        ).encode(),
        "99759ad5b91e723db0393d698ffbb448b1b7df5ff6377a108c49254583b1bc8c",
    ),
    "params": (
        gojson.encode(parameters.stored(FIRST)),
        "1d0ad71299d48c2fb7ae2b98e683643e771f8a5b72be34942af90d97a91c1e37",
    ),
    "params over": (
        gojson.encode(parameters.stored({**FIRST, **SECOND})),
        "e29a7b3c47287a2489c895d21fe413c20f859a85d20e749492f52a838e36e1ba",
    ),
    "params escaped": (
        gojson.encode(parameters.stored({**FIRST, **SECOND, **THIRD})),
        "12f58bb75cb3042d69a7e013ab87fb3c3c7088f50ddc62f0c77bd332f0d44d35",
    ),
    "messages": (
        gojson.encode(
            [
                {"role": "assistant", "content": "What is my purpose?"},
                {"role": "user", "content": "You run tests."},
                {"role": "assistant", "content": "Oh, my god."},
            ]
        ),
        "298baeaf6928a60cf666d88d64a1ba606feb43a2865687c39e40652e407bffc4",
    ),
    "template": (
        b"{{ .Prompt }}",
        "b507b9c2f6ca642bffcd06665ea7c91f235fd32daeefdf875a0f938db05fb315",
    ),
    "system": (b"Say hi!", "f29e82a8284dbdf5910b1555580ff60b04238b8da9d5e51159ada67a4d0d5851"),
    "license": (b"MIT", "e5dcffe836b6ec8a58e492419b550e65fb8cbdc308503979e5dacb33ac7ea3b7"),
    "empty gguf": (
        b"GGUF" + struct.pack("<IQQ", 3, 0, 0),
        "a4e5e156ddec27e286f75328784d7106b60a4eb1d246e950a001a3f944fbda99",
    ),
}


@pytest.mark.parametrize("which", VECTORS)
def test_known_answers(which: str) -> None:
    data, digest = VECTORS[which]
    assert sha(data) == digest


def test_old_config_is_read() -> None:
    # The config that Ollama 0.5.7 wrote, with the list of digests that newer ones leave out.
    old = (
        b'{"model_format":"gguf","model_family":"unknown","model_families":["unknown"],'
        b'"model_type":"0","file_type":"unknown","architecture":"amd64","os":"linux",'
        b'"rootfs":{"type":"layers","diff_ids":["sha256:'
        b'a4e5e156ddec27e286f75328784d7106b60a4eb1d246e950a001a3f944fbda99"]}}\n'
    )
    assert sha(old) == "ca239d7bd8ea90e4a5d2e6bf88f8d74a47b14336e73eb4e18bed4dd325018116"
    assert config.decode(old).model_family == "unknown"


def test_config_round_trip_and_order() -> None:
    full = config.Config(
        model_format="gguf", model_family="llama", model_families=("llama",), model_type="4.25M",
        file_type="Q4_K_M", renderer="r", parser="p", requires="0.14.0", capabilities=("tools",),
    )  # fmt: skip
    assert full.encode() == (
        b'{"model_format":"gguf","model_family":"llama","model_families":["llama"],'
        b'"model_type":"4.25M","file_type":"Q4_K_M","renderer":"r","parser":"p",'
        b'"requires":"0.14.0","capabilities":["tools"],"architecture":"amd64","os":"linux"}\n'
    )
    assert config.decode(full.encode()) == full


def test_config_tolerates_what_it_does_not_know() -> None:
    stub = b'{"model_families":null,"remote_host":"https://h","file_type":7,"new":{"a":1}}'
    read = config.decode(stub)
    assert (read.remote_host, read.file_type, read.model_families) == ("https://h", "", ())
    with pytest.raises(ValueError, match="object"):
        config.decode(b"[1]")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"), (1.0, "1"), (0.6, "0.6"), (-2.5, "-2.5"), (100.0, "100"),
        (1e20, "1" + "0" * 20),
        (1e21, "1e+21"), (1.5e22, "1.5e+22"), (1e-6, "0.000001"), (1e-7, "1e-7"),
        (1.25e-9, "1.25e-9"), (5e-324, "5e-324"), (123456.789, "123456.789"),
        (2.0**63, "9223372036854776000"), (0.1 + 0.2, "0.30000000000000004"),
    ],
)  # fmt: skip
def test_numbers_as_go_prints_them(value: float, text: str) -> None:
    assert gojson.number(value) == text
    assert float(text) == value


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_json_lacks(value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        gojson.encode({"temperature": value})


def test_strings_are_escaped_as_go_does() -> None:
    text = '<|a|> & \u2028\u2029 é \t\n"\\ \x01 \U0001f600'
    assert gojson.encode([text, None, True, 3]) == (
        b'["\\u003c|a|\\u003e \\u0026 \\u2028\\u2029 \xc3\xa9 \\t\\n\\"\\\\ \\u0001 '
        b'\xf0\x9f\x98\x80",null,true,3]\n'
    )


def test_float_parameters_pass_through_float32() -> None:
    assert parameters.parse("temperature", "0.60000001") == 0.6
    assert parameters.parse("temperature", "16777217") == 16777216
    assert parameters.parse("top_p", ".5e0") == 0.5


def test_integers_pass_through_float64() -> None:
    assert gojson.encode(parameters.stored({"seed": 2**53 + 1})) == b'{"seed":9007199254740992}\n'


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("num_ctx", "4k", r"invalid int value \[4k\]"),
        ("num_ctx", "1_000", "invalid int"),
        ("num_ctx", "1.0", "invalid int"),
        ("seed", str(2**63), "invalid int"),
        ("temperature", "warm", r"invalid float value \[warm\]"),
        ("temperature", "nan", "invalid float"),
        ("temperature", "1e39", "invalid float"),
        ("temperature", "1e478", r"invalid float value \[1e478\]"),
        ("temperature", "-" + "9" * 5000, r"invalid float value \[-9{39}…\]"),
        ("top_k", "9" * 5000, r"invalid int value \[9{40}…\]"),
        ("top_k", str(-(2**63) - 1), "invalid int"),
        ("x" * 5000, "1", "unknown parameter 'x{40}…'"),
        ("use_mmap", "yes", r"invalid bool value \[yes\]"),
        ("Temperature", "1", "unknown parameter 'Temperature'"),
        ("nope", "1", "unknown parameter 'nope' .*temperature"),
    ],
)
def test_bad_parameters(name: str, text: str, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        parameters.parse(name, text)


def test_the_outermost_numbers() -> None:
    assert parameters.parse("seed", str(2**63 - 1)) == 2**63 - 1
    assert parameters.parse("seed", str(-(2**63))) == -(2**63)
    assert parameters.parse("seed", "-" + "0" * 5000 + "7") == -7
    assert parameters.parse("temperature", "3.4028235e38") == 3.4028235e38
    assert parameters.parse("temperature", "1e-478") == 0


@pytest.mark.parametrize(
    "value",
    [
        {"top_k": 1e19}, {"top_k": 2**63}, {"top_k": -(2**63) - 1}, {"top_k": 1.5},
        {"top_k": float("inf")}, {"top_k": float("nan")},
    ],
)  # fmt: skip
def test_stored_numbers_beyond_64_bits(value: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match='option "top_k" must be of type int'):
        parameters.from_json(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"1e400", "1e400 is no number of JSON"),
        (b"[-1e309]", "-1e309 is no number"),
        (b"9" * 5000, "9{40}… is no number"),
        (b"9" * 309, "is no number"),
        (b"NaN", "NaN is no number"),
        (b"[-Infinity]", "-Infinity is no number"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b"", "Expecting value"),
        (b"\xff\xfe[\0", "Expecting value"),
    ],
)
def test_what_go_does_not_read(text: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gojson.decode(text)


def test_text_is_read_as_go_reads_it() -> None:
    """https://pkg.go.dev/encoding/json: invalid UTF-8 and surrogates are replaced by U+FFFD."""
    assert gojson.decode(b'["\xff", "\\ud800", "\\uD83D\\uDE00", "\xf0\x9f\x98\x80"]') == [
        "\ufffd", "\ufffd", "😀", "😀",
    ]  # fmt: skip
    assert gojson.decode(b'{"\\udc00":[{"a":"\\udfff."}]}') == {"\ufffd": [{"a": "\ufffd."}]}
    assert gojson.decode(b"9" * 308) == int("9" * 308)
    assert gojson.decode(b'{"a":1,"a":2}') == {"a": 2}


def test_stored_parameters_get_their_types_back() -> None:
    read = parameters.from_json({"num_ctx": 4096.0, "temperature": 1, "stop": ["a"], "new": 2})
    assert read == {"num_ctx": 4096, "temperature": 1.0, "stop": ["a"], "new": 2}
    assert type(read["num_ctx"]) is int
    for wrong in ({"stop": "a"}, {"num_ctx": "1"}, {"use_mmap": 1}, {"num_ctx": 1.5}, [], None):
        with pytest.raises(ArgumentError):
            parameters.from_json(wrong)


@pytest.mark.parametrize(
    ("n", "text"),
    [(0, "0"), (999, "999"), (1000, "1K"), (1500, "2K"), (4_253_184, "4.25M"), (10**6, "1M"),
     (8 * 10**9, "8B"), (8_030_261_312, "8.0B"), (70_553_706_496, "70.6B")],
)  # fmt: skip
def test_human_count(n: int, text: str) -> None:
    assert config.human_count(n) == text


def test_file_type_names() -> None:
    names = [file_type_name(n) for n in (0, 1, 2, 7, 14, 15, 18, 32, 999, None, "x")]
    assert names == ["unknown", "F16", "Q4_0", "Q8_0", "Q4_K_S", "Q4_K_M", "Q6_K", "BF16",
                     "unknown", "unknown", "unknown"]  # fmt: skip


def test_file_types_are_those_of_the_gguf_package() -> None:
    known = {int(t): t.name.removeprefix("MOSTLY_") for t in LlamaFileType if int(t)}
    assert {number: file_type_name(number) for number in known} == known


def layer(kind: str = "model", digit: str = "a", **keys: Any) -> Layer:
    return Layer(LAYER_PREFIX + kind, f"sha256:{digit * 64}", 7, **keys)


MANIFEST = Manifest(
    Layer(CONFIG_TYPE, f"sha256:{'c' * 64}", 200),
    (layer(origin="base:latest"), layer("system", "b")),
)


def test_manifest_bytes() -> None:
    assert (
        MANIFEST.encode()
        == (
            '{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.v2+json",'
            '"config":{"mediaType":"application/vnd.docker.container.image.v1+json",'
            f'"digest":"sha256:{"c" * 64}","size":200}},'
            '"layers":[{"mediaType":"application/vnd.ollama.image.model",'
            f'"digest":"sha256:{"a" * 64}","size":7,"from":"base:latest"}},'
            '{"mediaType":"application/vnd.ollama.image.system",'
            f'"digest":"sha256:{"b" * 64}","size":7}}]}}\n'
        ).encode()
    )
    assert decode(MANIFEST.encode(), "m") == MANIFEST
    assert b'"layers":null}' in Manifest(MANIFEST.config, ()).encode()


def test_manifest_in_another_layout_is_read() -> None:
    text = (
        '{\n "layers": [ {"size": 7, "extra": {}, "from": 3,\n "digest": "sha256-' + "A" * 64
        + '", "mediaType": "application/vnd.ollama.image.model"} ],\n "schemaVersion": 2 }'
    )  # fmt: skip
    assert decode(text.encode(), "m") == Manifest(None, (layer(),))
    assert decode(b'{"layers":null,"config":{"digest":""}}', "m") == Manifest(None, ())


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"\xff\xfe", b"[]", b"null", b'{"layers":{}}', b'{"layers":[1]}', b'{"config":5}',
     b'{"layers":[{"digest":"sha256:../../x","size":1,"mediaType":"m"}]}',
     b'{"layers":[{"digest":"sha256:' + b"a" * 64 + b'","size":-1,"mediaType":"m"}]}',
     b'{"layers":[{"digest":"sha256:' + b"a" * 64 + b'","size":"1","mediaType":"m"}]}',
     b'{"layers":[{"digest":"sha256:' + b"a" * 64 + b'","size":1}]}',
     b"[" * 100_000, MANIFEST.encode()[:-40]],
)  # fmt: skip
def test_corrupt_manifests(data: bytes) -> None:
    with pytest.raises(StoreError, match=r"^model 'x': the manifest is corrupt: ") as caught:
        decode(data, "model 'x'")
    assert "\n" not in str(caught.value)


def test_digests_of_a_manifest_that_is_cut_off() -> None:
    assert mentioned(MANIFEST.encode()) == {f"sha256:{digit * 64}" for digit in "abc"}
    assert mentioned(MANIFEST.encode()[:-60]) == {f"sha256:{digit * 64}" for digit in "ac"}
