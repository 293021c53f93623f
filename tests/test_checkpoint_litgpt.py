"""LitGPT's checkpoints: models built, run and saved by LitGPT itself, read by litlm, exported for transformers."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import shutil
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import yaml
from packages import unpacked
from parity.cases import close
from torch import Tensor

from litlm.checkpoint.base import load_model
from litlm.checkpoint.litgpt import LitGPTSource, config_from_litgpt, is_litgpt
from litlm.llm import LLM
from litlm.model import GPT

VOCAB = 61


def litgpt(module: str) -> Any:
    """A module of LitGPT's. The package's own `__init__` wants libraries that the model does without."""
    if "litgpt" not in sys.modules:
        package = types.ModuleType("litgpt")
        package.__path__ = [str(unpacked("litgpt==0.5.13") / "litgpt")]
        sys.modules["litgpt"] = package
    return importlib.import_module(f"litgpt.{module}")


@dataclass(frozen=True)
class Case:
    """name: of a model in LitGPT's table, made tiny by `changes`. family: what litlm must take it for."""

    name: str
    family: str
    changes: dict[str, Any] = field(hash=False)
    seed: int
    tied: bool = False

    def __str__(self) -> str:
        return f"{self.name}-{self.seed}"


_SIZES: dict[str, Any] = dict(
    n_layer=3, n_embd=48, n_head=4, intermediate_size=56, block_size=64, vocab_size=VOCAB, padded_vocab_size=64,
)  # fmt: skip
_LLAMA3 = dict(factor=5.5, low_freq_factor=1.3, high_freq_factor=3.1, original_max_seq_len=37)


def _case(name: str, family: str, seed: int, tied: bool = False, **changes: Any) -> Case:
    return Case(name, family, _SIZES | changes, seed, tied)


CASES = [
    _case("Llama-2-7b-hf", "llama", 0),
    _case("Llama-3.2-1B", "llama", 1, tied=True, n_query_groups=2, head_size=14, rope_adjustments=_LLAMA3),
    _case("Llama-3-8B", "llama", 2, n_query_groups=1, bias=True, padded_vocab_size=None, padding_multiple=7),
    _case("LLaMA-2-7B-32K", "llama", 3, n_layer=2),
    _case("Llama-2-7b-hf", "llama", 4, mlp_class_name="GemmaMLP", n_query_groups=2, norm_eps=1e-3),
    _case("Mistral-7B-v0.1", "mistral", 5, n_query_groups=2, sliding_window_size=5),
    _case("Phi-3-mini-4k-instruct", "mistral", 6, sliding_window_size=3),
    _case("Qwen2.5-0.5B", "qwen2", 7, tied=True, n_query_groups=2),
    _case("Qwen2.5-1.5B", "qwen2", 8, n_query_groups=1, sliding_window_size=4, sliding_window_indices=[0, 1, 1]),
    _case("Phi-4-mini-instruct", "phi3", 9, n_query_groups=2, rotary_percentage=0.5, sliding_window_size=6),
    _case("Qwen3-0.6B", "qwen3", 10, tied=True, n_query_groups=2, head_size=14),
    _case("Mixtral-8x7B-v0.1", "mixtral", 11, n_query_groups=2, n_expert=5, n_expert_per_token=2),
    _case("Mixtral-8x7B-v0.1", "mixtral", 12, n_query_groups=1, n_expert=3, n_expert_per_token=1),
    _case(
        "Qwen3-30B-A3B", "qwen3_moe", 13, n_query_groups=2, head_size=14, n_expert=7, n_expert_per_token=3,
        moe_intermediate_size=20,
    ),
    _case("pythia-160m", "gpt_neox", 14, n_head=3, head_size=16),
    _case("pythia-160m", "gpt_neox", 15, parallel_residual=False, rotary_percentage=1.0, gelu_approximate="tanh"),
    _case("stablelm-3b-4e1t", "stablelm", 16, n_head=2, head_size=24),
    _case("stablelm-3b-4e1t", "stablelm", 17, n_query_groups=2, attn_bias=True, rotary_percentage=0.5),
    _case("phi-2", "phi", 18, rotary_percentage=0.5),
    _case("phi-1_5", "phi", 19, n_head=3, head_size=16, rotary_percentage=0.25),
    _case("falcon-7b", "falcon", 20),
    _case("falcon-40b", "falcon", 21, n_query_groups=2),
    _case("OLMo-1B-hf", "olmo", 22, tied=True),
    _case("OLMo-2-1124-7B", "olmo2", 23, n_query_groups=2),
    _case("Gemma-2b", "gemma", 24, tied=True, n_query_groups=1, head_size=14),
    _case("Gemma-7b", "gemma", 25, head_size=10, n_query_groups=2),
    _case(
        "Gemma-2-2b", "gemma2", 26, tied=True, n_query_groups=2, head_size=14, sliding_window_size=5,
        attention_scores_scalar=17, attention_logit_softcapping=5.0, final_logit_softcapping=3.0,
    ),
    _case("Gemma-2-9b", "gemma2", 27, n_query_groups=4, head_size=10, sliding_window_size=4),
    _case(
        "Gemma-3-1b-it", "gemma3_text", 28, tied=True, n_query_groups=1, head_size=14, n_layer=7, sliding_window_size=5,
        rope_local_base_freq=77, rope_base=3333, attention_scores_scalar=20,
    ),
    _case(
        "Gemma-3-4b-it", "gemma3_text", 29, tied=True, n_query_groups=2, head_size=14, n_layer=6, sliding_window_size=3,
        sliding_window_indices=[1, 0, 1, 1, 0, 1], rope_indices=[1, 0, 1, 1, 0, 1], rope_base=500,
    ),
]  # fmt: skip


