"""What is easily guessed wrong about Qwen3-Next, Qwen3.5 and LFM2: formulas in float64, and their files.

Each formula is also evaluated with each wrong guess, to show that it would be seen.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from parity import cases
from parity.cases import Case, by_name, hf_logits, ours
from safetensors.torch import load_file, save_file
from torch import Tensor

from litlm.config import Config, GatedDeltaConfig, ShortConvConfig
from litlm.context import Causal, Context
from litlm.model import GPT
from litlm.model.gated_delta_net import GatedRMSNorm
from litlm.ops.delta_rule import CHUNK, DeltaRule

LFM2 = by_name("lfm2-wide-kernel-biases-untied")
NEXT, NEXT_BIASES = by_name("qwen3_next-plain"), by_name("qwen3_next-many-values-per-key-biases")
QWEN35, QWEN35_TIED = by_name("qwen3_5_text-plain"), by_name("qwen3_5_text-tied-mqa")
Weights = dict[str, Tensor]


def _distance(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


@functools.cache
@torch.no_grad()
def _layer(case: Case, kind: str) -> tuple[int, Weights, Tensor, Tensor]:
    """The first layer that is `kind`: its number, its mixer's weights in float64 under their published names, and what
    transformers' mixer makes of its input, both (B, T, C)."""
    model, name = cases.build(case), {"linear_attention": "linear_attn", "conv": "conv"}.get(kind, "self_attn")
    i = model.config.layer_types.index(kind)
    mixer, seen = getattr(model.model.layers[i], name), []

    def watch(module: Any, args: Any, options: dict[str, Any], output: Any) -> None:
        x = args[0] if args else options["hidden_states"]
        seen.append((x, output[0] if isinstance(output, tuple) else output))

    handle = mixer.register_forward_hook(watch, with_kwargs=True)
    try:
        hf_logits(case, cases.tokens(case, 2, 11, seed=3))
    finally:
        handle.remove()
    return i, {name: p.double() for name, p in mixer.state_dict().items()}, *seen[0]


@functools.cache
@torch.no_grad()
def _mixed(case: Case, kind: str) -> tuple[Tensor, Tensor]:
    """What litlm's mixer makes of the same input: of all of it at once, and of a token at a time through a cache."""
    model, (i, _, x, _) = ours(case), _layer(case, kind)

    def mix(context: Context, part: Tensor) -> Tensor:
        positions = context.begin(*part.shape[:2], x.device)
        context.prepare(part, model.layers)  # type: ignore[arg-type]
        rotary = model._rotary(model._rope_group_of[i], positions, None, x.dtype)
        return model.layers[i].attn(part, rotary, context.layer(i))  # type: ignore[operator]

    cache = model.make_cache(x.size(0), x.size(1))
    return mix(Causal(), x), torch.cat([mix(cache, part) for part in x.split(1, 1)], 1)


def _check(case: Case, kind: str, formula: Any, wrong: str) -> None:
    _, weights, x, theirs = _layer(case, kind)
    config = cases.build(case).config
    expected = formula(weights, x.double(), config, "")
    assert _distance(theirs, expected) < 1e-5
    for found in _mixed(case, kind):
        assert _distance(found, expected) < 1e-5
    assert _distance(formula(weights, x.double(), config, wrong), expected) > 1e-2  # and it would be seen


def _rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


# --- attention with an output gate ------------------------------------------------------------------------------------


