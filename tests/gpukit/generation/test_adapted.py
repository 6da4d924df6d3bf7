"""Adapters beside the weights: logits as PEFT has them unmerged, and as llama.cpp has them."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from support import checkpoints, zoo, zoo_build
from support.adapters import ATTENTION, DELTA_NET, FUSED, LINEAR, quiet, train_beside
from support.gguf_adapters import write_adapter
from support.llama_cpp_server import probabilities

from gpukit import convert, quantize
from gpukit.errors import AdapterError, SafetensorsError
from gpukit.events import Event
from gpukit.formats.gguf_reader import GGUFFile
from gpukit.generation.loading import load_model
from gpukit.sources.merged import Chosen, Merge

ENDS = ["embed_tokens", "lm_head"]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
IDS = list(range(3, 40))
# float32 sums of up to 608 products in another order, and deltas beside the weights: some 2^-24 *
# sqrt(608) of the largest term each, through two layers. Measured: below 3e-6.
TOLERANCE = 1e-4
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("narrow-heads", {"target_modules": [*LINEAR, *ENDS]}),
    "rslora": ("plain", {"target_modules": LINEAR, "use_rslora": True, "rank_pattern": {"q": 3}}),
    "biases": ("biases", {"target_modules": LINEAR, "lora_bias": True}),
    "norms": ("plain", {"target_modules": ["q_proj"], "modules_to_save": ["norm", "lm_head"]}),
    "tied-embedding": ("tied", {"target_modules": ["v_proj", "embed_tokens"]}),
    "tied-head": ("tied", {"target_modules": ["lm_head"]}),
    "tokens": ("plain", {"target_modules": ["q_proj"], "trainable_token_indices": [3, 9]}),
    "dora": ("narrow-heads", {"target_modules": [*LINEAR, "lm_head"], "use_dora": True}),
    "dora-fused": ("phi4", {"target_modules": FUSED, "use_dora": True}),
    "mistral": ("mistral-v0.3", {"target_modules": LINEAR}),
    "mixtral": ("mixtral-12", {"target_modules": ATTENTION, "target_parameters": EXPERTS}),
    "phi": ("phi4", {"target_modules": FUSED}),
    "gemma": ("gemma", {"target_modules": LINEAR, "modules_to_save": ["norm"]}),
    "gemma2": ("gemma2", {"target_modules": LINEAR}),
    "qwen2": ("qwen2-tied", {"target_modules": LINEAR}),
    "qwen3": ("qwen3-untied", {"target_modules": [*LINEAR, "lm_head"]}),
    "qwen3.5": ("qwen3.5-yarn", {"target_modules": [*LINEAR, *DELTA_NET]}),
    "qwen3.5-dora": ("qwen3.5-yarn", {"target_modules": [*LINEAR, *DELTA_NET], "use_dora": True}),
}  # fmt: skip


def _built(name: str, root: Path) -> Path:
    maker = checkpoints if name in checkpoints.VARIANTS else zoo_build
    return maker.build(name, root)


def _pre(name: str) -> str | None:
    return zoo.ZOO[name].pre if name in zoo.ZOO else None


def _logits(path: Path, *adapters: Chosen, pre: str | None = None) -> torch.Tensor:
    decoder = load_model(path, "cpu", pre, adapters=Merge(adapters)).decoder
    return decoder.forward(IDS, decoder.cache(64), every=True)


def _error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest difference at any position over the largest logit there."""
    assert found.shape == wanted.shape
    return float(((found - wanted).abs().amax(-1) / wanted.abs().amax(-1)).max())


@pytest.mark.sampled(3)
@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_peft_unmerged(case: str, tmp_path: Path) -> None:
    name, config = CASES[case]
    folder = _built(name, tmp_path)
    wrapped = train_beside(folder, tmp_path / "adapter", config)
    with torch.no_grad(), quiet():
        wanted = wrapped(torch.tensor([IDS])).logits[0]
        with wrapped.disable_adapter():
            plain = wrapped(torch.tensor([IDS])).logits[0]
    assert _error(plain, wanted) > 1e-2
    quantize(folder, tmp_path / "x.gguf", "F32", device="cpu", pre=_pre(name))
    adapter = Chosen(tmp_path / "adapter")
    for path in (folder, tmp_path / "x.gguf"):
        found = _logits(path, adapter, pre=_pre(name) if path == folder else None)
        assert _error(found, wanted) < TOLERANCE


