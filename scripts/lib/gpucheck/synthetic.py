"""A model of random weights that is made on the device, without a file."""

from dataclasses import dataclass

import torch

from gpukit.models.config import ModelConfig
from gpukit.models.decoder import Decoder
from gpukit.models.registry import architecture_of
from gpukit.models.weights import Weight, Weights
from gpukit_kernels import quantize

# Values that are made at a time.
SLAB = 1 << 27


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama; as they stand those of Llama 3.1 8B."""

    layers: int = 32
    embd: int = 4096
    ff: int = 14336
    heads: int = 32
    kv_heads: int = 8
    vocab: int = 128256
    n_ctx: int = 8192

    @property
    def config(self) -> ModelConfig:
        return ModelConfig(
            arch="llama", n_layer=self.layers, n_ctx=self.n_ctx, n_embd=self.embd, n_ff=self.ff,
            n_head=self.heads, n_head_kv=self.kv_heads, head_dim=self.embd // self.heads,
            rms_eps=1e-5, rope_theta=500000.0, vocab_size=self.vocab,
        )  # fmt: skip

    @property
    def weights(self) -> int:
        """Weights that a token is multiplied with."""
        kv = self.embd * self.kv_heads // self.heads
        layer = 2 * self.embd * (self.embd + kv) + 3 * self.embd * self.ff
        return self.layers * layer + self.vocab * self.embd


def llama(shape: Shape, device: torch.device | str, seed: int = 1) -> Decoder:
    """A Llama of `shape` with the types of Q4_K_M, on `device`; the weights are normal, 0.02."""
    found, random = {}, torch.Generator(device).manual_seed(seed)
    for name, rows, width, kind in _tensors(shape):
        blocks = []
        step = max(SLAB // width, 1)
        for first in range(0, rows, step):
            values = torch.empty(min(step, rows - first), width, device=device)
            blocks.append(quantize(values.normal_(0.0, 0.02, generator=random), kind))
        found[name] = Weight(torch.cat(blocks), kind, width)
    for name in _norms(shape):
        values = torch.ones(1, shape.embd, device=device)
        found[name] = Weight(quantize(values, "F32"), "F32", shape.embd)
    return architecture_of("llama", "the model").build(shape.config, Weights(found))


def _tensors(shape: Shape) -> list[tuple[str, int, int, str]]:
    """Name, rows, width and type of every matrix."""
    embd, ff, kv = shape.embd, shape.ff, shape.embd * shape.kv_heads // shape.heads
    found = [
        ("token_embd.weight", shape.vocab, embd, "Q4_K"),
        ("output.weight", shape.vocab, embd, "Q6_K"),
    ]
    for layer in range(shape.layers):
        finer = _finer(layer, shape.layers)
        found += [
            (f"blk.{layer}.{name}.weight", rows, width, kind)
            for name, rows, width, kind in (
                ("attn_q", embd, embd, "Q4_K"),
                ("attn_k", kv, embd, "Q4_K"),
                ("attn_v", kv, embd, "Q6_K" if finer else "Q4_K"),
                ("attn_output", embd, embd, "Q4_K"),
                ("ffn_gate", ff, embd, "Q4_K"),
                ("ffn_up", ff, embd, "Q4_K"),
                ("ffn_down", embd, ff, "Q6_K" if finer else "Q4_K"),
            )
        ]
    return found


def _finer(layer: int, layers: int) -> bool:
    """Whether Q4_K_M has Q6_K for some of this layer."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * eighth or (layer - eighth) % 3 == 2


def _norms(shape: Shape) -> list[str]:
    each = [
        f"blk.{n}.{name}.weight" for n in range(shape.layers) for name in ("attn_norm", "ffn_norm")
    ]
    return ["output_norm.weight", *each]
