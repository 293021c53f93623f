"""`litlm chat`: a conversation in the terminal. Answers stream, history is kept, input lines can be recalled."""

from __future__ import annotations

import contextlib
import sys
import time

from litlm.cli import sampling_of
from litlm.settings import ChatCommand

_HELP = """\
/reset    forget the conversation
/system   show the system prompt, or set it: /system You answer in rhymes.
/exit     leave (so do Ctrl-D and, at the prompt, Ctrl-C)
Ctrl-C while the model answers stops the answer. End a line with \\ to go on in the next."""


def chat(settings: ChatCommand) -> None:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - line editing and recall come with the import

    from litlm.llm import LLM

    print(f"Loading {settings.model} ...", file=sys.stderr)
    llm = LLM.load(
        settings.model, adapter=settings.adapter, device=settings.device, dtype=settings.dtype,
        quantize=settings.quantize, compile=settings.compile, ignore_fields=settings.ignore_fields,
    )  # fmt: skip
    if settings.style is not None:
        from litlm.prompts import get_style

        llm.style = get_style(settings.style)
    device = llm.model.embed.weight.device.type
    print(
        f"{settings.model} on {device}, context {llm.config.max_seq_len:,} tokens. /help lists commands.",
        file=sys.stderr,
    )
    system = settings.system
    sampling = sampling_of(settings)
    messages: list[dict[str, str]] = []
    while (line := _read()) is not None:
        command, _, rest = line.partition(" ")
        if command in ("/exit", "/quit"):
            return
        if command == "/help":
            print(_HELP)
        elif command == "/reset":
            messages = []
            print("Forgotten.")
        elif command == "/system":
            system = rest or system
            messages = [] if rest else messages
            print(f"System prompt: {system or '(the template decides)'}")
        elif line.startswith("/"):
            print(f"Unknown command {command}.\n{_HELP}")
        elif line:
            start = [{"role": "system", "content": system}] if system else []
            asked = [*messages, {"role": "user", "content": line}]
            answer = _answer(llm, start, asked, sampling)
            if answer is not None:
                messages = [*asked, {"role": "assistant", "content": answer}]


def _read() -> str | None:
    """One message; None at the end of the input."""
    lines: list[str] = []
    try:
        while True:
            prompt = "... " if lines else ">>> "
            line = input(prompt if sys.stdin.isatty() else "")
            lines.append(line.removesuffix("\\"))
            if not line.endswith("\\"):
                return "\n".join(lines).strip()
    except (EOFError, KeyboardInterrupt):
        print()
        return None


def _answer(llm, start, asked, sampling) -> str | None:
    """Stream one answer; what Ctrl-C leaves of it counts. None if it could not be asked."""
    pieces: list[str] = []
    began = time.perf_counter()
    try:
        # The oldest exchanges are forgotten when the conversation outgrows the context.
        room = llm.config.max_seq_len - min(sampling["max_new_tokens"], llm.config.max_seq_len // 2)
        while llm.style.count_tokens([*start, *asked], llm.tokenizer) > room and len(asked) > 1:
            asked = asked[2:]
        for piece in llm.chat([*start, *asked], stream=True, **sampling):
            pieces.append(piece)
            print(piece, end="", flush=True)
        print()
    except KeyboardInterrupt:
        print(" [stopped]")
    except ValueError as e:
        print(f"litlm: {e}", file=sys.stderr)
        return None
    answer = "".join(pieces)
    if sys.stderr.isatty():
        n, seconds = len(llm.tokenizer.encode(answer)), time.perf_counter() - began
        print(f"\033[2m{n} tokens, {n / seconds:.1f} tokens/s\033[0m", file=sys.stderr)
    return answer
