"""PEFT's format where it is more than one adapter per linear layer: fused layers, stacked experts, transposed weights,
DoRA, rank-stabilized scales, modules trained whole, larger embeddings. Values and gradients against PEFT's own."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from parity import cases
from parity.cases import Case
from safetensors.torch import load_file, save_file
from torch import Tensor

from litlm.checkpoint.peft import CONFIG, WEIGHTS, load_adapter, save_adapter
from litlm.checkpoint.peft_targets import adapter_targets
from litlm.model import GPT
from litlm.ops.cross_entropy import cross_entropy_sum
from litlm.settings import MethodSettings
from litlm.transforms.lora import adapters, adapters_disabled, apply_lora, merged_state, trained_whole

pytestmark = [
    # PEFT reads a property that transformers has renamed.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    # It looks for the names of patterns among modules only, then applies them to parameters all the same.
    pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys did not match:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False but the target module is `Conv1D`"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
]
NEOX, PHI3, FALCON, GPT2, CODEGEN, BLOOM, MPT, BIGCODE, GLM, PERSIMMON, LLAMA, TIED = (
    cases.by_name(name)
    for name in (
        "gpt_neox-odd-share", "phi3-mini", "falcon-7b", "gpt2-plain", "codegen-plain", "bloom-plain", "mpt-plain",
        "gpt_bigcode-mqa", "glm-plain", "persimmon-plain", "llama-mha-biases", "llama-mqa-tied",
    )
)  # fmt: skip
LFM2_MOE, LFM3, QWEN35_MOE = (
    cases.by_name(name)
    for name in ("lfm2_moe-plain", "lfm3-mqa-untied-biases-narrow-kernel", "qwen3_5_moe_text-tied-mqa-one-expert")
)
MIXTRAL, QWEN_MOE, GPT_OSS, LLAMA4, GRANITE, DEEPSEEK, SARVAM, HY, KOLIBRI = (
    cases.by_name(name)
    for name in (
        "mixtral-plain", "qwen3_moe-plain", "gpt_oss-default-yarn", "llama4_text-all-experts", "granitemoe-plain",
        "deepseek_v3-groups", "sarvam_moe-plain", "hy_v3-plain", "kolibri1-pattern",
    )
)  # fmt: skip
LFM2, LFM2_BIASES, QWEN35, QWEN35_TIED, QWEN_NEXT = (
    cases.by_name(name)
    for name in (
        "lfm2-plain", "lfm2-wide-kernel-biases-untied", "qwen3_5_text-plain", "qwen3_5_text-tied-mqa",
        "qwen3_next-plain",
    )
)  # fmt: skip
AFMOE, OLMO_HYBRID, OLMO_HYBRID_TIED, LARA = (
    cases.by_name(name)
    for name in ("afmoe-plain", "olmo_hybrid-plain", "olmo_hybrid-rope-mqa-tied-biases", "lara_mini-plain")
)
FUSED = {
    NEOX: "query_key_value", PHI3: "qkv_proj", FALCON: "query_key_value", GPT2: "c_attn", CODEGEN: "qkv_proj",
    BLOOM: "query_key_value", MPT: "Wqkv", BIGCODE: "c_attn", PERSIMMON: "query_key_value",
    QWEN_NEXT: "in_proj_qkvz",
}  # fmt: skip
EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]


def _fresh(case: Case) -> GPT:
    return cases.load(cases.write(case))


@torch.no_grad()
def _fill(model: torch.nn.Module, seed: int = 0) -> None:
    """Trained parameters as if they had been: adapters of some size, magnitudes and whole modules moved."""
    gen = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=gen)
        if name.endswith("magnitude") or "magnitude_vector" in name:
            p.mul_(1 + 0.2 * noise)
        elif "lora" in name:
            p.copy_(noise * 0.15)
        elif p.requires_grad:
            p.add_(noise * 0.1)


def _peft(case: Case, seed: int = 0, **options: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    base = copy.deepcopy(cases.build(case))
    model = get_peft_model(base, LoraConfig(**({"task_type": "CAUSAL_LM", "target_modules": []} | options)))
    _fill(model, seed)
    return model.eval()


def _read_by_peft(case: Case, path: Path) -> Any:
    from peft import PeftModel

    return PeftModel.from_pretrained(copy.deepcopy(cases.build(case)), str(path)).eval()


@torch.no_grad()
def _same(case: Case, model: GPT, theirs: Any, moved: float = 0.05) -> None:
    tokens = cases.tokens(case, 2, 13)
    expected = theirs(tokens, use_cache=False).logits
    assert (expected - cases.hf_logits(case, tokens)).abs().max() > moved * expected.abs().max()
    cases.close(model(tokens), expected)


def _losses(case: Case, model: GPT, theirs: Any) -> None:
    """The same loss on both, backward."""
    tokens = cases.tokens(case, 2, 13)
    labels = tokens.masked_fill(torch.rand(tokens.shape, generator=torch.Generator().manual_seed(0)) < 0.3, -100)
    out = theirs(tokens, labels=labels, use_cache=False)
    out.loss.backward()
    wanted = labels[:, 1:]
    config, bias = model.config, model.head_bias if model.lm_head is None else model.lm_head.bias
    head = dict(bias=bias, scale=config.logit_scale, softcap=config.logit_softcap)
    hidden = model(tokens[:, :-1], output="hidden")
    loss = cross_entropy_sum(hidden, model.head_weight, wanted, **head) / (wanted >= 0).sum()  # type: ignore[arg-type]
    loss.backward()
    torch.testing.assert_close(loss, out.loss, rtol=1e-5, atol=1e-6)


def _grad(p: Tensor | None) -> Tensor:
    assert p is not None
    assert p.grad is not None
    return p.grad


def _gradients_equal(case: Case, model: GPT, theirs: Any) -> None:
    """Every trained tensor of PEFT's has a gradient, and litlm's, put together as in the file, is the same."""
    _losses(case, model, theirs)
    loras, expected = dict(adapters(model)), {n: p.grad for n, p in theirs.named_parameters() if p.requires_grad}
    found: dict[str, Tensor] = {}

    def note(place: Any, part: str, grad: Tensor) -> None:
        inside = ".base_layer" if place.parameter == "gate_up_proj" else ""
        found[f"base_model.model.{place.module}{inside}.lora_{part}"] = grad

    for place in {id(p): p for p in adapter_targets(model).values() if p.ours[0] in loras}.values():
        own = [loras[name] for name in place.ours]
        assert all(lora.A is own[0].A for lora in own)
        a, b = _grad(own[0].A), place.join([_grad(lora.B) for lora in own])
        if place.parameter:
            if case is LLAMA4:
                a, b = b.mT, a.mT
            a, b = a.flatten(0, 1), b.permute(1, 2, 0).flatten(1)
        note(place, "A.default.weight", a)
        note(place, "B.default.weight", b)
        if own[0].magnitude is not None:
            lengths = place.join([_grad(lora.magnitude)[:, None] for lora in own])[:, 0]
            note(place, "magnitude_vector.default.weight", lengths)
    assert found.keys() == expected.keys()
    for name, grad in expected.items():
        assert grad is not None
        assert grad.abs().max() > 0
        assert (found[name] - grad).abs().max() <= 1e-4 * grad.abs().max(), name


# --- fused layers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", FUSED, ids=str)
def test_a_fused_layers_adapter_is_read_and_trains_as_in_peft(case: Case, tmp_path: Path) -> None:
    transposed = case is GPT2
    theirs = _peft(case, r=3, lora_alpha=5, target_modules=[FUSED[case]], fan_in_fan_out=transposed)
    theirs.save_pretrained(tmp_path, save_embedding_layers=False)
    model = _fresh(case)
    load_adapter(model, tmp_path)
    _same(case, model, theirs)
    _gradients_equal(case, model, theirs)
    save_adapter(model, tmp_path / "again", base="x")  # the parts still share A, so it is the same file
    again, first = load_file(tmp_path / "again" / WEIGHTS), load_file(tmp_path / WEIGHTS)
    assert again.keys() == first.keys()
    for name, tensor in first.items():
        assert torch.equal(again[name], tensor)
    assert json.loads((tmp_path / "again" / CONFIG).read_text())["fan_in_fan_out"] == transposed


@pytest.mark.parametrize(
    ("case", "targets", "options"),
    [
        *((case, ("all-linear",), {}) for case in FUSED),
        (GLM, ("all-linear",), {}), (PHI3, ("up_proj",), {}), (PHI3, ("layers.1.mlp.gate_proj", "k_proj"), {}),
        (NEOX, ("q_proj",), {}), (NEOX, ("0.attn.v_proj", "up_proj"), {"dora": True}),
        (PHI3, ("all-linear",), {"dora": True, "rslora": True}), (GPT2, ("all-linear",), {"dora": True}),
        (GPT2, ("k_proj", "o_proj"), {"rslora": True}), (BLOOM, ("v_proj",), {"dora": True}),
        (LLAMA, ("all-linear",), {"dora": True}), (TIED, ("q_proj", "layers.*.mlp.*"), {"rslora": True}),
        (LFM2, ("all-linear",), {}), (LFM2_BIASES, ("in_proj", "out_proj"), {"dora": True}), (LFM2, ("out_proj",), {}),
        (LFM2, ("o_proj", "gate_proj", "up_proj"), {"rslora": True}), (QWEN35, ("all-linear",), {}),
        (QWEN35_TIED, ("*.in_proj_*", "attn.out_proj", "q_proj"), {"dora": True}),
        (QWEN35, ("in_proj_a", "o_proj"), {}), (QWEN_NEXT, ("layers.*.attn.*",), {"dora": True}),
        (QWEN_NEXT, ("in_proj_z", "0.attn.in_proj_b", "out_proj"), {"rslora": True}),
        (AFMOE, ("all-linear",), {}), (AFMOE, ("attn.gate_proj", "shared.up_proj"), {"rslora": True}),
        (OLMO_HYBRID, ("all-linear",), {}), (OLMO_HYBRID_TIED, ("in_proj_z", "in_proj_a", "q_proj"), {"dora": True}),
        (OLMO_HYBRID, ("0.attn.v_proj", "out_proj", "o_proj"), {"rslora": True}),
        (LARA, ("all-linear",), {}), (LARA, ("in_proj_qkv", "in_proj_b", "q_proj"), {"dora": True}),
        (LFM3, ("all-linear",), {}), (LFM3, ("attn.gate_proj", "out_proj"), {"dora": True}),
        (LFM2_MOE, ("all-linear",), {}), (QWEN35_MOE, ("in_proj_z", "q_proj", "shared_gate"), {"rslora": True}),
    ],
    ids=str,
)  # fmt: skip
def test_peft_reads_adapters_on_parts(
    case: Case, targets: tuple[str, ...], options: dict[str, Any], tmp_path: Path
) -> None:
    model = _fresh(case)
    names = apply_lora(model, MethodSettings(r=3, alpha=7, targets=targets, **options))
    _fill(model, seed=case.seed)
    with torch.no_grad():
        for i, (_, lora) in enumerate(adapters(model)):  # parts may differ
            lora.scale *= 1 + i % 3
    save_adapter(model, tmp_path, base="x")
    _same(case, model, _read_by_peft(case, tmp_path), moved=0.01)
    again = _fresh(case)
    load_adapter(again, tmp_path)
    assert {name for name, _ in adapters(again)} >= set(names)
    tokens = cases.tokens(case, 2, 9)
    with torch.no_grad():
        cases.close(again(tokens), model(tokens))
    config = json.loads((tmp_path / CONFIG).read_text())
    assert (config["use_dora"], config["use_rslora"]) == (options.get("dora", False), options.get("rslora", False))


# --- DoRA and rank-stabilized scales -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "options"),
    [
        (LLAMA, dict(r=3, target_modules="all-linear", use_dora=True)),
        (TIED, dict(r=5, target_modules=["q_proj", "down_proj"], use_dora=True, use_rslora=True, lora_alpha=3)),
        (NEOX, dict(r=2, target_modules=["query_key_value", "dense"], use_dora=True)),
        (GPT2, dict(r=4, target_modules=["c_attn", "c_proj"], use_dora=True, fan_in_fan_out=True)),
        (LLAMA, dict(r=7, target_modules=["v_proj"], use_rslora=True, lora_alpha=13)),
        (LFM2_BIASES, dict(r=3, target_modules=["in_proj", "out_proj", "w2", "k_proj"], use_dora=True)),
        (QWEN35, dict(r=3, target_modules="all-linear", lora_alpha=5)),
        (QWEN_NEXT, dict(r=3, target_modules=["in_proj_ba", "in_proj_qkvz", "q_proj"], use_dora=True)),
        (OLMO_HYBRID, dict(r=3, target_modules="all-linear", lora_alpha=5)),
        (LARA, dict(r=2, target_modules=["in_proj_qkv", "in_proj_a", "out_proj", "v_proj"], use_dora=True)),
        (LFM3, dict(r=3, target_modules=["g_proj", "in_proj", "w1", "o_proj"], lora_alpha=5)),
    ],
    ids=str,
)
def test_dora_and_rslora_train_as_in_peft(case: Case, options: dict[str, Any], tmp_path: Path) -> None:
    theirs = _peft(case, seed=2, **options)
    theirs.save_pretrained(tmp_path, save_embedding_layers=False)
    model = _fresh(case)
    load_adapter(model, tmp_path)
    _same(case, model, theirs)
    _gradients_equal(case, model, theirs)
    merged = copy.deepcopy(theirs).merge_and_unload()
    other = _fresh(case)
    other.load_state_dict(merged_state(model))
    tokens = cases.tokens(case, 2, 9)
    with torch.no_grad():
        cases.close(other(tokens), merged(tokens).logits)


def test_a_dora_adapter_without_its_lengths(tmp_path: Path) -> None:
    model = _fresh(LLAMA)
    apply_lora(model, MethodSettings(r=2, dora=True, targets=("q_proj",)))
    save_adapter(model, tmp_path, base="x")
    tensors = {n: t for n, t in load_file(tmp_path / WEIGHTS).items() if "magnitude" not in n or ".1." in n}
    save_file(tensors, tmp_path / WEIGHTS)
    with pytest.raises(
        ValueError, match="q_proj has lora_A and lora_B only; lora_A, lora_B and lora_magnitude_vector are needed"
    ):
        load_adapter(_fresh(LLAMA), tmp_path)


# --- experts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [MIXTRAL, QWEN_MOE, GPT_OSS, LLAMA4, GRANITE, LFM2_MOE, QWEN35_MOE], ids=str)
def test_experts_train_as_in_peft(case: Case, tmp_path: Path) -> None:
    theirs = _peft(case, r=3, lora_alpha=5, target_parameters=EXPERTS, rank_pattern={"experts.gate_up_proj": 2})
    theirs.save_pretrained(tmp_path, save_embedding_layers=False)
    model = _fresh(case)
    load_adapter(model, tmp_path)
    _same(case, model, theirs)
    _gradients_equal(case, model, theirs)


@pytest.mark.parametrize(
    ("case", "targets"),
    [
        (MIXTRAL, ("experts",)), (QWEN_MOE, ("experts", "q_proj")), (QWEN_MOE, ("layers.1.mlp.experts.down_proj",)),
        (QWEN_MOE, ("experts.up_proj",)), (GPT_OSS, ("all-linear", "experts")), (LLAMA4, ("experts",)),
        (GRANITE, ("layers.[02].*",)), (DEEPSEEK, ("all-linear", "experts")), (DEEPSEEK, ("all-linear",)),
        (SARVAM, ("all-linear", "experts")), (HY, ("all-linear", "experts")),
        (KOLIBRI, ("all-linear", "experts")), (LFM2_MOE, ("all-linear", "experts")),
        (QWEN35_MOE, ("all-linear", "experts")),
    ],
    ids=str,
)  # fmt: skip
def test_peft_reads_adapters_of_experts(case: Case, targets: tuple[str, ...], tmp_path: Path) -> None:
    model = _fresh(case)
    apply_lora(model, MethodSettings(r=3, alpha=7, targets=targets, dropout=0.25))
    _fill(model)
    save_adapter(model, tmp_path, base="x")
    _same(case, model, _read_by_peft(case, tmp_path), moved=0.01)
    again = _fresh(case)
    load_adapter(again, tmp_path)
    tokens = cases.tokens(case, 2, 9)
    with torch.no_grad():
        cases.close(again(tokens), model(tokens))
        other = _fresh(case)
        other.load_state_dict(merged_state(model))
        cases.close(other(tokens), model(tokens))


def test_adapters_of_single_experts(tmp_path: Path) -> None:
    """As transformers 4 named them, before experts were stacked."""
    gen = torch.Generator().manual_seed(0)
    tensors, model = {}, _fresh(MIXTRAL)
    plain = {n: t.clone() for n, t in model.state_dict().items()}
    for e in (0, 2, 3):
        for w, ours in (("w1", "gate_proj"), ("w3", "up_proj"), ("w2", "down_proj")):
            out, wide = (48, 40) if w == "w2" else (40, 48)
            a, b = torch.randn(2, wide, generator=gen), torch.randn(out, 2, generator=gen)
            key = f"base_model.model.model.layers.1.block_sparse_moe.experts.{e}.{w}."
            tensors |= {key + "lora_A.weight": a, key + "lora_B.weight": b}
            plain[f"layers.1.mlp.experts.{ours}"][e] += 1.5 * b @ a
    save_file(tensors, tmp_path / WEIGHTS)
    config = dict(peft_type="LORA", r=2, lora_alpha=3, target_modules=["w1", "w2", "w3"])
    (tmp_path / CONFIG).write_text(json.dumps(config))
    load_adapter(model, tmp_path)
    other = _fresh(MIXTRAL)
    other.load_state_dict(plain)
    tokens = cases.tokens(MIXTRAL, 2, 9)
    with torch.no_grad():
        cases.close(model(tokens), other(tokens))


# --- modules trained whole -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "whole"),
    [
        (LLAMA, ("embed", "lm_head")), (LLAMA, ("norm",)), (TIED, ("embed",)), (LLAMA, ("attn_norm", "1.mlp")),
        (NEOX, ("embed", "lm_head", "norm", "0.attn.q_proj")), (GPT2, ("embed", "position_embed")),
        (QWEN_MOE, ("router", "lm_head")),
    ],
    ids=str,
)  # fmt: skip
def test_peft_reads_modules_trained_whole(case: Case, whole: tuple[str, ...], tmp_path: Path) -> None:
    model = _fresh(case)
    apply_lora(model, MethodSettings(r=2, targets=("o_proj",), modules_to_save=whole))
    _fill(model)
    save_adapter(model, tmp_path, base="x")
    theirs = _read_by_peft(case, tmp_path)
    _same(case, model, theirs, moved=0.01)
    again = _fresh(case)
    load_adapter(again, tmp_path)
    tokens = cases.tokens(case, 2, 9)
    with torch.no_grad():
        assert torch.equal(again(tokens), model(tokens))
        with theirs.disable_adapter(), adapters_disabled(again):
            expected = theirs(tokens).logits
            cases.close(again(tokens), expected)
            cases.close(expected, cases.hf_logits(case, tokens))
        assert torch.equal(again(tokens), model(tokens))
    assert set(trained_whole(again)) >= set(trained_whole(model))
    for name, tensor in merged_state(again).items():
        assert torch.equal(tensor, merged_state(model)[name]), name


@pytest.mark.parametrize(
    ("case", "options", "tied"),
    [
        (LLAMA, dict(modules_to_save=["embed_tokens", "lm_head"]), False),
        (LLAMA, dict(modules_to_save=["norm", "q_norm"]), False),
        (TIED, dict(modules_to_save=["embed_tokens"], ensure_weight_tying=True), True),
        (TIED, dict(modules_to_save=["embed_tokens"]), False),
        (TIED, dict(modules_to_save=["lm_head"]), False),
        (TIED, dict(modules_to_save=["embed_tokens", "lm_head"]), False),
        (TIED, dict(modules_to_save=["model.norm"]), True),
    ],
    ids=str,
)
def test_modules_that_peft_trained_whole_are_read(
    case: Case, options: dict[str, Any], tied: bool, tmp_path: Path
) -> None:
    theirs = _peft(case, r=2, target_modules=["v_proj"], **options)
    theirs.save_pretrained(tmp_path, save_embedding_layers=False)
    model = _fresh(case)
    load_adapter(model, tmp_path)
    _same(case, model, theirs)
    assert model.config.tie_embeddings == tied == (model.lm_head is None)
    save_adapter(model, tmp_path / "again", base="x")
    _same(case, model, _read_by_peft(case, tmp_path / "again"))


@pytest.mark.parametrize("case", [LLAMA, TIED], ids=str)
def test_larger_embeddings_make_the_model_larger(case: Case, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    base, size = copy.deepcopy(cases.build(case)), case.hf["vocab_size"]
    base.resize_token_embeddings(size + 5)
    tying = dict(ensure_weight_tying=True, modules_to_save=["embed_tokens"]) if case is TIED else {}
    options: Any = dict(modules_to_save=["embed_tokens", "lm_head"]) | tying
    theirs = get_peft_model(base, LoraConfig(r=2, target_modules=["v_proj"], task_type="CAUSAL_LM", **options)).eval()
    _fill(theirs)
    theirs.save_pretrained(str(tmp_path))
    model = _fresh(case)
    load_adapter(model, tmp_path)
    assert model.config.vocab_size == size + 5
    tokens = torch.randint(size + 5, (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        cases.close(model(tokens), theirs(tokens).logits)


def test_a_whole_module_of_another_shape_is_named(tmp_path: Path) -> None:
    theirs = _peft(LLAMA, r=2, target_modules=["v_proj"], modules_to_save=["model.norm"])
    theirs.save_pretrained(tmp_path, save_embedding_layers=False)
    tensors = load_file(tmp_path / WEIGHTS)
    tensors["base_model.model.model.norm.weight"] = torch.ones(7)
    save_file(tensors, tmp_path / WEIGHTS)
    model = _fresh(LLAMA)
    with pytest.raises(ValueError, match=r"model\.norm\.weight has shape \[7\], which does not fit \[48\]"):
        load_adapter(model, tmp_path)
    assert not list(adapters(model))
    assert not trained_whole(model)


def test_experts_trained_whole_have_no_place(tmp_path: Path) -> None:
    model = _fresh(MIXTRAL)
    apply_lora(model, MethodSettings(targets=("q_proj",), modules_to_save=("layers.0.mlp.experts",)))
    with pytest.raises(ValueError, match="experts can have adapters"):
        save_adapter(model, tmp_path, base="x")
