"""Modelfiles: the words, the quotes, the errors with their lines, and the way back to text."""

import os
import threading
import time
import tracemalloc
from pathlib import Path

import pytest

from gpukit.errors import ModelfileError
from gpukit.store.modelfile import MAX_BYTES, Message, Modelfile, commands, parse, read, write


def value_of(text: str) -> str:
    (command,) = commands(text)
    return command.value


def test_every_command(tmp_path: Path) -> None:
    path = tmp_path / "Modelfile"
    path.write_text(
        "# a comment\n"
        "  from ./model  \n"
        "\tPARAMETER temperature 0.6\n"
        "parameter stop <|end|>\n"
        'PARAMETER stop "User: "\n'
        "PARAMETER num_ctx 4096\n"
        "Parameter use_mmap false\n"
        "PARAMETER temperature 0.7\n"
        'SYSTEM """You are\n  terse."""\n'
        "TEMPLATE {{ .Prompt }}\n"
        "LICENSE MIT\nLICENSE Apache\n"
        "MESSAGE user Hi: there\nMESSAGE assistant Yes?\n"
        "ADAPTER ./lora\nDRAFT ./small\nFROM ./mmproj\nRENDERER r\nPARSER p\nREQUIRES v0.14.0\n"
    )
    assert read(path) == Modelfile(
        source="./model",
        folder=tmp_path,
        parameters={
            "num_ctx": 4096,
            "stop": ["<|end|>", "User: "],
            "temperature": 0.7,
            "use_mmap": False,
        },
        template="{{ .Prompt }}",
        system="You are\n  terse.",
        licenses=("MIT", "Apache"),
        messages=(Message("user", "Hi: there"), Message("assistant", "Yes?")),
        adapters=("./lora",),
        drafts=("./small",),
        projectors=("./mmproj",),
        renderer="r",
        parser="p",
        requires="0.14.0",
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("FROM foo # x", "foo # x"),
        ("FROM  \t foo\t ", "foo"),
        ("FROM 'foo'", "'foo'"),
        ('FROM "foo"', "foo"),
        ('FROM " foo "', " foo "),
        ('FROM ""', ""),
        ('FROM """"""', ""),
        ('FROM """"a""""', '"a"'),
        ('FROM """\na\n"""', "\na\n"),
        ('FROM """a\r\nb"""\r\n', "a\r\nb"),
        ('FROM "a" b\nc"', 'a" b\nc'),
        ('FROM """a""" b\nc"""', 'a""" b\nc'),
        ('FROM a "b"', 'a "b"'),
        ("FROM a\\nb", "a\\nb"),
        ("SYSTEM \nFROM x", ""),
        # Kept, where Ollama deletes what is not printable.
        ("SYSTEM a\u00a0b\u3000c\u200dd\x07e", "a\u00a0b\u3000c\u200dd\x07e"),
        ("SYSTEM \U0001f469\u200d\U0001f680", "\U0001f469\u200d\U0001f680"),
        ("FROM a\rFROM a", "a"),
    ],
)
def test_values(text: str, value: str) -> None:
    assert next(iter(commands(text))).value == value


def test_lines_are_counted_once_with_crlf() -> None:
    lines = [command.line for command in commands('FROM a\r\n\r\nSYSTEM """x\r\ny"""\r\nLICENSE z')]
    assert lines == [1, 3, 5]


