"""The readable decode loop: read the prompts in one pass, then one token a row and step.

Prompts of different lengths are right-padded; each row keeps its own positions, so a row's tokens are those it would
get alone.

LongRoPE has one set of frequencies for short rows and one for long ones. A row that grows from short to long is read
again then: what the cache holds of it was computed with the other set.
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
from litlm.tokenizer import Tokenizer, outside


def check_prompts(
    prompts: list[list[int]], vocab_size: int, max_seq_len: int, tokenizer: Tokenizer | None = None
) -> None:
    """Raise one ValueError for all prompts that can't be read. tokenizer: to name tokens."""
    problems = []
    for i, prompt in enumerate(prompts):
        name = "the prompt" if len(prompts) == 1 else f"prompt {i}"
        if not prompt:
            problems.append(f"{name} is empty; it needs at least one token")
        elif len(prompt) >= max_seq_len:
            problems.append(
                f"{name} has {len(prompt)} tokens, but the model's context is {max_seq_len}; shorten it so that "
                "there is room for an answer"
            )
        elif wrong := outside(prompt, vocab_size, tokenizer):
            problems.append(f"{name} holds {wrong}")
    if any("outside" in problem for problem in problems) and tokenizer and tokenizer.vocab_size > vocab_size:
        problems.append(
            f"The tokenizer has {tokenizer.vocab_size} tokens: use the one that the model was made with, or give the "
            "model rows for them (litlm finetune --new_tokens TEXT)"
        )
    if problems:
        raise ValueError("\n".join(problems))


def decode(
    model: GPT, prompts: list[list[int]], settings: SamplingSettings, *, stop_ids: Collection[int] = ()
) -> Generator[list[int | None], Collection[int], None]:
    """Yield each step's tokens, one a row; None for a row that has ended. A row's stop token is its last.

    `send(rows)` at any step ends those rows from outside (a stop string was found, say). Prompts are checked at once.
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
    room = [min(settings.max_new_tokens, model.config.max_seq_len - n) for n in lengths]
    cache = model.make_cache(len(prompts), longest + max(room))
    sampler = Sampler(settings, prompts, model.config.vocab_size, device)
    ended = [False] * len(prompts)
    texts, switches = [list(prompt) for prompt in prompts], _switches(model.config)

    tokens = torch.tensor([p + [0] * (longest - len(p)) for p in prompts], device=device)  # (B, T)
    last = torch.tensor(lengths, device=device)[:, None] - 1  # (B, 1)
    with generation_kernels(weight.dtype, longest * len(prompts), device):
        logits = model(tokens, context=cache, logit_positions=last, lengths=lengths)[:, -1]  # (B, V)
    for step in range(1, max(room) + 1):
        chosen = sampler(logits)
        step_tokens = chosen.tolist()
        from_outside = yield [None if ended[b] else token for b, token in enumerate(step_tokens)]
        for b, token in enumerate(step_tokens):
            ended[b] |= token in stop_ids or step >= room[b] or b in (from_outside or ())
        if all(ended):
            return
        # A row that fills the context has ended; what goes on being computed for it stays within.
        cache.truncate([min(n, model.config.max_seq_len - 1) for n in cache.lengths])
        for b, text in enumerate(texts):
            if not ended[b] and len(text) in switches:
                cache.replace(b, _as_part_of_longer(model, text))
            text.append(step_tokens[b])
        with generation_kernels(weight.dtype, len(prompts), device):
            logits = model(chosen[:, None], context=cache)[:, -1]


def _switches(config: Config) -> set[int]:
    """The lengths after which LongRoPE changes its frequencies."""
    ropes = [layer.rope for layer in map(config.layer, range(config.n_layer))]
    scalings = [rope.scaling for rope in ropes if rope is not None]
    return {scaling.original_max_seq_len for scaling in scalings if isinstance(scaling, LongRopeScaling)}


def _as_part_of_longer(model: GPT, text: list[int]) -> KVCache:
    """A cache with the tokens of `text` as a row holds them that is longer by one."""
    weight = model.embed.weight
    tokens = torch.tensor([text], device=weight.device)
    cache = model.make_cache(1, len(text))
    with generation_kernels(weight.dtype, len(text), weight.device):
        model(tokens, context=cache, lengths=[len(text) + 1], logit_positions=tokens.new_zeros(1, 1))
    return cache
