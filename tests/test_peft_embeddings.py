"""LoRA on heads and embeddings, tied or not: PEFT's adapters read, merged and written, and trained as PEFT does."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from parity import cases
from parity.cases import Case
from safetensors.torch import load_file, save_file
from torch import Tensor

from litlm.checkpoint.peft import CONFIG, WEIGHTS, load_adapter, save_adapter
from litlm.llm import LLM
from litlm.model import GPT
from litlm.ops import cross_entropy
from litlm.settings import MethodSettings
from litlm.train import loss as losses
from litlm.transforms.lora import LoRA, adapters, adapters_disabled, apply_lora, merge, merged_state, trained_whole
from litlm.transforms.resize import resize_embeddings

pytestmark = [
    # PEFT reads a property that transformers has renamed; what it advises about tied weights is what is tested here.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to:UserWarning"),
]
UNTIED, TIED, GPT2, NEOX, GEMMA, GEMMA3, GEMMA4, PHI, PHI_TIED, COHERE = (
    cases.by_name(name)
    for name in (
        "llama-mha-biases", "llama-mqa-tied", "gpt2-plain", "gpt_neox-odd-share", "gemma-plain",
        "gemma3_text-two-ropes", "gemma4_text-layer-inputs", "phi-plain", "phi-gqa-norms-tied", "cohere-plain",
    )
)  # fmt: skip
BOTH = ["lm_head", "embed_tokens"]


@torch.no_grad()
def _fill(model: torch.nn.Module, seed: int = 0) -> None:
    """Trained parameters as if they had been."""
    gen = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=gen)
        if name.endswith("magnitude") or "magnitude_vector" in name:
            p.mul_(1 + 0.2 * noise)
        elif "lora" in name:
            p.copy_(noise * 0.15)
        elif p.requires_grad:
            p.add_(noise * 0.1)


def _base(case: Case, rows: int = 0) -> Any:
    """transformers' model; rows: that many more tokens."""
    model = copy.deepcopy(cases.build(case))
    model.name_or_path = model.config.name_or_path = str(cases.write(case))
    if rows:
        torch.manual_seed(3)  # transformers draws the new rows
        model.resize_token_embeddings(case.hf["vocab_size"] + rows)
    return model


def _peft(case: Case, seed: int = 0, rows: int = 0, **options: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(**(dict(task_type="CAUSAL_LM", r=3, lora_alpha=5) | options))
    model = get_peft_model(_base(case, rows), config)
    _fill(model, seed)
    return model.eval()


def _read_by_peft(case: Case, path: Path, rows: int = 0) -> Any:
    from peft import PeftModel

    return PeftModel.from_pretrained(_base(case, rows), str(path)).eval()


def _tokens(case: Case, rows: int = 0) -> Tensor:
    gen = torch.Generator().manual_seed(1)
    return torch.randint(case.hf["vocab_size"] + rows, (2, 13), generator=gen)


@torch.no_grad()
def _check(case: Case, theirs: Any, folder: Path, rows: int = 0, *, tied: bool | None = None) -> LLM:
    """litlm's logits are PEFT's: with its adapter, merged (in transformers), and when PEFT reads litlm's adapter.

    tied: whether the merged checkpoint is to be; not looked at if None.
    """
    from transformers import AutoModelForCausalLM

    theirs.save_pretrained(str(folder / "a"))
    tokens = _tokens(case, rows)
    expected = theirs(tokens, use_cache=False).logits
    if not rows:
        plain = cases.hf_logits(case, tokens)
        assert (expected - plain).abs().max() > 0.03 * plain.abs().max()
    llm = LLM.load(cases.write(case), adapter=folder / "a", device="cpu")
    cases.close(llm.model(tokens), expected)
    if not rows:
        with adapters_disabled(llm.model):
            cases.close(llm.model(tokens), plain)
        cases.close(llm.model(tokens), expected)
    llm.save(folder / "merged")
    merged = AutoModelForCausalLM.from_pretrained(folder / "merged", **cases.EAGER).eval()
    cases.close(merged(tokens, use_cache=False).logits, expected)
    if tied is not None:
        names = load_file(folder / "merged" / "model.safetensors").keys()
        assert merged.config.tie_word_embeddings == tied == (not any("lm_head" in n or "embed_out" in n for n in names))
    save_adapter(llm.model, folder / "again", base=str(cases.write(case)))
    cases.close(_read_by_peft(case, folder / "again", rows)(tokens, use_cache=False).logits, expected)
    again = LLM.load(cases.write(case), adapter=folder / "again", device="cpu")
    assert torch.equal(again.model(tokens), llm.model(tokens))
    merge(again.model)
    cases.close(again.model(tokens), expected)
    assert not any(isinstance(m, LoRA) or m._forward_hooks for m in again.model.modules())
    return llm


# --- from PEFT to litlm and back -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "targets"),
    [
        (UNTIED, ["lm_head"]), (UNTIED, ["embed_tokens"]), (UNTIED, [*BOTH, "q_proj"]),
        (TIED, ["lm_head"]), (TIED, ["embed_tokens"]), (TIED, [*BOTH, "q_proj"]), (TIED, r".*(v_proj|lm_head)"),
        (GPT2, ["wte"]), (GPT2, ["wte", "wpe", "lm_head", "c_attn"]), (NEOX, ["embed_in"]),
        (NEOX, ["embed_in", "lm_head", "query_key_value"]), (GEMMA, ["embed_tokens"]), (GEMMA, BOTH), (GEMMA3, BOTH),
        (GEMMA4, ["embed_tokens_per_layer", "embed_tokens"]), (PHI, BOTH), (PHI_TIED, BOTH), (COHERE, BOTH),
    ],
    ids=str,
)  # fmt: skip
def test_what_peft_computes(case: Case, targets: Any, tmp_path: Path) -> None:
    _check(case, _peft(case, target_modules=targets), tmp_path, tied=False)