COMMAND = r"command must be one of \"from\", \"license\", .*\"message\", or \"requires\"$"
ROLE = r"message role must be one of \"system\", \"user\", or \"assistant\"$"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"^Modelfile: no FROM line"),
        ("# FROM x\n", "no FROM line"),
        ("SYSTEM hi", "no FROM line"),
        ("FROM x\nBADCOMMAND y", rf"\(line 2\): {COMMAND}"),
        ("\n\n  FROMM x", rf"\(line 3\): {COMMAND}"),
        ("FROM\n", rf"\(line 2\): {COMMAND}"),
        ("FROM x\nSYSTEM\nLICENSE y", rf"\(line 3\): {COMMAND}"),
        ("FROM x\nfoo", rf"\(line 2\): {COMMAND}"),
        ("FROM-x y", rf"\(line 1\): {COMMAND}"),
        ("1FROM y", rf"\(line 1\): {COMMAND}"),
        ("{\n", rf"\(line 1\): {COMMAND}"),
        ("FROM x\nMESSAGE robot hi", rf"\(line 2\): {ROLE}"),
        ("FROM x\nMESSAGE User hi", rf"\(line 2\): {ROLE}"),
        ("FROM x\nMESSAGE user\n", "unexpected EOF: user"),
        ("FROM x\nPARAMETER temperature\n", "unexpected EOF: temperature"),
        ("FROM x\nPARAMETER top-k 1\n", "unexpected EOF: top"),
        ("FROM x\nPARAMETER", "unexpected EOF"),
        ("FROM", "unexpected EOF"),
        ('FROM x\nSYSTEM """never\nclosed', "unexpected EOF: the quote of system in line 2"),
        ('FROM x\nSYSTEM "never', "unexpected EOF"),
        ('FROM x\nSYSTEM """', "unexpected EOF"),
        ("FROM x\nPARAMETER nope 1", r"\(line 2\): unknown parameter 'nope'"),
        ("FROM x\nPARAMETER template y", "unknown parameter 'template'"),
        ("FROM x\nPARAMETER num_ctx 4k", r"\(line 2\): invalid int value \[4k\]"),
        ("FROM x\nPARAMETER top_p a b", r"invalid float value \[a b\]"),
        ("FROM x\nPARAMETER top_p 7", r"\(line 2\): top_p is 7.0; it goes from 0 to 1"),
        ("FROM x\nPARAMETER num_ctx 0", r"\(line 2\): num_ctx is 0; at least 1 token is needed"),
        ("FROM x\nPARAMETER use_mmap 2", r"invalid bool value \[2\]"),
        ("FROM x\nREQUIRES soon", "requires must be a valid semver"),
    ],
)
def test_errors(text: str, message: str) -> None:
    with pytest.raises(ModelfileError, match=message) as caught:
        parse(text)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_deprecated_parameters_warn_and_go() -> None:
    read = parse("FROM x\nPARAMETER mirostat 1\nPARAMETER low_vram true\nPARAMETER top_k 5")
    assert read.parameters == {"top_k": 5}
    assert read.warnings == (
        "parameter mirostat is deprecated",
        "parameter low_vram is deprecated",
    )


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_encodings(tmp_path: Path, encoding: str) -> None:
    text = "FROM x\nSYSTEM é\u4e2d\n"
    mark = "\ufeff" if encoding in ("utf-16-le", "utf-16-be") else ""
    path = tmp_path / "Modelfile"
    path.write_bytes((mark + text).encode(encoding))
    assert read(path).system == "é\u4e2d"


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"FROM \xff\xfe", "byte 5 is no UTF-8 text"), (b"\xff\xfeF", "UTF-16"),
     (b"GGUF\x03\x00\x00\x00", "command must be one of"), (b"\x00" * 50, "command must be"),
     (b"#" * (MAX_BYTES + 1), "this is no Modelfile")],
)  # fmt: skip
def test_files_that_are_no_modelfiles(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "Modelfile"
    path.write_bytes(data)
    with pytest.raises(ModelfileError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)


def test_a_modelfile_takes_the_memory_that_it_needs(tmp_path: Path) -> None:
    path = tmp_path / "Modelfile"
    path.write_text("FROM x\n")
    read(path)
    tracemalloc.start()
    read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_a_modelfile_from_a_pipe(tmp_path: Path) -> None:
    """As in `create NAME -f <(…)`, in pieces of any size."""
    read_end, write_end = os.pipe()
    pieces = [b"FROM x\nSYSTEM ", b"a" * 40_000, b"\nLICENSE b\n"]

    def write() -> None:
        for piece in pieces:
            os.write(write_end, piece)
            time.sleep(0.05)
        os.close(write_end)

    writer = threading.Thread(target=write)
    writer.start()
    found = read(Path(f"/dev/fd/{read_end}"))
    writer.join()
    os.close(read_end)
    assert (found.source, found.system, found.licenses) == ("x", "a" * 40_000, ("b",))


def test_missing_modelfile_is_an_error(tmp_path: Path) -> None:
    for path in (tmp_path / "typo", tmp_path):
        with pytest.raises(ModelfileError, match="name a Modelfile with -f"):
            read(path)


def test_a_long_quote_is_read_in_one_pass() -> None:
    text = "line\n" * 400_000
    assert value_of(f'LICENSE """{text}"""') == text
    with pytest.raises(ModelfileError, match="unexpected EOF"):
        value_of(f'LICENSE """{text}')


HARD_VALUES = [
    "plain", "two\nlines", " led", "trailed ", 'say "hi"', '"quoted"', '"half', 'a\n"b"\nc', '"""',
    "", "a # b", "'single'", "\ttab", "é\u00a0", 'ends with "', "# not a comment", 'x"\ny', "\n",
    "<|end|>",
]  # fmt: skip


@pytest.mark.parametrize("value", HARD_VALUES)
def test_what_is_written_is_read_back(value: str) -> None:
    modelfile = Modelfile(
        source="base:latest",
        parameters={"stop": [value], "temperature": 0.6, "top_k": 3, "use_mmap": True},
        template=value,
        system=value,
        licenses=(value, "MIT"),
        messages=(Message("user", value),),
    )
    assert parse(write(modelfile), folder=Path()) == modelfile


def test_written_order_and_quotes() -> None:
    modelfile = parse(
        "MESSAGE user hi\nLICENSE MIT\nPARAMETER top_k 3\nPARAMETER stop b\nPARAMETER stop a\n"
        'SYSTEM """two\nlines"""\nTEMPLATE """say "hi"\n"""\nREQUIRES 1.0.0\nFROM /m'
        "\nPARAMETER temperature 1\n"
    )
    assert write(modelfile) == (
        'FROM /m\nTEMPLATE """say "hi"\n"""\nSYSTEM "two\nlines"\nREQUIRES 1.0.0\n'
        "PARAMETER stop b\nPARAMETER stop a\nPARAMETER temperature 1\nPARAMETER top_k 3\n"
        "LICENSE MIT\nMESSAGE user hi\n"
    )


def test_a_value_that_no_quoting_holds() -> None:
    with pytest.raises(ModelfileError, match="SYSTEM: no quoting"):
        write(Modelfile(source="x", system='a"\nb"""\nc'))
