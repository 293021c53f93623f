"""What litlm exports, llama.cpp's own converter turns into GGUF files; what litlm reads from them is the same model."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from packages import unpacked
from parity.cases import CASES, Case, close, hf_logits, ours, tokens
from safetensors.torch import load_file, save_file

from litlm.checkpoint.base import load_model
from litlm.checkpoint.gguf import GGUFSource
from litlm.checkpoint.hf import save_weights
from litlm.config import Config
from litlm.families import GGUFFields

# Families that llama.cpp's converter doesn't know.
_WITHOUT = """
    apertus1p5_text axk1 codegen cwm flex_olmo flint gemma4_unified_text gpt_neo gptj helium hyperclovax kolibri1
    lara_mini lfm3 ministral nanochat olmo_hybrid opt persimmon sarvam_mla vaultgemma
"""
WITHOUT = _WITHOUT.split()

# What the converter refuses.
REFUSED = {
    "cohere-qk-norm-untied-biases": "an output matrix of its own",
    "cohere2-layers": "biases",
    "cohere2-untied-linear": "an output matrix of its own",
    "cohere2_moe-bare-dense-layers-biases": "biases",
    "cohere2_moe-two-shared-sum-sigmoid-rms": "a shared expert that is not averaged",
    "exaone-wide-heads-biases-mha": "another activation",
    "falcon-180b-mqa": "biases with the new decoder",
    "falcon-old-biases": "the sequential block",
    "falcon-old-mqa": "the sequential block",
    "gemma2-mqa-uncapped": "scores without a cap",
    "gemma4_text-one-size-untied-biases": "rope of full layers other than the proportional one",
    "gemma4_text-pattern-ends-midway": "rope of full layers other than the proportional one",
    "granite-wide-heads-llama3": "Llama 3's rope",
    "granitemoehybrid-mha": "another activation",
    "lfm2-wide-kernel-biases-untied": "biases of convolutions",
    "lfm2_moe-wide-kernel-biases-untied": "an output matrix of its own",
    "mellum-all-sliding": "layers without experts",
    "mellum-dense-layer-tied-mqa": "layers without experts",
    "minicpm3-no-scales": "queries without a latent",
    "ministral3-mqa-tied-window": "YaRN without mscale_all_dim",
    "ministral3-no-growth": "YaRN without mscale_all_dim",
    "ministral3-plain-rope": "rope other than YaRN",
    "phi-gqa-norms-tied": "normed queries and keys",
    "phi-whole-linear": "normed queries and keys",
    "qwen2_moe-dense-first-tied": "layers without experts",
    "qwen2_moe-normalized-every-other-layer": "layers without experts",
    "qwen3_moe-dense-layers-biases": "layers without experts",
    "qwen3_moe-mqa-tied-step": "layers without experts",
    "qwen3_next-equal-heads-dense-layers": "layers without experts",
}

# What the converter writes, but not as the model that it was.
BROKEN = {
    "gemma-untied-biases": "the output matrix is left out",
    "gemma2-layers-biases": "the output matrix is left out",
    "olmo-clipped": "weights of q and k are permuted, their biases aren't",
    "apertus-relu2": "files have xIELU's numbers",
}

# Fields of the config that a GGUF file doesn't state, so what litlm reads is llama.cpp's fixed choice for all models of
# the architecture (its activation function, its pattern of layers, ...). With these restored it must be the same model.
_LOST = {
    "attention": """
        gemma2-plain gemma3_text-two-ropes gpt2-one-head mistral4-groups mistral4-one-head
        mistral4-plain-queries mpt-clip-scale
    """,
    "attention layer_types": """
        gemma2-all-full gemma3_text-one-rope
    """,
    "attention layer_types mlp": """
        gemma3_text-capped-untied
    """,
    "attention layer_types sliding_rope": """
        gemma3_text-both-scaled
    """,
    "attention mlp": """
        gpt_bigcode-unscaled-inner
    """,
    "attention mlp rope": """
        gemma2-yarn-gelu
    """,
    "attention moe": """
        olmoe-normalized-clipped
    """,
    "attention rope": """
        mistral4-halves
    """,
    "attention sliding_window": """
        llama4_text-all-experts llama4_text-interleaved llama4_text-small-chunks
    """,
    "embed_scale layer_types rope_layers": """
        afmoe-mqa-tied-biases
    """,
    "embed_scale logit_scale mlp residual_scale": """
        minicpm3-biases
    """,
    "head_dim": """
        granitemoe-wide-heads-yarn
    """,
    "head_dim mlp norm rope": """
        glm-whole-heads-gelu
    """,
    "head_dim norm": """
        glm-mqa-no-bias
    """,
    "head_dim norm rope": """
        glm-yarn
    """,
    "layer_types": """
        gemma3_text-linear gpt_oss-all-sliding
    """,
    "layer_types mlp": """
        gpt_oss-full-first
    """,
    "layer_types mlp sliding_window": """
        starcoder2-sliding
    """,
    "layer_types moe_layers rope_layers sliding_window": """
        llama4_text-no-temperature
    """,
    "layer_types rope_layers": """
        afmoe-all-full-one-expert
    """,
    "layer_types rope_layers sliding_window": """
        smollm3-sliding smollm3-untied-layers
    """,
    "layer_types sliding_window": """
        dots1-last-slide dots1-sliding mistral-mqa-tied-window-one mistral-window mixtral-window-tied
        qwen2-sliding-last-layers qwen2-sliding-pattern qwen2_moe-sliding-yarn qwen3-linear-sliding
        qwen3-sliding-last-layers qwen3-sliding-one qwen3-sliding-pattern qwen3_moe-sliding-yarn
    """,
    "mlp": """
        arcee-mha-silu deepseek_v2-biases-tied ernie4_5-mqa exaone4-no-rope-at-all falcon-11b
        glm4-whole-heads-gelu glm4_moe-unnormalized gpt2-narrow-heads gpt2-untied-inner
        gpt_neox-no-attention-bias gpt_neox-sequential-full-rope internlm3-mqa jais2-tied-gelu llama-llama3
        llama-wide-heads-gelu minimax_m2-mqa mixtral-k1-linear olmo-tied-wide-heads olmo2-tied-wide-heads
        olmo3-all-sliding olmoe-mha-linear phi3-theta-gelu qwen3-yarn-mscale youtu-yarn
    """,
    "mlp rope": """
        gemma-linear-silu gpt_neox-odd-share llama-yarn-untruncated nemotron-tied-whole-heads stablelm-norms-mqa
    """,
    "mlp rope_layers": """
        smollm3-yarn
    """,
    "mlp sliding_window": """
        mistral-long-window-yarn
    """,
    "moe": """
        mellum-one-rope-biases phimoe-window-tied-mqa
    """,
    "moe n_kv_head": """
        lfm2_moe-all-conv-not-normalized
    """,
    "moe rope": """
        phimoe-longrope phimoe-longrope-mha
    """,
    "moe_layers": """
        ernie4_5_moe-first-layers glm4_moe_lite-pattern
    """,
    "moe_layers rope": """
        exaone_moe-lists
    """,
    "n_kv_head": """
        lfm2-all-conv-adjusted
    """,
    "n_kv_head rope": """
        phi-odd-share
    """,
    "norm": """
        glm-plain mpt-six-heads
    """,
    "rope": """
        cohere-linear deepseek_v3-halves-all-dense gemma4_text-k-as-v glm4_moe_lite-plain-queries gpt_neox-linear
        gpt_neox-yarn phi3-mini4 sarvam_moe-mha-tied-part-rope youtu-halves
    """,
    "rope rope_layers": """
        granitemoehybrid-no-rope-mqa-tied
    """,
    "rope_layers": """
        cohere2-no-rope-at-all granite_swa-some-without-rope llama4_text-full-layers
    """,
    "rope_layers sliding_rope": """
        granite_swa-full-without-rope-mqa granitemoe_swa-none-shared-tied
    """,
    "sliding_rope": """
        granite_swa-thetas-untied
    """,
}
LOST = {case: fields.split() for fields, cases in _LOST.items() for case in cases.split()}

CONVERTED = [c for c in CASES if c.family not in WITHOUT and c.name not in REFUSED]


def _add_unread(file: Path, config: Config) -> None:
    """What published files hold and litlm doesn't read.

    Gemma 4's have keys and values for the layers that read those of others too, Qwen's a layer that predicts a second
    token.
    """
    more: dict[str, torch.Tensor] = {}
    if config.n_kv_shared_layer:
        layers = range(config.n_layer - config.n_kv_shared_layer, config.n_layer)
        parts = ("k_proj", "v_proj", "k_norm")
        more = {f"model.layers.{i}.self_attn.{part}.weight": torch.ones(3, 5) for i in layers for part in parts}
    elif config.family.startswith("qwen3_") and config.recurrent is not None and config.n_layer == 4:
        names = ("fc", "norm", "layers.0.input_layernorm", "layers.0.self_attn.q_proj")
        more = {f"mtp.{name}.weight": torch.ones(3, 5) for name in names}
    if more:
        save_file(load_file(file) | more, file, metadata={"format": "pt"})


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All cases, converted in one process, and one of each family that can't be."""
    root = tmp_path_factory.mktemp("gguf")
    jobs = []
    others = {case.family: case for case in CASES if case.family in WITHOUT}
    for case in [*CONVERTED, *others.values(), *(case for case in CASES if case.name in REFUSED)]:
        model = ours(case)
        name = case.family if case.family in WITHOUT else case.name
        save_weights(model.state_dict(), model.config, root / name)
        _add_unread(root / name / "model.safetensors", model.config)
        jobs.append([str(root / name), str(root / f"{name}.gguf")])
    (root / "jobs.json").write_text(json.dumps(jobs))
    llama_cpp = unpacked("llama-cpp-python==0.3.36") / "vendor" / "llama.cpp"
    script = Path(__file__).with_name("convert_gguf.py")
    subprocess.run([sys.executable, script, llama_cpp, root / "jobs.json"], check=True, capture_output=True)
    return root


