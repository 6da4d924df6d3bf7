"""`gpukit verify` as a user calls it: what it prints and how it ends."""

import json
from pathlib import Path

import pytest
from support.checkpoints import DATA
from support.command_line import gpukit

from gpukit.formats.gguf_reader import GGUFFile

TINY = DATA / "tiny-shakespeare"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("verify") / "tiny.gguf"
    done = gpukit("convert", TINY, out, "--type", "Q8_0", "--device", "cpu", "--quiet")
    assert done.returncode == 0, done.stderr
    return out


def test_equal_sound_and_different(file: Path, tmp_path: Path) -> None:
    done = gpukit("verify", file, "--from", TINY, "--device", "cpu")
    assert (done.returncode, "comparing tensors" in done.stderr) == (0, True), done.stderr
    assert f"{file}: equal to what {TINY} gives" in done.stdout
    assert "blk.*.ffn_down.weight" in done.stdout
    done = gpukit("verify", file, "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    assert "sound by itself" in done.stdout
    bad = tmp_path / "bad.gguf"
    data = bytearray(file.read_bytes())
    with GGUFFile(file) as whole:
        data[whole.tensors["blk.0.ffn_up.weight"].offset + 34 * 3 + 1] ^= 0x7F
    bad.write_bytes(data)
    done = gpukit("verify", bad, "--from", TINY, "--device", "cpu", "--quiet")
    assert (done.returncode, done.stderr) == (1, "")
    assert "blk.0.ffn_up.weight: first at block 3, byte 1 of it (byte 103 of" in done.stdout
    assert f"not what {TINY} gives: 1 of" in done.stdout
    done = gpukit("verify", bad, "--from", TINY, "--json", "--device", "cpu")
    said = json.loads(done.stdout)
    assert (done.returncode, said["equal"], said["different_blocks"]) == (1, False, 1)
    assert said["different"][0]["first_byte"] == 1


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("none.gguf",), 1, "none.gguf: no such file or folder"),
        (("{}", "--from", "none"), 1, "none: no such file or folder"),
        (("{}", "--type", "Q8_0"), 2, "type is for comparing with a source; name that, too (--fro"),
        (("{}", "--from", str(TINY), "--type", "Q9"), 2, "unknown type 'Q9'"),
        (("{}", "--from", str(TINY), "--seed", "1"), 2, "--seed is for --combine"),
        ((str(TINY),), 2, "a model folder; name a GGUF"),
    ],
)
def test_one_line_for_what_is_wrong(
    words: tuple[str, ...], code: int, message: str, file: Path
) -> None:
    done = gpukit("verify", *(word.format(file) for word in words), "--quiet")
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
