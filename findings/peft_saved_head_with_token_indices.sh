#!/usr/bin/env bash
# peft 0.21.2 with transformers 5.23.0 and torch 2.13.0, seen 2026-11-30.
# On a model with tied embeddings: LoraConfig(modules_to_save=["lm_head"], trainable_token_indices=[3, 5]).
# Expected: a working model, or an error from get_peft_model that names the two settings (as with ensure_weight_tying=True).
# Seen: get_peft_model accepts it with warnings ("Unsupported layer type … proceed at your own risk"); the first
#   forward pass raises "TrainableTokensLayer wraps an unknown layer type, maybe you are targeting the wrong layer?".
#   The same two settings work where the embeddings are not tied.
# Why it matters: to train a few new tokens and the head is an ordinary recipe, small models are mostly tied, and
#   the error comes after the data are prepared and points at a layer that the user did not choose.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
install torch==2.13.0 transformers==5.23.0 peft==0.21.2
check <<'EOF'
import sys

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM


def outcome(tied, **settings):
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        tie_word_embeddings=tied,
    )  # fmt: skip
    adapter = LoraConfig(
        target_modules=["q_proj"], modules_to_save=["lm_head"], trainable_token_indices=[3, 5], **settings
    )
    try:
        model = get_peft_model(LlamaForCausalLM(config), adapter)
    except ValueError as e:
        return f"get_peft_model: {e}"
    try:
        return f"logits {tuple(model(torch.tensor([[1, 2, 3]])).logits.shape)}"
    except ValueError as e:
        return f"forward pass: {e}"


untied, tied, ensured = outcome(False), outcome(True), outcome(True, ensure_weight_tying=True)
print(f"untied -> {untied}\ntied -> {tied}\ntied, ensure_weight_tying=True -> {ensured}")
late = tied.startswith("forward pass: TrainableTokensLayer wraps an unknown layer type")
sys.exit(not (late and untied.startswith("logits") and ensured.startswith("get_peft_model: ")))
EOF
