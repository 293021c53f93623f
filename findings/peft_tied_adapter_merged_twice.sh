#!/usr/bin/env bash
# peft 0.21.2 with transformers 5.23.0 and torch 2.13.0, seen 2026-11-30.
# LoRA with ensure_weight_tying=True, target_modules=["lm_head"] on a model with tied embeddings, then merge_and_unload().
# Expected: the shared weight W becomes W + BA, and the logits stay. Both layers have the same update, so the merge
#   is exact and the model stays tied.
# Seen: each of the two layers adds the update to the one weight: it becomes W + 2BA, and the logits change. The only
#   sign is the general warning that targets of a tied model "can lead to complications" (it comes without
#   ensure_weight_tying too, where the two layers really differ; that case is peft issue 2018).
# Why it matters: the merged model that is saved and served is not the one that was trained and evaluated.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
install torch==2.13.0 transformers==5.23.0 peft==0.21.2
check <<'EOF'
import sys

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
    tie_word_embeddings=True,
)  # fmt: skip
base = LlamaForCausalLM(config).eval()
w = base.lm_head.weight.detach().clone()
adapter = LoraConfig(
    r=2, lora_alpha=2, target_modules=["lm_head"], ensure_weight_tying=True, init_lora_weights=False,
    task_type="CAUSAL_LM",
)  # fmt: skip
model = get_peft_model(base, adapter).eval()
tokens = torch.tensor([[1, 2, 3, 4]])
with torch.no_grad():
    head = model.base_model.model.lm_head
    update = head.lora_B["default"].weight @ head.lora_A["default"].weight  # (V, C), scaled by alpha / r = 1
    before = model(tokens).logits
    merged = model.merge_and_unload()
    after = merged(tokens).logits
    change = merged.lm_head.weight - w
once, twice = ((change - n * update).abs().max().item() for n in (1, 2))
shared = merged.lm_head.weight is merged.model.embed_tokens.weight
logits = (before - after).abs().max().item()
print(f"update: largest entry {update.abs().max().item():.3g}")
print(f"merged weight - (W + BA): {once:.3g};  merged weight - (W + 2BA): {twice:.3g}")
print(f"logits: up to {before.abs().max().item():.3g}, changed by the merge by {logits:.3g};  still tied: {shared}")
sys.exit(not (shared and merged.config.tie_word_embeddings and twice < 1e-5 and once > 1e-3 and logits > 1e-3))
EOF
