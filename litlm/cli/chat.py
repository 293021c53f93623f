"""`litlm chat`: a conversation in the terminal. Answers stream, history is kept, input lines can be recalled.

In a terminal, prompt_toolkit reads the lines: a paste of many lines is one message on all systems, which Python's own
readline does only where it is GNU's. From a pipe, each line is a message.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from litlm.cli.main import sampling_of
from litlm.settings import ChatCommand, SamplingSettings

if TYPE_CHECKING:
    from prompt_toolkit.history import History

    from litlm.llm import LLM, Stream

_HELP = """\
/retry    ask the last message once more, sampled: /retry 0.9 is the temperature
/continue go on with an answer that was cut or stopped
/reset    forget the conversation
/system   show the system prompt; with a text, set it and begin a new conversation: /system You answer in rhymes.
/save     add the conversation to a file that `litlm finetune --data` reads: /save talks.jsonl
/exit     leave (so do Ctrl-D, and Ctrl-C on an empty line)
Ctrl-C stops an answer, and clears a line that is being typed. A paste of many lines is one message. A line that ends
with \\ goes on in the next."""
_RETRY_TEMPERATURE = 0.7  # where the conversation is greedy: the same answer would come again
_HISTORY_BYTES = 1 << 20


def chat(settings: ChatCommand) -> None:
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
    talk = Conversation(llm, SamplingSettings(**sampling_of(settings)), settings.system)
    typed = sys.stdin.isatty()
    ask, failed = _terminal() if typed else _piped, False
    while (text := _message(ask)) is not None:
        try:
            if not talk.take(text):
                break
        except ValueError as e:
            failed = True
            print(f"litlm: {e}", file=sys.stderr)
        except KeyboardInterrupt:  # not while an answer streams, which takes it for itself
            if not typed:
                raise
    if failed and not typed:
        sys.exit(1)


# --- the conversation ----------------------------------------------------------------------------------------------


class Conversation:
    """What was said, and what a line that begins with / does to it. ValueErrors leave it as it was."""

    def __init__(self, llm: LLM, sampling: SamplingSettings, system: str | None) -> None:
        self.llm, self.sampling, self.system = llm, sampling, system
        self.messages: list[dict[str, str]] = []
        self._open: list[int] = []  # prompt and answer so far, as tokens, where the answer can go on
        self._retries = 0

    def take(self, text: str) -> bool:
        """A message or a command; False to leave."""
        command, _, rest = text.partition(" ")
        rest = rest.strip()
        if not command.startswith("/") or "/" in command[1:]:  # /usr/bin is a path
            if text:
                self._ask([*self.messages, {"role": "user", "content": text}], self.sampling)
        elif command in ("/exit", "/quit"):
            return False
        elif command == "/help":
            print(_HELP)
        elif command == "/reset":
            self._forget()
            print("The conversation is forgotten.")
        elif command == "/system":
            self._set_system(rest)
        elif command == "/retry":
            self._retry(rest)
        elif command == "/continue":
            self._continue()
        elif command == "/save":
            self._save(rest)
        else:
            raise ValueError(f"there is no command {command}; these are:\n{_HELP}")
        return True

    def _start(self) -> list[dict[str, str]]:
        return [{"role": "system", "content": self.system}] if self.system else []

    def _forget(self) -> None:
        self.messages, self._open = [], []

    def _ask(self, asked: list[dict[str, str]], sampling: SamplingSettings) -> None:
        """Stream the answer to the last of the messages; what Ctrl-C leaves of it counts."""
        llm, shown = self.llm, asked
        # The oldest exchanges are left out when the conversation outgrows the context.
        room = llm.config.max_seq_len - min(sampling.max_new_tokens, llm.config.max_seq_len // 2)
        while llm.style.count_tokens([*self._start(), *shown], llm.tokenizer) > room and len(shown) > 1:
            shown = shown[2:]
        if left := (len(asked) - len(shown)) // 2:
            _note(f"the first {left} of {len(asked) // 2} exchanges no longer fit into the context, and are left out")
        prompt = [*self._start(), *shown]
        text, stream = self._stream(llm.chat(prompt, stream=True, **sampling_of(sampling)), sampling)
        if not stream.token_ids:  # stopped before it began
            return
        self.messages = [*asked, {"role": "assistant", "content": text}]
        self._open = []
        if stream.finish_reason != "stop":
            self._open = llm.style.encode(prompt, llm.tokenizer) + stream.token_ids

    def _continue(self) -> None:
        if not self._open:
            raise ValueError("/continue goes on with an answer that was cut or stopped; here is none")
        llm, before = self.llm, self.messages[-1]["content"]
        s = self.sampling
        stop = s.stop if s.ignore_eos else (*s.stop, *llm.style.stop)
        options = sampling_of(s) | {"stop": stop, "stream": True}
        text, stream = self._stream(llm.generate(self._open, **options), s, before)
        self.messages[-1] = {"role": "assistant", "content": before + text}
        self._open = [] if stream.finish_reason == "stop" else self._open + stream.token_ids

    def _retry(self, temperature: str) -> None:
        if not self.messages:
            raise ValueError("/retry asks the last message once more; there is none yet")
        try:
            given = float(temperature) if temperature else None
        except ValueError:
            raise ValueError(f"/retry {temperature}: the temperature must be a number, such as 0.7") from None
        self._retries += 1
        seed = None if self.sampling.seed is None else self.sampling.seed + self._retries
        chosen = (self.sampling.temperature or _RETRY_TEMPERATURE) if given is None else given
        if given is None and not self.sampling.temperature:
            _note(f"at temperature {chosen}, as greedy answers are always the same")
        self._ask(self.messages[:-1], replace(self.sampling, temperature=chosen, seed=seed))

    def _set_system(self, text: str) -> None:
        if not text:
            print(f"System prompt: {self.system or '(the template decides)'}")
            return
        self.system = text
        self._forget()
        print("System prompt set; the conversation begins anew.")

    def _save(self, name: str) -> None:
        if not name.lower().endswith(".jsonl"):
            raise ValueError(f"/save {name}: name a file that ends with .jsonl, one conversation a line")
        if not self.messages:
            raise ValueError("there is nothing to save yet")
        path = Path(name).expanduser()
        line = json.dumps({"messages": [*self._start(), *self.messages]}, ensure_ascii=False) + "\n"
        try:
            with path.open("a+b") as file:
                if file.tell():
                    file.seek(-1, os.SEEK_END)
                    line = line if file.read(1) == b"\n" else "\n" + line
                file.write(line.encode())
        except OSError as e:
            raise ValueError(f"{path} could not be written ({e.strerror or e}); the conversation is still here") from e
        n = len(self.messages) // 2
        print(f"Added the conversation ({n} exchange{'s' * (n > 1)}) to {path}")

    def _stream(self, stream: Stream, sampling: SamplingSettings, before: str = "") -> tuple[str, Stream]:
        """Show an answer as it comes, and why it ended if not by itself. `before`: the text that it goes on from."""
        began, pieces = time.perf_counter(), []
        try:
            for piece in stream:
                if before and not pieces and self._lost_space(stream.token_ids, piece):
                    piece = " " + piece
                pieces.append(piece)
                print(piece, end="", flush=True)
            print()
        except KeyboardInterrupt:
            print()
            _note("stopped; /continue goes on")
        n = len(stream.token_ids)
        if stream.finish_reason == "length":
            full = n < sampling.max_new_tokens
            cut = f"the context of {self.llm.config.max_seq_len:,} tokens is full; /reset begins anew"
            _note(cut if full else f"cut at max_new_tokens={n}; /continue, or raise --max_new_tokens")
        if sys.stderr.isatty():
            _note(f"{n} tokens, {n / (time.perf_counter() - began):.1f} tokens/s")
        return "".join(pieces), stream

    def _lost_space(self, ids: list[int], piece: str) -> bool:
        """SentencePiece takes the first token it decodes for the first of a text, and strips its space."""
        decode = self.llm.tokenizer.decode
        joined = decode([*self._open[-1:], *ids], skip_special_tokens=True)
        alone = decode(self._open[-1:], skip_special_tokens=True)
        return joined.removeprefix(alone).startswith(" ") and not piece.startswith(" ")


def _note(text: str) -> None:
    """An aside: dim in a terminal, and never among the answers of a pipe."""
    dim, plain = ("\033[2m", "\033[0m") if sys.stderr.isatty() else ("", "")
    print(f"{dim}[{text}]{plain}", file=sys.stderr, flush=True)


# --- input ---------------------------------------------------------------------------------------------------------


def _message(ask: Callable[[str], str]) -> str | None:
    """One message, of several lines where they end with a backslash; None at the end of the input."""
    lines: list[str] = []
    while True:
        try:
            line = ask("... " if lines else ">>> ")
        except KeyboardInterrupt:
            if not lines:
                return None
            lines = []
            continue
        except EOFError:
            return "\n".join(lines).strip() if lines else None
        lines.append(line.removesuffix("\\"))
        if not line.endswith("\\"):
            return "\n".join(lines).strip()


def _piped(prompt: str) -> str:
    return input()


def _terminal() -> Callable[[str], str]:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
    from prompt_toolkit.output import create_output

    keys = KeyBindings()

    @keys.add("c-c")
    @keys.add("<sigint>")
    def clear_or_leave(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt)

    session: PromptSession[str] = PromptSession(
        history=_history(), key_bindings=keys, enable_suspend=True,
        output=create_output(always_prefer_tty=True),  # `litlm chat MODEL > file` has its prompt on stderr
    )  # fmt: skip
    return session.prompt


def _history() -> History:
    """The lines of earlier sessions, for this user alone. Without a place to write, those of this session."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    class Kept(FileHistory):
        def store_string(self, string: str) -> None:
            with contextlib.suppress(OSError):  # a full disk is no reason to stop talking
                super().store_string(string)

    path = Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser() / "litlm" / "chat_history"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a+b", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            os.chmod(path, 0o600)
            if file.tell() > _HISTORY_BYTES:
                file.seek(-_HISTORY_BYTES // 2, os.SEEK_END)
                newest = file.read()
                file.truncate(0)
                file.write(newest[newest.find(b"\n# ") :])
    except (OSError, RuntimeError):  # RuntimeError: there is no home directory
        return InMemoryHistory()
    return Kept(path)