@functools.cache
def build(case: Case) -> Any:
    """LitGPT's model with weights that give every part a say. Shared: don't change it."""
    config = litgpt("config").Config.from_name(case.name, **case.changes)
    model = litgpt("model").GPT(config)
    gen = torch.Generator().manual_seed(case.seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=gen)
            if p.dim() > 1:
                p.copy_(noise * (1.0 if "wte" in name else 1.7 * p.shape[1] ** -0.5))
            else:
                one = 0.0 if name.endswith("bias") or "Gemma" in case.name else 1.0
                p.copy_(noise * 0.4 + one)
        if case.tied:
            model.lm_head.weight.copy_(model.transformer.wte.weight)
    return model.eval()


def tokens(case: Case, batch: int = 2, length: int = 21) -> Tensor:
    return torch.randint(VOCAB, (batch, length), generator=torch.Generator().manual_seed(case.seed + length))


@torch.no_grad()
def expected(case: Case, *shape: int) -> Tensor:
    return build(case)(tokens(case, *shape))


def write(path: Path, case: Case, state: Any = None, **fields: Any) -> Path:
    """fields: changes of model_config.yaml; None removes one."""
    model = build(case)
    path.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict() if state is None else state, path / "lit_model.pth")
    litgpt("utils").save_config(model.config, path)
    if fields:
        data = yaml.safe_load((path / "model_config.yaml").read_text()) | fields
        (path / "model_config.yaml").write_text(yaml.safe_dump({k: v for k, v in data.items() if v is not ...}))
    return path


def load(path: Path) -> GPT:
    source = LitGPTSource(path)
    return load_model(source.config, source, device=torch.device("cpu"), dtype=torch.float32)


def check(path: Path, case: Case) -> GPT:
    model = load(path)
    assert model.config.family == case.family
    for shape in ((2, 21), (3, 13), (1, 1)):
        with torch.no_grad():
            close(model(tokens(case, *shape)), expected(case, *shape))
    return model


@pytest.mark.parametrize("case", CASES, ids=str)
def test_logits_and_export(case: Case, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = check(write(tmp_path / "lit", case), case)
    assert model.config.tie_embeddings is case.tied
    assert model.config.vocab_size == build(case).config.padded_vocab_size
    assert model.config.max_seq_len == 64
    LLM(model, model.config).save(tmp_path / "hf")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32, attn_implementation="eager")
    ids = tokens(case)
    with torch.no_grad():
        close(theirs(ids, attention_mask=torch.ones_like(ids), use_cache=False).logits, expected(case))


