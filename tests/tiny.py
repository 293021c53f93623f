"""A tiny checkpoint with a real tokenizer: what tests of text, training and commands load in milliseconds."""

from __future__ import annotations

import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from parity.cases import randomize

from litlm.llm import LLM

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = [
    "The quick brown fox jumps over the lazy dog. user assistant system", "abab baab aabb abba abab baab ab ab ba",
    "What is the capital of France? Paris is the capital of France.", "0123456789 café naïve 東京 🙂🙃",
]  # fmt: skip
_folders: list[Any] = []


def sizes(family: str) -> dict[str, Any]:
    common = dict(hidden_size=48, num_hidden_layers=2, max_position_embeddings=256, bos_token_id=0, eos_token_id=2)
    if family == "gpt_neox":
        return common | dict(intermediate_size=80, num_attention_heads=3)
    common |= dict(intermediate_size=72, num_attention_heads=4, num_key_value_heads=2, head_dim=14)
    return common | (dict(tie_word_embeddings=True) if family == "llama" else {})


@cache
def folder(family: str = "llama", seed: int = 0, with_tokenizer: bool = True) -> Path:
    """The checkpoint, written by transformers and tokenizers. Shared: don't change it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoConfig, AutoModelForCausalLM

    place = tempfile.TemporaryDirectory(prefix="litlm-tiny-")
    _folders.append(place)  # removed when the process ends
    path = Path(place.name)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(TEXT, trainer)
    if with_tokenizer:
        tokenizer.save(str(path / "tokenizer.json"))
        config = dict(
            tokenizer_class="PreTrainedTokenizerFast", bos_token="<|endoftext|>", eos_token="<|im_end|>",
            clean_up_tokenization_spaces=False, chat_template=TEMPLATE,
        )  # fmt: skip
        (path / "tokenizer_config.json").write_text(json.dumps(config))
    size = tokenizer.get_vocab_size() + 3  # a padded embedding, as many checkpoints have
    hf = AutoConfig.for_model(family, vocab_size=size, **sizes(family))
    model = AutoModelForCausalLM.from_config(hf, dtype=torch.float32, attn_implementation="eager")
    randomize(model, seed)
    model.save_pretrained(path)
    return path


def load(family: str = "llama", seed: int = 0, **options: Any) -> LLM:
    """A fresh LLM on the CPU in fp32."""
    return LLM.load(folder(family, seed), **({"device": "cpu", "dtype": "float32"} | options))


@cache
def shared(family: str = "llama", seed: int = 0) -> LLM:
    """The same one for every test that does not change it."""
    return load(family, seed)
