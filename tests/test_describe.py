"""What `litlm models` and `litlm describe` say, against transformers, PEFT, PyTorch's own counter, plain counting."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import litlm.cli.describe
from litlm.cli.describe import available_memory, lora_parameters, needs
from litlm.cli.main import main
from litlm.cli.models import parse_parameters
from litlm.config import Config
from litlm.config.counts import forward_flops, mean_attended
from litlm.io.format import format_bytes, format_count
from litlm.settings import DescribeCommand
from litlm.zoo import get_model, list_models

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # PEFT
    pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning"),  # `cache` since 5.24
]

Say = Callable[..., str]
_ODD = dict(vocab_size=101, hidden_size=36, num_hidden_layers=3, num_attention_heads=6, max_position_embeddings=64)
_GROUPED = _ODD | dict(intermediate_size=52, num_key_value_heads=2)
_DELTA = dict(
    head_dim=10, linear_num_key_heads=2, linear_num_value_heads=6, linear_key_head_dim=5, linear_value_head_dim=7,
    linear_conv_kernel_dim=3,
)  # fmt: skip
TINY: dict[str, dict[str, Any]] = {
    "llama": _GROUPED | dict(head_dim=10, tie_word_embeddings=True),
    "qwen2": _GROUPED | dict(tie_word_embeddings=False),
    "gpt_neox": _ODD | dict(intermediate_size=80, rotary_pct=0.67, tie_word_embeddings=False),
    "mixtral": _GROUPED | dict(num_local_experts=5, num_experts_per_tok=2, tie_word_embeddings=False),
    "deepseek_v3": _GROUPED
    | dict(
        num_key_value_heads=6, q_lora_rank=14, kv_lora_rank=12, qk_nope_head_dim=8, qk_rope_head_dim=6, v_head_dim=7,
        n_routed_experts=8, num_experts_per_tok=3, moe_intermediate_size=11, n_shared_experts=2, n_group=4,
        topk_group=2, first_k_dense_replace=1, tie_word_embeddings=False,
    ),
    "gemma4_text": _GROUPED
    | dict(
        num_hidden_layers=5, head_dim=10, global_head_dim=16, sliding_window=64, num_kv_shared_layers=2,
        layer_types=["sliding_attention", "full_attention", "sliding_attention", "sliding_attention", "full_attention"],
        use_double_wide_mlp=True, hidden_size_per_layer_input=4, vocab_size_per_layer_input=101, pad_token_id=None,
    ),
    "lfm2": _GROUPED | dict(layer_types=["conv", "full_attention", "conv"], conv_bias=True, conv_L_cache=4),
    "qwen3_5_text": _GROUPED | _DELTA | dict(layer_types=["linear_attention", "full_attention", "linear_attention"]),
    "qwen3_next": _GROUPED
    | _DELTA
    | dict(
        layer_types=["linear_attention", "linear_attention", "full_attention"], num_experts=5, num_experts_per_tok=2,
        moe_intermediate_size=11, shared_expert_intermediate_size=13, mlp_only_layers=[1],
    ),
    "afmoe": _GROUPED
    | dict(head_dim=10, num_experts=5, num_experts_per_tok=2, moe_intermediate_size=11, sliding_window=64),
    "olmo_hybrid": _GROUPED
    | _DELTA
    | dict(
        head_dim=6, layer_types=["linear_attention", "full_attention", "linear_attention"], pad_token_id=None,
        eos_token_id=2,
    ),
    "lara_mini": _GROUPED
    | _DELTA
    | dict(
        layer_types=["linear_attention", "sliding_attention", "full_attention"], num_experts=5, num_experts_per_tok=2,
        moe_intermediate_size=11, shared_expert_intermediate_size=13, sliding_window=64, eos_token_id=2,
    ),
    "qwen3_5_moe_text": _ODD
    | _DELTA
    | dict(
        num_key_value_heads=2, layer_types=["linear_attention", "full_attention", "linear_attention"], num_experts=5,
        num_experts_per_tok=2, moe_intermediate_size=11, shared_expert_intermediate_size=13,
    ),
    "lfm2_moe": _GROUPED
    | dict(
        layer_types=["conv", "full_attention", "conv"], conv_bias=True, conv_L_cache=4, num_experts=5,
        num_experts_per_tok=2, moe_intermediate_size=11, num_dense_layers=1,
    ),
    "lfm3": _GROUPED
    | dict(
        layer_types=["conv", "full_attention", "sliding_attention"], head_dim=10, sliding_window=64, pad_token_id=None,
    ),
}  # fmt: skip


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Say:
    """Run a command in this process; what it printed."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(
        litlm.cli.describe, "available_memory", lambda: {"this machine's RAM": 20 * 10**9, "GPU 0, B1": 150 * 10**9}
    )

    def call(*argv: str | Path) -> str:
        capsys.readouterr()
        main([str(arg) for arg in argv])
        return capsys.readouterr().out

    return call