def attention(w: Weights, x: Tensor, hf: Any, wrong: str) -> Tensor:
    """The gate is the second half of each head's part of q_proj, not of the matrix, and is not normed; norms are of
    1 + w; rope turns the first part of a head, in two halves."""
    (B, T, _), H, K, D = x.shape, hf.num_attention_heads, hf.num_key_value_heads, hf.head_dim
    both = x @ w["q_proj.weight"].T + w.get("q_proj.bias", 0)
    if wrong == "halves of the matrix":
        q, gate = (half.reshape(B, T, H, D) for half in both.chunk(2, -1))
    else:
        q, gate = both.view(B, T, H, 2 * D).chunk(2, -1)
    if wrong == "gate first":
        q, gate = gate, q
    k, v = (
        (x @ w[f"{name}_proj.weight"].T + w.get(f"{name}_proj.bias", 0)).view(B, T, K, D).repeat_interleave(H // K, 2)
        for name in "kv"
    )
    offset, eps = 0 if wrong == "plain norms" else 1, hf.rms_norm_eps
    q, k = _rms(q, w["q_norm.weight"] + offset, eps), _rms(k, w["k_norm.weight"] + offset, eps)
    if wrong == "normed gate":
        gate = _rms(gate, w["q_norm.weight"] + offset, eps)
    turned = D if wrong == "rope on all of a head" else int(D * hf.rope_parameters["partial_rotary_factor"])

    def rotate(t: Tensor) -> Tensor:
        theta = hf.rope_parameters["rope_theta"] ** (-torch.arange(0, turned, 2).double() / turned)
        angle = (torch.arange(T).double()[:, None] * theta)[:, None]  # (T, 1, turned / 2)
        if wrong == "neighbours are pairs":
            a, b = t[..., :turned:2], t[..., 1:turned:2]
        else:
            a, b = t[..., :turned].chunk(2, -1)
        first, second = a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()
        interleaved = torch.stack((first, second), -1).flatten(-2)
        rotated = interleaved if wrong == "neighbours are pairs" else torch.cat((first, second), -1)
        return torch.cat((rotated, t[..., turned:]), -1)

    scores = torch.einsum("bthd,bshd->bhts", rotate(q), rotate(k)) * D**-0.5
    scores = scores.masked_fill(torch.ones(T, T, dtype=torch.bool).triu(1), -torch.inf)
    y = torch.einsum("bhts,bshd->bthd", scores.softmax(-1), v)
    gate = F.silu(gate) if wrong == "silu" else gate.sigmoid()
    if wrong == "gate behind o_proj":  # (both are as wide, in some models)
        return (y.flatten(2) @ w["o_proj.weight"].T) * gate.flatten(2)[..., : x.size(-1)]
    return (y * gate).flatten(2) @ w["o_proj.weight"].T + w.get("o_proj.bias", 0)


@pytest.mark.parametrize(
    "wrong",
    ["halves of the matrix", "gate first", "plain norms", "normed gate", "rope on all of a head",
     "neighbours are pairs", "silu", "gate behind o_proj"],
)  # fmt: skip
@pytest.mark.parametrize("case", [QWEN35, QWEN35_TIED, NEXT, NEXT_BIASES], ids=str)
def test_gated_attention(case: Case, wrong: str) -> None:
    _check(case, "full_attention", attention, wrong)


# --- Gated DeltaNet ---------------------------------------------------------------------------------------------------


def delta_net(w: Weights, x: Tensor, hf: Any, wrong: str) -> Tensor:
    """One convolution over q, k and v, then silu; norms of q and k by the sum of squares; each key head serves
    consecutive value heads; the output is normed, with a plain weight, and then gated by silu."""
    (B, T, _), K, H = x.shape, hf.linear_num_key_heads, hf.linear_num_value_heads
    D, E, G = hf.linear_key_head_dim, hf.linear_value_head_dim, H // K
    if "in_proj_qkvz.weight" in w:  # Qwen3-Next groups rows by key head: its q, k, values and gates
        mixed, ba = x @ w["in_proj_qkvz.weight"].T, x @ w["in_proj_ba.weight"].T
        if wrong == "rows in order":
            q, k, v, z = mixed.split((K * D, K * D, H * E, H * E), -1)
            b, a = ba.chunk(2, -1)
        else:
            parts = mixed.view(B, T, K, -1).split((D, D, G * E, G * E), -1)
            q, k, v, z = (part.flatten(2) for part in parts)
            b, a = (part.flatten(2) for part in ba.view(B, T, K, -1).chunk(2, -1))
        qkv = torch.cat((q, k, v), -1)
    else:
        qkv, z, b, a = (x @ w[f"in_proj_{name}.weight"].T for name in ("qkv", "z", "b", "a"))
    taps = w["conv1d.weight"][:, 0]
    taps = taps.flip(1) if wrong == "taps reversed" else taps
    qkv = F.silu(qkv) if wrong == "silu before the convolution" else qkv
    W = taps.size(1)
    padded = F.pad(qkv, (0, 0, W - 1, 0))
    qkv = torch.stack([(padded[:, t : t + W] * taps.T).sum(1) for t in range(T)], 1)
    if wrong not in ("silu before the convolution", "no silu"):
        qkv = F.silu(qkv)
    q, k, v = (t.unflatten(-1, (-1, n)) for t, n in zip(qkv.split((K * D, K * D, H * E), -1), (D, D, E), strict=True))
    if wrong != "no norm of q and k":
        q, k = (t / (t.square().sum(-1, keepdim=True) + 1e-6).sqrt() for t in (q, k))
    q = q if wrong == "no scale" else q * D**-0.5
    tiled = wrong == "value heads in turn"
    q, k = (t.repeat(1, 1, G, 1) if tiled else t.repeat_interleave(G, 2) for t in (q, k))
    rate = F.softplus(a) + w["dt_bias"] if wrong == "bias behind softplus" else F.softplus(a + w["dt_bias"])
    decay = (-w["A_log"].exp() * rate).exp()
    beta = b.sigmoid() * (2 if wrong == "beta up to 2" else 1)
    state, y = torch.zeros(B, H, D, E, dtype=torch.float64), torch.zeros(B, T, H, E, dtype=torch.float64)
    for t in range(T):
        faded = state * decay[:, t, :, None, None]
        read = torch.einsum("bhde,bhd->bhe", state if wrong == "corrected before it fades" else faded, k[:, t])
        state = faded + torch.einsum("bhd,bhe->bhde", k[:, t], beta[:, t, :, None] * (v[:, t] - read))
        y[:, t] = torch.einsum("bhde,bhd->bhe", state, q[:, t])
    z, weight, eps = z.view(y.shape), w["norm.weight"], hf.rms_norm_eps
    if wrong == "gate before the norm":
        y = _rms(y * F.silu(z), weight, eps)
    else:
        offset = 1 if wrong == "norm of 1 + w" else 0
        y = _rms(y, weight + offset, eps) * (z.sigmoid() if wrong == "sigmoid" else F.silu(z))
    return y.flatten(2) @ w["out_proj.weight"].T


DELTA_TRAPS = [
    "taps reversed", "silu before the convolution", "no silu", "no norm of q and k", "no scale",
    "bias behind softplus", "beta up to 2", "corrected before it fades", "gate before the norm", "norm of 1 + w",
    "sigmoid",
]  # fmt: skip


@pytest.mark.parametrize(
    ("case", "wrong"),
    [
        *((case, wrong) for case in (NEXT, NEXT_BIASES, QWEN35) for wrong in DELTA_TRAPS),
        *((case, "value heads in turn") for case in (NEXT, QWEN35)),  # with several key heads
        (NEXT, "rows in order"),
    ],
    ids=str,
)
def test_gated_delta_net(case: Case, wrong: str) -> None:
    _check(case, "linear_attention", delta_net, wrong)


@pytest.mark.parametrize("length", [1, CHUNK + 3])
def test_the_norm_of_keys_adds_its_eps_to_the_sum_of_squares(length: int) -> None:
    """1e-6, whatever the eps of the other norms: small keys stay small."""
    gen = torch.Generator().manual_seed(length)
    q, k, v = (torch.randn(1, length, 1, 6, generator=gen) for _ in range(3))
    q, k = 5e-4 * q, 5e-4 * k
    decay, beta = torch.full((1, length, 1), -0.1), torch.full((1, length, 1), 0.5)
    y, state = DeltaRule(q, k, v, decay, beta).run()

    def last_state(norm: Any) -> Tensor:
        keys, S = norm(k.double())[0, :, 0], torch.zeros(6, 6, dtype=torch.float64)
        for t in range(length):
            S = S * torch.tensor(-0.1).double().exp()
            S = S + torch.outer(keys[t], 0.5 * (v[0, t, 0].double() - S.T @ keys[t]))
        return S

    expected = last_state(lambda t: t / (t.square().sum(-1, keepdim=True) + 1e-6).sqrt())
    assert _distance(state[0, 0], expected) < 1e-5
    for wrong in (
        lambda t: F.normalize(t, dim=-1),  # the eps bounds the norm
        lambda t: t / (t.square().sum(-1, keepdim=True).sqrt() + 1e-6),
        lambda t: t / (t.square().mean(-1, keepdim=True) + 1e-6).sqrt() * 6**-0.5,
    ):
        assert _distance(last_state(wrong), expected) > 1e-2
    reading = q.double()[0, -1, 0]
    reading = reading / (reading.square().sum() + 1e-6).sqrt() * 6**-0.5  # the scale comes after it
    assert _distance(y[0, -1, 0], expected.T @ reading) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_gated_norm_rounds_before_its_weight(dtype: torch.dtype) -> None:
    """Normed in fp32, rounded, times the weight, times the gate in fp32: as transformers, to the last bit."""
    from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextRMSNormGated

    gen = torch.Generator().manual_seed(0)
    config = GatedDeltaConfig(n_key_head=1, n_value_head=1, key_dim=4, value_dim=40, norm_eps=1e-6)
    mine, theirs = GatedRMSNorm(config).to(dtype), Qwen3NextRMSNormGated(40, eps=1e-6).to(dtype)
    x, z = (3 * torch.randn(4, 50, 2, 40, generator=gen).to(dtype) for _ in range(2))
    for norm in (mine, theirs):
        norm.weight.copy_(torch.linspace(0.3, 1.8, 40))
    assert torch.equal(mine(x, z), theirs(x, z))
    once = F.rms_norm(x.float(), (40,), mine.weight.float(), 1e-6) * F.silu(z.float())
    assert not torch.equal(mine(x, z), once.to(dtype))


@torch.no_grad()
def test_decay_rates_are_fp32_whatever_the_dtype() -> None:
    """exp(12) is no fp16 number, and a decay of -inf gives NaN."""
    model = GPT(ours(QWEN35).config).half()
    for layer in model.layers:
        if hasattr(layer.attn, "A_log"):
            layer.attn.A_log[:] = torch.tensor([-3.0, 1.0, 9.0, 12.0])  # type: ignore[index]
    ids = cases.tokens(QWEN35, 2, CHUNK + 9)
    assert torch.isfinite(model(ids)).all()
    cache = model.make_cache(2, CHUNK + 9)
    for part in ids.split([CHUNK + 8, 1], 1):
        assert torch.isfinite(model(part, context=cache)).all()


# --- the short convolution of LFM2 ------------------------------------------------------------------------------------


def short_conv(w: Weights, x: Tensor, hf: Any, wrong: str) -> Tensor:
    """in_proj has B, C and x in this order; no activation anywhere."""
    b, c, x = (x @ w["in_proj.weight"].T + w["in_proj.bias"]).chunk(3, -1)
    if wrong == "C before B":
        b, c = c, b
    if wrong == "x first":
        b, c, x = x, b, c
    taps, bias = w["conv.weight"][:, 0], w["conv.bias"]
    taps = taps.flip(1) if wrong == "taps reversed" else taps
    W = taps.size(1)
    inputs = F.pad(x if wrong == "gate behind the convolution" else b * x, (0, 0, W - 1, 0))
    y = torch.stack([(inputs[:, t : t + W] * taps.T).sum(1) for t in range(x.size(1))], 1) + bias
    y = F.silu(y) if wrong == "silu" else b * y if wrong == "gate behind the convolution" else y
    return (c * y) @ w["out_proj.weight"].T + w["out_proj.bias"]


@pytest.mark.parametrize("wrong", ["C before B", "x first", "taps reversed", "silu", "gate behind the convolution"])
def test_short_convolution(wrong: str) -> None:
    _check(LFM2, "conv", short_conv, wrong)


def test_the_norm_called_embedding_norm_is_the_last() -> None:
    model, theirs = ours(LFM2), cases.build(LFM2)
    assert torch.equal(model.norm.weight, theirs.model.embedding_norm.weight)
    assert model.embed_norm is None


# --- files ------------------------------------------------------------------------------------------------------------

SMALL = dict(vocab_size=64, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2)
LINEAR = dict(linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=8)
LFM2_FILE: dict[str, Any] = SMALL | dict(
    model_type="lfm2", intermediate_size=80, layer_types=["conv", "full_attention"] * 2
)
QWEN35_FILE: dict[str, Any] = SMALL | LINEAR | dict(model_type="qwen3_5_text", intermediate_size=48, head_dim=32)
NEXT_FILE: dict[str, Any] = QWEN35_FILE | dict(
    model_type="qwen3_next", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8,
    shared_expert_intermediate_size=8,
)  # fmt: skip


def _theirs(hf: dict[str, Any]) -> Any:
    from transformers import AutoConfig

    return AutoConfig.for_model(**json.loads(json.dumps(hf)))


@pytest.mark.parametrize("file", [QWEN35_FILE, NEXT_FILE], ids=lambda hf: hf["model_type"])
@pytest.mark.parametrize(
    ("fields", "fraction", "theta"),
    [
        ({}, 0.25, 10000.0),  # a default that is no field
        (dict(partial_rotary_factor=0.5), 0.5, 10000.0),
        (dict(partial_rotary_factor=0.5, rope_theta=7e5), 0.5, 7e5),
        (dict(rope_parameters=dict(rope_type="default", rope_theta=1e7)), 0.25, 1e7),
        (dict(rope_parameters=dict(rope_theta=1e7, partial_rotary_factor=0.5)), 0.5, 1e7),
        (dict(partial_rotary_factor=0.75, rope_parameters=dict(rope_theta=5.0, partial_rotary_factor=0.5)), 0.5, 5.0),
    ],
)
def test_rope_turns_a_quarter(file: dict[str, Any], fields: dict[str, Any], fraction: float, theta: float) -> None:
    rope = Config.from_hf(file | fields).rope
    assert rope is not None
    assert (rope.fraction, rope.theta, rope.interleaved) == (fraction, theta, False)
    theirs = _theirs(file | fields).rope_parameters
    assert (theirs["partial_rotary_factor"], theirs["rope_theta"]) == (fraction, theta)


def test_the_three_positions_of_text_are_one() -> None:
    plain = dict(rope_type="default", rope_theta=1e6, partial_rotary_factor=0.25)
    three = plain | dict(mrope_section=[2, 1, 1], mrope_interleaved=True)
    config = Config.from_hf(QWEN35_FILE | dict(rope_parameters=three))
    assert config == Config.from_hf(QWEN35_FILE | dict(rope_parameters=plain))
    assert cases.hf_config(QWEN35_TIED).rope_parameters["mrope_interleaved"]
    ids = cases.tokens(QWEN35_TIED, 1, 30)
    with torch.no_grad():
        cases.close(ours(QWEN35_TIED)(ids), hf_logits(QWEN35_TIED, ids))


@pytest.mark.parametrize(
    ("file", "fields", "types"),
    [
        (QWEN35_FILE, dict(num_hidden_layers=9), "rrrfrrrfr"),
        (NEXT_FILE, dict(full_attention_interval=2), "rfrf"),
        (QWEN35_FILE, dict(full_attention_interval=2, layer_types=["linear_attention"] * 4), "rrrr"),
        (LFM2_FILE, dict(layer_types=None), "ffff"),
        (LFM2_FILE, dict(layer_types=None, full_attn_idxs=[1, 2]), "rffr"),
        (LFM2_FILE, dict(full_attn_idxs=[0]), "rfrf"),
    ],
)  # fmt: skip
def test_which_layers_are_recurrent(file: dict[str, Any], fields: dict[str, Any], types: str) -> None:
    config = Config.from_hf(file | fields)
    assert "".join(t[0] for t in config.layer_types) == types
    assert "".join("f" if t == "full_attention" else "r" for t in _theirs(file | fields).layer_types) == types
    assert config.rope_layers == tuple(t == "f" for t in types)  # recurrent layers have no positions
    assert (config.recurrent is None) == ("r" not in types)


@pytest.mark.parametrize("file", [QWEN35_FILE, NEXT_FILE, LFM2_FILE], ids=lambda hf: hf["model_type"])
def test_a_model_of_attention_alone(file: dict[str, Any]) -> None:
    """transformers writes the fields of layers that there are none of, too."""
    written = _theirs(file | dict(layer_types=["full_attention"] * 4)).to_dict()
    assert {"linear_num_key_heads", "conv_L_cache"} & written.keys()
    config = Config.from_hf(written)
    assert (config.recurrent, config.layer_types) == (None, ("full",) * 4)
    assert Config.from_hf(config.to_hf()) == config


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        (dict(intermediate_size=12288), 8192),  # LFM2-1.2B
        (dict(block_ff_dim=10240), 6912),  # LFM2-700M, under the older name
        (dict(block_ff_dim=6656, intermediate_size=4608), 4608),  # LFM2-350M
        (dict(intermediate_size=10752, block_auto_adjust_ff_dim=False), 10752),  # LFM2-2.6B
        (dict(intermediate_size=90, block_multiple_of=16, block_ffn_dim_multiplier=1.3), 80),
        (dict(intermediate_size=100, block_multiple_of=1), 66),
    ],
)
def test_the_size_of_an_mlp_in_lfm2(fields: dict[str, Any], size: int) -> None:
    from transformers.models.lfm2.modeling_lfm2 import Lfm2MLP

    hf = {key: value for key, value in LFM2_FILE.items() if key != "intermediate_size"} | fields
    assert Config.from_hf(hf).intermediate_size == size
    with torch.device("meta"):
        assert Lfm2MLP(_theirs(hf)).w1.out_features == size