@pytest.mark.parametrize("case", [UNTIED, TIED], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        dict(target_modules=BOTH, use_dora=True),
        dict(target_modules=BOTH, use_rslora=True, lora_dropout=0.3, rank_pattern={"lm_head": 2, "embed_tokens": 4},
             alpha_pattern={"model.embed_tokens": 9}),
        dict(target_modules=["lm_head", "k_proj"], modules_to_save=["embed_tokens"]),
        dict(target_modules=["embed_tokens"], modules_to_save=["lm_head"]),
        dict(target_modules=["q_proj", "lm_head"], trainable_token_indices=[5, 3]),
        dict(target_modules=["q_proj"], trainable_token_indices={"embed_tokens": [3, 5], "lm_head": [1]}),
    ],
    ids=lambda o: "-".join(o),
)  # fmt: skip
@pytest.mark.parametrize("seed", [0, 1])
def test_more_of_what_peft_computes(case: Case, options: dict[str, Any], seed: int, tmp_path: Path) -> None:
    _check(case, _peft(case, seed, **options), tmp_path, tied=False)


@pytest.mark.parametrize("case", [GEMMA, GEMMA3], ids=str)
def test_lengths_of_scaled_embeddings(case: Case, tmp_path: Path) -> None:
    _check(case, _peft(case, target_modules=BOTH, use_dora=True), tmp_path, tied=False)


@pytest.mark.parametrize(
    "options",
    [
        dict(target_modules=["q_proj", "lm_head"], ensure_weight_tying=True),
        dict(target_modules=["q_proj"], trainable_token_indices=[3, 5]),
        dict(target_modules="all-linear"),
    ],
    ids=lambda o: "-".join(o),
)
def test_sides_that_are_equal_are_tied_when_merged(options: dict[str, Any], tmp_path: Path) -> None:
    _check(TIED, _peft(TIED, **options), tmp_path, tied=True)