def _theirs(family: str) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **TINY[family])
    config._experts_implementation = "eager"
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager")


def _ours(family: str) -> Config:
    return Config.from_hf({"model_type": family} | TINY[family])


def _settings(**options: Any) -> DescribeCommand:
    return DescribeCommand(model="", **options)


# --- counting -------------------------------------------------------------------------------------------------------


def _token_by_token(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, g: torch.Tensor, beta: torch.Tensor, **_: Any
) -> tuple[torch.Tensor, None]:
    """The gated delta rule as published, in matrix products. q, k: (1, T, H, D); v: (1, T, H, E); g, beta: (1, T, H)"""
    q, k = (x[0].repeat_interleave(v.size(2) // x.size(2), 1)[..., None] for x in (q, k))  # (T, H, D, 1)
    state, outputs = v.new_zeros(v.size(2), k.size(2), v.size(3)), []
    for t in range(v.size(1)):
        state = state * g[0, t].exp()[:, None, None]
        correction = beta[0, t, :, None] * (v[0, t] - torch.bmm(k[t].mT, state)[:, 0])
        state = state + torch.bmm(k[t], correction[:, None])
        outputs.append(torch.bmm(q[t].mT, state)[:, 0])
    return torch.stack(outputs)[None], None


@pytest.mark.parametrize("family", TINY)
@pytest.mark.parametrize("length", [1, 7])
def test_operations_as_pytorch_counts_them(family: str, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model = _theirs(family)
    modeling = sys.modules[type(model).__module__]
    if hasattr(modeling, "torch_chunk_gated_delta_rule"):  # whose chunks are padded to 64 tokens
        monkeypatch.setattr(modeling, "torch_chunk_gated_delta_rule", _token_by_token)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.arange(length)[None] % 101, use_cache=False)
    counts = counter.get_flop_counts()
    angles = sum(sum(n.values()) for module, n in counts.items() if module.endswith("rotary_emb"))
    # It multiplies every query with every key, so all `length` tokens see `length`: the mean in a row twice as long.
    # Its convolutions go on behind the row.
    convs = [m for m in model.modules() if isinstance(m, torch.nn.Conv1d)]
    behind = sum(2 * c.weight.numel() * (c.kernel_size[0] - 1) for c in convs)
    expected = (counter.get_total_flops() - angles - behind) / length
    assert forward_flops(_ours(family), 2 * length - 1) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("window", [None, 1, 4, 9, 30])
@pytest.mark.parametrize("chunked", [False, True])
def test_tokens_that_a_token_sees(window: int | None, chunked: bool) -> None:
    kind = "full" if window is None else "chunked" if chunked else "sliding"
    config = Config(
        vocab_size=9, n_layer=1, n_embd=8, n_head=2, layer_types=(kind,), sliding_window=window, max_seq_len=64
    )
    for length in (1, 2, 8, 9, 10, 31):
        total = 0
        for query in range(length):
            for key in range(query + 1):
                if kind == "sliding":
                    total += query - key < (window or 0)
                elif kind == "chunked":
                    total += query // (window or 1) == key // (window or 1)
                else:
                    total += 1
        assert mean_attended(length, config.layer(0)) == pytest.approx(total / length, rel=1e-12)


@pytest.mark.parametrize("family", ["llama", "qwen2", "lfm2", "lfm3", "qwen3_5_text"])
def test_adapters_as_peft_makes_them(family: str) -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(_theirs(family), LoraConfig(r=5, target_modules="all-linear", task_type="CAUSAL_LM"))
    assert lora_parameters(_ours(family), 5) == model.get_nb_trainable_parameters()[0]


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3", "lfm2_moe", "qwen3_5_moe_text"])
def test_adapters_beside_experts(family: str) -> None:
    """transformers' experts are no linear layers, and neither are litlm's."""
    layers = _theirs(family).model.layers.modules()
    sizes = [m.in_features + m.out_features for m in layers if isinstance(m, torch.nn.Linear)]
    assert lora_parameters(_ours(family), 5) == 5 * sum(sizes)


def test_adapters_where_files_fuse() -> None:
    """GPT-NeoX keeps q, k and v in one matrix; each has an adapter here."""
    attentions = 3 * 4 * (36 + 36)
    mlps = 3 * 2 * (36 + 80)
    assert lora_parameters(_ours("gpt_neox"), 7) == 7 * (attentions + mlps)


@pytest.mark.parametrize("family", TINY)
def test_training_memory_as_pytorch_holds_it(family: str) -> None:
    model = _theirs(family)
    optimizer = torch.optim.AdamW(model.parameters())
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    held = [t for p in model.parameters() for t in (p, p.grad, *optimizer.state[p].values()) if t.dim() > 0]
    # The bias for the choice of experts gets no gradient in transformers; litlm counts it as a weight.
    biases = sum(b.numel() for n, b in model.named_buffers() if n.endswith(("e_score_correction_bias", "expert_bias")))
    found = needs(_ours(family), _settings(dtype="float32"))
    assert found["training_bytes"] == sum(t.numel() * t.element_size() for t in held) + 16 * biases
    assert found["weight_bytes"] == 4 * (model.num_parameters() + biases)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt_neox", "mixtral"])
def test_cache_as_transformers_keeps_it(family: str) -> None:
    from transformers import DynamicCache

    cache = DynamicCache()
    with torch.no_grad():
        _theirs(family)(torch.zeros(3, 11, dtype=torch.long), cache=cache, use_cache=True)
    layers: list[Any] = cache.layers
    held = sum(t.numel() * t.element_size() for layer in layers for t in (layer.keys, layer.values))
    found = needs(_ours(family), _settings(dtype="float32", batch_size=3, context=11))
    assert found["cache_bytes"] == held
    assert found["generation_bytes"] == held + found["weight_bytes"]
    half = needs(_ours(family), _settings(dtype="float16", batch_size=3, context=11))
    assert 2 * half["cache_bytes"] == held


@pytest.mark.parametrize("family", ["lfm2", "lfm2_moe", "lfm3", "qwen3_5_text", "qwen3_5_moe_text", "qwen3_next"])
@pytest.mark.parametrize("length", [2, 11])
def test_states_as_transformers_keeps_them(family: str, length: int) -> None:
    from transformers import DynamicCache

    model = _theirs(family).bfloat16()
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(torch.zeros(3, length, dtype=torch.long), past_key_values=cache, use_cache=True)
    held: list[torch.Tensor] = []
    for layer in cache.layers:
        if hasattr(layer, "conv_states"):
            held += [t[..., 1:] for t in layer.conv_states.values()]  # one token more than is used
            held += [t for t in layer.recurrent_states.values() if t is not None]
        else:
            held += [layer.keys, layer.values]  # type: ignore[list-item]
    found = needs(_ours(family), _settings(dtype="bfloat16", batch_size=3, context=length))
    assert found["cache_bytes"] == sum(t.numel() * t.element_size() for t in held)
    growing = 3 * length * found["cache_bytes_per_token"]
    assert found["cache_bytes"] == growing + 3 * found["state_bytes_per_row"] > growing > 0


def test_a_latent_cache() -> None:
    """DeepSeek-V2's paper, section 2.1: (d_c + d_h^R) elements a token and layer, 576 in V2 and V3."""
    found = needs(Config.from_name("deepseek-v3"), _settings(dtype="bfloat16"))
    assert found["cache_bytes_per_token"] == 61 * 576 * 2


def test_published_operations() -> None:
    """6 N per token in training without attention (Kaplan et al. 2020); GPT-3's habit, close for a short row."""
    config = Config.from_name("llama-2-7b-hf")
    embeddings = config.vocab_size * config.n_embd
    assert 3 * forward_flops(config, 1) == pytest.approx(6 * (config.n_parameters() - embeddings), rel=1e-3)


def test_numbers_for_people() -> None:
    assert [format_count(n) for n in (12, 9400, 134515008, 8.03e9, 1.04e12)] == ["12", "9.4k", "135M", "8.03B", "1.04T"]
    assert [format_count(n) for n in (999.4, 999.6, 999.4e6, 999.6e6, 1e9)] == ["999", "1k", "999M", "1B", "1B"]
    assert [format_bytes(n) for n in (12, 46080, 1.6e10, 2.7e12)] == ["12 bytes", "46.1 kB", "16 GB", "2.7 TB"]
    assert [format_bytes(n) for n in (999, 999.6e3, 999.4e9)] == ["999 bytes", "1 MB", "999 GB"]
    assert [parse_parameters(t) for t in ("8B", " 700m", "1e9", "1.5k", "2T")] == [8e9, 7e8, 1e9, 1.5e3, 2e12]
    for text in ("", "big", "8GB", "-1B", "1.2.3M"):
        with pytest.raises(ValueError, match="write it as 8B or 700M"):
            parse_parameters(text)


# --- this machine ---------------------------------------------------------------------------------------------------


def test_memory_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (ram,) = available_memory().values()  # without nvidia-smi
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        assert ram == int(meminfo.read_text().split()[1]) * 1024
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA A, with comma, 81559'\necho 'NVIDIA B, 1'\necho 'Odd, [N/A]'\n")
    tool.chmod(0o755)
    assert available_memory() == {
        "this machine's RAM": ram,
        "GPU 0, NVIDIA A, with comma": 81559 * 2**20,
        "GPU 1, NVIDIA B": 2**20,
    }
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert list(available_memory()) == ["this machine's RAM"]


# --- litlm describe -------------------------------------------------------------------------------------------------


def test_describe_counts_by_hand(say: Say) -> None:
    out = " ".join(say("describe", "llama-3.1-8b", "--batch_size", "4", "--context", "8192").split())
    for text in (
        "llama-3.1-8b (meta-llama/Llama-3.1-8B, llama3.1)",
        "8,030,261,248 (8.03B)",
        "weights 16.1 GB",  # 2 bytes each
        "131 kB a token, 4.29 GB for 8,192 tokens and 4 rows",  # 2 * 32 layers * 8 heads * 128 * 2 bytes
        "68.7 GB for a full context",
        "LoRA 21M parameters at r=8 on all linear layers: 16.4 GB",
        "full training 128 GB: weights, gradients and two AdamW moments in float32, before activations",
        "17.2B FLOPs a token forward, 51.5B in training, in rows of 8,192 tokens",
        "this machine's RAM 20 GB: generation does not fit, LoRA fits, full training does not fit",
        "GPU 0, B1 150 GB: generation fits, LoRA fits, full training fits",
        "unlike Llama nothing",
    ):
        assert text in out
    assert " active" not in out
    assert "16.1 GB" not in say("describe", "llama-3.1-8b", "--dtype", "float32").split("LoRA")[0]


def test_describe_as_json(say: Say) -> None:
    found = json.loads(say("describe", "Mixtral-8x7B-v0.1", "--context", "100", "--json"))
    config = Config.from_name("mixtral-8x7b-v0.1")
    assert (found["name"], found["hub_id"]) == ("mixtral-8x7b-v0.1", "mistralai/Mixtral-8x7B-v0.1")
    assert (found["license"], found["gated"], found["chat"]) == ("apache-2.0", False, False)
    assert (found["parameters"], found["active_parameters"]) == (46702792704, 12879925248)
    assert (found["context"], found["cache_bytes"]) == (100, 100 * 32 * 2 * 1024 * 2)
    assert Config.from_dict(found["config"]) == config
    assert found["machine"]["this machine's RAM"] == 20 * 10**9


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("pythia-160m", ("block parallel", "norm.kind=layer", "attention.bias=True", "mlp.kind=plain", "on 0.25 of")),
        ("qwen3-30b-a3b", ("attention.qk_norm", "moe.n_expert=128", "8 of 128 experts of 768", "3.35B) active")),
        ("gpt-oss-20b", ("12 of 24 layers see 128 tokens", "attention.sinks=True", "mlp.activation=clamped")),
        ("deepseek-v3", ("3 of 61 layers without moe", "attention.latent.kv_rank=512", "one of 2048 for all")),
        ("gemma-2-9b", ("block sandwich", "norm.offset=True", "attention.softcap=50", "21 of 42 layers see 4,096")),
        ("gemma-3-4b-it", ("29 of 34 layers see 1,024 tokens", "linear scaling by 8; theta 10,000 in sliding")),
        ("gemma-4-31b", ("32 heads of 256, 16 for keys and values; in 10 full layers heads of 512, 4 for keys",)),
        ("gemma-4-e2b", ("8 heads of 256, 1 for keys and values; in 7 full layers heads of 512, 1 for keys",)),
        ("olmo-2-1124-7b", ("block post", "attention.qk_norm.over=all")),
        ("granite-3.0-8b-instruct", ("embed_scale=12", "residual_scale=0.22", "logit_scale=0.0625")),
        ("smollm3-3b", ("9 of 36 layers without rope",)),
        ("gpt2", ("none, learned positions", "no rope")),
        (
            "lfm2-350m",
            (
                "16 heads of 64, 8 for keys and values, in 6 of 16 layers",
                "10 of 16 layers: gated short convolution over 3 tokens",
                "unlike Llama attention.qk_norm in bfloat16",
                # 2 * 6 layers * 8 heads * 64 * 2 bytes; 10 layers * 2 tokens * 1024 channels * 2 bytes
                "12.3 kB a token and 41 kB of recurrent state a row, 50.4 MB for 4,096 tokens",
            ),
        ),
        (
            "qwen3.5-0.8b",
            (
                "2 for keys and values, in 6 of 24 layers; a sigmoid gate for each channel of their output",
                "18 of 24 layers: Gated DeltaNet, 16 heads with a state of 128 x 128 each, 16 for queries and keys",
                "keys, convolution over 4 tokens",
                "norm.offset=True, attention.qk_norm.norm.offset=True, attention.gate in bfloat16",
                # 18 layers * (16 heads * 128 * 128 * 4 bytes + 3 tokens * 6144 channels * 2 bytes)
                "12.3 kB a token and 19.5 MB of recurrent state a row",
            ),
        ),
        (
            "olmo-hybrid-7b",
            (
                "30 heads of 128, 30 for keys and values, in 8 of 32 layers",
                "24 of 32 layers: Gated DeltaNet, 30 heads with a state of 96 x 192 each, 30 for queries and keys",
                "beta up to 2", "block post, attention.qk_norm.over=all, recurrent_block=pre, no rope",
            ),
        ),
        (
            "trinity-mini",
            (
                "a sigmoid gate for each channel of their output", "8 of 128 experts of 1024 and one of 1024 for all",
                "24 of 32 layers see 2,048 tokens", "8 of 32 layers without rope", "2 of 32 layers without moe",
                "block sandwich", "embed_scale=45.25",
            ),
        ),
    ],
)  # fmt: skip
def test_what_differs_from_llama(name: str, texts: tuple[str, ...], say: Say) -> None:
    out = " ".join(say("describe", name).split())
    for text in texts:
        assert text in out