@pytest.mark.parametrize(
    ("file", "fields", "tied"),
    [
        (LFM2_FILE, {}, True),
        (LFM2_FILE, dict(tie_embedding=False), False),
        (LFM2_FILE, dict(tie_embedding=False, tie_word_embeddings=True), False),  # the older name wins
        (LFM2_FILE, dict(tie_word_embeddings=False), False),
        (QWEN35_FILE, {}, False),
        (NEXT_FILE, {}, False),
    ],
)
def test_tied_embeddings(file: dict[str, Any], fields: dict[str, Any], tied: bool) -> None:
    assert Config.from_hf(file | fields).tie_embeddings == _theirs(file | fields).tie_word_embeddings == tied


def test_fields_of_published_files() -> None:
    """What transformers does not read, or not any more."""
    more: dict[str, Any] = dict(
        attn_output_gate=True, mamba_ssm_dtype="float32", mtp_num_hidden_layers=1, mtp_use_dedicated_embeddings=False,
        full_attention_interval=4, output_gate_type="swish", partial_rotary_factor=0.25, attention_dropout=0.0,
    )  # fmt: skip
    assert Config.from_hf(QWEN35_FILE | more) == Config.from_hf(QWEN35_FILE)
    for field, value in dict(attn_output_gate=False, output_gate_type="sigmoid", hidden_act="gelu").items():
        with pytest.raises(ValueError, match=f"{field}={value!r} is not supported"):
            Config.from_hf(QWEN35_FILE | more | {field: value})
    more = dict(
        block_dim=32, block_ff_dim=80, block_mlp_init_scale=1.0, block_norm_eps=1e-5, block_out_init_scale=1.0,
        block_use_swiglu=True, block_use_xavier_init=True, conv_dim=32, conv_dim_out=32, conv_use_xavier_init=True,
        num_heads=4, theta=1e6, rope_theta=1e6, use_pos_enc=True, full_attn_idxs=[1, 3], tie_embedding=True,
    )  # fmt: skip
    assert Config.from_hf(LFM2_FILE | more) == Config.from_hf(LFM2_FILE)


