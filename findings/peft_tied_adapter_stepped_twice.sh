#!/usr/bin/env bash
# peft 0.21.2 with transformers 5.23.0 and torch 2.13.0, seen 2026-11-30.
# LoRA on the head of a model with tied embeddings: ensure_weight_tying=True, target_modules=["lm_head"].
# Expected: one adapter, that both layers share and the optimizer steps once.
# Seen: the head's A and B are Parameters of their own over the storage of the embedding's B and A (transposed). All four
#   are in parameters(), so an optimizer steps the same numbers twice, each time with a part of the gradient and with
#   moments of its own: the first step of Adam at lr 0.1 moves them by 0.2. They are counted twice as trainable, too.
# Why it matters: the learning rate (and weight decay) of these adapters is not the one that was asked for, and the
#   run can't be reproduced by a library that shares the parameters.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
install torch==2.13.0 transformers==5.23.0 peft==0.21.2
check <<'EOF'
import sys

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM


def moved(tying):
    """The largest change of B of the head by one step of Adam at lr 0.1, and the named trainable parameters."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        tie_word_embeddings=True,
    )  # fmt: skip
    adapter = LoraConfig(r=2, target_modules=["lm_head"], ensure_weight_tying=tying, task_type="CAUSAL_LM")
    model = get_peft_model(LlamaForCausalLM(config), adapter)
    trained = {n.removeprefix("base_model.model."): p for n, p in model.named_parameters() if p.requires_grad}
    b = trained["lm_head.lora_B.default.weight"]
    before = b.detach().clone()
    optimizer = torch.optim.Adam(trained.values(), lr=0.1)
    tokens = torch.tensor([[1, 2, 3, 4]])
    model(tokens, labels=tokens).loss.backward()
    optimizer.step()
    return (b.detach() - before).abs().max().item(), trained


alone, _ = moved(False)
tied, trained = moved(True)
for name, p in trained.items():
    print(f"{name}: shape {tuple(p.shape)}, storage {p.data_ptr()}")
print(f"moved by one step of Adam at lr 0.1: {alone:.3f} without tying, {tied:.3f} with ensure_weight_tying")
storages = {p.data_ptr() for p in trained.values()}
sys.exit(not (len(trained) == 4 and len(storages) == 2 and abs(alone - 0.1) < 1e-3 and abs(tied - 0.2) < 1e-3))
EOF
