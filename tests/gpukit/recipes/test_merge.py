"""Merging from end to end: one pass gives what the steps give one by one, byte for byte."""

from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support.adapters import check_same, quiet, train
from support.gguf_contents import tensors
from support.loras import lora
from support.zoo import ZOO
from support.zoo_build import build

import gpukit
from gpukit import AdapterError, ArgumentError, NotFoundError, Result
from gpukit.formats.checkpoint import Checkpoint
from gpukit.formats.gguf_reader import GGUFFile
from gpukit.sources.nf4 import NF4
from gpukit_kernels import dequantize, quantize

# Queries and keys whose rows move, biases, fused matrices, experts, a head that is the embedding,
# heads whose rows or columns move.
ANIMALS = ["qwen2", "mistral-v0.3", "phi3-4k", "mixtral-8x7b", "gemma3", "qwen3-biases", "qwen3.5"]
DELTA_NET = ("in_proj_qkv", "in_proj_z", "in_proj_b", "out_proj", "q_proj")
FUSED = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
EXPERTS = ("q_proj", "k_proj", "v_proj", "o_proj", "w1", "w2", "w3")


def targets(name: str) -> Any:
    return {"phi3-4k": FUSED, "mixtral-8x7b": EXPERTS, "qwen3.5": DELTA_NET}.get(
        name, ("q_proj", "v_proj", "k_proj", "up_proj")
    )


@pytest.mark.parametrize("name", ANIMALS)
def test_one_pass_is_merge_then_convert(name: str, tmp_path: Path) -> None:
    base = build(name, tmp_path)
    adapter = lora(base, tmp_path / "lora", targets=targets(name))
    folder = tmp_path / "merged"
    gpukit.merge(base, [adapter], folder, "F32", device="cpu")
    # The sums are not rounded on the way: what is left is the folder's float32.
    one, two = tmp_path / "one.gguf", tmp_path / "two.gguf"
    gpukit.merge(base, [adapter], one, "Q8_0", device="cpu", pre=ZOO[name].pre)
    gpukit.convert(folder, two, "Q8_0", device="cpu", pre=ZOO[name].pre)
    assert tensors(one) == tensors(two)