@pytest.mark.parametrize("case", [NEXT, QWEN35], ids=str)
def test_a_layer_that_predicts_a_second_token_is_left_out(case: Case, tmp_path: Path) -> None:
    source = cases.write(case)
    tensors = load_file(source / "model.safetensors")
    extra = {f"mtp.{name.removeprefix('model.')}": t.clone() for name, t in tensors.items() if "layers.0." in name}
    assert extra
    save_file(tensors | extra | {"mtp.fc.weight": torch.zeros(4, 8)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    ids = cases.tokens(case, 1, 9)
    assert torch.equal(cases.load(tmp_path)(ids), ours(case)(ids))
    save_file(tensors | {"mpt.fc.weight": torch.zeros(4, 8)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"mpt\.fc\.weight"):
        cases.load(tmp_path)


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "fields", "messages"),
    [
        (LFM2_FILE, dict(conv_L_cache=0), ["conv_L_cache=0 must be a whole number, 2 or more"]),
        (LFM2_FILE, dict(conv_L_cache=1), ["conv_L_cache=1 must be a whole number, 2 or more"]),
        (LFM2_FILE, dict(conv_L_cache="3"), ["conv_L_cache='3' must be a whole number, 2 or more"]),
        (LFM2_FILE, dict(conv_L_cache=True), ["conv_L_cache=True must be a whole number, 2 or more"]),
        (
            LFM2_FILE,
            dict(conv_L_cahce=4, conv_L_cache=2.5, block_multiple_of=0),
            ["conv_L_cahce=4 is not understood", "--ignore_fields conv_L_cahce", "conv_L_cache=2.5 must be",
             "block_multiple_of=0 must be a whole number, 1 or more"],
        ),
        (LFM2_FILE, dict(conv_bias="no"), ["recurrent.bias='no' must be bool"]),
        (LFM2_FILE, dict(layer_types=["conv", "conf"] * 2), ["layer_types holds conf; known are full_attention"]),
        (
            QWEN35_FILE,
            dict(linear_num_value_heads=3),
            ["linear_num_value_heads=3 must be a multiple of linear_num_key_heads=2"],
        ),
        (
            NEXT_FILE,
            dict(linear_num_key_heads=0, linear_key_head_dim=-8, linear_value_head_dim="8", linear_conv_kernel_dim=1,
                 linear_conv_dim=4, full_attention_interval=0),
            ["linear_num_key_heads=0 must", "linear_key_head_dim=-8 must", "linear_value_head_dim='8' must",
             "linear_conv_kernel_dim=1 must be a whole number, 2 or more", "linear_conv_dim=4 is not understood",
             "full_attention_interval=0 must be a whole number, 1 or more"],
        ),
        (
            QWEN35_FILE,
            dict(linear_num_value_heads=5, linear_conv_kernel_dim=0),
            ["linear_num_value_heads=5 must be a multiple", "linear_conv_kernel_dim=0 must"],
        ),
        (QWEN35_FILE, dict(layer_types=["linear_attn"] * 4), ["layer_types holds linear_attn; known are"]),
    ],
)  # fmt: skip
def test_problems_of_a_file_are_named_together(
    file: dict[str, Any], fields: dict[str, Any], messages: list[str]
) -> None:
    with pytest.raises(ValueError) as e:
        Config.from_hf(file | fields)
    for message in messages:
        assert message in str(e.value)
    Config.from_hf(file)


def test_fields_that_a_file_leaves_out_have_transformers_values() -> None:
    sizes = (*LINEAR, "linear_conv_kernel_dim", "conv_L_cache", "conv_bias")
    for file in (QWEN35_FILE, NEXT_FILE, LFM2_FILE):
        bare = {key: value for key, value in file.items() if key not in sizes}
        mixer, theirs = Config.from_hf(bare).recurrent, _theirs(bare)
        if isinstance(mixer, ShortConvConfig):
            assert (mixer.kernel_size, mixer.bias) == (theirs.conv_L_cache, theirs.conv_bias) == (3, False)
            continue
        assert mixer is not None
        found = mixer.n_key_head, mixer.n_value_head, mixer.key_dim, mixer.value_dim, mixer.kernel_size
        assert found == tuple(getattr(theirs, name) for name in sizes[:5]) == (16, 32, 128, 128, 4)


def test_problems_of_a_config_are_named_together() -> None:
    def make(recurrent: Any, **fields: Any) -> Config:
        return Config(
            vocab_size=9, n_layer=1, n_embd=16, n_head=2, **(dict(layer_types=("recurrent",)) | fields),
            recurrent=recurrent,
        )  # fmt: skip

    delta = functools.partial(GatedDeltaConfig, n_key_head=2, n_value_head=4, key_dim=8, value_dim=8)
    for recurrent, messages in (
        (ShortConvConfig(kernel_size=1), ["recurrent.kernel_size=1 must be at least 2"]),
        (ShortConvConfig(kernel_size=0), ["recurrent.kernel_size=0 must be at least 2"]),
        (
            delta(n_value_head=3, kernel_size=1, norm_eps=0.0),
            ["n_value_head=3 must be a multiple of n_key_head=2", "kernel_size=1 must be", "norm_eps=0.0 must be"],
        ),
        (delta(n_key_head=0, value_dim=-1), ["n_key_head=0 must be at least 1", "value_dim=-1 must be at least 1"]),
        (delta(key_dim="8"), ["recurrent.key_dim='8' must be int"]),
        (None, ["recurrent must be set where layer_types has recurrent layers"]),
    ):
        with pytest.raises(ValueError) as e:
            make(recurrent)
        for message in messages:
            assert message in str(e.value)
    with pytest.raises(ValueError, match="rope_layers names recurrent layers"):
        make(delta(), rope_layers=(True,))
    with pytest.raises(ValueError, match="recurrent must be set where .* and only there"):
        make(delta(), layer_types=("full",))
    make(delta())
