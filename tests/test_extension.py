"""The example extension, installed as a user would: litlm finds its family and computes what transformers does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from parity import cases
from parity.cases import close, hf_logits, tokens
from safetensors.torch import load_file, save_file

EXAMPLE = Path(__file__).parents[1] / "extensions" / "example-family"
CASE = cases.by_name("llama-plain")

LOAD = """
import sys, torch
from pathlib import Path
from litlm.checkpoint.base import load_model
from litlm.checkpoint.hf import SafetensorsSource, save_weights
from litlm.config import Config

source, out = Path(sys.argv[1]), Path(sys.argv[2])
config = Config.from_hf(source)
model = load_model(config, SafetensorsSource(source), device=torch.device("cpu"), dtype=torch.float32)
save_weights(model.state_dict(), config, out / "exported")
torch.save(model(torch.load(out / "tokens.pt")).detach(), out / "logits.pt")
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site-packages")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", folder, EXAMPLE]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def _checkpoint(path: Path) -> None:
    """transformers' tiny Llama under the example's names."""
    theirs = load_file(cases.write(CASE) / "model.safetensors")
    hf = cases.hf_config(CASE)
    outer = {"model.embed_tokens": "tok_embeddings", "model.norm": "norm", "lm_head": "output"}
    tensors = {f"{new}.weight": theirs[f"{old}.weight"] for old, new in outer.items()}
    for i in range(hf.num_hidden_layers):
        part = {k.removeprefix(f"model.layers.{i}."): v for k, v in theirs.items() if f".layers.{i}." in k}
        own = {
            "attention_norm": part["input_layernorm.weight"],
            "attention.wqkv": torch.cat([part[f"self_attn.{x}_proj.weight"] for x in "qkv"]),
            "attention.wo": part["self_attn.o_proj.weight"],
            "ffn_norm": part["post_attention_layernorm.weight"],
            "feed_forward.w13": torch.cat([part["mlp.gate_proj.weight"], part["mlp.up_proj.weight"]]),
            "feed_forward.w2": part["mlp.down_proj.weight"],
        }
        tensors |= {f"layers.{i}.{name}.weight": t for name, t in own.items()}
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    config = dict(
        model_type="example", dim=hf.hidden_size, n_layers=hf.num_hidden_layers, n_heads=hf.num_attention_heads,
        n_kv_heads=hf.num_key_value_heads, ffn_dim=hf.intermediate_size, vocab_size=hf.vocab_size,
        norm_eps=hf.rms_norm_eps, max_seq_len=hf.max_position_embeddings, rope_theta=10000.0,
    )  # fmt: skip
    (path / "config.json").write_text(json.dumps(config))


def test_a_family_from_another_package(installed: Path, tmp_path: Path) -> None:
    _checkpoint(tmp_path)
    ids = tokens(CASE, 3, 20)
    torch.save(ids, tmp_path / "tokens.pt")
    path = os.pathsep.join([str(installed), *filter(None, [os.environ.get("PYTHONPATH")])])
    subprocess.run([sys.executable, "-c", LOAD, tmp_path, tmp_path], check=True, env=os.environ | {"PYTHONPATH": path})
    close(torch.load(tmp_path / "logits.pt"), hf_logits(CASE, ids))
    assert cases.raw_tensors(tmp_path / "exported") == cases.raw_tensors(tmp_path)
    written = json.loads((tmp_path / "exported" / "config.json").read_text())
    assert (written["model_type"], written["dim"]) == ("example", 48)
    without = subprocess.run(
        [sys.executable, "-c", LOAD, tmp_path, tmp_path], capture_output=True, text=True, check=False
    )
    assert "model_type='example' is not supported" in without.stderr