LAYER = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
EXPERT = ("attn_q", "attn_k", "ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
PEER: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "narrow-heads": ("llama", LAYER, ("token_embd", "output")),
    "mixtral-12": ("llama", EXPERT, ()),
    "phi4": ("phi3", ("attn_qkv", "attn_output", "ffn_up", "ffn_down"), ()),
    "gemma2": ("gemma2", LAYER, ()),
    "qwen3-untied": ("qwen3", LAYER, ("output",)),
}


@pytest.mark.peer
@pytest.mark.parametrize("name", PEER)
def test_logits_are_those_of_llama_cpp(name: str, tmp_path: Path) -> None:
    arch, layer, ends = PEER[name]
    model = tmp_path / "x.gguf"
    quantize(_built(name, tmp_path), model, "F32", device="cpu")
    with GGUFFile(model) as file:
        shapes = {info.name: tuple(reversed(info.ne)) for info in file.tensors.values()}
    names = [*(f"blk.{n}.{part}.weight" for n in (0, 1) for part in layer)]
    adapted = {each: shapes[each] for each in (*names, *(f"{end}.weight" for end in ends))}
    adapters = []
    # Its α, none, and half as strong as it was trained.
    for number, (alpha, weight) in enumerate(((3.0, 1.0), (None, 1.0), (6.0, -0.5))):
        path = tmp_path / f"{number}.gguf"
        write_adapter(path, arch, adapted, alpha, 2, seed=number, size=0.1)
        adapters.append((path, weight))
    ids, wanted = probabilities(model, IDS, adapters)
    plain = _logits(model)[-1].log_softmax(-1)[ids]
    found = _logits(model, *(Chosen(*each) for each in adapters))[-1]
    assert (plain - wanted).abs().max() > 1e-2
    # The same sums in another order, and its GELU comes from a table of float16.
    within = 5e-3 if "gemma" in name else 1e-4
    assert (found.log_softmax(-1)[ids] - wanted).abs().max() < within


def test_several_adapters_add_up_by_their_weights(tmp_path: Path) -> None:
    folder = _built("tied", tmp_path)
    wrapped = train_beside(folder, tmp_path / "first", {"target_modules": LINEAR})
    with quiet():
        wrapped.add_adapter("second", peft.LoraConfig(r=3, target_modules=["q_proj", "up_proj"]))
        for name, values in wrapped.named_parameters():
            if ".second." in name:
                values.data.copy_(torch.randn(values.shape) * 0.1)
        wrapped.save_pretrained(tmp_path, selected_adapters=["second"])
        wrapped.base_model.set_adapter(["default", "second"])
        for module in wrapped.modules():
            if isinstance(module, LoraLayer) and "second" in module.scaling:
                module.scaling["second"] *= -1.5
    with torch.no_grad(), quiet():
        wanted = wrapped.eval()(torch.tensor([IDS])).logits[0]
    first = Chosen(tmp_path / "first")
    found = _logits(folder, first, Chosen(tmp_path / "second", -1.5))
    assert _error(found, wanted) < TOLERANCE
    assert _error(_logits(folder, first), wanted) > 1e-2


