"""The decoding loop: one pass over the prompts (prefill), then one token per row and step.

Prompts of different lengths are right-padded; each row keeps its own positions, so it gets the tokens it would get
alone.

LongRoPE has one set of frequencies for short sequences and one for long ones. A row that grows past the limit is read
again, since its cached keys were rotated with the other set.
"""

from __future__ import annotations

from collections.abc import Collection, Generator

import torch

from litlm.config import Config, LongRopeScaling
from litlm.context import KVCache
from litlm.generate.sampling import Sampler
from litlm.model import GPT
from litlm.ops.linear import generation_kernels
from litlm.settings import SamplingSettings
from litlm.tokenizer import Tokenizer, describe_out_of_vocab


def check_prompts(
    prompts: list[list[int]], vocab_size: int, max_seq_len: int, tokenizer: Tokenizer | None = None
) -> None:
    """Raise one ValueError for all prompts that are empty, too long or hold unknown tokens.

    tokenizer: names tokens in the message.
    """
    problems = []
    for i, prompt in enumerate(prompts):
        name = "the prompt" if len(prompts) == 1 else f"prompt {i}"
        if not prompt:
            problems.append(f"{name} is empty; it needs at least one token")
        elif len(prompt) >= max_seq_len:
            problems.append(
                f"{name} has {len(prompt)} tokens, but the model's context is {max_seq_len}; shorten it to leave room "
                "for an answer"
            )
        elif unknown := describe_out_of_vocab(prompt, vocab_size, tokenizer):
            problems.append(f"{name} holds {unknown}")
    if any("outside" in problem for problem in problems) and tokenizer and tokenizer.vocab_size > vocab_size:
        problems.append(
            f"The tokenizer has {tokenizer.vocab_size} tokens: use the model's own tokenizer, or add embeddings for "
            "the new tokens (litlm finetune --new_tokens TEXT)"
        )
    if problems:
        raise ValueError("\n".join(problems))


def decode(
    model: GPT, prompts: list[list[int]], settings: SamplingSettings, *, stop_ids: Collection[int] = ()
) -> Generator[list[int | None], Collection[int], None]:
    """Yield each step's tokens, one per row; None for rows that have ended. The stop token is a row's last.

    `send(rows)` ends those rows, for example at a stop text. Raises ValueError at the call for prompts it can't use.
    """
    check_prompts(prompts, model.config.vocab_size, model.config.max_seq_len)
    return _decode(model, prompts, settings, stop_ids)


@torch.inference_mode()
def _decode(
    model: GPT, prompts: list[list[int]], settings: SamplingSettings, stop_ids: Collection[int]
) -> Generator[list[int | None], Collection[int], None]:
    weight = model.embed.weight
    device = weight.device
    lengths = [len(prompt) for prompt in prompts]
    longest = max(lengths)
    max_new = [min(settings.max_new_tokens, model.config.max_seq_len - n) for n in lengths]
    cache = model.make_cache(len(prompts), longest + max(max_new))
    sampler = Sampler(settings, prompts, model.config.vocab_size, device)
    ended = [False] * len(prompts)
    sequences, longrope_limits = [list(prompt) for prompt in prompts], _longrope_limits(model.config)

    tokens = torch.tensor([p + [0] * (longest - len(p)) for p in prompts], device=device)  # (B, T)
    last = torch.tensor(lengths, device=device)[:, None] - 1  # (B, 1)
    with generation_kernels(weight.dtype, longest * len(prompts), device):
        logits = model(tokens, context=cache, logit_positions=last, lengths=lengths)[:, -1]  # (B, V)
    for step in range(1, max(max_new) + 1):
        sampled = sampler(logits)
        step_tokens = sampled.tolist()
        stopped_rows = yield [None if ended[b] else token for b, token in enumerate(step_tokens)]
        for b, token in enumerate(step_tokens):
            ended[b] |= token in stop_ids or step >= max_new[b] or b in (stopped_rows or ())
        if all(ended):
            return
        # A row that has ended is still computed with the others, but its tokens don't count.
        held = [n + (not end) for n, end in zip(cache.lengths, ended, strict=True)] if any(ended) else None
        for b, sequence in enumerate(sequences):
            if not ended[b] and len(sequence) in longrope_limits:
                cache.overwrite_row(b, _prefill_as_longer(model, sequence))
            sequence.append(step_tokens[b])
        with generation_kernels(weight.dtype, len(prompts), device):
            logits = model(sampled[:, None], context=cache, lengths=held)[:, -1]


def _longrope_limits(config: Config) -> set[int]:
    """The lengths beyond which LongRoPE changes its frequencies."""
    ropes = [layer.rope for layer in map(config.layer, range(config.n_layer))]
    scalings = [rope.scaling for rope in ropes if rope is not None]
    return {scaling.original_max_seq_len for scaling in scalings if isinstance(scaling, LongRopeScaling)}


def _prefill_as_longer(model: GPT, sequence: list[int]) -> KVCache:
    """A cache of `sequence` as part of a sequence that is one token longer."""
    weight = model.embed.weight
    tokens = torch.tensor([sequence], device=weight.device)
    cache = model.make_cache(1, len(sequence))
    with generation_kernels(weight.dtype, len(sequence), weight.device):
        model(tokens, context=cache, lengths=[len(sequence) + 1], logit_positions=tokens.new_zeros(1, 1))
    return cache