@pytest.mark.parametrize("case", [case for case in CONVERTED if case.name not in BROKEN], ids=str)
@torch.no_grad()
def test_gguf_files_hold_the_same_model(case: Case, files: Path) -> None:
    path = files / f"{case.name}.gguf"
    error = path.with_suffix(".gguf.error")
    assert not error.exists(), error.read_text()
    source, original = GGUFSource(path), ours(case).config
    restored = {field: getattr(original, field) for field in LOST.get(case.name, ())}
    assert all(getattr(source.config, field) != value for field, value in restored.items())
    config = dataclasses.replace(source.config, **restored)
    model = load_model(config, source, device=torch.device("cpu"), dtype=torch.float32)
    ids = tokens(case, 3, 41)
    close(model(ids), hf_logits(case, ids))


@pytest.mark.parametrize(
    ("changes", "values", "message"),
    [
        ({"attention.head_count_kv": [2, 1, 1, 1]}, [1.0], r"head_count_kv=\[2, 1, 1, 1\] differs among"),
        ({"feed_forward_length": [56, 112, 56, 112]}, [1.0], "only the last 1 layers"),
        ({"feed_forward_length": [56, 56, 56, 113]}, [1.0], "twice the width"),
        ({"attention.value_length_swa": 9}, [1.0], "value_length_swa=9 is not supported .* only 10"),
        ({"rope.scaling.type": "yarn"}, [1.0], "'yarn' is not supported"),
        ({}, [], "must hold 8 numbers"),
        ({}, [1.0, 2.0], "must hold 8 numbers"),
        ({}, [1e30, 1.0], "must hold 8 numbers"),
    ],
)
def test_what_gemma4_can_not_be(changes: dict[str, Any], values: list[float], message: str, files: Path) -> None:
    source = GGUFSource(files / "gemma4_text-moe-shared-kv.gguf")
    divisors = {"rope_freqs.weight": values + [1e30] * (8 - len(values)) if values else []}
    metadata = source.metadata | {f"gemma4.{key}": value for key, value in changes.items()}
    assert source.family.gguf is not None
    with pytest.raises(ValueError, match=message):
        source.family.gguf.from_gguf(GGUFFields(metadata, source.shapes(), divisors))


