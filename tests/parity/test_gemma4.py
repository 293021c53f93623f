"""Gemma 4 beyond the tables: published configs, sizes, shared caches, compiled decoding, multimodal checkpoints."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from parity import cases
from parity.cases import by_name, close, hf_logits, load, ours, randomize, raw_tensors, tokens
from parity.table_gemma4 import CASES
from safetensors.torch import load_file, save_file

from litlm.checkpoint.hf import open_directory, save_weights
from litlm.config import Config, RopeConfig
from litlm.context import KVCache
from litlm.llm import LLM
from litlm.model import GPT
from litlm.transforms import compile as transform

# --- published configs ---------------------------------------------------------------------------------------------

TEXT: dict[str, Any] = dict(
    attention_bias=False, attention_dropout=0.0, attention_k_eq_v=False, bos_token_id=2, dtype="bfloat16",
    enable_moe_block=False, eos_token_id=1, expert_intermediate_size=None, final_logit_softcapping=30.0,
    global_head_dim=512, head_dim=256, hidden_activation="gelu_pytorch_tanh", hidden_size_per_layer_input=256,
    initializer_range=0.02, max_position_embeddings=131072, model_type="gemma4_text", moe_intermediate_size=None,
    num_attention_heads=8, num_experts=None, num_global_key_value_heads=None, num_kv_shared_layers=0, pad_token_id=0,
    rms_norm_eps=1e-06,
    rope_parameters={
        "full_attention": {"partial_rotary_factor": 0.25, "rope_theta": 1000000.0, "rope_type": "proportional"},
        "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
    },
    sliding_window=512, tie_word_embeddings=True, top_k_experts=None, use_bidirectional_attention=None, use_cache=True,
    use_double_wide_mlp=False, vocab_size=262144, vocab_size_per_layer_input=262144,
)  # fmt: skip
OUTER: dict[str, Any] = dict(
    architectures=["Gemma4ForConditionalGeneration"], audio_config=None, audio_token_id=258881, boa_token_id=256000,
    boi_token_id=255999, dtype="bfloat16", eoa_token_id=258883, eoa_token_index=258883, eoi_token_id=258882,
    eos_token_id=[1, 106], image_token_id=258880, initializer_range=0.02, model_type="gemma4", tie_word_embeddings=True,
    transformers_version="5.5.0", video_token_id=258884, vision_config={"model_type": "gemma4_vision"},
    vision_soft_tokens_per_image=280,
)  # fmt: skip
LARGE = dict(
    attention_k_eq_v=True, hidden_size_per_layer_input=0, max_position_embeddings=262144, sliding_window=1024,
    use_bidirectional_attention="vision",
)  # fmt: skip


def _types(sliding: int, times: int) -> list[str]:
    return (["sliding_attention"] * sliding + ["full_attention"]) * times


PUBLISHED: dict[str, dict[str, Any]] = {
    "E2B": dict(hidden_size=1536, intermediate_size=6144, num_hidden_layers=35, num_key_value_heads=1,
                num_kv_shared_layers=20, use_double_wide_mlp=True, layer_types=_types(4, 7)),
    "E4B": dict(hidden_size=2560, intermediate_size=10240, num_hidden_layers=42, num_key_value_heads=2,
                num_kv_shared_layers=18, layer_types=_types(5, 7)),
    "31B": dict(LARGE, hidden_size=5376, intermediate_size=21504, num_hidden_layers=60, num_attention_heads=32,
                num_key_value_heads=16, num_global_key_value_heads=4, layer_types=_types(5, 10)),
    "26B-A4B": dict(LARGE, hidden_size=2816, intermediate_size=2112, num_hidden_layers=30, num_attention_heads=16,
                    num_key_value_heads=8, num_global_key_value_heads=2, layer_types=_types(5, 5),
                    enable_moe_block=True, num_experts=128, top_k_experts=8, moe_intermediate_size=704),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs(name: str) -> None:
    from transformers import AutoModelForCausalLM, Gemma4TextConfig

    text = TEXT | PUBLISHED[name]
    config = Config.from_hf(OUTER | dict(text_config=text))
    assert (config.family, config.eos_token_id, config.tie_embeddings) == ("gemma4_text", (1, 106), True)
    assert Config.from_hf(config.to_hf()) == config
    assert Config.from_dict(config.to_dict()) == config
    with torch.device("meta"):
        theirs = AutoModelForCausalLM.from_config(Gemma4TextConfig(**text))
        read_back = Gemma4TextConfig(**{k: v for k, v in config.to_hf().items() if k != "model_type"})
    for key, value in Gemma4TextConfig(**text).to_dict().items():
        if key not in ("use_bidirectional_attention", "architectures", "transformers_version", "eos_token_id", "dtype"):
            assert read_back.to_dict().get(key) == value or (key, value) == ("expert_intermediate_size", None), key
    assert config.n_parameters() == sum(p.numel() for p in theirs.parameters())
    widths = [
        layer.self_attn.k_proj.out_features for layer in theirs.model.layers if hasattr(layer.self_attn, "k_proj")
    ]
    assert len(widths) == text["num_hidden_layers"] - text["num_kv_shared_layers"]
    assert config.kv_bytes_per_token(2) == 2 * 2 * sum(widths)


# --- sizes and caches ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=str)
def test_sizes(case: cases.Case) -> None:
    config, theirs = ours(case).config, cases.build(case)
    total = sum(p.numel() for p in theirs.parameters())
    with torch.device("meta"):
        assert config.n_parameters() == total == sum(p.numel() for p in GPT(config).parameters())
    hf = theirs.config
    moe = getattr(hf, "enable_moe_block", False)
    idle = (hf.num_experts - hf.top_k_experts) * hf.num_hidden_layers * hf.moe_intermediate_size if moe else 0
    assert config.n_active_parameters() == total - idle * 3 * hf.hidden_size
    cache = KVCache(config, 3, 16, dtype=torch.float32)
    held = sum(t.numel() for t in [*cache.k, *cache.v] if t is not None)
    assert held * 4 == 3 * 16 * config.kv_bytes_per_token(4)
    assert [t.numel() for t in cache.k[config.n_layer - config.n_kv_shared_layer :]] == [0] * config.n_kv_shared_layer


def test_which_layer_is_read() -> None:
    config = ours(by_name("gemma4_text-shared-kv")).config  # S F | S S F
    layers = [config.layer(i) for i in range(5)]
    assert [layer.kv_layer for layer in layers] == [None, None, 0, 0, 1]


@pytest.mark.parametrize("name", ["shared-kv", "moe-shared-kv"])
@torch.no_grad()
def test_a_row_of_a_shared_cache_is_replaced(name: str) -> None:
    """A prompt that was read on its own takes a row's place."""
    case = by_name(f"gemma4_text-{name}")
    model, ids = ours(case), tokens(case, 2, 12)
    caches = [KVCache(model.config, n, 12, dtype=torch.float32) for n in (2, 1)]
    model(ids[:, :9].flip(0), context=caches[0])
    for row in range(2):
        caches[1].truncate([0])
        model(ids[row : row + 1, :9], context=caches[1])
        caches[0].overwrite_row(row, caches[1])
    close(model(ids[:, 9:], context=caches[0]), hf_logits(case, ids)[:, 9:])


