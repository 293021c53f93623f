"""`litlm generate`: one answer or continuation, streamed to standard output."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from litlm.settings import GenerateCommand, ModelCommand

if TYPE_CHECKING:
    from litlm.llm import LLM


def generate(settings: GenerateCommand) -> None:
    """Run `litlm generate`."""
    prompt = sys.stdin.read() if settings.prompt == "-" else settings.prompt
    is_chat = settings.chat or settings.style is not None
    llm = load_model(settings, is_chat=is_chat)
    if is_chat:
        stream = llm.chat([{"role": "user", "content": prompt}], settings, stream=True)
    else:
        stream = llm.generate(prompt, settings, stream=True)
        print(prompt, end="", flush=True)
    for piece in stream:
        print(piece, end="", flush=True)
    print()
    if is_chat and stream.finish_reason == "length":
        full = len(stream.token_ids) < settings.max_new_tokens
        limit = f"the context of {llm.config.max_seq_len:,} tokens is full" if full else "raise --max_new_tokens"
        print(f"litlm: the answer was cut after {len(stream.token_ids)} tokens; {limit}", file=sys.stderr)


def load_model(settings: ModelCommand, *, is_chat: bool) -> LLM:
    """The model of a command's settings, in its prompt style. is_chat: whether that style is used."""
    from litlm.llm import LLM
    from litlm.prompts import get_style

    style = get_style(settings.style) if settings.style is not None else None  # a wrong name needs no model
    if sampling_note := settings.note():
        print(f"litlm: {sampling_note}", file=sys.stderr)
    llm = LLM.load(
        settings.model, adapter=settings.adapter, device=settings.device, dtype=settings.dtype,
        quantize=settings.quantize, compile=settings.compile, ignore_fields=settings.ignore_fields,
    )  # fmt: skip
    if style is not None:
        llm.style = style
    if is_chat and (note := llm.style_note()):
        print(f"litlm: {note}", file=sys.stderr)
    return llm
