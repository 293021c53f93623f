"""The parts that a model is made of, each a small frozen dataclass: norms, attention, MLP, experts, rope; no torch.

A part's `kind` says which it is. `Config` (config.py) says which parts a model has, `LayerConfig` which a layer has.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class NormConfig:
    """Normalization. kind: `rms` (Zhang & Sennrich 2019) or `layer` (Ba et al. 2016).

    weight: it has one (OLMo's layer norm has none). bias: a layer norm has one. offset: the weight is stored as its
    difference from 1 (Gemma).
    """

    kind: Literal["rms", "layer"] = "rms"
    eps: float = 1e-5
    weight: bool = True
    bias: bool = True
    offset: bool = False


@dataclass(frozen=True, kw_only=True)
class QKNormConfig:
    """Normalization of queries and keys.

    over: `head`, each head on its own with one weight (D,) for all (Qwen3); `each_head`, with a weight per head, (H, D)
    (Cohere); `all`, the heads together, (H * D,) (OLMo 2). after_rope: it comes after rope, not before, and only in
    layers that have rope (Llama 4).
    """

    norm: NormConfig = field(default_factory=NormConfig)
    over: Literal["head", "each_head", "all"] = "head"
    after_rope: bool = False


@dataclass(frozen=True, kw_only=True)
class LatentConfig:
    """Multi-head latent attention (DeepSeek-V2, 2024): keys and values come from one latent of `kv_rank` per token.

    A head's query and key are `nope_head_dim` values without position and `rope_head_dim` with (the key's are shared by
    all heads). q_rank: queries come from a latent as well; None for a plain projection. norm: of the latents.
    """

    kv_rank: int
    q_rank: int | None = None
    nope_head_dim: int
    rope_head_dim: int
    v_head_dim: int
    norm: NormConfig = field(default_factory=lambda: NormConfig(eps=1e-6))


@dataclass(frozen=True, kw_only=True)
class TemperatureConfig:
    """Queries grow with their position p: times 1 + scale * ln(1 + floor((p + shift) / interval)) (Llama 4).

    no_rope_only: only in the layers without rope.
    """

    scale: float
    interval: float
    shift: int = 0
    no_rope_only: bool = False


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """Grouped-query attention (Ainslie et al. 2023; one group per head is plain multi-head attention).

    bias: q, k and v have one (with `latent`, the projections down to the latents). out_bias: the output projection has
    one. scale: of the scores, None for head_dim ** -0.5. softcap: scores become cap * tanh(score / cap) (Gemma 2).
    sinks: a learned score per head that takes part in the softmax and adds nothing (gpt-oss). clip: q, k and v are
    clamped to [-clip, clip] (OLMo). alibi: a score falls with the distance, by a slope of each head's own that is not
    learned (Press et al. 2021). v_norm: normalization of each head's values. k_as_v: full layers have no projection of
    values: these are the keys, as they are before norm and rope (Gemma 4).
    """

    bias: bool = False
    out_bias: bool = False
    qk_norm: QKNormConfig | None = None
    v_norm: NormConfig | None = None
    k_as_v: bool = False
    scale: float | None = None
    softcap: float | None = None
    sinks: bool = False
    clip: float | None = None
    alibi: bool = False
    temperature: TemperatureConfig | None = None
    latent: LatentConfig | None = None


@dataclass(frozen=True, kw_only=True)
class MLPConfig:
    """Feed-forward part. kind: `gated` is `down(act(gate(x)) * up(x))` (Shazeer 2020), `plain` `down(act(up(x)))`.

    activation: `relu2` is relu squared; `xielu` has learned slopes (Huang & Schlag 2024); `clamped` is gpt-oss's
    `gate * sigmoid(1.702 gate) * (up + 1)` with gate at most and up within `limit`.
    """

    kind: Literal["gated", "plain"] = "gated"
    activation: Literal["silu", "gelu", "gelu_tanh", "relu", "relu2", "xielu", "clamped"] = "silu"
    bias: bool = False
    limit: float = 7.0


@dataclass(frozen=True, kw_only=True)
class MoEConfig:
    """Mixture of experts: `n_expert` MLPs like the config's `mlp`, of which each token takes `n_expert_per_token`.

    scoring: how router logits become weights; `sparsemixer` is Phi-3.5-MoE's. normalize: the weights of a token's
    experts sum to 1. scale: a factor of the weights. n_group, n_group_per_token: experts come in groups, and only those
    in a token's best groups can be chosen; group_score: a group is worth its best expert or its best two.
    selection_bias: added to the scores for the choice only, not trained by gradient (DeepSeek-V3). router_bias,
    expert_bias: these linear maps have biases. shared_intermediate_size: width of the MLP that every token takes
    besides (0: none); shared_gate: it is weighted by a sigmoid (Qwen2-MoE). own_norms: the experts and the shared MLP
    have norms of their own, before and after, and the router looks at what comes before these (Gemma 4). router_scales:
    the router's input is normed, times a learned vector and n_embd ** -0.5, and each expert's weight is times a learned
    number. scale_input: weights multiply an expert's input instead of its output (Llama 4). jitter: sparsemixer's
    threshold. aux_loss: weight of the load-balancing loss.
    """

    n_expert: int
    n_expert_per_token: int
    intermediate_size: int
    scoring: Literal["softmax", "sigmoid", "sparsemixer"] = "softmax"
    normalize: bool = True
    scale: float = 1.0
    n_group: int = 1
    n_group_per_token: int = 1
    group_score: Literal["max", "top2"] = "max"
    selection_bias: bool = False
    router_bias: bool = False
    expert_bias: bool = False
    shared_intermediate_size: int = 0
    shared_gate: bool = False
    own_norms: bool = False
    router_scales: bool = False
    scale_input: bool = False
    jitter: float = 0.0
    aux_loss: float = 0.0


@dataclass(frozen=True, kw_only=True)
class LinearScaling:
    """Positions divided by `factor` (Chen et al. 2023)."""

    kind: Literal["linear"] = "linear"
    factor: float


@dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """Llama 3.1's rule: long wavelengths are divided by `factor`, short ones kept, with a linear blend in between."""

    kind: Literal["llama3"] = "llama3"
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_seq_len: int


