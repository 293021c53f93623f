"""Older families' files as the hub has them: names with and without a prefix, old buffers, a stored tied head, and
fields whose value litlm refuses."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from parity import cases
from parity.cases import by_name, close, hf_logits, tokens, write
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from litlm.config import Config
from litlm.generate.decode import decode
from litlm.settings import SamplingSettings


@pytest.mark.parametrize("name", ["gpt2-plain", "bloom-plain"])
@pytest.mark.parametrize("prefix", ["transformer.", ""])
@pytest.mark.parametrize("head", [True, False])
def test_names_and_buffers_of_the_hub(name: str, prefix: str, head: bool, tmp_path: Path) -> None:
    case = by_name(name)
    stored = load_file(write(case) / "model.safetensors")
    found = {prefix + name.removeprefix("transformer."): tensor for name, tensor in stored.items()}
    if name == "gpt2-plain":
        for i in range(3):
            found[f"{prefix}h.{i}.attn.bias"] = torch.ones(1, 1, 128, 128).tril()
            found[f"{prefix}h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    if head:
        embed = next(tensor for key, tensor in found.items() if key.endswith(("wte.weight", "word_embeddings.weight")))
        found["lm_head.weight"] = embed.clone()
    save_file(found, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((write(case) / "config.json").read_text())
    ids = tokens(case, 2, 17)
    with torch.no_grad():
        close(cases.load(tmp_path)(ids), hf_logits(case, ids))


_OLD_YARN = dict(type="yarn", factor=8.0, original_max_position_embeddings=32, finetuned=True)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("mistral-no-window-wide-heads", dict(rope_parameters=None, rope_theta=500.0, rope_scaling=_OLD_YARN)),
        ("apertus-plain", dict(rope_parameters=None, rope_theta=777.0)),
        ("cohere2-plain", dict(_sliding_window_pattern=4)),
        ("nemotron-plain", dict(rope_percent=0.5, rope_percentage=0.5)),
        ("granite_swa-default-pattern", dict(eos_token_id=[2, 3])),
    ],
)
def test_old_spellings(name: str, fields: dict[str, Any], tmp_path: Path) -> None:
    """transformers reads the same config.json."""
    case = by_name(name)
    data = json.loads((write(case) / "config.json").read_text()) | fields
    (tmp_path / "config.json").write_text(json.dumps(data))
    shutil.copy(write(case) / "model.safetensors", tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, **cases.EAGER).eval()
    ids, model = tokens(case, 2, 41), cases.load(tmp_path)
    with torch.no_grad():
        close(model(ids), theirs(ids, use_cache=False).logits)
    eos = theirs.config.eos_token_id
    assert model.config.eos_token_ids == tuple(eos if isinstance(eos, list) else [eos])


def test_a_full_context_beside_a_short_row() -> None:
    """A row that has filled the context is still computed along, but there is no position after the last."""
    case = by_name("gpt2-plain")  # 128 positions
    prompts = [tokens(case, 1, 125, 0)[0].tolist(), tokens(case, 1, 7, 1)[0].tolist()]
    steps = list(decode(cases.ours(case), prompts, SamplingSettings(max_new_tokens=30, temperature=0.0)))
    for prompt, rows, n in zip(prompts, zip(*steps, strict=True), (3, 30), strict=True):
        ids = torch.tensor([prompt])
        expected = cases.build(case).generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=n, do_sample=False, pad_token_id=0
        )
        assert [token for token in rows if token is not None] == expected[0, len(prompt) :].tolist()
        assert len(expected[0]) == len(prompt) + n


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("gpt2-plain", dict(scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx=True"),
        ("gptj-plain", dict(rotary_dim=None), "rotary_dim=None"),
        ("gptj-plain", dict(rotary_dim=14), "rotary_dim=14"),
        ("gptj-plain", dict(n_head=97), "the head size, 0"),
        ("falcon-7b", dict(alibi=True), "alibi=True"),
        ("falcon-7b", dict(num_ln_in_parallel_attn=2), "num_ln_in_parallel_attn=2"),
        ("falcon-40b", dict(parallel_attn=False), "parallel_attn=False"),
        ("phi3-mini", dict(lm_head_bias=True), "lm_head_bias=True"),
        ("starcoder2-full", dict(norm_type="rms_norm"), "norm_type='rms_norm'"),
        ("nemotron-plain", dict(rope_percent=0.25), "rope_percent=0.25"),
        ("opt-plain", dict(do_layer_norm_before=False), "do_layer_norm_before=False"),
        ("opt-plain", dict(word_embed_proj_dim=24), "word_embed_proj_dim=24"),
        ("codegen-plain", dict(n_head=6), "n_head=6 must be a multiple of 4"),
        ("gpt_neo-alternating", dict(attention_types=[[["local", "dilated"], 2]]), "dilated"),
        ("bloom-plain", dict(apply_residual_connection_post_layernorm=True), "apply_residual"),
        ("mpt-plain", dict(attn_config={"alibi": False, "extra": 3}), "attn_config.alibi=False"),
        ("mpt-plain", dict(attn_config={"extra": 3}), "attn_config.extra=3"),
    ],
)
def test_what_is_refused(name: str, fields: dict[str, Any], words: str) -> None:
    data = json.loads((write(by_name(name)) / "config.json").read_text())
    with pytest.raises(ValueError, match=re.escape(words)):
        Config.from_hf(data | fields)
