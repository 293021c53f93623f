"""LLaMA-Adapter and its second version against LitGPT's: values, gradients, files; and what never may change.

LitGPT's modules run as they are but for one thing. Its `adapter.py` (0.5.13) cuts the prompt's fused QKV as earlier
versions stored it, [q k v] for each group, while its weights now hold all q, all k, all v. The two are the same only
for one group of queries, so for the other models its (public) cache of the prompt's keys and values is filled here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
import test_checkpoint_litgpt as lit
import torch
from parity import cases
from parity.cases import Case, close
from torch import Tensor, nn

from litlm.checkpoint.adapter import CHECKSUM, CONFIG, WEIGHTS, load, save
from litlm.checkpoint.base import load_model
from litlm.checkpoint.hf import SafetensorsSource
from litlm.config import Config
from litlm.context import KVCache, Packed
from litlm.llm import LLM
from litlm.model import GPT
from litlm.settings import MethodSettings
from litlm.transforms import compile as transform
from litlm.transforms.blocks import training_blocks
from litlm.transforms.llama_adapter import (
    NormCopy,
    Prompt,
    ScaleBias,
    apply_adapter,
    prompt_adapters,
)
from litlm.transforms.lora import adapters_disabled, apply_lora, refuse_to_merge
from litlm.transforms.quantize import QuantizedLinear

# Grouped queries, norms of queries and keys, sliding windows, layer norms with biases, parallel blocks, a mixture.
FAMILIES = [
    cases.by_name("llama-mha-biases"), cases.by_name("qwen3-sliding-pattern"), cases.by_name("gpt_neox-odd-share"),
    *(next(c for c in cases.CASES if c.family == family) for family in ("gemma2", "olmo2", "mixtral", "gpt_oss")),
]  # fmt: skip
METHODS: list[Literal["adapter", "adapter_v2"]] = ["adapter", "adapter_v2"]
LITGPT = [case for case in lit.CASES if case.seed in (0, 2, 3, 5, 10, 14, 15, 20, 21, 23, 25, 26)]


def settings(name: Literal["adapter", "adapter_v2"], length: int = 3, start: int = 1) -> MethodSettings:
    return MethodSettings(name=name, prompt_length=length, start_layer=start)


def adapted(case: Case, name: Literal["adapter", "adapter_v2"], *, fill: int | None = 0) -> GPT:
    model = cases.load(cases.write(case))
    apply_adapter(model, settings(name), v2=name == "adapter_v2")
    if fill is not None:
        fill_adapters(model, fill)
    return model


@torch.no_grad()
def fill_adapters(model: nn.Module, seed: int) -> None:
    """As if trained."""
    gen = torch.Generator().manual_seed(seed)
    for _, adapter in prompt_adapters(model):
        for p in adapter.parameters():
            if p is getattr(adapter, "prompt", None):
                p.normal_(generator=gen)
            else:
                p.add_(torch.randn(p.shape, generator=gen) * 0.3)


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


# --- LitGPT ---------------------------------------------------------------------------------------------------------


def peer(case: lit.Case, name: str, length: int, start: int) -> Any:
    """LitGPT's model with adapters as if trained, and all of them and all norms with gradients."""
    lit.litgpt("model")
    module = lit.litgpt(name)
    changes = case.changes | dict(adapter_prompt_length=length, adapter_start_layer=start)
    model = module.GPT(module.Config.from_name(case.name, **changes))
    left = model.load_state_dict(lit.build(case).state_dict(), strict=False)
    assert not left.unexpected_keys
    assert all("adapter" in key or "gating" in key for key in left.missing_keys)
    gen = torch.Generator().manual_seed(case.seed)
    for key, p in model.named_parameters():
        learned = "adapter" in key or "gating" in key
        p.requires_grad_(
            (learned or (name == "adapter_v2" and "norm" in key) or "ln_f" in key) and "lm_head" not in key
        )
        if p.requires_grad:
            with torch.no_grad():
                p.add_(torch.randn(p.shape, generator=gen) * (1.0 if "gating" in key else 0.3))
    return model.eval()


