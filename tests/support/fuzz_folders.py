"""A mutation fuzzer for what stands beside the weights in a model folder.

    PYTHONPATH=tests .venv/bin/python -m support.fuzz_folders 5000 [SEED]

Every folder is either planned, and its vocabulary usable, or refused with a `GpukitError` of one
line, in little time and memory. The same count and seed make the same folders everywhere. A hang
ends the process with a traceback.
"""

import json
import random
import shutil
import tempfile
import time
from collections import Counter
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

from support.checkpoints import SENTENCEPIECE
from support.forms import build
from support.fuzz_formats import change
from support.fuzzing import resident, run, watched
from support.vocabularies import letters, merges
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

from gpukit.errors import GpukitError
from gpukit.formats.checkpoint import Checkpoint
from gpukit.models.importer import plan_import
from gpukit.tokenizer import Tokenizer as OurTokenizer

SECONDS = 20.0
RESIDENT = 512 << 20

VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 1.5, 2**31 - 1, 2**31, 2**53, 2**64, 10**400, 1e308, float("nan"),
    float("inf"), "", "a", "\ud800", "\0", "x" * 1000, "\u2581", [], {}, [[]], [None], [1, 2],
    ["a", 1], {"a": 1}, {"type": "Sequence"}, {"content": "x"}, {"type": "TemplateProcessing"},
    "default", "{% for x in y %}", {"rope_type": "llama3"}, {"quant_method": "fp8"},
    {"type": "BPE"},
    "<s>", {"Regex": "(x+x+)+y"}, {"String": ""}, "LlamaForCausalLM",
)  # fmt: skip
FILES: dict[str, Any] = {
    "generation_config.json": {"temperature": 0.6, "top_k": 20, "eos_token_id": [1, 2]},
    "README.md": "---\nlicense: mit\ntags: [a, b]\nbase_model: org/B-1B\nlanguage: en\n---\nHi.\n",
    "added_tokens.json": {"<extra>": 2040},
    "tokenizer_config.json": {
        "bos_token": "<s>",
        "eos_token": {"content": "</s>"},
        "add_bos_token": True,
        "chat_template": [
            {"name": "default", "template": "{{ 1 }}"},
            {"name": "b", "template": ""},
        ],
        "added_tokens_decoder": {"2041": {"content": "<|a|>", "special": True}},
    },
    "special_tokens_map.json": {"pad_token": "<|b|>", "additional_special_tokens": ["<extra>"]},
    "chat_template.jinja": "{{ 3 }}",
}


def seeds(root: Path) -> list[Path]:
    """Sound folders: one with sentencepiece, one with a byte-level BPE, one with sentencepiece as
    the tokenizers library has it."""
    folders = [build("new-llama3", root), build("nulls", root), build("padded", root)]
    for folder in folders[1:]:
        (folder / "tokenizer.model").unlink()
    shutil.copyfile(SENTENCEPIECE / "tokenizer.json", folders[2] / "tokenizer.json")
    _byte_level().save(str(folders[1] / "tokenizer.json"))
    for folder in folders:
        with Checkpoint(folder) as checkpoint:
            weight_map = dict.fromkeys(checkpoint.tensors, "model.safetensors")
        index = {"model.safetensors.index.json": {"weight_map": weight_map}}
        for name, content in {**FILES, **index}.items():
            text = content if isinstance(content, str) else json.dumps(content)
            (folder / name).write_text(text)
    return folders


def _byte_level() -> Tokenizer:
    pairs = list(merges())[:1000]
    tokens = list(dict.fromkeys([*letters(), *(a + b for a, b in pairs)]))
    vocab = {text: number for number, text in enumerate(tokens)}
    library = Tokenizer(models.BPE(vocab=vocab, merges=pairs))
    library.add_special_tokens(["<s>", "</s>"])
    cut = pre_tokenizers.Split(Regex(r"\p{N}{1,3}|\s+"), "isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.pre_tokenizer = pre_tokenizers.Sequence([cut, level])
    ids = [("<s>", len(tokens))]
    library.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=ids)
    return library


def mutate(chooser: random.Random, data: bytes, name: str) -> bytes:
    """Bytes changed, or a file that is still JSON and says something else."""
    if name.endswith(".json") and chooser.random() < 0.8:
        value = json.loads(data)
        for _ in range(chooser.choice((1, 1, 2, 3))):
            _change_value(chooser, value)
        return json.dumps(value).encode()
    changed = bytearray(data)
    for _ in range(chooser.choice((1, 1, 2, 4))):
        change(chooser, changed, text=False)
    return bytes(changed)


def _change_value(chooser: random.Random, value: Any) -> None:
    """Something in `value` becomes another thing, goes away or changes places."""
    while isinstance(value, dict | list) and value:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        # Long lists of tokens are seldom of interest.
        key = chooser.choice(keys[:40] if chooser.random() < 0.8 else keys)
        if isinstance(value[key], dict | list) and value[key] and chooser.random() < 0.8:
            value = value[key]
            continue
        kind = chooser.randrange(4)
        if kind == 0:
            del value[key]
        elif kind == 1:
            other = chooser.choice(keys)
            value[key], value[other] = value[other], value[key]
        elif kind == 2 and isinstance(value, dict) and isinstance(key, str):
            value[key + chooser.choice("_x0")] = value.pop(key)
        else:
            value[key] = deepcopy(chooser.choice(VALUES))
        return


def judge(folder: Path) -> str:
    """How planning went, "planned" or "refused"; `AssertionError` where it broke a promise."""
    start = time.perf_counter()
    outcome = "refused"
    try:
        with Checkpoint(folder) as checkpoint:
            plan = plan_import(checkpoint, pre="qwen2" if "nulls" in folder.parts else None)
        fields = {field.key: field for field in plan.fields}
        ours = OurTokenizer.from_fields(fields)
        ours.decode(ours.encode("Hello 123, \U0001f999!\n", parse_special=True))
        outcome = "planned"
    except GpukitError as error:
        message = str(error)
        assert "\n" not in message, f"several lines: {message!r}"
        assert message.isprintable(), f"unprintable: {message!r}"
        assert len(message) < 3000, f"long: {message[:300]!r}"
    seconds = time.perf_counter() - start
    assert seconds < SECONDS, f"{seconds:.1f} s"
    return outcome


def fuzz(count: int, seed: int) -> Counter[str]:
    """Try `count` folders; how many were planned and refused, by the file that was changed.

    Raises what should not have been raised, with the mutant's number, file and bytes in a note.
    """
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        folders = seeds(Path(name))
        for folder in folders:
            assert judge(folder) == "planned", folder
        most = resident()
        for number in range(count):
            chooser = random.Random(f"{seed} {number}")
            folder = folders[number % len(folders)]
            beside = sorted(p for p in folder.iterdir() if p.suffix != ".safetensors")
            path = chooser.choice(beside)
            before = path.read_bytes()
            data = mutate(chooser, before, path.name)
            path.write_bytes(data)
            mutant = partial("{} of seed {}: {}: {!r}".format, number, seed, path.name, data[:3000])
            with watched(SECONDS, mutant):
                outcomes[f"{path.name} {judge(folder)}"] += 1
                assert resident() - most < RESIDENT, "too much memory"
            path.write_bytes(before)
    return outcomes


if __name__ == "__main__":
    run(fuzz)