@dataclass(frozen=True, kw_only=True)
class YarnScaling:
    """YaRN (Peng et al. 2023). attention_factor None: 0.1 ln(factor) + 1; truncate rounds the ramp's ends outward."""

    kind: Literal["yarn"] = "yarn"
    factor: float
    original_max_seq_len: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    truncate: bool = True


@dataclass(frozen=True, kw_only=True)
class DynamicScaling:
    """NTK-aware: theta grows with the row's length beyond `original_max_seq_len` (emozilla 2023)."""

    kind: Literal["dynamic"] = "dynamic"
    factor: float
    original_max_seq_len: int


@dataclass(frozen=True, kw_only=True)
class LongRopeScaling:
    """LongRoPE (Ding et al. 2024): a divisor for each frequency, one list for rows that stay within
    `original_max_seq_len`, one for longer ones. attention_factor None: sqrt(1 + ln(factor) / ln(original_max_seq_len)).
    """

    kind: Literal["longrope"] = "longrope"
    factor: float
    original_max_seq_len: int
    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    attention_factor: float | None = None


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling | DynamicScaling | LongRopeScaling


@dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """Rotary position embedding (Su et al. 2021), on the first `fraction` of each head.

    interleaved: dimension 2j turns together with 2j + 1 (GPT-J), otherwise j with j + R/2 (NeoX, Llama). reverse: they
    turn the other way (nanochat). proportional: a whole head's pairs and frequencies, of which the last ones don't turn
    (Gemma 4); otherwise the rest of the head is left out of both.
    """

    theta: float = 10000.0
    fraction: float = 1.0
    interleaved: bool = False
    reverse: bool = False
    proportional: bool = False
    scaling: RopeScaling | None = None


@dataclass(frozen=True)
class StateSpec:
    """What a layer keeps of each token for the tokens after it: a key and a value for each of `n_head` heads.

    value_dim 0: the values are part of the keys (latent attention). n_head 0: it keeps nothing.
    """

    n_head: int
    key_dim: int
    value_dim: int

    def bytes_per_token(self, bytes_per_value: int = 2) -> int:
        """Size of one token's keys and values."""
        return self.n_head * (self.key_dim + self.value_dim) * bytes_per_value


@dataclass(frozen=True, kw_only=True)
class LayerConfig:
    """What one layer is made of: the answer of `Config.layer(i)`. `window` or `chunk`: see `Config.layer_types`.

    kv_layer: the earlier layer whose keys and values it reads, having none of its own.
    """

    block: Literal["pre", "post", "sandwich", "parallel"]
    shared_norm: bool
    residual_scale: float
    n_embd: int
    n_head: int
    n_kv_head: int
    head_dim: int
    intermediate_size: int
    window: int | None
    chunk: int | None
    norm: NormConfig
    attention: AttentionConfig
    mlp: MLPConfig
    moe: MoEConfig | None
    rope: RopeConfig | None
    kv_layer: int | None = None
    layer_input_dim: int = 0
    layer_scalar: bool = False

    @property
    def rope_dim(self) -> int:
        """The part of a head that rope is given (and turns `rope.fraction` of)."""
        latent = self.attention.latent
        return self.head_dim if latent is None else latent.rope_head_dim

    @property
    def value_dim(self) -> int:
        """Size of a head's value."""
        latent = self.attention.latent
        return self.head_dim if latent is None else latent.v_head_dim

    @property
    def state_spec(self) -> StateSpec:
        """What a cache keeps of each token in this layer."""
        if self.kv_layer is not None:
            return StateSpec(0, 0, 0)
        latent = self.attention.latent
        if latent is not None:
            return StateSpec(1, latent.kv_rank + latent.rope_head_dim, 0)
        return StateSpec(self.n_kv_head, self.head_dim, self.head_dim)