def set_prompt_cache(model: Any, case: lit.Case, start: int) -> None:
    """What LitGPT means to keep: (1, H, P, D) keys and values of the prompt, by plain products."""
    for block in model.transformer.h[start:]:
        attn, c = block.attn, model.config
        attn.adapter_kv_cache = None
        if c.n_query_groups == 1:
            continue  # LitGPT makes them itself
        D, K = c.head_size, c.n_query_groups
        _, k, v = attn.qkv(attn.adapter_wte.weight).split((c.n_head * D, K * D, K * D), dim=-1)
        heads = [torch.stack([t[:, h * K // c.n_head * D :][:, :D] for h in range(c.n_head)])[None] for t in (k, v)]
        attn.adapter_kv_cache = tuple(heads)


PLACES = {
    "attn.proj": ("attn.o_proj",), "attn.qkv": ("attn.q_proj", "attn.k_proj", "attn.v_proj"),
    "mlp.fc_1": ("mlp.gate_proj",), "mlp.fc_2": ("mlp.up_proj",), "mlp.fc": ("mlp.up_proj",),
    "mlp.proj": ("mlp.down_proj",), "norm_1": ("attn_norm",), "norm_2": ("mlp_norm",),
    "post_attention_norm": ("post_attn_norm",), "post_mlp_norm": ("post_mlp_norm",),
    "attn.norm_q": ("attn.q_norm",), "attn.norm_k": ("attn.k_norm",), "attn": ("attn",),
}  # fmt: skip


def pairs(model: Any, ours: GPT, tensor: Any) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """(our parameter, tensor(theirs) for it) for each parameter of LitGPT's that has a gradient."""
    for key, p in model.named_parameters():
        if not p.requires_grad:
            continue
        value = tensor(p)
        if key.startswith("transformer.ln_f."):
            yield ours.get_parameter("norm.adapter.norm." + key.rpartition(".")[2]), value
            continue
        _, _, layer, rest = key.split(".", 3)
        place, _, leaf = rest.removesuffix(".weight" if "adapter_wte" in rest else "").rpartition(".")
        leaf = {
            "adapter_wte": "prompt", "gating_factor": "gate", "adapter_scale": "scale", "adapter_bias": "bias",
        }.get(leaf, f"norm.{leaf}")  # fmt: skip
        names = [f"layers.{layer}.{name}.adapter.{leaf}" for name in PLACES[place]]
        if leaf == "gate":
            value = value.flatten()
        parameters = [ours.get_parameter(name) for name in names]
        parts = value.split([q.size(0) for q in parameters]) if len(names) > 1 else [value]
        yield from zip(parameters, parts, strict=True)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("case", LITGPT, ids=str)
def test_values_and_gradients_equal_litgpt(
    case: lit.Case, name: Literal["adapter", "adapter_v2"], tmp_path: Path
) -> None:
    length, start = 3 + case.seed % 4, case.seed % 2
    ours, theirs = lit.load(lit.write(tmp_path, case)), peer(case, name, length, start)
    if name == "adapter":
        theirs.transformer.ln_f.requires_grad_(False)
        theirs.transformer.ln_f.load_state_dict(lit.build(case).transformer.ln_f.state_dict())
    plain = ours(lit.tokens(case)).detach()
    apply_adapter(ours, settings(name, length, start), v2=name == "adapter_v2")
    with torch.no_grad():
        for mine, value in pairs(theirs, ours, lambda p: p):
            mine.copy_(value)
    for shape in ((2, 21), (3, 13), (1, 1)):
        for model in (ours, theirs):
            model.zero_grad()
        ids = lit.tokens(case, *shape)
        set_prompt_cache(theirs, case, start)
        expected = theirs(ids)
        actual = ours(ids)
        close(actual, expected)
        weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(case.seed))
        (actual * weights).sum().backward()
        (expected * weights).sum().backward()
        seen = set()
        for mine, grad in pairs(theirs, ours, lambda p: p.grad):
            assert mine.grad is not None
            if shape != (1, 1):
                assert grad.abs().max() > 0
                close(mine.grad, grad, rtol=2e-4)
            seen.add(id(mine))
        # LitGPT computes every gradient that we do.
        assert seen == {id(p) for p in trainable(ours).values()}
        if shape == (2, 21):
            assert (actual - plain).abs().max() > 0.05 * plain.abs().max()


# --- any family -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("case", FAMILIES, ids=str)
def test_the_model_starts_unchanged_to_the_bit(
    case: Case, name: Literal["adapter", "adapter_v2"], dtype: torch.dtype
) -> None:
    model = cases.load(cases.write(case), dtype)
    tokens = cases.tokens(case, 2, 13)
    before = model(tokens)
    names = apply_adapter(model, settings(name), v2=name == "adapter_v2")
    assert torch.equal(model(tokens), before)
    assert sorted(names) == sorted(n for n, _ in prompt_adapters(model))
    assert all(p.dtype == torch.float32 for p in trainable(model).values())
    assert all(".adapter." in n for n in trainable(model))
    attns = [n for n, a in prompt_adapters(model) if isinstance(a, Prompt)]
    assert attns == [f"layers.{i}.attn" for i in range(1, model.config.n_layer)]
    assert (name == "adapter") == (set(names) == set(attns))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("case", FAMILIES, ids=str)
def test_steps_reach_all_adapters_and_nothing_else(case: Case, name: Literal["adapter", "adapter_v2"]) -> None:
    model = adapted(case, name, fill=None)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(list(trainable(model).values()), lr=1e-2, weight_decay=0.0)
    for step in range(3):
        tokens = cases.tokens(case, 2, 12, seed=step)
        with torch.no_grad():
            model(tokens)  # a validation in between must not leave keys without gradients behind
        hidden = model(tokens[:, :-1], output="hidden")
        # As training does it: the head's weight, not the head.
        logits = model.finish_logits(hidden @ model.head_weight.T)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        for n, p in trainable(model).items():
            assert p.grad is not None, n
            # A gate of zero hides its prompt in the first step only.
            assert bool(p.grad.abs().max() > 0) == (step > 0 or not n.endswith("adapter.prompt")), n
        optimizer.step()
    for n, p in model.named_parameters():
        assert torch.equal(p, before[n]) == (n not in trainable(model)), n
        assert p.requires_grad or p.grad is None


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("case", FAMILIES, ids=str)
@torch.no_grad()
def test_cached_and_padded_rows_equal_whole_ones(case: Case, name: Literal["adapter", "adapter_v2"]) -> None:
    model = adapted(case, name)
    ids, lengths = cases.tokens(case, 3, 17), [11, 4, 9]
    whole = model(ids)
    cache = KVCache(model.config, 3, 17, dtype=torch.float32)
    padded = model(ids[:, :11], context=cache)
    cache.truncate(lengths)
    for row, n in enumerate(lengths):
        close(padded[row, :n], whole[row, :n])
        close(model(ids[row : row + 1, :n])[0], whole[row, :n])
    for step in range(6):
        new = torch.stack([ids[row, n + step] for row, n in enumerate(lengths)])[:, None]
        logits = model(new, context=cache)[:, 0]
        close(logits, torch.stack([whole[row, n + step] for row, n in enumerate(lengths)]))


@pytest.mark.parametrize("name", METHODS)
@torch.no_grad()
def test_a_cache_keeps_the_prompts_keys(name: Literal["adapter", "adapter_v2"]) -> None:
    model = adapted(FAMILIES[0], name)
    seen: list[int] = []
    model.get_submodule("layers.1.attn.k_proj").register_forward_hook(lambda m, args, y: seen.append(y.size(1)))
    cache = KVCache(model.config, 1, 9, dtype=torch.float32)
    for n in (5, 1, 1):
        model(cases.tokens(FAMILIES[0], 1, n), context=cache)
    assert seen == [5, 3, 1, 1]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("case", FAMILIES, ids=str)
@torch.no_grad()
def test_off_is_the_model_before(case: Case, name: Literal["adapter", "adapter_v2"]) -> None:
    model, tokens = adapted(case, name), cases.tokens(case, 2, 7)
    on, plain = model(tokens), cases.ours(case)(tokens)
    with adapters_disabled(model):
        assert torch.equal(model(tokens), plain)
    assert torch.equal(model(tokens), on)
    with pytest.raises(IndexError), adapters_disabled(model):
        model(tokens + 1000)
    assert torch.equal(model(tokens), on)
    assert (on - plain).abs().max() > 0.01 * plain.abs().max()


# The compiler looks at the gradient of what a layer is given.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize(
    ("name", "options"),
    [("adapter_v2", dict(compile=True)), *((name, dict(checkpointing="full")) for name in METHODS)],
)
def test_layers_as_training_runs_them(
    name: Literal["adapter", "adapter_v2"], options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager", fullgraph=True))
    case = FAMILIES[0]
    model, tokens = adapted(case, name), cases.tokens(case, 2, 9)

    def values() -> list[Tensor]:
        model.zero_grad()
        logits = model(tokens)
        logits.square().sum().backward()
        return [logits.detach(), *(p.grad.clone() for p in trainable(model).values() if p.grad is not None)]

    expected = values()
    assert len(expected) == 1 + len(trainable(model))
    with training_blocks(model, **options):
        for a, b in zip(values(), expected, strict=True):
            close(a, b)
        with adapters_disabled(model), torch.no_grad():
            close(model(tokens), cases.ours(case)(tokens))
        close(model(tokens).detach(), expected[0])


def test_compiled_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    monkeypatch.setattr(transform.shutil, "which", lambda name: name)
    path, answers = cases.write(FAMILIES[0]), []
    for compile in (False, True):
        llm = LLM.load(path)
        apply_adapter(llm.model, settings("adapter_v2"), v2=True)
        fill_adapters(llm.model, 0)
        if compile:
            transform.compile_decoding(llm.model)
        answers.append(llm.generate([3, 1, 4, 1, 5], max_new_tokens=9, ignore_eos=True, return_ids=True))
    plain = LLM.load(path).generate([3, 1, 4, 1, 5], max_new_tokens=9, ignore_eos=True, return_ids=True)
    assert answers[0] == answers[1] != plain


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("name", METHODS)
def test_a_quantized_model_learns(name: Literal["adapter", "adapter_v2"], kind: str) -> None:
    """Against the same model with the weights that the packed ones stand for."""
    path, tokens = cases.write(FAMILIES[1]), cases.tokens(FAMILIES[1], 2, 8)
    cpu: Any = dict(device=torch.device("cpu"), dtype=torch.float32)
    packed = load_model(Config.from_hf(path), SafetensorsSource(path), **cpu, quantize=kind)
    plain = cases.load(path)
    layers = [(n, m) for n, m in packed.named_modules() if isinstance(m, QuantizedLinear)]
    assert len(layers) == 7 * plain.config.n_layer
    for path_in_model, module in layers:
        plain.get_parameter(f"{path_in_model}.weight").data = module.dequantized()
    values = []
    for model in (packed, plain):
        apply_adapter(model, settings(name), v2=name == "adapter_v2")
        fill_adapters(model, 0)
        logits = model(tokens)
        logits.square().sum().backward()
        values.append([logits.detach(), *(p.grad for p in trainable(model).values() if p.grad is not None)])
    assert len(values[0]) == 1 + len(trainable(packed))
    for mine, expected in zip(*values, strict=True):
        assert expected.abs().max() > 0
        close(mine, expected, rtol=1e-4)


@torch.no_grad()
def test_bf16_values_are_scaled_without_rounding_the_scale() -> None:
    """Half a unit in the last place off at most; a scale in bf16 would itself be off by as much."""
    torch.manual_seed(0)
    adapter, y = ScaleBias(301), torch.randn(64, 301).bfloat16()
    adapter.scale.add_(torch.linspace(-0.02, 0.02, 301))
    exact = y.double() * adapter.scale.double()
    assert ((adapter(y).double() - exact).abs() <= exact.abs() * 2**-8 * 1.02).all()
    assert ((y * adapter.scale.bfloat16()).double() - exact).abs().gt(exact.abs() * 2**-8 * 1.02).any()


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("case", FAMILIES, ids=str)
@torch.no_grad()
def test_saved_and_loaded_again(case: Case, name: Literal["adapter", "adapter_v2"], tmp_path: Path) -> None:
    model, tokens = adapted(case, name), cases.tokens(case, 2, 9)
    save(model, tmp_path / "a", base=str(cases.write(case)))
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [CONFIG, WEIGHTS, CHECKSUM]
    config = json.loads((tmp_path / "a" / CONFIG).read_text())
    assert config == {
        "peft_type": {"adapter": "LITLM_ADAPTER", "adapter_v2": "LITLM_ADAPTER_V2"}[name], "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(cases.write(case).resolve()), "prompt_length": 3, "start_layer": 1,
    }  # fmt: skip
    tensors = cases.raw_tensors(tmp_path / "a")
    assert tensors.keys() == trainable(model).keys()
    assert {dtype for dtype, _, _ in tensors.values()} == {"F32"}
    other = cases.load(cases.write(case))
    assert load(other, tmp_path / "a") == config
    assert torch.equal(other(tokens), model(tokens))
    save(other, tmp_path / "b", base="elsewhere")
    assert cases.raw_tensors(tmp_path / "b") == tensors


def test_writing_that_do_not_fit_are_errors(tmp_path: Path) -> None:
    case, path = FAMILIES[0], tmp_path / "a"
    model = adapted(case, "adapter")
    with pytest.raises(ValueError, match="no adapters of method adapter"):
        save(cases.ours(case), path, base="x")
    save(model, path, base="x")
    with pytest.raises(ValueError, match="has adapters already"):
        load(model, path)
    config = json.loads((path / CONFIG).read_text())

    def refused(match: str, **changes: Any) -> None:
        (path / CONFIG).write_text(json.dumps(config | changes))
        fresh = cases.load(cases.write(case))
        with pytest.raises(ValueError, match=match) as e:
            load(fresh, path)
        assert not list(prompt_adapters(fresh))
        assert str(path) in str(e.value) or "method adapter" in str(e.value)

    refused(r"attn\.adapter\.prompt has shape \[3, \d+\], this model needs \[5, ", prompt_length=5)
    refused(r"layers\.0\.attn\.adapter\.prompt is missing\n- layers\.0\.attn\.adapter\.gate is", start_layer=0)
    refused(r"q_proj\.adapter\.scale is missing", peft_type="LITLM_ADAPTER_V2")
    refused("start_layer=99 must be less than", start_layer=99)
    refused("prompt_length='5' must be a whole number; start_layer=True", prompt_length="5", start_layer=True)
    refused("peft_type='LORA' must be", peft_type="LORA")
    (path / WEIGHTS).write_bytes((path / WEIGHTS).read_bytes()[:-9])
    refused("truncated or corrupt")
    (path / WEIGHTS).unlink()
    refused(f"has no {WEIGHTS}")
    (path / CONFIG).write_text("{")
    (path / WEIGHTS).write_bytes(b"")
    with pytest.raises(ValueError, match="not valid JSON"):
        load(cases.load(cases.write(case)), path)
    (path / CONFIG).write_text("[]")
    with pytest.raises(ValueError, match="must hold a JSON object, not list"):
        load(cases.load(cases.write(case)), path)


def test_a_file_of_another_model_names_every_tensor(tmp_path: Path) -> None:
    save(adapted(cases.by_name("qwen3-sliding-pattern"), "adapter_v2"), tmp_path, base="x")
    with pytest.raises(
        ValueError, match=r"attn\.q_norm\.adapter\.norm\.weight \[\d+\] has no place in this llama model"
    ):
        load(cases.load(cases.write(FAMILIES[0])), tmp_path)


# --- errors ---------------------------------------------------------------------------------------------------------


def test_models_without_keys_and_values_of_their_own_are_refused() -> None:
    latent = next(c for c in cases.CASES if c.family == "deepseek_v3")
    with pytest.raises(ValueError, match="deepseek_v3 has latent attention.*\n?.*use method lora"):
        apply_adapter(cases.load(cases.write(latent)), settings("adapter"))
    shared = [c for c in cases.CASES if c.family == "gemma4_text" and c.hf.get("num_kv_shared_layers")]
    model = cases.load(cases.write(shared[0]))
    with pytest.raises(ValueError, match=r"gemma4_text: layers \d+ to \d+ read another layer's"):
        apply_adapter(model, settings("adapter_v2"), v2=True)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", ["lfm2", "qwen3_5_text"])
def test_recurrent_layers_are_refused(family: str, name: Literal["adapter", "adapter_v2"]) -> None:
    model = cases.load(cases.write(cases.by_name(f"{family}-plain")))
    last = model.config.n_layer - 1
    with pytest.raises(ValueError, match=f"{family} has recurrent layers, .*use method lora"):
        apply_adapter(model, settings(name, start=last), v2=name == "adapter_v2")
    assert all(p.requires_grad for p in model.parameters())


def test_wrong_settings_and_second_adapters_are_refused() -> None:
    model = cases.load(cases.write(FAMILIES[0]))
    n = model.config.n_layer
    with pytest.raises(ValueError, match=f"start_layer={n} must be less than the model's {n} layers"):
        apply_adapter(model, settings("adapter", start=n))
    apply_adapter(model, settings("adapter_v2"), v2=True)
    with pytest.raises(ValueError, match="has adapters already") as e:
        apply_adapter(model, settings("adapter", start=n))
    assert f"start_layer={n}" in str(e.value)
    other = cases.load(cases.write(FAMILIES[0]))
    apply_lora(other, MethodSettings(r=2))
    with pytest.raises(ValueError, match="merge LoRA adapters first"):
        apply_adapter(other, settings("adapter"))


@pytest.mark.parametrize("name", METHODS)
def test_merging_is_refused(name: Literal["adapter", "adapter_v2"]) -> None:
    with pytest.raises(ValueError, match="can't be merged into weights"):
        refuse_to_merge(adapted(FAMILIES[0], name))
    refuse_to_merge(cases.ours(FAMILIES[0]))


def test_v2_trains_all_norms_and_linear_layers_of_the_blocks() -> None:
    model = adapted(cases.by_name("qwen3-sliding-pattern"), "adapter_v2")
    kinds: dict[type, set[str]] = {Prompt: set(), ScaleBias: set(), NormCopy: set()}
    for name, adapter in prompt_adapters(model):
        kinds[type(adapter)].add(name.split(".", 2)[-1] if name.startswith("layers.") else name)
    assert kinds[Prompt] == {"attn"}
    assert kinds[NormCopy] == {"attn_norm", "mlp_norm", "attn.q_norm", "attn.k_norm", "norm"}
    assert kinds[ScaleBias] == {f"attn.{p}_proj" for p in "qkvo"} | {f"mlp.{p}_proj" for p in ("gate", "up", "down")}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("case", FAMILIES[:2], ids=str)
def test_packed_documents_read_the_prompt_as_they_do_alone(case: Case, name: Literal["adapter", "adapter_v2"]) -> None:
    model, ids = adapted(case, name), cases.tokens(case, 2, 15)
    lengths = [[4, 9], [1, 3, 11]]
    weights = torch.randn(15, model.config.vocab_size, generator=torch.Generator().manual_seed(1))

    def gradients(total: Tensor) -> list[Tensor]:
        model.zero_grad()
        total.backward()
        return [p.grad.clone() for p in trainable(model).values() if p.grad is not None]

    packed = model(ids, context=Packed(lengths))
    documents = [(b, sum(row[:i]), n) for b, row in enumerate(lengths) for i, n in enumerate(row)]
    alone = [model(ids[b : b + 1, at : at + n])[0] for b, at, n in documents]
    for (b, at, n), logits in zip(documents, alone, strict=True):
        close(packed[b, at : at + n], logits)
    a = gradients(torch.stack([(packed[b, at : at + n] * weights[at : at + n]).sum() for b, at, n in documents]).sum())
    parts = [(logits * weights[at : at + n]).sum() for (_, at, n), logits in zip(documents, alone, strict=True)]
    for mine, expected in zip(a, gradients(torch.stack(parts).sum()), strict=True):
        assert expected.abs().max() > 0
        close(mine, expected, rtol=1e-4)