def test_fresh_weights_do_not_change_the_scale() -> None:
    model = GPT(ours(by_name("gemma4_text-moe-shared-kv")).config)
    for name, t in model.state_dict().items():
        if name.endswith(("layer_scalar", "expert_scale", "input_scale")):
            assert (t == 1).all(), name


@pytest.mark.parametrize("name", ["two-sizes", "k-as-v", "shared-kv-double-wide", "moe-shared-kv"])
def test_compiled_decoding(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    monkeypatch.setattr(transform.shutil, "which", lambda name: name)
    case = by_name(f"gemma4_text-{name}")
    prompt = tokens(case, 1, 7)
    theirs = cases.build(case).generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=20, do_sample=False, pad_token_id=0
    )
    llm = LLM.load(cases.write(case), compile=True)
    mine = llm.generate(prompt[0].tolist(), max_new_tokens=20, temperature=0, ignore_eos=True, return_ids=True)
    assert mine == theirs[0, 7:].tolist()


# --- multimodal checkpoints ----------------------------------------------------------------------------------------

VISION = dict(
    hidden_size=24, intermediate_size=36, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
    head_dim=12, position_embedding_size=64,
)  # fmt: skip


@pytest.mark.parametrize("both_ways", [None, "vision"])
@torch.no_grad()
def test_text_part(both_ways: str | None, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, Gemma4Config, Gemma4ForConditionalGeneration

    own_fields = dict(use_bidirectional_attention=both_ways, pad_token_id=0)
    text = by_name("gemma4_text-shared-kv-double-wide").hf | own_fields
    ids = dict(image_token_id=60, video_token_id=59, audio_token_id=58, boi_token_id=57, eoi_token_id=56)
    more: Any = dict(audio_config=None, eos_token_id=[1, 60], **ids)
    settings = Gemma4Config(text_config=text, vision_config=VISION, **more)
    settings._attn_implementation = "eager"
    theirs = Gemma4ForConditionalGeneration(settings).eval()
    randomize(theirs, 590)
    theirs.save_pretrained(tmp_path / "in")
    file = tmp_path / "in" / "model.safetensors"
    written = load_file(file)
    prefix = "model.language_model."
    own = {n for n in written if n.startswith(prefix)}
    assert len(own) == 5 + 4 * 16 + 2 * 5  # two of the four layers have k and v
    assert {n.split(".")[1] for n in set(written) - own} == {"vision_tower", "embed_vision"}
    # The hub's files have keys and values of all layers.
    unused = {f"{prefix}layers.{i}.self_attn.{p}.weight": torch.ones(3) for i in (2, 3) for p in ("k_proj", "k_norm")}
    save_file(written | unused, file, metadata={"format": "pt"})

    model = load(tmp_path / "in")
    assert (model.config.family, model.config.eos_token_id) == ("gemma4_text", (1, 60))
    prompt = torch.randint(55, (2, 23), generator=torch.Generator().manual_seed(591))
    expected = theirs(prompt, attention_mask=torch.ones_like(prompt), use_cache=False).logits
    close(model(prompt), expected)
    (note,) = open_directory(tmp_path / "in")[2]
    assert "model.vision_tower" in note
    assert "model.language_model" not in note

    save_weights(model.state_dict(), model.config, tmp_path / "out")
    assert {name.split(".")[1] for name in raw_tensors(tmp_path / "out")}.isdisjoint({"language_model", "vision_tower"})
    assert Config.from_hf(tmp_path / "out").to_dict() == model.config.to_dict() | {"name": "out"}
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager").eval()
    assert type(back).__name__ == "Gemma4ForCausalLM"
    close(back(prompt, use_cache=False).logits, expected)

    del written[f"{prefix}layers.0.self_attn.k_proj.weight"]
    save_file(written, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"layers\.0\.self_attn\.k_proj\.weight is missing"):
        load(tmp_path / "in")


# --- what is refused -----------------------------------------------------------------------------------------------

TINY = dict(
    model_type="gemma4_text", vocab_size=61, hidden_size=48, intermediate_size=56, num_hidden_layers=4, head_dim=10,
    global_head_dim=16, num_attention_heads=4, num_key_value_heads=2, hidden_size_per_layer_input=0,
)  # fmt: skip
S, F = "sliding_attention", "full_attention"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(use_bidirectional_attention="all"), "use_bidirectional_attention='all' is not supported"),
        (dict(enable_moe_block=True, num_experts=4), "needs num_experts, top_k_experts and moe_intermediate_size"),
        (dict(attention_k_eq_v=True, num_global_key_value_heads=3), "n_head=4 must be a multiple of full_n_kv_head=3"),
        (dict(layer_types=[S, S, F, F], num_kv_shared_layers=2), "none of the 2 layers before is full"),
        (dict(layer_types=[F] * 4, num_kv_shared_layers=4), "n_kv_shared_layer=4 must be less than n_layer=4"),
        (dict(per_layer_config={"1": {"head_dim": 12}}), "per_layer_config is supported for full layers only"),
        (dict(per_layer_config={"3": {"sliding_window": 12}}), "per_layer_config: sliding_window=12 is not understood"),
        (dict(hidden_size_per_layer_input=4, vocab_size_per_layer_input=60), "layer_input_vocab_size=60 must be at"),
        (dict(rope_parameters={F: {"rope_type": "proportional", "mscale": 1.0}}), "mscale=1.0 is not understood"),
        (dict(altup_num_inputs=4), "altup_num_inputs=4 is not understood"),
    ],
)
def test_problems(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config.from_hf(TINY | fields)
    with pytest.raises(ValueError, match=message):
        Config.from_hf({"model_type": "gemma4", "text_config": TINY | fields})


def test_problems_of_the_whole_config() -> None:
    with pytest.raises(ValueError, match="text_config is missing"):
        Config.from_hf({"model_type": "gemma4", "hidden_size": 48})
    with pytest.raises(ValueError, match="'gemma4' .*\n- depth_config=.* is not understood"):
        Config.from_hf({"model_type": "gemma4", "text_config": TINY, "depth_config": {"hidden_size": 3}})


def test_proportional_rope_goes_with_linear_scaling_only() -> None:
    from litlm.config import DynamicScaling

    rope = RopeConfig(fraction=0.5, proportional=True, scaling=DynamicScaling(factor=2.0, original_max_seq_len=8))
    with pytest.raises(ValueError, match="rope.scaling.kind='dynamic' can't be combined with proportional"):
        Config(vocab_size=11, n_layer=2, n_embd=8, n_head=2, rope=rope)