# What LitGPT's table calls these models is on the hub of that `model_type`, but for Phi-3: LitGPT's is a Mistral.
FAMILIES = {
    "llama": ["Llama-2-70b-chat-hf", "Llama-3.1-8B", "CodeLlama-34b-hf", "tiny-llama-1.1b", "SmolLM2-135M"],
    "mistral": ["Mistral-7B-Instruct-v0.1", "Mathstral-7B-v0.1", "Phi-3-mini-128k-instruct"],
    "qwen2": ["Qwen2.5-7B-Instruct", "QwQ-32B", "Qwen2.5-Math-1.5B"],
    "phi3": ["Phi-4-mini-instruct", "Phi-4-mini-reasoning"],
    "qwen3": ["Qwen3-0.6B", "Qwen3-32B", "Qwen3-8B-Base"],
    "mixtral": ["Mixtral-8x7B-Instruct-v0.1", "Mixtral-8x22B-v0.1"],
    "qwen3_moe": ["Qwen3-30B-A3B", "Qwen3-235B-A22B"],
    "gpt_neox": ["pythia-14m", "pythia-12b-deduped", "stablelm-base-alpha-3b"],
    "stablelm": ["stablelm-3b-4e1t", "stable-code-3b"],
    "phi": ["phi-1_5", "phi-2"],
    "falcon": ["falcon-7b-instruct", "falcon-40b", "falcon-180B"],
    "olmo": ["OLMo-1B-hf", "OLMo-7B-Instruct-hf"],
    "olmo2": ["OLMo-2-1124-7B-Instruct", "OLMo-2-1124-13B"],
    "gemma": ["Gemma-2b-it", "CodeGemma-7b-it"],
    "gemma2": ["Gemma-2-27b", "Gemma-2-9b-it"],
    "gemma3_text": ["Gemma-3-1b-it", "Gemma-3-27b-it"],
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_family_of_published_models(family: str) -> None:
    configs = [litgpt("config").Config.from_name(name) for name in FAMILIES[family]]
    assert [config_from_litgpt(dataclasses.asdict(config)).family for config in configs] == [family] * len(configs)


def test_every_model_of_litgpt() -> None:
    """All of its table can be read, and has as many parameters as LitGPT builds (its tied heads counted twice)."""
    config_class, model_class = litgpt("config").Config, litgpt("model").GPT
    seen = set()
    for entry in litgpt("config").configs:
        theirs = config_class(**entry)
        ours = config_from_litgpt(dataclasses.asdict(theirs))
        key = json.dumps(
            ours.to_dict() | {"name": "", "max_seq_len": 0, "vocab_size": 0, "n_layer": 0, "layer_types": 0}
        )
        if key in seen:
            continue
        seen.add(key)
        few = dict(n_layer=1, sliding_window_indices=None, rope_indices=None, block_size=8)
        with torch.device("meta"):
            model = model_class(config_class(**(entry | few)))
        short = dataclasses.replace(ours, n_layer=1, layer_types=(), moe_layers=(), rope_layers=())
        assert short.n_parameters() == sum(p.numel() for p in model.parameters()), theirs.name
    assert len(seen) > 50


# --- the layout of 2023 and 2024 ------------------------------------------------------------------------------------
LEGACY = [c for c in CASES if c.seed in (0, 1, 2, 7, 8, 14, 15, 21)]


def by_groups(t: Tensor, config: Any) -> Tensor:
    """The rows group by group: the queries of the heads that share a key and value, that key, that value."""
    size, n_group = config.head_size, config.n_query_groups
    each = config.n_head // n_group
    heads = list(t.split(size))
    queries, keys, values = heads[: config.n_head], heads[config.n_head :][:n_group], heads[config.n_head + n_group :]
    rows = [[*queries[g * each : (g + 1) * each], keys[g], values[g]] for g in range(n_group)]
    return torch.cat([t for group in rows for t in group])


@pytest.mark.parametrize("case", LEGACY, ids=str)
def test_legacy_layout(case: Case, tmp_path: Path) -> None:
    model = build(case)
    state = {
        name.replace("attn.qkv.", "attn.attn."): by_groups(t, model.config) if "attn.qkv." in name else t
        for name, t in model.state_dict().items()
    }
    assert any("attn.attn." in name for name in state)
    # LitGPT itself still reads the old names.
    again = litgpt("model").GPT(model.config)
    again.load_state_dict(dict(state))
    with torch.no_grad():
        torch.testing.assert_close(again(tokens(case)), expected(case), rtol=0, atol=0)
    check(write(tmp_path, case, state), case)


def test_padding_that_is_left_to_litgpt() -> None:
    theirs = build(CASES[2]).config
    assert (theirs.vocab_size, theirs.padded_vocab_size) == (61, 63)
    ours = config_from_litgpt(dataclasses.asdict(theirs) | {"padded_vocab_size": None})
    assert ours.vocab_size == 63


def test_name_of_the_hub() -> None:
    """LitGPT takes it where there is no other, and Gemma's norms go by the name."""
    config = dataclasses.asdict(build(next(c for c in CASES if c.seed == 24)).config)
    config |= {"name": "", "hf_config": {"org": "google", "name": "Gemma-2b"}}
    theirs = litgpt("config").Config(**config)
    assert theirs.name == config_from_litgpt(config).name == "Gemma-2b"
    assert theirs.norm_class(4).add_unit_offset is config_from_litgpt(config).norm.offset is True


def test_fields_of_older_files(tmp_path: Path) -> None:
    """Gemma 2 of 2024 named every other layer by a number; OLMo 2 came before norm_qk_type."""
    gemma = next(c for c in CASES if c.seed == 26)
    newer = dict.fromkeys(
        ["sliding_window_indices", "norm_1", "norm_2", "norm_qk", "norm_qk_type", "attn_bias", "rope_interleave",
         "rope_local_base_freq", "rope_indices", "latent_attention", "moe_intermediate_size"], ...
    )  # fmt: skip
    check(write(tmp_path / "gemma", gemma, **newer, sliding_window_layer_placing=2), gemma)
    olmo = next(c for c in CASES if c.seed == 23)
    check(write(tmp_path / "olmo", olmo, norm_qk_type=...), olmo)


# --- files ----------------------------------------------------------------------------------------------------------
def test_forms_of_the_file(tmp_path: Path) -> None:
    """A training checkpoint, a compiled model's names, LitGPT's own incremental writer, an embedding of other size."""
    case = CASES[1]
    state = build(case).state_dict()
    check(write(tmp_path / "a", case, {"model": state, "step_count": 3, "optimizer": {"state": {}}}), case)
    check(write(tmp_path / "b", case, {f"_orig_mod.{name}": t for name, t in state.items()}), case)
    path = write(tmp_path / "c", case)
    with litgpt("utils").incremental_save(path / "lit_model.pth") as saver:
        saver.save({name: saver.store_early(t) for name, t in state.items()})
    check(path, case)
    # The tensor counts, not the field.
    check(write(tmp_path / "d", case, padded_vocab_size=512), case)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtype_is_the_stored_one(dtype: torch.dtype, tmp_path: Path) -> None:
    case = CASES[0]
    state = {name: t.to(dtype) for name, t in build(case).state_dict().items()}
    source = LitGPTSource(write(tmp_path, case, state))
    assert source.config.dtype == str(dtype).removeprefix("torch.")
    model = load_model(source.config, source, device=torch.device("cpu"), dtype=dtype)
    assert torch.equal(model.layers[1].attn.o_proj.weight, state["transformer.h.1.attn.proj.weight"])
    k = state["transformer.h.2.attn.qkv.weight"][48:96]
    assert torch.equal(model.layers[2].attn.k_proj.weight, k)


def with_tokenizer(path: Path, case: Case, **more: Any) -> Path:
    for file in tiny.folder().iterdir():
        if file.name.startswith("tokenizer"):
            shutil.copy(file, path)
    return write(path, case, **more)


BIG = Case("Llama-3.2-1B", "llama", _SIZES | dict(n_query_groups=2, vocab_size=340, padded_vocab_size=343), 40)


def test_a_directory_is_a_model(tmp_path: Path) -> None:
    path = with_tokenizer(tmp_path, BIG)
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7], "bos_token_id": 0}))
    llm = LLM.load(path, device="cpu")
    assert (llm.config.bos_token_id, llm.config.eos_token_id) == (0, (2, 7))
    ids = llm.tokenizer.encode("The quick brown fox")
    # LitGPT's own greedy continuation.
    row, model = torch.tensor([ids]), build(BIG)
    with torch.no_grad():
        for _ in range(8):
            row = torch.cat([row, model(row)[:, -1:].argmax(-1)], dim=1)
    assert llm.generate(ids, max_new_tokens=8, ignore_eos=True, return_ids=True) == row[0, len(ids) :].tolist()
    assert llm.style.name == "template"
    llm.save(tmp_path / "out")
    again = LLM.load(tmp_path / "out", device="cpu")
    assert again.config.eos_token_id == (2, 7)
    assert again.chat([{"role": "user", "content": "fox"}], max_new_tokens=5) == llm.chat(
        [{"role": "user", "content": "fox"}], max_new_tokens=5
    )
    # Where both kinds of weights are, Hugging Face's are read.
    assert is_litgpt(path)
    shutil.copy(tmp_path / "out" / "model.safetensors", path)
    assert not is_litgpt(path)


