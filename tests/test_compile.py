"""Compiled decoding gives what eager decoding gives. Dynamo's eager backend: the same graphs, no C++ compiler."""

from __future__ import annotations

import copy
import dataclasses
from functools import partial

import pytest
import torch
from parity import cases
from torch._dynamo.testing import CompileCounter

from litlm.context.static import StaticCache
from litlm.llm import LLM
from litlm.model import GPT, DecoderLayer
from litlm.settings import MethodSettings
from litlm.transforms import compile as transform
from litlm.transforms.blocks import wrap_forward
from litlm.transforms.lora import adapters, apply_lora, attach

LLAMA, SLIDING, TIED = map(cases.by_name, ("llama-plain", "qwen3-sliding-pattern", "llama-mqa-tied"))
# One family for each part that decoding goes through in a way of its own.
OTHERS = [
    next(case for case in cases.CASES if case.family == family)
    for family in ("bloom", "cohere2", "deepseek_v3", "gemma2", "gpt2", "gpt_oss", "lfm2", "llama4_text", "mixtral",
                   "olmo2", "qwen3_next", "qwen3_5_text")
]  # fmt: skip
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]


@pytest.fixture(autouse=True)
def eager_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    monkeypatch.setattr(transform.shutil, "which", lambda name: name)


def answer(llm: LLM, n: int = 20) -> list[int]:
    return llm.generate(PROMPT, max_new_tokens=n, ignore_eos=True, return_ids=True)


@pytest.mark.parametrize("case", [LLAMA, SLIDING, *OTHERS], ids=lambda case: case.name)
def test_compiled_tokens_are_the_eager_ones(case: cases.Case) -> None:
    path = cases.write(case)
    assert answer(LLM.load(path, compile=True)) == answer(LLM.load(path))


def test_an_adapter_on_one_layer_only_is_not_lost() -> None:
    models = [LLM.load(cases.write(LLAMA), compile=flag) for flag in (False, True)]
    assert answer(models[0]) == answer(models[1])
    for llm in models:
        lora = attach(llm.model.get_submodule("layers.1.mlp.down_proj"), r=2, scale=2.0)
        with torch.no_grad():
            lora.A.fill_(0.5)
            lora.B.copy_(torch.linspace(-3, 3, lora.B.numel()).view_as(lora.B))
        llm.model.eval()
    plain = answer(LLM.load(cases.write(LLAMA)))
    assert answer(models[1]) == answer(models[0]) != plain


def test_an_adapter_on_the_head_and_the_embedding() -> None:
    models = [LLM.load(cases.write(TIED), compile=flag) for flag in (False, True)]
    plain = answer(models[0])
    for llm in models:
        apply_lora(llm.model, MethodSettings(r=2, targets=("lm_head", "embed")))
        for _, lora in adapters(llm.model):
            with torch.no_grad():
                lora.B.copy_(torch.linspace(-1, 1, lora.B.numel()).view_as(lora.B))
                lora.A.copy_(torch.linspace(-1, 2, lora.A.numel()).view_as(lora.A))
    assert answer(models[1]) == answer(models[0]) != plain


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler
def test_eight_equal_layers_are_one_graph_per_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    config = cases.ours(LLAMA).config.changed(n_layer=8)
    torch.manual_seed(0)
    model, ids = GPT(config).eval(), torch.randint(config.vocab_size, (1, 17))
    counter = CompileCounter()
    step = torch.compile(DecoderLayer.forward, fullgraph=True, backend=counter)
    with torch.inference_mode():
        cache = model.make_cache(1, 80)
        expected = [model(part, context=cache) for part in ids.split([8] + [1] * 9, 1)]
        undo = wrap_forward(list(model.layers), lambda forward, layer, *args: step(layer, *args))
        cache = StaticCache(config, 1, 80, dtype=torch.float32)
        for i, (part, logits) in enumerate(zip(ids.split([8] + [1] * 9, 1), expected, strict=True)):
            assert (model(part, context=cache) - logits).abs().max() <= 1e-6 * logits.abs().max()
            assert counter.frame_count == (1 if i == 0 else 2)
        cache.begin(1, 50, torch.device("cpu"))  # which lets more slots be looked at
        model(ids[:, :1], context=cache)
        assert counter.frame_count == 2
        model.layers[3].attn.spec = dataclasses.replace(model.layers[3].attn.spec, softcap=5.0)  # one that differs
        model(ids[:, :1], context=cache)
        assert counter.frame_count == 3
    undo()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler
