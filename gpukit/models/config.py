"""The hyperparameters of a decoder, whatever its architecture."""

from dataclasses import dataclass, replace

from gpukit.models.unused import Unused


@dataclass(frozen=True)
class DeltaSizes:
    """Sizes of a gated delta network: heads of `head_dim` values with `key_heads` pairs of queries
    and keys, each shared by value_heads / key_heads, and a convolution of so many `taps`."""

    key_heads: int
    value_heads: int
    head_dim: int
    taps: int

    @property
    def values(self) -> int:
        """The width of all values of a position."""
        return self.value_heads * self.head_dim

    @property
    def channels(self) -> int:
        """The width of queries, keys and values, which the convolution goes over."""
        return 2 * self.key_heads * self.head_dim + self.values


@dataclass(frozen=True)
class ModelConfig:
    """Hyperparameters of a decoder, named as in llama.cpp; counts and sizes, no units.

    `rope_scaling` is "none", "linear", "yarn", "llama3" or "proportional" (the last two live in the
    tensor rope_freqs.weight: `rope_part` is the part of all pairs that the last one turns);
    `rope_yarn` holds the ends of YaRN's own keys with their values, and
    `rope_rounded` says whether YaRN rounds the limits between which it mixes.
    `rope_long` and `rope_short` divide frequencies in contexts longer than `rope_original_ctx`, and
    in others.
    `rope_log_multiplier` m has YaRN's magnitude divided by what it would be for m tenths (0: not).
    `n_rot` values of a head are rotated (0: all), and multiplied by `rope_magnitude`.
    `rope_theta_local` is the base of windowed layers, which are not scaled (0: that of the others).
    `n_expert_used` of `n_expert` experts take part for each position; 0 and 0: none. `n_ff_expert`
    is the width inside of one (0: `n_ff`). `expert_gating`, `experts_normed`, `expert_scale` and
    the groups are what `routing.Routing` says of them. `n_expert_shared` more take part for every
    position, as one of so many widths, or of the width `n_ff_shared`. The first `n_dense` layers
    have none; `n_ff` is 0 where nothing says it, as all have some.
    Where layers differ, `kv_heads` and `ffs` have the key-value heads and the width of each (empty:
    `n_head_kv` and `n_ff`), and `head_dim_local` is the head_dim of windowed ones (0: that of all).
    The last `n_kv_shared` layers have the keys and values of earlier ones; with `keys_are_values`
    whole layers have no values of their own. `n_embd_layer` is the width of what every layer looks
    up of a token (0: nothing).
    Behind the `n_layer` layers a file may have `n_nextn` more, which guess further tokens and take
    no part in a pass (None: metadata have no key for them).
    `attention_bias`, `qk_norms` and `mlp_bias` tell what a checkpoint has.
    `attention_scale` multiplies queries times keys (0: the root of head_dim divides them),
    `embedding_scale` embeddings, `residual_scale` what a layer adds; `logit_divisor` divides
    logits;
    `attention_growth` b multiplies queries at position p by 1 + b log(1 + p // rope_original_ctx);
    `attention_cap` and `logit_cap` c turn a score or logit x into c tanh(x/c) (0: no cap).
    `head_dim_said` tells whether metadata have a key for head_dim. A position of a windowed layer
    sees `window` positions, itself included, where `window` is not 0; `windowed` says of each layer
    whether it is one (empty: every layer is).
    `recurrent` says of each layer whether it is a gated delta network, of the sizes `delta`, in the
    place of attention (empty: none is); `attention_every` is the period of those with attention,
    which metadata have beside it and nobody needs. `rope_sections` are
    how many pairs of a head stand for each of time, height and width, which are one for text;
    `rope_sections_said` whether config.json has them.
    """

    arch: str
    n_layer: int
    n_ctx: int
    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    head_dim: int
    rms_eps: float
    rope_theta: float
    vocab_size: int
    rope_theta_local: float = 0.0
    rope_scaling: str = "none"
    rope_factor: float = 1.0
    rope_low: float = 1.0
    rope_high: float = 4.0
    rope_original_ctx: int = 8192
    rope_yarn: tuple[tuple[str, float], ...] = ()
    rope_rounded: bool = True
    rope_long: tuple[float, ...] = ()
    rope_short: tuple[float, ...] = ()
    rope_magnitude: float = 1.0
    rope_part: float = 1.0
    rope_log_multiplier: float = 0.0
    n_rot: int = 0
    tied: bool = False
    attention_bias: bool = False
    qk_norms: bool = False
    mlp_bias: bool = False
    n_expert: int = 0
    n_expert_used: int = 0
    n_ff_expert: int = 0
    expert_gating: str = "softmax"
    experts_normed: bool = True
    expert_scale: float = 1.0
    n_expert_groups: int = 0
    n_expert_groups_used: int = 0
    n_expert_shared: int = 0
    n_ff_shared: int = 0
    n_dense: int = 0
    n_nextn: int | None = None
    attention_scale: float = 0.0
    attention_growth: float = 0.0
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_divisor: float = 1.0
    attention_cap: float = 0.0
    logit_cap: float = 0.0
    head_dim_said: bool = True
    window: int = 0
    windowed: tuple[bool, ...] = ()
    head_dim_local: int = 0
    kv_heads: tuple[int, ...] = ()
    ffs: tuple[int, ...] = ()
    n_kv_shared: int = 0
    keys_are_values: bool = False
    n_embd_layer: int = 0
    recurrent: tuple[bool, ...] = ()
    delta: DeltaSizes | None = None
    attention_every: int = 0
    rope_sections: tuple[int, ...] = ()
    rope_sections_said: bool = False

    @property
    def shared_ff(self) -> int:
        """The width inside of what all positions have beside experts; 0: nothing."""
        return self.n_ff_shared or self.expert_ff * self.n_expert_shared

    @property
    def expert_ff(self) -> int:
        """The width inside of an expert."""
        return self.n_ff_expert or self.n_ff

    @property
    def unused_layers(self) -> range:
        """The layers of a file that take no part in a pass."""
        return range(self.n_layer, self.n_layer + (self.n_nextn or 0))

    def window_of(self, layer: int) -> int:
        """How many positions `layer` sees, the own one included; 0: all."""
        return self.window if not self.windowed or self.windowed[layer] else 0

    def is_recurrent(self, layer: int) -> bool:
        """Whether `layer` keeps a state in the place of keys and values."""
        return bool(self.recurrent) and self.recurrent[layer]

    def at(self, layer: int) -> "ModelConfig":
        """The hyperparameters of `layer`, where layers differ."""
        local = self.head_dim_local if self.window_of(layer) else 0
        return replace(
            self,
            head_dim=local or self.head_dim,
            n_head_kv=self.kv_heads[layer] if self.kv_heads else self.n_head_kv,
            n_ff=self.ffs[layer] if self.ffs else self.n_ff,
        )

    def kv_layer(self, layer: int) -> int:
        """The layer whose keys and values `layer` has: of those that have their own the last is
        whole and the one before has a window, where any are shared."""
        own = self.n_layer - self.n_kv_shared
        return layer if layer < own else own - (2 if self.window_of(layer) else 1)

    @property
    def kv_layers(self) -> tuple[int, ...]:
        """`kv_layer` of every one."""
        return tuple(self.kv_layer(layer) for layer in range(self.n_layer))

    @property
    def unused(self) -> Unused:
        """The tensors of a file that take no part in a pass."""
        return Unused(self.unused_layers, range(self.n_layer - self.n_kv_shared, self.n_layer))
