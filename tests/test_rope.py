"""Rope tables against transformers' fp32 arithmetic, and against float64 formulas restated here from the papers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from litlm.config import Config, DynamicScaling, LinearScaling, Llama3Scaling, RopeConfig, YarnScaling
from litlm.model import GPT
from litlm.model.rope import Rope, apply_rope, rope_frequencies

# (name, head_dim, rope config, the same as transformers' rope_parameters)
CASES: list[tuple[str, int, RopeConfig, dict[str, Any]]] = [
    ("plain", 64, RopeConfig(theta=1e5), dict(rope_type="default", rope_theta=1e5)),
    ("plain-odd", 26, RopeConfig(theta=1234.5), dict(rope_type="default", rope_theta=1234.5)),
    (
        "linear", 128, RopeConfig(scaling=LinearScaling(factor=4.0)),
        dict(rope_type="linear", rope_theta=1e4, factor=4.0),
    ),
    (
        "linear-odd", 18, RopeConfig(theta=500.0, scaling=LinearScaling(factor=2.7)),
        dict(rope_type="linear", rope_theta=500.0, factor=2.7),
    ),
    (
        "llama-3.1", 128,
        RopeConfig(theta=5e5, scaling=Llama3Scaling(factor=8.0, original_max_seq_len=8192)),
        dict(rope_type="llama3", rope_theta=5e5, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
             original_max_position_embeddings=8192),
    ),
    (
        "llama-3.2", 64,
        RopeConfig(theta=5e5, scaling=Llama3Scaling(factor=32.0, original_max_seq_len=8192)),
        dict(rope_type="llama3", rope_theta=5e5, factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0,
             original_max_position_embeddings=8192),
    ),
    (
        "llama3-odd", 50,
        RopeConfig(theta=777.0, scaling=Llama3Scaling(factor=3.3, low_freq_factor=1.7, high_freq_factor=2.9,
                                                      original_max_seq_len=301)),
        dict(rope_type="llama3", rope_theta=777.0, factor=3.3, low_freq_factor=1.7, high_freq_factor=2.9,
             original_max_position_embeddings=301),
    ),
    (
        "qwen3-yarn", 128,
        RopeConfig(theta=1e6, scaling=YarnScaling(factor=4.0, original_max_seq_len=32768)),
        dict(rope_type="yarn", rope_theta=1e6, factor=4.0, original_max_position_embeddings=32768),
    ),
    (
        "yarn-odd", 44,
        RopeConfig(theta=3000.0, scaling=YarnScaling(factor=7.7, original_max_seq_len=777, beta_fast=17.0,
                                                     beta_slow=2.5, attention_factor=1.3)),
        dict(rope_type="yarn", rope_theta=3000.0, factor=7.7, original_max_position_embeddings=777, beta_fast=17.0,
             beta_slow=2.5, attention_factor=1.3),
    ),
    (
        "yarn-untruncated", 96,
        RopeConfig(theta=15000.0, scaling=YarnScaling(factor=40.0, original_max_seq_len=4096, truncate=False)),
        dict(rope_type="yarn", rope_theta=15000.0, factor=40.0, original_max_position_embeddings=4096, truncate=False),
    ),
    (
        "yarn-clamped", 16,  # the ramp would end beyond the head
        RopeConfig(theta=20.0, scaling=YarnScaling(factor=3.0, original_max_seq_len=8192, beta_fast=200.0)),
        dict(rope_type="yarn", rope_theta=20.0, factor=3.0, original_max_position_embeddings=8192, beta_fast=200.0),
    ),
    (
        "yarn-tiny", 8,  # both ends of the ramp fall on the same pair
        RopeConfig(theta=1e4, scaling=YarnScaling(factor=2.0, original_max_seq_len=4, beta_fast=3.0, beta_slow=2.0)),
        dict(rope_type="yarn", rope_theta=1e4, factor=2.0, original_max_position_embeddings=4, beta_fast=3.0,
             beta_slow=2.0),
    ),
]  # fmt: skip
each = pytest.mark.parametrize(("head_dim", "rope", "parameters"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
FAR = torch.cat(
    [torch.arange(130), torch.arange(8000, 8300), torch.arange(131000, 131100), torch.arange(999900, 1000001)]
)


def _theirs(head_dim: int, parameters: dict[str, Any]) -> Any:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    return LlamaRotaryEmbedding(
        LlamaConfig(
            hidden_size=2 * head_dim, num_attention_heads=2, head_dim=head_dim, rope_parameters=dict(parameters),
            max_position_embeddings=1_000_001,
        )
    )  # fmt: skip


@each
def test_tables_equal_transformers_to_the_last_bit(head_dim: int, rope: RopeConfig, parameters: dict[str, Any]) -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    module, theirs = Rope(rope, head_dim), _theirs(head_dim, parameters)
    if parameters["rope_type"] != "default":
        frequencies, factor = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](theirs.config)
        assert module.attention_factor == factor
        assert torch.equal(module.values, frequencies)
    cos, sin = module(FAR[None])
    their_cos, their_sin = theirs(torch.zeros(1), FAR[None])  # each (1, T, D), the halves repeated
    assert torch.equal(torch.cat((cos, cos), -1), their_cos)
    assert torch.equal(torch.cat((sin, sin), -1), their_sin)


def _by_the_papers(head_dim: int, p: dict[str, Any]) -> tuple[list[float], float]:
    """Frequencies (radians a token) and the scale of the tables, in float64, one pair at a time."""
    theta, kind = p["rope_theta"], p["rope_type"]
    plain = [theta ** (-2 * j / head_dim) for j in range(head_dim // 2)]
    if kind == "default":
        return plain, 1.0
    s = p["factor"]
    if kind == "linear":  # Chen et al. 2023: f(x, m) becomes f(x, m / s)
        return [w / s for w in plain], 1.0
    length = p["original_max_position_embeddings"]
    turns = [length * w / (2 * math.pi) for w in plain]  # full turns within the context of pretraining
    if kind == "llama3":  # Llama 3.1: kept above high_freq_factor turns, divided below low_freq_factor
        low, high = p["low_freq_factor"], p["high_freq_factor"]
        gammas = [min(max((r - low) / (high - low), 0.0), 1.0) for r in turns]
        return [(1 - g) * w / s + g * w for g, w in zip(gammas, plain, strict=True)], 1.0
    # YaRN (Peng et al. 2023), NTK-by-parts. The paper's gamma is linear in the number of turns; its code, which every
    # published model uses, is linear in the pair's index, between the pairs that make beta_fast and beta_slow turns.
    fast, slow = p.get("beta_fast", 32.0), p.get("beta_slow", 1.0)

    def index(turns: float) -> float:  # where length * theta ** (-2 j / D) / 2 pi == turns
        return math.log(length / (2 * math.pi * turns)) / math.log(theta) * head_dim / 2

    first, last = index(fast), index(slow)
    if p.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    divided = [min(max((j - first) / (last - first), 0.0), 1.0) if last != first else float(j > first)
               for j in range(head_dim // 2)]  # fmt: skip
    factor = p.get("attention_factor")
    return [w * (d / s + 1 - d) for d, w in zip(divided, plain, strict=True)], factor or 0.1 * math.log(s) + 1


@each
def test_tables_follow_the_papers_in_float64(head_dim: int, rope: RopeConfig, parameters: dict[str, Any]) -> None:
    module = Rope(rope, head_dim)
    frequencies, factor = _by_the_papers(head_dim, parameters)
    assert module.attention_factor == pytest.approx(factor, rel=1e-12)
    exact = torch.tensor(frequencies, dtype=torch.float64)
    # fp32 keeps a frequency to a few units of 2^-24, and where a kept one is blended with one divided by `factor`, the
    # rounding of the blend counts `factor` times. A phase is off by position times that.
    unit = 2**-24 * max(1.0, parameters.get("factor", 1.0))
    assert ((module.values.double() - exact) / exact).abs().max() <= 6 * unit
    angle = FAR[:, None].double() * exact
    slack = 1e-6 + 8 * unit * angle
    cos, sin = (t[0].double() / factor for t in module(FAR[None]))
    assert ((cos - angle.cos()).abs() <= slack).all()
    assert ((sin - angle.sin()).abs() <= slack).all()


@pytest.mark.parametrize(("head_dim", "fraction"), [(64, 0.25), (80, 0.4), (26, 0.5), (10, 1.0), (22, 0.19)])
def test_partial_rope_turns_the_first_dimensions_only(head_dim: int, fraction: float) -> None:
    from transformers import GPTNeoXConfig
    from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXRotaryEmbedding, apply_rotary_pos_emb

    rope = dict(rope_type="default", rope_theta=321.0, partial_rotary_factor=fraction)
    config = GPTNeoXConfig(hidden_size=2 * head_dim, num_attention_heads=2, rope_parameters=rope)
    q, k = torch.randn(2, 3, 5, head_dim), torch.randn(2, 3, 5, head_dim)  # (B, H, T, D)
    positions = torch.tensor([[3, 4, 5, 6, 7], [900, 1, 70, 0, 2]])
    expected = apply_rotary_pos_emb(q, k, *GPTNeoXRotaryEmbedding(config)(q, positions))
    tables = Rope(RopeConfig(theta=321.0, fraction=fraction), head_dim)(positions)
    for x, theirs in zip((q, k), expected, strict=True):
        torch.testing.assert_close(apply_rope(x.transpose(1, 2), *tables).transpose(1, 2), theirs, rtol=1e-6, atol=1e-6)


@each
@pytest.mark.parametrize("trip", ["bfloat16", "half", "double", "to_empty", "meta", "default dtype"])
def test_tables_survive_moves_and_casts(head_dim: int, rope: RopeConfig, parameters: dict[str, Any], trip: str) -> None:
    expected = Rope(rope, head_dim)(FAR[None])
    config = Config(vocab_size=7, n_layer=2, n_embd=16, n_head=2, head_dim=head_dim, rope=rope)
    if trip == "meta":
        with torch.device("meta"):
            model = GPT(config)
        model.to_empty(device="cpu")
    elif trip == "default dtype":
        torch.set_default_dtype(torch.bfloat16)
        try:
            model = GPT(config)
        finally:
            torch.set_default_dtype(torch.float32)
    else:
        model = GPT(config)
        if trip == "to_empty":
            model.to_empty(device="meta").to_empty(device="cpu")
        else:
            model.to({"bfloat16": torch.bfloat16, "half": torch.float16, "double": torch.float64}[trip])
            model.float()
    (module,) = model.ropes  # shared by both layers
    for actual, wanted in zip(module(FAR[None]), expected, strict=True):
        assert actual.dtype == torch.float32
        assert torch.equal(actual, wanted)
    assert "ropes" not in " ".join(model.state_dict())


def test_half_precision_model_uses_fp32_tables() -> None:
    """With tokens hundreds of positions apart, bf16 frequencies would be off by radians; with fp32 ones a bf16
    model is as near to its fp32 self as where tokens are neighbours."""
    config = Config(vocab_size=31, n_layer=2, n_embd=32, n_head=2, rope=RopeConfig(theta=1e4), init_std=0.2)
    torch.manual_seed(0)
    model = GPT(config)
    ids, places = torch.randint(31, (4, 40)), [apart * torch.arange(40)[None] for apart in (1, 400)]
    with torch.no_grad():
        expected = [model(ids, positions=at) for at in places]
        model = model.bfloat16()
        near, far = ((model(ids, positions=at).float() - e).norm() for at, e in zip(places, expected, strict=True))
    assert 0 < far <= 2 * near  # it is 1.0 to 1.1; 40 with frequencies in bf16


def test_frequencies_of_different_layers_are_shared_by_kind() -> None:
    frequencies, factor = rope_frequencies(RopeConfig(theta=100.0, fraction=0.5), 8)
    assert frequencies.tolist() == pytest.approx([1.0, 0.1])
    assert factor == 1.0


@pytest.mark.parametrize(("head_dim", "theta", "factor", "original"), [(64, 1e4, 2.0, 4096), (26, 777.0, 5.5, 300)])
def test_dynamic_tables(head_dim: int, theta: float, factor: float, original: int) -> None:
    """Each row by its own length: transformers' frequencies for that length, and the formula in float64."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    hf = LlamaConfig(
        hidden_size=2 * head_dim, num_attention_heads=2, head_dim=head_dim, max_position_embeddings=original,
        rope_parameters=dict(rope_type="dynamic", rope_theta=theta, factor=factor),
    )  # fmt: skip
    module = Rope(
        RopeConfig(theta=theta, scaling=DynamicScaling(factor=factor, original_max_seq_len=original)), head_dim
    )
    lengths = torch.tensor([original // 2, original, original + 1, 131072, 1_000_000])
    positions = torch.stack([torch.zeros_like(lengths), lengths // 3, lengths - 1], dim=1)
    cos, sin = module(positions)
    for row, length in enumerate(lengths):
        frequencies, _ = ROPE_INIT_FUNCTIONS["dynamic"](hf, torch.device("cpu"), seq_len=length)
        assert torch.equal(cos[row], (positions[row, :, None].float() * frequencies).cos())
        assert torch.equal(sin[row], (positions[row, :, None].float() * frequencies).sin())
        # emozilla 2023: the base grows so that the slowest pair is interpolated and the fastest is left alone.
        stretch = max(1.0, factor * length.item() / original - (factor - 1))
        base = theta * stretch ** (head_dim / (head_dim - 2))
        exact = torch.tensor([base ** (-2 * j / head_dim) for j in range(head_dim // 2)], dtype=torch.float64)
        angle = positions[row, :, None].double() * exact
        # The exponent multiplies the rounding of the base's logarithm.
        assert ((cos[row].double() - angle.cos()).abs() <= 1e-6 + 24 * 2**-24 * angle).all()


def test_proportional_tables() -> None:
    """Gemma 4's: the frequencies of the whole head, of which the first share turns."""
    from transformers import Gemma4TextConfig
    from transformers.models.gemma4.modeling_gemma4 import Gemma4TextRotaryEmbedding

    hf = Gemma4TextConfig(num_hidden_layers=6, head_dim=24, global_head_dim=48, num_attention_heads=2, hidden_size=48)
    theirs = Gemma4TextRotaryEmbedding(hf)
    their_cos, their_sin = theirs(torch.zeros(1), FAR[None], layer_type="full_attention")
    module = Rope(RopeConfig(theta=1e6, fraction=0.25, proportional=True), 48)
    cos, sin = module(FAR[None])
    pairs = cos.size(-1)
    assert torch.equal(cos, their_cos[..., :pairs])
    assert torch.equal(sin, their_sin[..., :pairs])
    assert (their_sin[..., pairs:24] == 0).all()  # what does not turn
    turned = int(48 * 0.25) // 2
    exact = torch.tensor([1e6 ** (-2 * j / 48) for j in range(turned)], dtype=torch.float64)
    angle = FAR[:, None].double() * exact
    assert ((sin[0, :, :turned].double() - angle.sin()).abs() <= 1e-6 + 8 * 2**-24 * angle).all()