@pytest.mark.parametrize("name", ["lfm2-plain", "qwen3_next-plain", "qwen3_5_text-plain"])
def test_equal_layers_of_each_kind_are_one_graph_per_phase(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recurrent layers keep their state in tensors that are changed in place, so steps compile nothing anew."""
    monkeypatch.undo()
    config = cases.ours(cases.by_name(name)).config
    types = ("recurrent", "full", "recurrent", "recurrent", "full", "recurrent")
    experts = () if config.moe is None else (True,) * 6
    config = config.changed(
        n_layer=6, layer_types=types, rope_layers=tuple(t == "full" for t in types), moe_layers=experts
    )
    torch.manual_seed(0)
    model, ids = GPT(config).eval(), torch.randint(config.vocab_size, (1, 92))
    parts, counter = ids.split([70, *[1] * 22], 1), CompileCounter()
    step = torch.compile(DecoderLayer.forward, fullgraph=True, backend=counter)
    with torch.inference_mode():
        cache = model.make_cache(1, 92)
        expected = [model(part, context=cache) for part in parts]
        undo = wrap_forward(list(model.layers), lambda forward, layer, *args: step(layer, *args))
        static = StaticCache(config, 1, 92, dtype=torch.float32)
        for i, (part, logits) in enumerate(zip(parts, expected, strict=True)):
            assert (model(part, context=static) - logits).abs().max() <= 1e-6 * logits.abs().max()
            assert counter.frame_count == (2 if i == 0 else 4)  # attention and a recurrence, in each phase
    undo()
    for mine, other in zip(static._row_tensors(), cache._row_tensors(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


@torch.inference_mode()
@pytest.mark.parametrize("name", ["lfm2-plain", "qwen3_5_text-plain"])
def test_a_row_that_is_held_is_held_in_a_static_cache(name: str) -> None:
    case = cases.by_name(name)
    model, ids = cases.ours(case), cases.tokens(case, 1, 8)
    cache = StaticCache(model.config, 1, 12, dtype=torch.float32)
    for part in ids[:, :5].split([4, 1], 1):
        model(part, context=cache)
    before = [t.clone() for t in cache._row_tensors()]
    model(ids[:, 7:], context=cache, lengths=[5])
    assert cache.lengths == [5]
    assert all(map(torch.equal, before, cache._row_tensors()))
    cases.close(model(ids[:, 5:6], context=cache), cases.hf_logits(case, ids[:, :6])[:, 5:])


def test_the_compiler_is_set_up_only_while_it_runs() -> None:
    before = torch._dynamo.config.skip_nnmodule_hook_guards, torch._dynamo.config.recompile_limit
    llm = LLM.load(cases.write(LLAMA), compile=True)
    answer(llm, 2)
    assert (torch._dynamo.config.skip_nnmodule_hook_guards, torch._dynamo.config.recompile_limit) == before
    assert before[1] < 64


def test_a_copy_stands_on_its_own() -> None:
    llm = LLM.load(cases.write(LLAMA), compile=True)
    expected = answer(llm)
    other = LLM(copy.deepcopy(llm.model), llm.config)
    with torch.no_grad():
        for p in llm.model.parameters():
            p.zero_()
    assert answer(other) == expected


def test_no_compiler_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transform.shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match="C\\+\\+ compiler"):
        LLM.load(cases.write(LLAMA), compile=True)