def test_layers_of_lfm2_that_attend_are_alike(files: Path) -> None:
    source = GGUFSource(files / "lfm2-plain.gguf")
    metadata = source.metadata | {"lfm2.attention.head_count_kv": [0, 2, 1, 0]}
    assert source.family.gguf is not None
    with pytest.raises(ValueError, match=r"head_count_kv=\[0, 2, 1, 0\] differs among layers that attend"):
        source.family.gguf.from_gguf(GGUFFields(metadata, source.shapes()))


@torch.no_grad()
def test_older_files_of_qwen3_next_have_two_projections_in_one(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(case for case in CONVERTED if case.name == "qwen3_next-plain")
    source = GGUFSource(files / f"{case.name}.gguf")
    one = {
        f"blk.{name.split('.')[2]}.ssm_in.weight": tensor
        for name, tensor in load_file(files / case.name / "model.safetensors").items()
        if "in_proj_qkvz" in name
    }
    others = {name: s for name, s in source.shapes().items() if "attn_qkv" not in name and "attn_gate" not in name}
    read = source.read
    monkeypatch.setattr(source, "shapes", lambda: others | {name: tuple(t.shape) for name, t in one.items()})
    monkeypatch.setattr(source, "read", lambda name: one[name] if name in one else read(name))
    model = load_model(source.config, source, device=torch.device("cpu"), dtype=torch.float32)
    ids = tokens(case, 3, 41)
    close(model(ids), hf_logits(case, ids))


def test_what_is_not_read_is_refused_by_the_converter(files: Path) -> None:
    for name in REFUSED:
        assert (files / f"{name}.gguf.error").exists(), name
    for family in WITHOUT:
        assert "NotImplementedError: Architecture" in (files / f"{family}.gguf.error").read_text(), family


def test_the_lists_name_cases() -> None:
    names, families = {case.name for case in CASES}, {case.family for case in CASES}
    assert names >= set(REFUSED) | set(BROKEN) | set(LOST)
    assert families >= set(WITHOUT)
    assert not set(LOST) & (set(REFUSED) | set(BROKEN))