@pytest.mark.parametrize(
    ("case", "options"),
    [
        (UNTIED, dict(target_modules=BOTH)), (TIED, dict(target_modules=["lm_head"])),
        (TIED, dict(target_modules=["embed_tokens", "q_proj"])),
        (TIED, dict(target_modules=["lm_head"], modules_to_save=["embed_tokens"])),
        (TIED, dict(target_modules=["q_proj"], trainable_token_indices=[3, 5])),
        (UNTIED, dict(target_modules=["q_proj"], trainable_token_indices=[3, 5])),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning")
def test_larger_embeddings_come_with_the_adapter(case: Case, options: dict[str, Any], tmp_path: Path) -> None:
    """The new rows are in its file alone, as the weights below the adapter."""
    llm = _check(case, _peft(case, rows=4, **options), tmp_path, rows=4)
    assert llm.config.vocab_size == case.hf["vocab_size"] + 4


def test_a_copy_of_the_base_is_not_taken_for_another() -> None:
    """PEFT copies the weight below an adapter, rounded where it trained in bf16; what differs more is taken over."""
    from litlm.checkpoint.peft_reader import _is_copy

    weight = torch.randn(7, 5)
    assert _is_copy(weight.clone(), weight)
    assert _is_copy(weight.bfloat16(), weight)
    assert _is_copy(weight.bfloat16().float(), weight.bfloat16())
    assert _is_copy(weight, weight.bfloat16())
    assert not _is_copy(weight + 1e-3, weight)
    assert not _is_copy(weight[:6], weight)


def test_another_base_below_the_adapter_is_used_and_kept(tmp_path: Path) -> None:
    theirs = _peft(UNTIED, target_modules=BOTH)
    with torch.no_grad():
        theirs.get_output_embeddings().base_layer.weight.mul_(1.5)
    theirs.save_pretrained(str(tmp_path / "a"))
    model, tokens = cases.load(cases.write(UNTIED)), _tokens(UNTIED)
    load_adapter(model, tmp_path / "a")
    save_adapter(model, tmp_path / "b", base="x")
    with torch.no_grad():
        expected = theirs(tokens).logits
        cases.close(model(tokens), expected)
        cases.close(_read_by_peft(UNTIED, tmp_path / "b")(tokens).logits, expected)
    kept = [name for name in load_file(tmp_path / "b" / WEIGHTS) if "base_layer" in name]
    assert kept == ["base_model.model.lm_head.base_layer.weight"]


# --- from litlm to PEFT, and what is trained -----------------------------------------------------------------------


def _gradients(model: GPT) -> dict[str, Tensor]:
    """Those of the adapters, under PEFT's names."""
    found = {}
    for name, lora in adapters(model):
        side = {"embed": "model.embed_tokens", "lm_head": "lm_head"}[name]
        assert lora.A.grad is not None
        assert lora.B.grad is not None
        parts = dict(A=lora.A.grad, B=lora.B.grad)
        names = dict(A="lora_A.default.weight", B="lora_B.default.weight")
        if name == "embed":
            parts = dict(A=lora.B.grad.t(), B=lora.A.grad.t())
            names = dict(A="lora_embedding_A.default", B="lora_embedding_B.default")
        found |= {f"base_model.model.{side}.{names[key]}": grad for key, grad in parts.items()}
        if lora.magnitude is not None:
            assert lora.magnitude.grad is not None
            found[f"base_model.model.{side}.lora_magnitude_vector.default.weight"] = lora.magnitude.grad
    return found


@pytest.mark.parametrize("case", [UNTIED, TIED, GEMMA, COHERE], ids=str)
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_it_learns_as_in_peft(
    case: Case, dora: bool, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same loss and gradients, through litlm's chunks of logits; and PEFT reads the adapter that was trained."""
    model = cases.load(cases.write(case))
    assert apply_lora(model, MethodSettings(r=3, alpha=7, targets=("lm_head", "embed"), dora=dora)) == [
        "embed",
        "lm_head",
    ]
    assert {n.rpartition(".")[0] for n, p in model.named_parameters() if p.requires_grad} == {
        "embed.lora",
        "lm_head.lora",
    }
    with torch.no_grad():
        cases.close(model(_tokens(case)), cases.hf_logits(case, _tokens(case)))
    _fill(model, seed)
    save_adapter(model, tmp_path, base=str(cases.write(case)))
    theirs = _read_by_peft(case, tmp_path)
    for name, p in theirs.named_parameters():
        p.requires_grad_("lora" in name)
    tokens = cases.tokens(case, 2, 17, seed)
    labels = tokens.masked_fill(torch.rand(tokens.shape, generator=torch.Generator().manual_seed(seed)) < 0.3, -100)
    out = theirs(tokens, labels=labels, use_cache=False)
    out.loss.backward()
    expected = {name: p.grad for name, p in theirs.named_parameters() if p.requires_grad}
    monkeypatch.setattr(cross_entropy, "_CHUNK_BYTES", 4 * 5 * model.config.vocab_size)  # five rows
    wanted = labels[:, 1:]
    for reduce in (losses.loss_sum, lambda *args: losses.model_token_losses(*args).sum()):
        model.zero_grad()
        loss = reduce(model, model(tokens[:, :-1], output="hidden"), wanted) / (wanted >= 0).sum()
        torch.testing.assert_close(loss, out.loss, rtol=1e-5, atol=1e-6)
        loss.backward()
        found = _gradients(model)
        assert found.keys() == expected.keys()
        for name, grad in expected.items():
            assert grad is not None
            assert grad.abs().max() > 0
            assert (found[name] - grad).abs().max() <= 1e-4 * grad.abs().max(), name
    each = losses.model_token_losses(model, model(tokens[:, :-1], output="hidden"), wanted)
    logits = theirs(tokens).logits[:, :-1].transpose(1, 2)
    exact = torch.nn.functional.cross_entropy(logits, wanted, reduction="none")
    torch.testing.assert_close(each, exact, rtol=1e-4, atol=1e-5)


def test_no_target_in_a_batch() -> None:
    model = cases.load(cases.write(TIED))
    apply_lora(model, MethodSettings(targets=("lm_head",)))
    tokens = _tokens(TIED)
    loss = losses.loss_sum(model, model(tokens, output="hidden"), torch.full_like(tokens, -100))
    loss.backward()
    assert loss == 0
    for _, lora in adapters(model):
        assert lora.A.grad is None or not lora.A.grad.any()


def test_the_chunks_drop_the_same_inputs_backward_as_forward() -> None:
    """Against the whole logits at once, from the same random state."""
    model, tokens = cases.load(cases.write(UNTIED)), _tokens(UNTIED)
    apply_lora(model, MethodSettings(r=3, dropout=0.5, targets=("lm_head",)))
    _fill(model)
    model.train()
    assert model.lm_head is not None
    hidden, (_, lora) = model(tokens, output="hidden").detach(), next(iter(adapters(model)))
    grads = []
    for chunked in (True, False):
        torch.manual_seed(0)
        x, targets = hidden.clone().requires_grad_(), tokens.roll(1, 1)
        if chunked:
            losses.loss_sum(model, x, targets).backward()
        else:
            logits = model.lm_head(x.flatten(0, 1))
            torch.nn.functional.cross_entropy(logits, targets.flatten(), reduction="sum").backward()
        grads.append([x.grad, lora.A.grad, lora.B.grad])
        model.zero_grad()
    for ours, exact in zip(*grads, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-4, atol=1e-5)


def test_embeddings_start_as_in_peft() -> None:
    """A (PEFT's embedding_B) normal, B zero."""
    model = cases.load(cases.write(UNTIED))
    torch.manual_seed(0)
    apply_lora(model, MethodSettings(r=16, targets=("embed",)))
    ((_, lora),) = adapters(model)
    assert lora.B.shape == (UNTIED.hf["vocab_size"], 16)
    assert not lora.B.any()
    theirs = _peft_fresh()
    for t in (lora.A, theirs):
        assert abs(t.std().item() - 1) < 0.1
        assert abs(t.mean().item()) < 0.1


def _peft_fresh() -> Tensor:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(_base(UNTIED), LoraConfig(r=16, target_modules=["embed_tokens"]))
    return model.get_input_embeddings().lora_embedding_B["default"].detach()


def test_one_weight_of_a_tied_model_is_counted_and_kept_once() -> None:
    model = cases.load(cases.write(TIED))
    n = sum(p.numel() for p in model.parameters())
    apply_lora(model, MethodSettings(r=2, targets=("lm_head",)))
    assert sum(p.numel() for n, p in model.named_parameters() if ".lora." not in n) == n
    assert model.lm_head is not None
    other = copy.deepcopy(model).to(torch.bfloat16)
    assert other.lm_head is not None
    assert other.lm_head.weight is other.embed.weight
    assert not model.config.tie_embeddings


def test_an_embedding_trained_whole_is_apart_from_the_head(tmp_path: Path) -> None:
    model, tokens = cases.load(cases.write(TIED)), _tokens(TIED)
    apply_lora(model, MethodSettings(r=2, targets=("lm_head", "v_proj"), modules_to_save=("embed",)))
    _fill(model)
    assert trained_whole(model) == ["embed"]
    save_adapter(model, tmp_path, base=str(cases.write(TIED)))
    with torch.no_grad():
        cases.close(model(tokens), _read_by_peft(TIED, tmp_path)(tokens).logits)
        with adapters_disabled(model):
            cases.close(model(tokens), cases.hf_logits(TIED, tokens))
    state = merged_state(model)
    assert not torch.equal(state["embed.weight"], state["lm_head.weight"])


def test_generation_with_a_cache_sees_both_sides(tmp_path: Path) -> None:
    """Greedy tokens are those of PEFT's whole logits at each length."""
    theirs = _peft(TIED, target_modules=[*BOTH, "v_proj"])
    theirs.save_pretrained(str(tmp_path))
    llm = LLM.load(cases.write(TIED), adapter=tmp_path, device="cpu")
    tokens = [3, 1, 4, 1, 5]
    found = llm.generate(tokens, max_new_tokens=8, ignore_eos=True, return_ids=True)
    for token in found:
        with torch.no_grad():
            assert theirs(torch.tensor([tokens])).logits[0, -1].argmax() == token
        tokens.append(token)


# --- what is refused -----------------------------------------------------------------------------------------------


def _refused(case: Case, path: Path, text: str) -> None:
    model = cases.load(cases.write(case))
    before = model.state_dict()
    with pytest.raises(ValueError, match=".") as e:
        load_adapter(model, path)
    assert text in str(e.value), e.value
    assert model.config.tie_embeddings == (model.lm_head is None)
    assert before.keys() == model.state_dict().keys()


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("model.embed_tokens.lora_embedding_A", torch.ones(3, 7), "lora_embedding_A [3, 7] and _B [48, 3] don't fit"),
        ("model.embed_tokens.lora_embedding_A", None, "has lora_embedding_B only; lora_embedding_A and"),
        ("model.embed_tokens.lora_A.weight", torch.ones(3, 7), "this model has an embedding there"),
        ("lm_head.lora_embedding_A", torch.ones(3, 7), "this model has a linear layer there"),
        ("lm_head.base_layer.weight", torch.ones(5, 4), "has shape [5, 4], which does not fit"),
        ("model.norm.base_layer.weight", torch.ones(5), "is not a LoRA tensor of a llama model"),
        ("model.embed_tokens.token_adapter.trainable_tokens_delta", torch.ones(2, 48), "asks for [1, 48]"),
        ("lm_head.token_adapter.trainable_tokens_delta", torch.ones(1, 48), "is for tokens up to 900"),
    ],
    ids=str,
)  # fmt: skip
def test_tensors_that_do_not_fit(key: str, value: Tensor | None, text: str, tmp_path: Path) -> None:
    assert UNTIED.hf["hidden_size"] == 48
    _peft(UNTIED, target_modules=BOTH).save_pretrained(str(tmp_path))
    tensors = load_file(tmp_path / WEIGHTS)
    tensors.pop(f"base_model.model.{key}", None)
    if value is not None:
        tensors[f"base_model.model.{key}"] = value
    save_file(tensors, tmp_path / WEIGHTS)
    config = json.loads((tmp_path / CONFIG).read_text())
    config["trainable_token_indices"] = {"embed_tokens": [1], "lm_head": [900]}
    (tmp_path / CONFIG).write_text(json.dumps(config))
    _refused(UNTIED, tmp_path, text)


def test_larger_embeddings_that_are_not_in_the_file(tmp_path: Path) -> None:
    theirs = _peft(TIED, rows=4, target_modules=["lm_head"])
    theirs.save_pretrained(str(tmp_path), save_embedding_layers=False)
    _refused(TIED, tmp_path, "lm_head: lora_A [3, 48] and lora_B")


def test_an_adapter_does_not_grow() -> None:
    model = cases.load(cases.write(TIED))
    apply_lora(model, MethodSettings(targets=("embed",)))
    with pytest.raises(ValueError, match="which can't grow; merge it"):
        resize_embeddings(model, model.config.vocab_size + 1)


def test_new_tokens_need_their_embeddings_whole() -> None:
    from litlm.settings import DataSettings, FinetuneSettings
    from litlm.train.preflight import find_problems

    settings = FinetuneSettings(
        model="x", data=DataSettings(path="x"), new_tokens=("<|new|>",), method=MethodSettings(targets=("lm_head",))
    )
    assert "new_tokens trains the embeddings whole; leave lm_head out of targets" in find_problems(
        settings, tiny.load()
    )