def test_describe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from litlm.cli.main import main

    main(["describe", str(write(tmp_path, CASES[0])), "--json"])
    described = json.loads(capsys.readouterr().out)
    assert described["parameters"] == sum(p.numel() for p in build(CASES[0]).parameters())


def test_prompt_style(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What it was finetuned on goes before the template that came with the tokenizer."""
    prompts = litgpt("prompts")
    path = with_tokenizer(tmp_path, BIG)
    prompts.save_prompt_style("alpaca", path)
    llm = LLM.load(path, device="cpu")
    assert llm.style.name == "alpaca"
    message = {"role": "user", "content": "Name a fox."}
    assert llm.style.format([message]) == prompts.Alpaca().apply("Name a fox.")
    (path / "prompt_style.yaml").write_text("class_path: mine.Own\n")
    assert LLM.load(path, device="cpu").style.name == "template"
    assert "names mine.Own, which litlm has no style for" in capsys.readouterr().err


def test_prompt_styles_have_names_here(tmp_path: Path) -> None:
    from litlm.prompts import get_style

    prompts, case = litgpt("prompts"), CASES[0]
    # Tasks' own texts: they are data sets' and no model's.
    named = set(prompts.prompt_styles) - {"flan", "longform"}
    path = write(tmp_path, case)
    for name in sorted(named):
        prompts.save_prompt_style(name, path)
        found = LitGPTSource(path).style
        assert found == name
        assert get_style(found).name == name


# --- errors ---------------------------------------------------------------------------------------------------------
def fails(path: Path, *texts: str) -> None:
    with pytest.raises(ValueError) as error:
        LLM.load(path, device="cpu")
    for text in texts:
        assert text in str(error.value)


def test_config_is_missing(tmp_path: Path) -> None:
    path = write(tmp_path, CASES[0])
    (path / "model_config.yaml").unlink()
    fails(path, "model_config.yaml is missing", "copy it")


@pytest.mark.parametrize("text", ["a: [1", "- 1\n", ""])
def test_config_is_no_mapping(text: str, tmp_path: Path) -> None:
    path = write(tmp_path, CASES[0])
    (path / "model_config.yaml").write_text(text)
    fails(path, "model_config.yaml", "valid YAML" if text == "a: [1" else "mapping")


@pytest.mark.parametrize("left", [0, 100, -100])
def test_truncated(left: int, tmp_path: Path) -> None:
    path = write(tmp_path, CASES[0])
    file = path / "lit_model.pth"
    file.write_bytes(file.read_bytes()[:left])
    fails(path, "lit_model.pth is truncated, corrupt or not a checkpoint")


class Touch:
    """Unpickling this makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def test_code_is_not_run(tmp_path: Path) -> None:
    path, trap = tmp_path / "lit", tmp_path / "trap"
    write(path, CASES[0], build(CASES[0]).state_dict() | {"more": Touch(trap)})
    fails(path, "lit_model.pth holds more than tensors", "run code")
    assert not trap.exists()


@pytest.mark.parametrize("content", [[1, 2], {"model": {"a": 1}}, {"a": "b"}], ids=str)
def test_no_state_dict(content: Any, tmp_path: Path) -> None:
    fails(write(tmp_path, CASES[0], content), "must hold a state dict of tensors")


def test_a_folder_of_shards(tmp_path: Path) -> None:
    path = write(tmp_path, CASES[0])
    (path / "lit_model.pth").unlink()
    (path / "lit_model.pth").mkdir()
    fails(path, "folder of shards", "fabric consolidate")


@pytest.mark.parametrize(
    ("file", "text"),
    [("lit_model.pth.lora", "litgpt merge_lora"), ("lit_model.pth.adapter_v2", "finetune the base model")],
)
def test_what_is_not_merged(file: str, text: str, tmp_path: Path) -> None:
    path = write(tmp_path, CASES[0])
    (path / "lit_model.pth").rename(path / file)
    fails(path, file, text)


def test_lora_that_was_merged(tmp_path: Path) -> None:
    path = write(tmp_path, CASES[0])
    (path / "lit_model.pth.lora").write_bytes(b"")
    check(path, CASES[0])


def test_shapes_that_do_not_fit(tmp_path: Path) -> None:
    case = CASES[1]
    state = build(case).state_dict()
    wrong = state | {
        "transformer.h.1.mlp.proj.weight": torch.zeros(48, 55),
        "transformer.h.0.own.weight": torch.zeros(2),
    }
    wrong["transformer.h.1.attn.qkv.weight"] = torch.zeros(104, 48)
    del wrong["transformer.h.2.norm_1.weight"], wrong["transformer.h.0.mlp.fc_2.weight"]
    fails(
        write(tmp_path / "a", case, wrong),
        "transformer.h.1.mlp.proj.weight has shape [48, 55], the config asks for [48, 56]",
        "transformer.h.0.own.weight [2] is not part of a llama model",
        "transformer.h.1.attn.qkv.weight has shape [20, 48], the config asks for [28, 48] (layers.1.attn.v_proj.",
        "transformer.h.2.norm_1.weight is missing",
        "transformer.h.0.mlp.fc_2.weight is missing",
    )
    more = state | {"transformer.h.3.norm_1.weight": torch.zeros(48)}
    fails(write(tmp_path / "b", case, more), "transformer.h.3.norm_1.weight [48] has no place in this config")
    neox = next(c for c in CASES if c.seed == 14)
    wrong = dict(build(neox).state_dict())
    del wrong["transformer.h.0.mlp.fc.weight"]
    fails(write(tmp_path / "c", neox, wrong), "transformer.h.0.mlp.fc.weight is missing")


@pytest.mark.parametrize(
    ("case", "fields", "texts"),
    [
        (CASES[0], {"qk_clip": 3.0, "sparse": True}, ["qk_clip=3.0", "sparse=True", "not a field"]),
        (CASES[0], {"latent_attention": {"q_lora_rank": 8}, "n_layer": 0}, ["latent_attention=", "n_layer=0"]),
        (CASES[0], {"norm_eps": "tiny", "rope_local_base_freq": 0}, ["norm_eps='tiny'", "rope_local_base_freq=0"]),
        (CASES[0], {"norm_class_name": "FusedRMSNorm"}, ["norm_class_name='FusedRMSNorm'", "'RMSNorm'"]),
        (CASES[0], {"mlp_class_name": "MyMLP"}, ["mlp_class_name='MyMLP'", "'GemmaMLP'"]),
        (CASES[0], {"rope_adjustments": _LLAMA3 | {"beta_fast": 3}}, ["YaRN", "other way round"]),
        (CASES[0], {"rope_adjustments": {"factor": 2.0, "truncate": False}}, ["rope_adjustments=", "truncate"]),
        (CASES[1], {"rope_condense_ratio": 2}, ["rope_condense_ratio=2", "Llama 3"]),
        (CASES[0], {"post_mlp_norm": True}, ["post_mlp_norm=True", "norms"]),
        (CASES[0], {"sliding_window_indices": [1]}, ["sliding_window_indices=[1]", "n_layer=3"]),
        (CASES[0], {"rope_indices": 7, "n_layer": "3"}, ["rope_indices=7", "n_layer='3'"]),
        (CASES[-1], {"rope_indices": [1] * 6}, ["rope_indices must name the same layers"]),
        (CASES[14], {"lm_head_bias": True}, ["no family", "gpt_neox", "head_bias"]),
        (CASES[0], {"attention_logit_softcapping": 3.0}, ["no family", "llama", "attention"]),
    ],
)  # fmt: skip
def test_configs_that_are_refused(case: Case, fields: dict[str, Any], texts: list[str], tmp_path: Path) -> None:
    fails(write(tmp_path, case, **fields), "model_config.yaml", *texts)
