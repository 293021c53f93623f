"""The parts of a layer, each a small frozen dataclass: norm, attention, MLP, experts, rope. No torch.

`Config` (model.py) says which of them a model has, `LayerConfig` which a layer has. `kind` names the variant.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Literal

Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "relu2", "xielu", "clamped"]


@dataclass(frozen=True, kw_only=True)
class NormConfig:
    """Normalization of a vector.

    kind: `rms` (Zhang & Sennrich 2019) or `layer` (Ba et al. 2016).
    eps: added to the mean square, or to the variance.
    weight: the result is multiplied by a learned weight (OLMo's layer norm has none).
    bias: a learned bias is added (`layer` only).
    offset: the stored weight is its difference from 1 (Gemma).
    """

    kind: Literal["rms", "layer"] = "rms"
    eps: float = 1e-5
    weight: bool = True
    bias: bool = True
    offset: bool = False


@dataclass(frozen=True, kw_only=True)
class QKNormConfig:
    """Normalization of queries and keys.

    norm: which one.
    over: what is normalized at a time. `head`: each head, with one weight (D,) that all heads share (Qwen3);
        `each_head`: also each head, but with a weight per head, (H, D) (Cohere); `all`: the heads concatenated, before
        they are split, with a weight (H * D,) (OLMo 2).
    after_rope: applied after rope instead of before, and only in layers that have rope (Llama 4).
    """

    norm: NormConfig = field(default_factory=NormConfig)
    over: Literal["head", "each_head", "all"] = "head"
    after_rope: bool = False


@dataclass(frozen=True, kw_only=True)
class IndexConfig:
    """The lightning indexer of DeepSeek's sparse attention (V3.2, 2025): it chooses the `top_k` tokens a query sees.

    litlm keeps its weights, for export, but doesn't run it: in rows of up to `top_k` tokens it would choose them all,
    so the model is exact there. Longer rows are refused.

    n_head: heads of the indexer.
    head_dim: size of an indexer head.
    top_k: how many tokens it chooses.
    max_seq_len: context length of the original model, which has the indexer, in tokens.
    """

    n_head: int
    head_dim: int
    top_k: int
    max_seq_len: int


@dataclass(frozen=True, kw_only=True)
class LatentConfig:
    """Multi-head latent attention (DeepSeek-V2, 2024): keys and values are projected from one latent vector per token.

    A head's query and key have `nope_head_dim` dimensions without rope, then `rope_head_dim` with it; all heads share
    that second part of the key.

    kv_rank: size of the latent of keys and values (kv_lora_rank).
    q_rank: size of the latent of queries (q_lora_rank); None: queries have a single projection.
    nope_head_dim: size of a head's part without rope (qk_nope_head_dim).
    rope_head_dim: size of a head's part with rope (qk_rope_head_dim).
    v_head_dim: size of a head's value.
    norm: normalization of the latents.
    index: the indexer of sparse attention; None: there is none.
    """

    kv_rank: int
    q_rank: int | None = None
    nope_head_dim: int
    rope_head_dim: int
    v_head_dim: int
    norm: NormConfig = field(default_factory=lambda: NormConfig(eps=1e-6))
    index: IndexConfig | None = None


@dataclass(frozen=True, kw_only=True)
class TemperatureConfig:
    """Attention temperature, which sharpens attention at far positions; it has nothing to do with sampling.

    The query at position p is multiplied by 1 + scale * ln(1 + floor((p + shift) / interval)): Llama 4's
    attn_temperature_tuning (transformers modeling_llama4.py), also in Mistral's models.

    scale: see the formula.
    interval: see the formula; in tokens.
    shift: see the formula.
    no_rope_only: only layers without rope have it.
    """

    scale: float
    interval: float
    shift: int = 0
    no_rope_only: bool = False


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """A gate on the output of attention: o_proj(attended * activation(gate)).

    activation: `sigmoid`, or `softplus`, which is computed in fp32.
    over: what one gate value multiplies: `channel`, a single channel of a head; `head`, a whole head.
    in_q_proj: q_proj also computes the gate, as the second half of each head's outputs (Qwen3-Next); otherwise there is
        a gate_proj. Needs over='channel'.
    """

    activation: Literal["sigmoid", "softplus"] = "sigmoid"
    over: Literal["channel", "head"] = "channel"
    in_q_proj: bool = False


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """Grouped-query attention (Ainslie et al. 2023), or multi-head attention where n_kv_head is n_head.

    bias: of the q, k and v projections; with `latent`, of the projections down to the latents.
    out_bias: of the output projection.
    qk_norm: normalization of queries and keys.
    v_norm: normalization of each head's values.
    k_as_v: full layers have no v projection; the values are the keys before norm and rope (Gemma 4).
    scale: factor of the scores; None: head_dim ** -0.5.
    softcap: the scores become softcap * tanh(score / softcap) (Gemma 2).
    sinks: each head has a learned score that joins the softmax but has no value (gpt-oss).
    clip: q, k and v are clamped to [-clip, clip] (OLMo's clip_qkv).
    alibi: a penalty on the score, linear in the distance, with a fixed slope per head (Press et al. 2021).
    temperature: attention temperature, a factor of queries that grows with their position (Llama 4).
    latent: multi-head latent attention.
    gate: a gate on the output.
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
    gate: GateConfig | None = None


@dataclass(frozen=True, kw_only=True)
class ShortConvConfig:
    """Gated short convolution (LFM2, transformers modeling_lfm2.py): out(c * conv(b * x)), with b, c and x projections.

    kind: `short_conv`.
    kernel_size: tokens that the convolution sees, the current one included.
    bias: of the projections and of the convolution.
    """

    kind: Literal["short_conv"] = "short_conv"
    kernel_size: int = 3
    bias: bool = False


@dataclass(frozen=True, kw_only=True)
class GatedDeltaConfig:
    """Gated DeltaNet (Yang et al. 2024): the rule of ops/delta_rule.py on convolved queries, keys and values.

    kind: `gated_delta`.
    n_key_head: heads of queries and keys. Divides n_value_head.
    n_value_head: heads of values, each with a state of its own.
    key_dim: size of a key.
    value_dim: size of a value.
    kernel_size: tokens that the convolution sees, the current one included.
    separate_qkv: queries, keys and values have a projection and a convolution each, instead of one for all
        (OLMo-Hybrid).
    beta_scale: factor of beta; 2 allows negative eigenvalues (OLMo-Hybrid).
    norm_eps: of the norm of the output.
    norm_fp32: that norm's weight is applied in fp32; otherwise the normed output is first rounded to the model's dtype.
    """

    kind: Literal["gated_delta"] = "gated_delta"
    n_key_head: int
    n_value_head: int
    key_dim: int
    value_dim: int
    kernel_size: int = 4
    separate_qkv: bool = False
    beta_scale: float = 1.0
    norm_eps: float = 1e-6
    norm_fp32: bool = False

    @property
    def qkv_dims(self) -> tuple[int, int, int]:
        """Sizes of all queries, of all keys and of all values of a token."""
        keys = self.n_key_head * self.key_dim
        return keys, keys, self.n_value_head * self.value_dim

    @property
    def qkv_dim(self) -> int:
        """Size of a token's queries, keys and values together."""
        return sum(self.qkv_dims)


RecurrentConfig = ShortConvConfig | GatedDeltaConfig


@dataclass(frozen=True, kw_only=True)
class MLPConfig:
    """The feed-forward network.

    kind: `gated` is down(act(gate(x)) * up(x)) (Shazeer 2020), `plain` is down(act(up(x))).
    activation: `relu2` is relu squared; `xielu` has learned slopes (Huang & Schlag 2024); `clamped` is gpt-oss's
        clamped SwiGLU (transformers modeling_gpt_oss.py): gate * sigmoid(1.702 * gate) * (up + 1), with gate clamped to
        at most `limit` and up to [-limit, limit].
    bias: of all projections.
    limit: of `clamped` (swiglu_limit).
    """

    kind: Literal["gated", "plain"] = "gated"
    activation: Activation = "silu"
    bias: bool = False
    limit: float = 7.0


@dataclass(frozen=True, kw_only=True)
class MoEConfig:
    """Mixture of experts: `n_expert` MLPs, of the form that `mlp` describes; each token uses `n_expert_per_token`.

    n_expert: number of experts.
    n_expert_per_token: how many of them a token is routed to.
    intermediate_size: hidden size of one expert.
    scoring: how router logits become scores; `sparsemixer` is Phi-3.5-MoE's.
    normalize: the weights of a token's experts are divided by their sum (norm_topk_prob).
    scale: factor of the routing weights.
    n_group: number of groups that the experts are divided into.
    n_group_per_token: a token's experts come from this many groups, those with the best scores (topk_group).
    group_score: a group's score is that of its best expert (`max`), or the sum of its best two (`top2`).
    selection_bias: a bias per expert that affects the selection only, not trained by gradient (DeepSeek-V3, 2024).
    select_by: what experts are ranked by, and the selection bias is added to: scores, or router logits (Kolibri).
    router_bias: the router has a bias.
    expert_bias: the experts' projections have biases.
    shared_intermediate_size: hidden size of the shared expert, an MLP that every token uses as well; 0: there is none.
    shared_average: the output is the mean of the experts' and the shared expert's, instead of the sum (Command A+).
    shared_gate: the shared expert's output is multiplied by a sigmoid gate (Qwen2-MoE).
    own_norms: experts and shared expert each have a norm before and one after, instead of the layer's norm before the
        MLP, so the router gets the hidden state as it is (Gemma 4).
    output_norm: the sum of experts and shared expert is normed (A.X-K1).
    router_scales: the router norms its input and multiplies it by a learned vector and n_embd ** -0.5; each expert's
        routing weight is multiplied by a learned scalar (Gemma 4's router.scale and per_expert_scale).
    scale_input: routing weights multiply the experts' input instead of their output (Llama 4); unrelated to
        `router_scales`.
    jitter: of `sparsemixer`: experts whose logits are below the best by a share of more than 2 * jitter are left out.
    normalize_eps: added to the sum that `normalize` divides by.
    aux_loss: coefficient of the load-balancing loss.
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
    select_by: Literal["scores", "logits"] = "scores"
    router_bias: bool = False
    expert_bias: bool = False
    shared_intermediate_size: int = 0
    shared_average: bool = False
    shared_gate: bool = False
    own_norms: bool = False
    output_norm: bool = False
    router_scales: bool = False
    scale_input: bool = False
    jitter: float = 0.0
    normalize_eps: float = 1e-20
    aux_loss: float = 0.0


@dataclass(frozen=True, kw_only=True)
class LinearScaling:
    """Position interpolation (Chen et al. 2023).

    kind: `linear`.
    factor: positions are divided by it.
    """

    kind: Literal["linear"] = "linear"
    factor: float


@dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """Llama 3.1's scaling: low frequencies are divided by `factor`, high ones kept, those between blended linearly.

    kind: `llama3`.
    factor: divides the low frequencies.
    low_freq_factor: frequencies with wavelengths above original_max_seq_len / low_freq_factor are low.
    high_freq_factor: frequencies with wavelengths below original_max_seq_len / high_freq_factor are high.
    original_max_seq_len: context length before scaling, in tokens.
    """

    kind: Literal["llama3"] = "llama3"
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_seq_len: int


@dataclass(frozen=True, kw_only=True)
class YarnScaling:
    """YaRN (Peng et al. 2023).

    kind: `yarn`.
    factor: the extended context length over the original one.
    original_max_seq_len: context length before scaling, in tokens.
    beta_fast: pairs that make more rotations than this in the original context keep their frequency.
    beta_slow: the frequency of pairs that make fewer rotations than this is divided by `factor`.
    attention_factor: factor of cos and sin; None: 0.1 ln(factor) + 1.
    truncate: the blended range between the two is rounded outward to whole pairs.
    """

    kind: Literal["yarn"] = "yarn"
    factor: float
    original_max_seq_len: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    truncate: bool = True


@dataclass(frozen=True, kw_only=True)
class DynamicScaling:
    """Dynamic NTK-aware scaling (transformers modeling_rope_utils.py): theta grows with the sequence's length.

    kind: `dynamic`.
    factor: how fast theta grows.
    original_max_seq_len: the length beyond which theta grows, in tokens.
    """

    kind: Literal["dynamic"] = "dynamic"
    factor: float
    original_max_seq_len: int


@dataclass(frozen=True, kw_only=True)
class LongRopeScaling:
    """LongRoPE (Ding et al. 2024): each frequency is divided by a factor of its own.

    kind: `longrope`.
    factor: context length over original_max_seq_len; only the default of attention_factor depends on it.
    original_max_seq_len: context length before scaling, in tokens.
    short_factor: the factors for sequences of up to original_max_seq_len tokens, one per frequency.
    long_factor: those for longer sequences.
    attention_factor: factor of cos and sin; None: sqrt(1 + ln(factor) / ln(original_max_seq_len)).
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
    """Rotary position embedding (Su et al. 2021).

    theta: base of the frequencies.
    fraction: the share of each head's dimensions that is rotated, counted from the first (partial_rotary_factor).
    interleaved: pairs are dimensions 2j and 2j + 1 (GPT-J) instead of j and j + R / 2 (NeoX, Llama), R of them rotated.
    reverse: rotates by the negative angle: sin changes its sign (nanochat).
    proportional: frequencies and pairs are those of fraction=1, and only the first `fraction` of the pairs is rotated
        (Gemma 4).
    scaling: how frequencies change for longer contexts.
    """

    theta: float = 10000.0
    fraction: float = 1.0
    interleaved: bool = False
    reverse: bool = False
    proportional: bool = False
    scaling: RopeScaling | None = None


@dataclass(frozen=True)
class StateSpec:
    """The shapes of what a cache stores for a layer: keys and values per token, recurrent state per row.

    n_head, key_dim, value_dim: a token has a key and a value for each head. value_dim 0: only keys are stored, and
        values are their first dimensions (latent attention). n_head 0: nothing is stored per token.
    conv: (tokens, channels) of a row's last inputs of the convolution; None: the layer has no convolution.
    recurrent: (heads, key size, value size) of a row's recurrent state; None: the layer has none.
    """

    n_head: int = 0
    key_dim: int = 0
    value_dim: int = 0
    conv: tuple[int, int] | None = None
    recurrent: tuple[int, int, int] | None = None

    def bytes_per_token(self, bytes_per_value: int = 2) -> int:
        """Size of one token's keys and values."""
        return self.n_head * (self.key_dim + self.value_dim) * bytes_per_value

    def bytes_per_row(self, bytes_per_value: int = 2) -> int:
        """Size of what does not grow with the row's length. Recurrent states are fp32."""
        return math.prod(self.conv or (0,)) * bytes_per_value + math.prod(self.recurrent or (0,)) * 4


@dataclass(frozen=True, kw_only=True)
class LayerConfig:
    """One layer, as `Config.layer(i)` resolves it. Fields of the same name as in `Config` mean the same.

    block, shared_norm, residual_scale, n_embd, n_head, n_kv_head, head_dim: see `Config`.
    intermediate_size: hidden size of the MLP; 0: the layer has none.
    window: a token sees the last `window` tokens, itself included; None: all.
    chunk: a token sees its own chunk of `chunk` tokens, up to itself; None: all.
    norm, attention, mlp: see `Config`.
    moe: the layer's experts; None: it has an MLP.
    rope: None: the layer has none.
    recurrent: the recurrence that it has instead of attention; None: it has attention.
    kv_layer: the earlier layer whose keys and values it attends to, having none of its own; None: it has its own.
    layer_input_dim, layer_scalar: see `Config`.
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
    recurrent: RecurrentConfig | None = None
    kv_layer: int | None = None
    layer_input_dim: int = 0
    layer_scalar: bool = False

    @property
    def rope_dim(self) -> int:
        """Size of the part of a head that rope is applied to; `rope.fraction` is relative to it."""
        latent = self.attention.latent
        return self.head_dim if latent is None else latent.rope_head_dim

    @property
    def value_dim(self) -> int:
        """Size of a head's value."""
        latent = self.attention.latent
        return self.head_dim if latent is None else latent.v_head_dim

    @property
    def conv_dim(self) -> int:
        """Channels of a recurrent layer's convolution."""
        return self.recurrent.qkv_dim if isinstance(self.recurrent, GatedDeltaConfig) else self.n_embd

    @property
    def state_spec(self) -> StateSpec:
        """The shapes of what a cache stores for this layer."""
        if (mixer := self.recurrent) is not None:
            conv = (mixer.kernel_size - 1, self.conv_dim)
            if isinstance(mixer, ShortConvConfig):
                return StateSpec(conv=conv)
            return StateSpec(conv=conv, recurrent=(mixer.n_value_head, mixer.key_dim, mixer.value_dim))
        if self.kv_layer is not None:
            return StateSpec()
        latent = self.attention.latent
        if latent is not None:
            return StateSpec(1, latent.kv_rank + latent.rope_head_dim, 0)
        return StateSpec(self.n_kv_head, self.head_dim, self.head_dim)


def yarn_attention_factor(factor: float, mscale: float = 1.0) -> float:
    """YaRN's factor of cos and sin: 0.1 mscale ln(factor) + 1 (Peng et al. 2023)."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def index_limit(index: IndexConfig) -> str:
    """The limit on a row's length, worded for an error message."""
    return (
        f"attention.latent.index.top_k={index.top_k}: the model is exact up to there, where its indexer chooses all "
        "tokens, and litlm has no indexer for longer rows"
    )


def norm_problems(norm: NormConfig, *, each_head: bool = False) -> list[str]:
    """What is wrong with a norm, one line each. each_head: it is a `QKNormConfig` with over='each_head'."""
    problems = [] if norm.eps > 0 else [f"eps={norm.eps} must be positive"]
    has_bias = norm.kind == "layer" and norm.bias
    if norm.offset and not (norm.weight and (has_bias or norm.kind == "rms")):
        problems.append("offset=True needs weight=True, and bias=True where kind='layer'")
    if each_head and (norm.offset or has_bias or not norm.weight):
        problems.append(
            "over='each_head' takes a norm with weight=True and offset=False, and bias=False if kind='layer'"
        )
    return problems


def recurrent_problems(recurrent: RecurrentConfig) -> list[str]:
    """What is wrong with the fields of a recurrence, one line each."""
    sizes = {f.name: 2 if f.name == "kernel_size" else 1 for f in dataclasses.fields(recurrent) if f.type == "int"}
    problems = [
        f"{key}={getattr(recurrent, key)} must be at least {least}"
        for key, least in sizes.items()
        if getattr(recurrent, key) < least
    ]
    if isinstance(recurrent, ShortConvConfig):
        return problems
    if recurrent.n_key_head > 0 and recurrent.n_value_head % recurrent.n_key_head:
        problems.append(
            f"n_value_head={recurrent.n_value_head} must be a multiple of n_key_head={recurrent.n_key_head}"
        )
    if recurrent.norm_eps <= 0:
        problems.append(f"norm_eps={recurrent.norm_eps} must be positive")
    return problems


def rope_problems(rope: RopeConfig, head_dim: int) -> list[str]:
    """What is wrong with a rope for heads of this size, one line each."""
    problems = []
    rotated = int(head_dim * rope.fraction)
    if not 0 < rope.fraction <= 1:
        problems.append(f"fraction={rope.fraction} must lie in (0, 1]")
    elif head_dim > 0 and (rotated < 2 or (head_dim if rope.proportional else rotated) % 2):
        problems.append(
            f"fraction: rope rotates pairs, so head_dim * rope.fraction = {rotated} must be even and at least 2"
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
    if isinstance(scaling, DynamicScaling) and rotated < 4:
        problems.append(f"scaling.kind='dynamic' needs 4 rotated dimensions or more, not {rotated}")
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
            if len(getattr(scaling, key)) != rotated // 2:
                problems.append(
                    f"scaling.{key} has {len(getattr(scaling, key))} entries, but rope rotates {rotated // 2} pairs"
                )
    return problems


def moe_problems(moe: MoEConfig) -> list[str]:
    """What is wrong with the experts' fields, one line each."""
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
    problems += [
        f"moe.{key}=True needs a shared expert: set shared_intermediate_size"
        for key in ("shared_gate", "shared_average")
        if getattr(moe, key) and not moe.shared_intermediate_size
    ]
    if moe.select_by == "logits" and moe.scoring == "sparsemixer":
        problems.append("moe.select_by='logits' is for scoring='softmax' or 'sigmoid'")
    if moe.scoring == "sparsemixer" and moe.n_expert_per_token != 2:
        problems.append(f"moe.scoring='sparsemixer' takes 2 experts, not n_expert_per_token={moe.n_expert_per_token}")
    return problems