def test_every_model_can_be_described() -> None:
    for name in list_models():
        config = Config.from_name(name)
        found = needs(config, _settings())
        assert found["context"] == min(config.max_seq_len, 4096)
        assert all(text and "None" not in text for text in found["unlike_llama"])
        assert 0 < found["lora_parameters"] < found["parameters"]
        embedded = config.vocab_size * (config.n_embd + config.n_layer * config.layer_input_dim)
        assert found["forward_flops_per_token"] > 1.5 * (found["active_parameters"] - embedded)


def test_describe_of_paths(say: Say, tmp_path: Path) -> None:
    place = tmp_path / "mine"
    place.mkdir()
    (place / "config.json").write_text(json.dumps({"model_type": "llama"} | TINY["llama"]))
    assert say("describe", place).splitlines()[0] == str(place)
    found = json.loads(say("describe", place, "--json"))
    assert "hub_id" not in found
    assert found["parameters"] == _theirs("llama").num_parameters()


def test_several_models_side_by_side(say: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "gpt2", "r": 8}))
    lines = say("describe", "gpt2", "llama-3.2-1b", tmp_path).splitlines()
    rows = {line[:18].strip(): line for line in lines if line[:18].strip()}
    for row, texts in {
        "family": ("gpt2", "llama"),
        "parameters": ("124,439,808", "1,235,814,400"),
        "context": ("1,024 tokens", "131,072 tokens"),
        "adapter": ("LORA, r=8",),
        "base model": ("gpt2",),
    }.items():
        places = [rows[row].index(text) for text in texts]
        assert places == sorted(places)
        assert places == [rows["weights"].index(text) for text in ("249 MB", "2.47 GB")] or len(places) == 1
    assert rows["adapter"].index("LORA") == rows["base model"].index("gpt2") > rows["weights"].index("2.47 GB")
    both = json.loads(say("describe", "gpt2", "llama-3.2-1b", "--json"))
    assert both == [json.loads(say("describe", name, "--json")) for name in ("gpt2", "llama-3.2-1b")]