REFUSED: dict[str, tuple[dict[str, Any], float, str]] = {
    "columns": (
        {"target_modules": ["embed_tokens"], "use_dora": True}, 1.0,
        r"magnitude_vector: lengths of columns have no unmerged form; merge it with gpukit merge",
    ),
    "lengths": (
        {"target_modules": LINEAR, "use_dora": True}, 0.5,
        r"adapter: model\.\S+weight: the adapter brings rows to a length \(DoRA\), which has no w",
    ),
    "halves": (
        {"target_modules": ["q_proj"], "modules_to_save": ["norm"]}, 0.5,
        r"adapter: model\.\S+norm\.weight: the adapter replaces numbers, which has no weight of 0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_to_be_merged(case: str, tmp_path: Path) -> None:
    config, weight, message = REFUSED[case]
    folder = _built("plain", tmp_path)
    train_beside(folder, tmp_path / "adapter", config)
    with pytest.raises(AdapterError, match=message):
        load_model(folder, "cpu", adapters=Merge((Chosen(tmp_path / "adapter", weight),)))


def test_another_vocabulary_has_to_be_merged(tmp_path: Path) -> None:
    folder = _built("plain", tmp_path)
    train_beside(
        folder, tmp_path / "adapter", {"target_modules": ["q_proj"], "modules_to_save": ENDS}
    )
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    for name, values in tensors.items():
        if "embed_tokens" in name or "lm_head" in name:
            tensors[name] = torch.cat((values, values[:8]))
    save_file(tensors, path)
    with pytest.raises(AdapterError, match=r"vocabulary 2056 tokens large, which .* gpukit merge"):
        load_model(folder, "cpu", adapters=Merge((Chosen(tmp_path / "adapter"),)))


def test_hostile_adapters(tmp_path: Path) -> None:
    folder = _built("plain", tmp_path)
    train_beside(folder, tmp_path / "adapter", {"target_modules": LINEAR})
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    wanted = Chosen(tmp_path / "adapter")
    with pytest.raises(AdapterError, match="two adapters are called adapter"):
        load_model(
            folder,
            "cpu",
            adapters=Merge(
                (
                    wanted,
                    wanted,
                )
            ),
        )
    with pytest.raises(AdapterError, match="made for another base"):
        load_model(_built("narrow-heads", tmp_path), "cpu", adapters=Merge((wanted,)))
    tensors = load_file(path)
    next(iter(tensors.values()))[0, 1] = float("nan")
    save_file(tensors, path)
    with pytest.raises(AdapterError, match=r"holds nan at \[0, 1\]"):
        load_model(folder, "cpu", adapters=Merge((wanted,)))
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(SafetensorsError):
        load_model(folder, "cpu", adapters=Merge((wanted,)))


def test_an_adapter_of_another_name_is_told_of(tmp_path: Path) -> None:
    folder = _built("plain", tmp_path)
    train_beside(folder, tmp_path / "adapter", {"target_modules": ["q_proj"]})
    path = tmp_path / "adapter" / "adapter_config.json"
    config = json.loads(path.read_text())
    for said, names, warned in (
        ("org/Other", (), True), ("org/Plain", (), False), ("a/B", ("b",), False),
    ):  # fmt: skip
        path.write_text(json.dumps({**config, "base_model_name_or_path": said}))
        told: list[Event] = []
        load_model(
            folder, "cpu", adapters=Merge((Chosen(path.parent),)), names=names, report=told.append
        )
        assert [f"made for {said}, the base is" in event.text for event in told] == [True] * warned


def test_one_of_mlx_does_what_it_does_merged(tmp_path: Path) -> None:
    folder = _built("narrow-heads", tmp_path)
    torch.manual_seed(3)
    shapes = {"self_attn.q_proj": (288, 144), "self_attn.k_proj": (288, 72),
              "mlp.down_proj": (608, 288)}  # fmt: skip
    tensors = {}
    for module, (width, rows) in shapes.items():
        name = f"model.layers.1.{module}"
        tensors[f"{name}.lora_a"] = torch.randn(width, 2) * 0.1
        tensors[f"{name}.lora_b"] = torch.randn(2, rows) * 0.1
    (tmp_path / "mlx").mkdir()
    save_file(tensors, tmp_path / "mlx" / "adapters.safetensors")
    config = {"fine_tune_type": "lora", "lora_parameters": {"rank": 2, "scale": 40.0}}
    (tmp_path / "mlx" / "adapter_config.json").write_text(json.dumps(config))
    convert(folder, tmp_path / "merged.gguf", "F32", adapters=[tmp_path / "mlx"], device="cpu")
    wanted = _logits(tmp_path / "merged.gguf")
    found = _logits(folder, Chosen(tmp_path / "mlx"))
    assert _error(found, wanted) < TOLERANCE
    assert _error(_logits(folder), wanted) > 1e-2


def test_one_may_part_head_and_embedding_beside_one_that_leaves_them_alone(tmp_path: Path) -> None:
    folder = _built("tied", tmp_path)
    first = _trained_pair(folder, tmp_path)
    both = _logits(folder, *first)
    assert torch.equal(both, _logits(folder, first[1], first[0]))
    for single in first:
        assert _error(_logits(folder, single), both) > 1e-2


def _trained_pair(folder: Path, root: Path) -> tuple[Chosen, Chosen]:
    """Adapters of other tensors: the first of attention, the second of the head alone."""
    train_beside(folder, root / "attention", {"target_modules": ["v_proj"]})
    train_beside(folder, root / "head", {"target_modules": ["lm_head"]})
    return Chosen(root / "attention"), Chosen(root / "head")