def yarn_attention_factor(factor: float, mscale: float = 1.0) -> float:
    """YaRN's factor of cos and sin: 0.1 mscale ln(factor) + 1 (Peng et al. 2023)."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def rope_problems(rope: RopeConfig, head_dim: int) -> list[str]:
    problems = []
    turned = int(head_dim * rope.fraction)
    if not 0 < rope.fraction <= 1:
        problems.append(f"fraction={rope.fraction} must lie in (0, 1]")
    elif head_dim > 0 and (turned < 2 or (head_dim if rope.proportional else turned) % 2):
        problems.append(
            f"fraction: rope turns pairs, so head_dim * rope.fraction = {turned} must be even and at least 2"
        )
    if rope.theta <= 1:
        problems.append(f"theta={rope.theta} must be greater than 1")
    scaling = rope.scaling
    if scaling is None:
        return problems
    if rope.proportional and not isinstance(scaling, LinearScaling):
        problems.append(f"scaling.kind={scaling.kind!r} can't be combined with proportional; only 'linear' can")
    if scaling.factor < 1:
        problems.append(f"scaling.factor={scaling.factor} must be at least 1")
    if not isinstance(scaling, LinearScaling) and scaling.original_max_seq_len < 1:
        problems.append(f"scaling.original_max_seq_len={scaling.original_max_seq_len} must be at least 1")
    if isinstance(scaling, Llama3Scaling) and not 0 < scaling.low_freq_factor <= scaling.high_freq_factor:
        problems.append(
            f"scaling.low_freq_factor={scaling.low_freq_factor} must be positive and at most "
            f"high_freq_factor={scaling.high_freq_factor}"
        )
    if isinstance(scaling, YarnScaling) and not 0 < scaling.beta_slow < scaling.beta_fast:
        problems.append(
            f"scaling.beta_slow={scaling.beta_slow} must be positive and less than beta_fast={scaling.beta_fast}"
        )
    if isinstance(scaling, LongRopeScaling):
        for key in ("short_factor", "long_factor"):
            if len(getattr(scaling, key)) != turned // 2:
                problems.append(
                    f"scaling.{key} has {len(getattr(scaling, key))} entries, but rope turns {turned // 2} pairs"
                )
    return problems


def moe_problems(moe: MoEConfig) -> list[str]:
    problems = [
        f"moe.{key}={getattr(moe, key)} must be at least 1"
        for key in ("n_expert", "n_expert_per_token", "intermediate_size", "n_group", "n_group_per_token")
        if getattr(moe, key) < 1
    ]
    if problems:
        return problems
    if moe.n_expert_per_token > moe.n_expert:
        problems.append(f"moe.n_expert_per_token={moe.n_expert_per_token} is more than n_expert={moe.n_expert}")
    if moe.n_expert % moe.n_group:
        problems.append(f"moe.n_expert={moe.n_expert} must be a multiple of n_group={moe.n_group}")
    elif moe.n_expert_per_token > moe.n_expert // moe.n_group * moe.n_group_per_token:
        problems.append(
            f"moe.n_expert_per_token={moe.n_expert_per_token} is more than n_group_per_token={moe.n_group_per_token} "
            f"groups of {moe.n_expert // moe.n_group} experts hold"
        )
    if moe.n_group_per_token > moe.n_group:
        problems.append(f"moe.n_group_per_token={moe.n_group_per_token} is more than n_group={moe.n_group}")
    if moe.group_score == "top2" and moe.n_group > 1 and moe.n_expert < 2 * moe.n_group:
        problems.append(f"moe.group_score='top2' needs groups of 2 experts or more, not n_group={moe.n_group}")
    if moe.scoring == "sparsemixer" and moe.n_expert_per_token != 2:
        problems.append(f"moe.scoring='sparsemixer' takes 2 experts, not n_expert_per_token={moe.n_expert_per_token}")
    return problems