@pytest.mark.parametrize("kind", ["Q4_K_M", "Q6_K", "Q4_0", "BF16", "F16", "F32"])
def test_any_type(kind: str, qwen: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = qwen
    whole, one, two = (tmp_path / f"{n}.gguf" for n in ("whole", "one", "two"))
    gpukit.convert(base, whole, "F32", adapters=[adapter], device="cpu")
    result = gpukit.convert(base, one, kind, adapters=[adapter], device="cpu")
    gpukit.quantize(whole, two, kind, device="cpu")
    assert tensors(one) == tensors(two)
    by_class = {total.name: total for total in result.changes}
    assert set(by_class) == {f"blk.*.{n}.weight" for n in (
        "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")}  # fmt: skip
    for total in result.changes:
        assert total.direction is not None
        assert total.relative is not None
        assert total.direction > 0.95


def test_the_merged_folder_is_pefts(qwen: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = qwen
    gpukit.merge(base, [adapter], tmp_path / "ours", "F32", device="cpu")
    with quiet():
        plain = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
        wanted = peft.PeftModel.from_pretrained(plain, adapter).merge_and_unload()
        found = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path / "ours", dtype=torch.float64
        )
    ids = torch.tensor([[5, 9, 17, 200, 3, 44]])
    with torch.no_grad():
        expected, logits = wanted(ids).logits, found(ids).logits
    # Weights in float32 are off by 2^-24 of themselves at most, and pass through fourteen matrices
    # (measured: 2^-19.7).
    assert (logits - expected).abs().max() <= 14 * 2**-22 * expected.abs().max()


@pytest.mark.parametrize("kind", ["F32", "Q8_0", "Q4_K_M"])
def test_a_gguf_keeps_its_types(kind: str, qwen: tuple[Path, Path], tmp_path: Path) -> None:
    base, _ = qwen
    adapter = lora(base, tmp_path / "lora", targets=("q_proj", "k_proj", "down_proj"))
    before, after, whole, plain = (
        tmp_path / f"{n}.gguf" for n in ("before", "after", "whole", "plain")
    )
    gpukit.convert(base, before, kind, device="cpu")
    gpukit.merge(before, [adapter], after, device="cpu")
    gpukit.convert(base, whole, "F32", adapters=[adapter], device="cpu")
    gpukit.convert(base, plain, "F32", device="cpu")
    was, found = tensors(before), tensors(after)
    assert {n: t for n, (t, _) in was.items()} == {n: t for n, (t, _) in found.items()}
    merged, unmerged = tensors(whole), tensors(plain)
    for name, (stored, data) in found.items():
        if not any(part in name for part in ("attn_q.w", "attn_k.w", "ffn_down")):
            assert data == was[name][1], name
        elif stored != "F32":
            with GGUFFile(before) as file:
                rows = file.tensors[name].rows
            delta = np.frombuffer(merged[name][1], "f4") - np.frombuffer(unmerged[name][1], "f4")
            blocks = torch.frombuffer(bytearray(was[name][1]), dtype=torch.uint8).view(rows, -1)
            values = dequantize(blocks, stored).numpy().reshape(-1)
            again = torch.from_numpy(values + delta).view(rows, -1)
            wanted = dequantize(quantize(again, stored), stored).numpy()
            got = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(rows, -1)
            # `delta` is the difference of two rounded numbers.
            error = np.abs(dequantize(got, stored).numpy() - wanted).max()
            assert error <= 0.15 * np.abs(wanted).max(), name
    if kind == "F32":
        assert found == merged


def test_weights_and_the_order_of_adapters(qwen: tuple[Path, Path], tmp_path: Path) -> None:
    base, first = qwen
    second = lora(base, tmp_path / "second", rank=7, seed=3, lora_alpha=3)
    outs = [tmp_path / f"{n}.gguf" for n in range(4)]
    gpukit.convert(base, outs[0], "F32", adapters=[f"{first}:0.5", (second, -2.0)], device="cpu")
    half = lora(base, tmp_path / "half", lora_alpha=4)  # rank 4 with alpha 8 is the usual
    twice = lora(base, tmp_path / "twice", rank=7, seed=3, lora_alpha=-6)
    gpukit.convert(base, outs[1], "F32", adapters=[half, twice], device="cpu")
    assert tensors(outs[0]) == tensors(outs[1])
    gpukit.convert(base, outs[2], "F32", adapters=[f"{first}:0"], device="cpu")
    gpukit.convert(base, outs[3], "F32", device="cpu")
    with GGUFFile(outs[2]) as zero, GGUFFile(outs[3]) as none:
        for name, info in none.tensors.items():
            same = zero.read(zero.tensors[name]).view("f4") == none.read(info).view("f4")
            assert same.all(), name


def test_combined_as_peft_does(qwen: tuple[Path, Path], tmp_path: Path) -> None:
    base, first = qwen
    second = lora(base, tmp_path / "second", seed=3)
    how = gpukit.Combining("ties", density=0.5)
    gpukit.merge(
        base, [(first, 0.7), (second, 1.5)], tmp_path / "ours", "F32", combine=how, device="cpu"
    )
    with quiet():
        plain = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        wrapped = peft.PeftModel.from_pretrained(plain, first, adapter_name="first")
        wrapped.load_adapter(second, adapter_name="second")
        wrapped.add_weighted_adapter(
            ["first", "second"], [0.7, 1.5], "both", combination_type="ties", density=0.5
        )
        wrapped.set_adapter("both")
        wanted = wrapped.merge_and_unload().state_dict()
    found = load_file(tmp_path / "ours" / "model.safetensors")
    assert all((found[n] - wanted[n]).abs().max() <= 1e-5 for n in found)
    one = tmp_path / "one.gguf"
    gpukit.convert(
        base, one, "F32", adapters=[(first, 0.7), (second, 1.5)], combine=how, device="cpu"
    )
    gpukit.convert(tmp_path / "ours", tmp_path / "two.gguf", "F32", device="cpu")
    assert tensors(one) == tensors(tmp_path / "two.gguf")


@pytest.mark.parametrize("double", [True, False])
def test_what_qlora_was_trained_on(double: bool, qwen: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = qwen
    kind = "nf4" if double else "nf4-single"
    gpukit.merge(base, [adapter], tmp_path / "out", "F32", merge_base=kind, device="cpu")
    gpukit.merge(base, [adapter], tmp_path / "full", "F32", device="cpu")
    found, full = (load_file(tmp_path / n / "model.safetensors") for n in ("out", "full"))
    stored = load_file(base / "model.safetensors")
    with Checkpoint(base) as checkpoint:
        step = NF4(checkpoint, double=double)
        for name, weight in stored.items():
            if name not in step.names:
                assert torch.equal(found[name], full[name])
                continue
            before = step(name, 0, weight.to(torch.float32))
            # Two sums of three rounded numbers each.
            error = (found[name] - before) - (full[name] - weight.float())
            assert error.abs().max() <= 2**-21 * full[name].abs().max()
            assert not torch.equal(found[name], full[name])
    one, two = tmp_path / "one.gguf", tmp_path / "two.gguf"
    gpukit.merge(base, [adapter], one, "Q8_0", merge_base=kind, device="cpu")
    gpukit.convert(tmp_path / "out", two, "Q8_0", device="cpu")
    assert tensors(one) == tensors(two)
    with pytest.raises(ArgumentError, match="is for the checkpoint"):
        gpukit.merge(one, [adapter], tmp_path / "x.gguf", merge_base=kind)
    with pytest.raises(ArgumentError, match="merge_base 'nf5' is unknown"):
        gpukit.merge(base, [adapter], tmp_path / "x", merge_base="nf5")


@pytest.mark.parametrize("tied", [True, False])
def test_more_tokens(tied: bool, tmp_path: Path) -> None:
    base = build("qwen2-tied" if tied else "qwen2", tmp_path)
    adapter = lora(base, tmp_path / "lora", targets=("q_proj",), modules_to_save=["embed_tokens"])
    path = adapter / "adapter_model.safetensors"
    values = load_file(path)
    stored = load_file(base / "model.safetensors")["model.embed_tokens.weight"]
    rows = torch.cat([stored.float(), torch.ones(3, stored.shape[1])]) + 1
    prefix = "base_model.model."
    values[f"{prefix}model.embed_tokens.weight"] = rows
    if not tied:
        values[f"{prefix}lm_head.weight"] = rows + 1
    save_file(values, path)
    out = tmp_path / "out.gguf"
    if tied:
        config = adapter / "adapter_config.json"
        config.write_text(config.read_text().replace("{", '{"ensure_weight_tying": true, ', 1))
    gpukit.convert(base, out, "F32", adapters=[adapter], device="cpu")
    found = tensors(out)
    assert np.array_equal(np.frombuffer(found["token_embd.weight"][1], "f4"), rows.numpy().ravel())
    with GGUFFile(out) as file:
        assert file.tensors["token_embd.weight"].ne[1] == len(rows)
        assert len(file.fields["tokenizer.ggml.tokens"].value) == len(rows)
        assert ("output.weight" in file.tensors) != tied
    gpukit.merge(base, [adapter], tmp_path / "folder", "F32", device="cpu")
    gpukit.convert(tmp_path / "folder", tmp_path / "two.gguf", "F32", device="cpu")
    assert tensors(tmp_path / "two.gguf") == found


def test_a_report_says_what_a_small_type_loses(qwen: tuple[Path, Path], tmp_path: Path) -> None:
    base, _ = qwen
    small = lora(base, tmp_path / "small", by=0.01)
    said: list[Any] = []
    result = gpukit.convert(
        base, tmp_path / "a.gguf", "Q4_0", adapters=[small], device="cpu", report=said.append
    )
    lines = [event.text for event in said if isinstance(event, gpukit.Warned)]
    assert [line for line in lines if "smaller than what Q4_0" in line and "7 of 7" in line]
    assert isinstance(result, Result)
    assert all(t.direction is not None and t.direction < 0.7 for t in result.changes)
    kept = gpukit.convert(base, tmp_path / "b.gguf", "F32", adapters=[small], device="cpu")
    for total in kept.changes:
        assert total.direction == pytest.approx(1, abs=1e-6)
        assert total.kept == pytest.approx(1, abs=1e-6)


def test_trained_tokens_show_in_the_report(qwen: tuple[Path, Path], tmp_path: Path) -> None:
    base, _ = qwen
    adapter = lora(base, tmp_path / "tokens", targets=(), trainable_token_indices=[1999])
    path = adapter / "adapter_model.safetensors"
    width = load_file(base / "model.safetensors")["model.embed_tokens.weight"].shape[1]
    name = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"
    save_file({name: torch.ones(1, width)}, path)
    for kind in ("F16", "Q8_0"):
        out = tmp_path / f"{kind}.gguf"
        result = gpukit.convert(base, out, kind, adapters=[adapter], device="cpu")
        (change,) = result.changes
        assert change.name == "token_embd.weight"
        assert change.relative is not None
        assert change.relative > 0
        assert change.direction == pytest.approx(1, abs=1e-3)


def test_an_adapter_that_changes_nothing_is_told(qwen: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = qwen
    fresh = lora(base, tmp_path / "fresh")
    path = fresh / "adapter_model.safetensors"
    save_file({n: v * 0 if "lora_B" in n else v for n, v in load_file(path).items()}, path)
    said: list[Any] = []
    out = tmp_path / "a.gguf"
    unscaled = lora(base, tmp_path / "unscaled", lora_alpha=0)
    for words in ([fresh], [f"{adapter}:0"], [f"{adapter}:1e-50"], [unscaled], [adapter]):
        gpukit.convert(base, out, "F16", adapters=words, device="cpu", report=said.append)
    gpukit.merge(out, [fresh], tmp_path / "b.gguf", device="cpu", report=said.append)
    lines = [event.text for event in said if isinstance(event, gpukit.Warned)]
    nothing = [line for line in lines if "changes nothing" in line]
    assert ["fresh" in line for line in nothing] == [True, False, False, False, True]
    assert [line.rpartition("safetensors: ")[2] for line in nothing[1:4]] == [
        "a weight of 0: it changes nothing", "a weight of 1e-50: it changes nothing",
        "a scale of 0 (alpha / rank): it changes nothing",
    ]  # fmt: skip


def test_what_is_wrong_is_told_before_anything_is_written(
    qwen: tuple[Path, Path], tmp_path: Path
) -> None:
    base, adapter = qwen
    out = tmp_path / "out"
    out.mkdir()
    gguf = tmp_path / "base.gguf"
    gpukit.convert(base, gguf, "F16", device="cpu")
    other = lora(build("mistral-v0.3", tmp_path), tmp_path / "other")
    nan = lora(base, tmp_path / "nan")
    values = load_file(nan / "adapter_model.safetensors")
    name = next(n for n in values if "lora_B" in n)
    values[name][0, 0] = float("nan")
    save_file(values, nan / "adapter_model.safetensors")
    cut = lora(base, tmp_path / "cut")
    file = cut / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    resized = lora(base, tmp_path / "resized", targets=())
    stored = load_file(base / "model.safetensors")
    save_file(
        {f"base_model.model.{n}.weight": torch.ones(stored["lm_head.weight"].shape[0] + 1,
                                                    stored["lm_head.weight"].shape[1])
         for n in ("lm_head", "model.embed_tokens")},
        resized / "adapter_model.safetensors",
    )  # fmt: skip
    for adapters, wrong, target, message in (
        ([], ArgumentError, "a.gguf", "no adapter to merge"),
        ([tmp_path / "none"], NotFoundError, "a.gguf", "no such file or folder"),
        ([adapter, adapter], ArgumentError, "a.gguf", "the same adapter twice"),
        ([other], AdapterError, "a.gguf", "made for another base"),
        ([nan], AdapterError, "a.gguf", "holds nan"),
        ([cut], gpukit.SafetensorsError, "a.gguf", "adapter_model.safetensors"),
        ([f"{adapter}:inf"], ArgumentError, "a.gguf", "a weight of inf"),
        ([f"{adapter}:1e40"], ArgumentError, "a.gguf", "lora: a weight of 1e.40; .* up to 3.4e"),
        ([f"{adapter}:3e38"], AdapterError, "a.gguf", "3e.38 times the scale 2 .* less weight"),
    ):
        for place in (target, "folder"):
            with pytest.raises(wrong, match=message):
                gpukit.merge(base, adapters, out / place, device="cpu")
            assert not list(out.iterdir())
    for call, message in (
        (lambda: gpukit.merge(base, [adapter], out / "f", "Q4_K_M"), "name a .gguf file"),
        (lambda: gpukit.merge(gguf, [adapter], out / "f"), "a GGUF becomes a GGUF"),
        (lambda: gpukit.merge(base, [adapter], out / "f", imatrix="x"), "imatrix is for a GGUF"),
        (lambda: gpukit.merge(base, [adapter], out / "a.gguf", max_shard_size=9), "shards"),
        (lambda: gpukit.Combining("tie"), "no method tie"),
        (lambda: gpukit.Combining("ties"), "give the density"),
    ):
        with pytest.raises(ArgumentError, match=message):
            call()
    with pytest.raises(AdapterError, match="for which a GGUF has no place"):
        gpukit.merge(gguf, [resized], out / "a.gguf", device="cpu")
    assert not list(out.iterdir())


@pytest.mark.parametrize(
    ("weight", "options", "told"),
    [
        (1e30, {"type": "Q8_0"}, r"with the adapters merged overflows Q8_0; .* less weight"),
        (1.7e38, {"type": "Q8_0"}, r"value \[\d+, \d+\] is -?inf with the adapters merged; "),
        (1.7e38, {"target_bpw": 6}, "values that are not finite with the adapters merged; "),
    ],
)
def test_a_sum_that_overflows_is_told_as_one_of_adapters(
    weight: float, options: dict[str, Any], told: str, qwen: tuple[Path, Path], tmp_path: Path
) -> None:
    base, _ = qwen
    adapter = lora(base, tmp_path / "large", targets=("q_proj",), by=2)
    with pytest.raises(gpukit.CheckpointError, match=rf"blk\.0\.attn_q\.weight: .*{told}"):
        gpukit.merge(base, [(adapter, weight)], tmp_path / "a.gguf", device="cpu", **options)
    assert not list(tmp_path.glob("*.gguf"))


@pytest.mark.parametrize("base", ["folder", "gguf"])
def test_adapters_are_never_replaced(base: str, tmp_path: Path) -> None:
    folder = build("qwen2", tmp_path)
    adapter = lora(folder, tmp_path / "lora", targets=("q_proj",))
    written, whole = tmp_path / "lora.gguf", tmp_path / "whole.gguf"
    gpukit.write_adapter(adapter, folder, written)
    gpukit.convert(folder, whole, "F16", device="cpu")
    model = folder if base == "folder" else whole
    (tmp_path / "link.gguf").symlink_to(written)
    before = {path: path.read_bytes() for path in (written, *adapter.iterdir())}
    for source, out in (
        (written, written),
        (written, tmp_path / "link.gguf"),
        (adapter, adapter / "adapter_model.safetensors"),
    ):
        with pytest.raises(ArgumentError, match="input and output are the same file"):
            gpukit.merge(model, [source], out, device="cpu")
    with pytest.raises(ArgumentError, match="input and output are the same file"):
        gpukit.write_adapter(adapter, model, adapter / "adapter_config.json")
    assert {path: path.read_bytes() for path in before} == before


def test_a_folder_in_float64_stays_so(tmp_path: Path) -> None:
    made = train(tmp_path, "llama", {"r": 2, "lora_alpha": 5, "target_modules": ["q_proj"]})
    done = gpukit.merge(made.base, [made.adapter], tmp_path / "out", device="cpu")
    check_same(load_file(tmp_path / "out" / "model.safetensors"), made.expected())
    (change,) = done.changes
    assert (change.types, change.kept) == (("F64",), 1.0)
    assert change.direction == pytest.approx(1.0)