def test_describe_of_a_config_in_yaml(say: Say, tmp_path: Path) -> None:
    config = Config(vocab_size=50, n_layer=2, n_embd=16, n_head=2)
    config.to_yaml(tmp_path / "c.yaml")
    assert json.loads(say("describe", tmp_path / "c.yaml", "--json"))["parameters"] == config.n_parameters()


def test_all_models_that_are_not_there_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["describe", "gpt2", "gpt2x", "no-such"])
    out, err = capsys.readouterr()
    assert out == ""
    assert "'gpt2x'. Did you mean 'gpt2'" in err
    assert "'no-such'" in err


@pytest.mark.parametrize(
    ("argv", "texts"),
    [
        (("--context", "9000000"), ("context=9000000", "131072")),
        (("--context", "0", "--batch_size", "-1"), ("context=0 must be at least 1", "batch_size=-1")),
        (("--dtype", "int3"), ("dtype", "int3")),
    ],
)
def test_mistakes(argv: tuple[str, ...], texts: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["describe", "llama-3.1-8b", *argv])
    err = capsys.readouterr().err
    for text in texts:
        assert text in err


# --- adapters -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", ["pythia-14m", "nobody/nothing"])
def test_describe_of_an_adapter(base: str, say: Say, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(_theirs("llama"), LoraConfig(r=3, lora_alpha=6, target_modules=["v_proj", "q_proj"]))
    model.peft_config["default"].base_model_name_or_path = base
    model.save_pretrained(str(tmp_path), save_embedding_layers=False)
    trained = model.get_nb_trainable_parameters()[0]
    out = " ".join(say("describe", tmp_path).split())
    for text in (
        "LORA, r=3, alpha=6",
        f"base model {base}",
        "targets q_proj, v_proj",
        f"trainable {trained:,} parameters",
    ):
        assert text in out
    assert ("of the base model's 14.1M" in out) == (base == "pythia-14m")
    found = json.loads(say("describe", tmp_path, "--json"))
    assert (found["base"], found["trainable_parameters"]) == (base, trained)
    assert found["base_parameters"] == (14067712 if base == "pythia-14m" else None)
    (tmp_path / "adapter_model.safetensors").unlink()
    assert "no adapter_model.safetensors here" in say("describe", tmp_path)


# --- litlm models ---------------------------------------------------------------------------------------------------


def _names(out: str) -> set[str]:
    return {entry["name"] for entry in json.loads(out)}


def test_models_as_json(say: Say) -> None:
    entries = json.loads(say("models", "--json"))
    assert [entry["name"] for entry in entries] != sorted(entry["name"] for entry in entries)  # by family and size
    assert {entry["name"] for entry in entries} == set(list_models())
    order = [(entry["family"], entry["parameters"]) for entry in entries]
    assert order == sorted(order)
    one = next(entry for entry in entries if entry["name"] == "mixtral-8x7b-v0.1")
    assert one["active_parameters"] == 12879925248
    assert one["style"] is None


def test_filters(say: Say) -> None:
    infos = {name: get_model(name) for name in list_models()}
    parameters = {name: Config.from_name(name).n_parameters() for name in infos}

    def fits(**wanted: Callable[[str], bool]) -> set[str]:
        return {name for name in infos if all(test(name) for test in wanted.values())}

    found = _names(say("models", "--access", "gated", "--kind", "base", "--json"))
    assert found == fits(a=lambda n: infos[n].gated, b=lambda n: not infos[n].chat)
    found = _names(say("models", "--access", "open", "--kind", "chat", "--license", "Apache", "--json"))
    assert found == fits(a=lambda n: infos[n].license == "apache-2.0", b=lambda n: infos[n].chat)
    assert _names(say("models", "--max_size", "0.5B", "--json")) == fits(a=lambda n: parameters[n] <= 5e8)
    experts = {"num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"}
    assert _names(say("models", "--moe", "--json")) == fits(a=lambda n: bool(experts & infos[n].hf.keys()))
    assert _names(say("models", "freewilly", "--json")) == {"stablebeluga2"}  # by an alias
    assert _names(say("models", "HuggingFaceTB/", "--kind", "base", "--max_size", "1B", "--json")) == {
        "smollm2-135m", "smollm2-360m",
    }  # fmt: skip


def test_the_table(say: Say) -> None:
    out = say("models")
    lines = out.splitlines()
    assert "…" not in out
    assert max(map(len, lines)) < 200
    families = {get_model(name).hf["model_type"] for name in list_models()}
    assert families <= {line.strip() for line in lines}
    assert lines[-3].startswith(f"{len(list_models())} models.")
    gemma = next(line for line in lines if line.split()[:1] == ["gemma-3-1b-it"])
    assert gemma.split() == ["gemma-3-1b-it", "1B", "32,768", "gemma3", "gemma", "*", "google/gemma-3-1b-it"]
    falcon = next(line for line in lines if line.split()[:1] == ["falcon3-1b-instruct"])
    assert "falcon3 ?" in falcon
    assert "(base)" in next(line for line in lines if line.split()[:1] == ["gpt2-xl"])
    mixtral = next(line for line in lines if line.split()[:1] == ["mixtral-8x7b-v0.1"])
    assert mixtral.split()[1:3] == ["46.7B", "12.9B"]


def test_nothing_fits(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["models", "llama", "--family", "qwen3", "--moe"])
    err = capsys.readouterr().err
    assert "No model fits match='llama', family='qwen3', moe=True. `litlm models` lists all." in err


def test_no_torch_is_imported() -> None:
    import subprocess
    import sys

    code = (
        "import sys\nfrom litlm.cli.main import main\nmain(['describe', 'gpt2'])\nmain(['models', 'gpt2'])\n"
        "assert 'torch' not in sys.modules, 'torch'"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=600, capture_output=True, env=os.environ | {"COLUMNS": "200"}
    )
