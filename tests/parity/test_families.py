"""Every family against transformers: logits, gradients, caches, greedy text, and checkpoints in and out."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from parity import cases
from parity.cases import CASES, EAGER, Case, close, hf_logits, ours, published, raw_tensors, tokens, write
from parity.choices import Choices, as_near
from torch import Tensor

from litlm.checkpoint.hf import INDEX, save_weights
from litlm.context import KVCache
from litlm.model import GPT

each_case = pytest.mark.parametrize("case", CASES, ids=str)
# transformers runs these with another family's class, and writes its name; other readers know the authors' own.
RUN_AS_ANOTHER = ("exaone", "sarvam_mla", "sarvam_moe")
# Factors of embeddings that bf16 can't hold.
SCALED = [
    "gemma-plain", "gemma2-plain", "gemma3_text-two-ropes", "gemma4_text-two-sizes", "afmoe-plain", "granite-plain",
    "granitemoe-plain", "granitemoeshared-plain", "granitemoehybrid-plain", "granite_swa-default-pattern",
    "granitemoe_swa-default-pattern",
]  # fmt: skip
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Tiny tensors are slower on many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@each_case
def test_logits(case: Case) -> None:
    model = ours(case)
    with torch.no_grad():
        for seed, (batch, length) in enumerate([(1, 1), (3, 2), (4, 17), (2, 61)]):
            ids = tokens(case, batch, length, seed)
            close(model(ids), hf_logits(case, ids))


@each_case
def test_logits_with_right_padding(case: Case) -> None:
    ids, lengths = tokens(case, 4, 23), [23, 1, 9, 16]
    mask = torch.arange(23) < torch.tensor(lengths)[:, None]
    with torch.no_grad():
        actual, expected = ours(case)(ids), hf_logits(case, ids, mask.long())
    close(actual[mask], expected[mask])


@pytest.mark.parametrize("case", [case for case in CASES if not case.hf.get("attn_temperature_tuning")], ids=str)
def test_logits_at_given_positions(case: Case) -> None:
    """Rope far from the start, as packed documents or an offset cache need it.

    (transformers' Llama 4 counts tokens for its temperature, whatever positions it is given.)
    """
    ids = tokens(case, 2, 9)
    positions = torch.tensor([[100], [7]]) + torch.arange(9)
    with torch.no_grad():
        expected = cases.build(case)(ids, position_ids=positions, attention_mask=torch.ones_like(ids), use_cache=False)
        close(ours(case)(ids, positions=positions), expected.logits)


@each_case
def test_gradients(case: Case) -> None:
    theirs, model = cases.build(case), cases.load(write(case))
    ids = tokens(case, 3, 19)

    def loss(logits: Tensor) -> Tensor:
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())

    theirs.zero_grad(set_to_none=True)
    expected = loss(theirs(ids, attention_mask=torch.ones_like(ids), use_cache=False).logits)
    expected.backward()
    actual = loss(model(ids))
    actual.backward()
    assert actual.item() == pytest.approx(expected.item(), rel=1e-5)

    grads = cases.gradients(case)
    theirs.zero_grad(set_to_none=True)
    total = torch.stack([grad.norm() for grad in grads.values()]).norm()
    for name, p in model.named_parameters():
        part = grads.pop(name)
        assert p.grad is not None, f"{name} got no gradient"
        # Parts in which much cancels, or all (queries of a token that sees itself alone), are left with what rounding
        # does to the whole: a few roundoffs of it.
        error = (p.grad - part).norm() / max(part.norm(), 3e-3 * total)
        assert error <= 1e-4, f"{name}: {error:.1e}"
    assert set(grads) <= {name for name, _ in model.named_buffers()}


def _cache(model: GPT, batch: int, room: int) -> KVCache:
    return KVCache(model.config, batch, room, dtype=torch.float32)


@each_case
@torch.no_grad()
def test_cache_in_chunks(case: Case) -> None:
    model, ids = ours(case), tokens(case, 3, 30)
    expected = hf_logits(case, ids)
    for chunks in ([30], [1] * 30, [2, 5, 3, 1, 11, 1, 7], [1, 29], [29, 1]):
        cache = _cache(model, 3, 30)
        close(torch.cat([model(part, context=cache) for part in ids.split(chunks, 1)], 1), expected)


@each_case
@torch.no_grad()
def test_cache_with_ragged_rows(case: Case) -> None:
    """Right-padded prompts of four lengths, then chunks that are padded too, then single steps."""
    model = ours(case)
    parts = [[11, 1, 3, 1, 1, 1, 1], [4, 3, 0, 1, 1, 1, 1], [1, 2, 3, 1, 1, 1, 1], [7, 1, 1, 1, 1, 1, 1]]
    rows = [tokens(case, 1, sum(part), seed)[0] for seed, part in enumerate(parts)]
    cache, done = _cache(model, 4, 30), [0] * 4
    got: list[list[Tensor]] = [[], [], [], []]
    for step in range(len(parts[0])):
        width = max(part[step] for part in parts)
        batch = torch.full((4, width), 3)
        for b, part in enumerate(parts):
            batch[b, : part[step]] = rows[b][done[b] : done[b] + part[step]]
        done = [n + part[step] for n, part in zip(done, parts, strict=True)]
        logits = model(batch, context=cache, lengths=done)
        assert cache.lengths == done
        for b, part in enumerate(parts):
            got[b].append(logits[b, : part[step]])
    for b in range(4):
        close(torch.cat(got[b]), hf_logits(case, rows[b][None])[0])


@each_case
@torch.no_grad()
def test_cache_takes_back_tokens(case: Case) -> None:
    """Truncate to a shorter common length (a rejected draft, a shared prefix) and go on differently."""
    model, ids, other = ours(case), tokens(case, 2, 20), tokens(case, 2, 20, seed=1)
    cache, is_recurrent = _cache(model, 2, 20), model.config.recurrent is not None
    if is_recurrent:
        model(ids[:, :6], context=cache)
        cache.snapshot(0)
        cache.snapshot(1)
    model(ids[:, 6 * is_recurrent :], context=cache)
    cache.truncate([6, 6])
    close(model(other[:, 6:], context=cache), hf_logits(case, torch.cat([ids[:, :6], other[:, 6:]], 1))[:, 6:])


@each_case
@torch.no_grad()
def test_greedy_text(case: Case) -> None:
    """Each of 32 tokens is what transformers finds most likely after the ones before, or as likely as its first."""
    model, text = ours(case), tokens(case, 1, 6)
    cache, step = _cache(model, 1, 38), text
    for _ in range(32):
        step = model(step, context=cache)[:, -1:].argmax(-1)
        text = torch.cat([text, step], 1)
    theirs = hf_logits(case, text[:, :-1])[0, 5:]
    behind = theirs.amax(-1) - theirs.gather(1, text[0, 6:, None])[:, 0]
    assert behind.max() <= 1e-4 * theirs.abs().max(), f"token {behind.argmax()} is {behind.max()} behind the best"


@each_case
@torch.no_grad()
def test_hidden_states_and_logit_positions(case: Case) -> None:
    model, ids = ours(case), tokens(case, 3, 14)
    theirs = cases.build(case)
    base = getattr(theirs, "model", theirs.base_model)  # Llama 4 gives its own base another name than its prefix
    expected = base(ids, attention_mask=torch.ones_like(ids), use_cache=False).last_hidden_state
    close(model(ids, output="hidden"), expected)
    close(model(ids, output=lambda hidden: hidden.square().sum(-1)), expected.square().sum(-1))
    wanted = torch.tensor([[13, 0], [5, 5], [2, 9]])
    rows = torch.arange(3)[:, None]
    close(model(ids, logit_positions=wanted), hf_logits(case, ids)[rows, wanted])
    close(model(ids, logit_positions=wanted, output="hidden"), expected[rows, wanted])
    cache = _cache(model, 3, 14)
    model(ids[:, :5], context=cache)
    close(model(ids[:, 5:], context=cache, logit_positions=torch.full((3, 1), 8)), hf_logits(case, ids)[:, 13:])


@each_case
def test_export(case: Case, tmp_path: Path) -> None:
    """What litlm writes is, tensor by tensor, what transformers wrote (or the authors, where it has other names than
    these); and transformers computes the same with it."""
    from transformers import AutoConfig, AutoModelForCausalLM

    model, ids = ours(case), tokens(case, 2, 13)
    save_weights(model.state_dict(), model.config, tmp_path)
    assert raw_tensors(tmp_path) == published(case, raw_tensors(write(case)))
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto", output_loading_info=True, **EAGER)
    back, info = loaded
    assert not any(info.values()), info
    assert back.dtype == torch.float32
    with torch.no_grad():
        close(back.eval()(ids, use_cache=False).logits, hf_logits(case, ids), 1e-5)  # gelu_new has three spellings
    # transformers reads the same config from both directories, but for what litlm does not keep (dropout), resolves
    # (activation names, yarn's mscale, the rule behind layer_types) or what the equal logits have shown already.
    settled = """transformers_version attention_dropout hidden_dropout classifier_dropout rope_parameters
        pretraining_tp hidden_act max_window_layers use_sliding_window is_decoder _name_or_path
        activation_function index_topk_freq"""
    if case.family == "lfm2":  # its rule for the MLP's size, and the older name of layer_types
        settled += (
            " intermediate_size block_auto_adjust_ff_dim block_multiple_of block_ffn_dim_multiplier full_attn_idxs"
        )
    configs = [AutoConfig.from_pretrained(path).to_dict() for path in (tmp_path, write(case))]
    mine, theirs = ({k: v for k, v in c.items() if k not in settled.split()} for c in configs)
    if case.family in RUN_AS_ANOTHER:
        assert mine.pop("architectures") != theirs.pop("architectures")
    assert mine == theirs


@each_case
@torch.no_grad()
def test_new_weights_leave_nothing_as_it_was(case: Case) -> None:
    config = ours(case).config
    with torch.device("meta"):
        model = GPT(config)
    model.to_empty(device="cpu")
    state = model.state_dict()
    for t in state.values():
        t.fill_(torch.nan)
    model.init_weights()
    assert [name for name, t in state.items() if not t.isfinite().all()] == []
    assert float(model(tokens(case, 1, 5)).abs().max()) < 100


# bf16 for every case, fp16 for one of each family.
HALVES = [(case, "BF16") for case in CASES] + [(case, "F16") for case in {c.family: c for c in CASES}.values()]


@pytest.mark.parametrize("name", SCALED)
def test_half_precision_embeddings_are_scaled_like_theirs(name: str) -> None:
    """Bit for bit: Gemma and MiniCPM round the factor to bf16 first, the others don't."""
    from transformers import AutoModelForCausalLM

    case = cases.by_name(name)
    theirs = AutoModelForCausalLM.from_pretrained(write(case), dtype=torch.bfloat16, experts_implementation="eager")
    model = cases.load(write(case), torch.bfloat16)
    assert model.config.embed_scale != 1
    seen: list[Tensor] = []

    def keep(layer: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(args[0])

    for layer in (theirs.get_decoder().layers[0], model.layers[0]):
        layer.register_forward_pre_hook(keep)
    with torch.no_grad():
        theirs(tokens(case, 2, 9), use_cache=False)
        model(tokens(case, 2, 9))
    assert torch.equal(*seen)


@pytest.mark.parametrize(("case", "dtype"), HALVES, ids=str)
def test_half_precision_checkpoints_are_bit_exact(case: Case, dtype: str, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(write(case), dtype=DTYPES[dtype], experts_implementation="eager")
    for name, p in theirs.named_parameters():
        if "norm" in name:  # some families keep them in fp32, in fp16 models only
            p.data = p.data.to(DTYPES[dtype])
    theirs.save_pretrained(tmp_path / "in")
    model = cases.load(tmp_path / "in", DTYPES[dtype])
    assert model.config.dtype == {"BF16": "bfloat16", "F16": "float16"}[dtype]
    save_weights(model.state_dict(), model.config, tmp_path / "out")
    stored = raw_tensors(tmp_path / "out")
    # What transformers keeps in fp32 (biases of expert choice) stays so.
    assert {d for d, _, _ in stored.values()} in ({dtype}, {dtype, "F32"})
    assert stored == published(case, raw_tensors(tmp_path / "in"))
    wide = copy.deepcopy(cases.build(case))
    wide.load_state_dict(theirs.state_dict())
    ids = tokens(case, 8, 17)
    with torch.no_grad():
        with Choices() as their_choices:
            exact = wide(ids, use_cache=False).logits
        with Choices(their_choices):
            expected = theirs.eval()(ids, use_cache=False).logits
        with Choices() as choices:
            close(cases.load(tmp_path / "in")(ids), exact, 1e-4)  # so that the choices are the same
        with Choices(choices):
            as_near(model(ids), expected, exact)
    # Saved in another precision, the config says so.
    save_weights(model.float().state_dict(), model.config, tmp_path / "wide")
    assert AutoConfig.from_pretrained(tmp_path / "wide").dtype == torch.float32
    assert {d for d, _, _ in raw_tensors(tmp_path / "wide").values()} == {"F32"}


@pytest.mark.parametrize("name", ["llama-mqa-tied", "qwen3-plain", "gpt_neox-parallel"])
@torch.no_grad()
def test_sharded_checkpoints(name: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    case = cases.by_name(name)
    ids = tokens(case, 2, 9)
    expected = hf_logits(case, ids)
    many = tmp_path / "many"
    cases.build(case).save_pretrained(many, max_shard_size="20KB")
    assert len(list(many.glob("*.safetensors"))) > 3
    model = cases.load(many)
    close(model(ids), expected)

    def check(folder: Path) -> None:
        close(cases.load(folder)(ids), expected)
        theirs = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
        assert torch.equal(theirs(ids, use_cache=False).logits, expected)
        assert not list(folder.glob("*.part")) + list(folder.glob(".*.part"))

    out = tmp_path / "out"
    state = model.state_dict()
    for limit, one in ((10**9, True), (20_000, False), (9_000, False), (20_000, False), (10**9, True)):
        save_weights(state, model.config, out, max_shard_bytes=limit)
        files = sorted(p.name for p in out.iterdir())
        assert ("model.safetensors" in files) == one
        assert (INDEX in files) == (not one)
        stored = raw_tensors(out)
        assert stored == raw_tensors(write(case))  # each once: no shard of another save is left
        if not one:
            index = json.loads((out / INDEX).read_text())
            assert index["metadata"]["total_size"] == sum(len(t[2]) for t in stored.values())
            assert set(index["weight_map"]) == set(stored)
            assert sorted(set(index["weight_map"].values())) == [f for f in files if f.endswith(".safetensors")]
            for file in set(index["weight_map"].values()):
                held = [len(stored[name][2]) for name, f in index["weight_map"].items() if f == file]
                assert len(held) == 1 or sum(held) <= limit
        check(out)


def test_saving_over_the_directory_the_model_came_from(tmp_path: Path) -> None:
    """Source files stay mapped while they are replaced."""
    case = cases.by_name("gpt_neox-parallel")
    shutil.copytree(write(case), tmp_path, dirs_exist_ok=True)
    model = cases.load(tmp_path)
    save_weights(model.state_dict(), model.config, tmp_path)
    assert raw_tensors(tmp_path) == raw_tensors(write(case))
