"""`litlm chat`: a conversation in the terminal, with streamed answers and a history of input lines.

In a terminal, prompt_toolkit reads the lines: pasted lines are one message on all systems (Python's readline does that
only with GNU readline). From a pipe, each line is a message.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from litlm.cli.generate import load_model
from litlm.io.errors import error_reason
from litlm.settings import ChatCommand, SamplingSettings

if TYPE_CHECKING:
    from prompt_toolkit.history import History

    from litlm.llm import LLM, Stream

_HELP = """\
/retry    ask the last message again, sampled; /retry 0.9 sets the temperature
/continue continue an answer that was cut or stopped
/reset    forget the conversation
/system   show the system prompt; with a text, set it and start a new conversation: /system You answer in rhymes.
/save     append the conversation to a file that `litlm finetune --data` reads: /save talks.jsonl
/exit     leave (so do Ctrl-D, and Ctrl-C on an empty line)
Ctrl-C stops an answer, and clears a line that is being typed. Pasted lines are one message. A line that ends with \\
continues in the next."""
_RETRY_TEMPERATURE = 0.7  # for greedy conversations, where a retry would give the same answer
_HISTORY_BYTES = 1 << 20


def chat(settings: ChatCommand) -> None:
    """Run `litlm chat`."""
    print(f"Loading {settings.model} ...", file=sys.stderr)
    llm = load_model(settings, is_chat=True)
    device = llm.model.embed.weight.device.type
    print(
        f"{settings.model} on {device}, context {llm.config.max_seq_len:,} tokens. /help lists commands.",
        file=sys.stderr,
    )
    conversation = Conversation(llm, settings, settings.system)
    interactive = sys.stdin.isatty()
    read_line, failed = _terminal() if interactive else _piped, False
    while (text := _read_message(read_line)) is not None:
        try:
            if not conversation.process(text):
                break
        except ValueError as e:
            failed = True
            print(f"litlm: {e}", file=sys.stderr)
        except KeyboardInterrupt:  # between answers; a streaming answer handles it itself
            if not interactive:
                raise
    if failed and not interactive:
        sys.exit(1)


# --- the conversation ----------------------------------------------------------------------------------------------


class Conversation:
    """The messages so far, and the commands that begin with /. A ValueError leaves the conversation unchanged."""

    def __init__(self, llm: LLM, sampling: SamplingSettings, system: str | None) -> None:
        self.llm, self.sampling, self.system = llm, sampling, system
        self.messages: list[dict[str, str]] = []
        self._unfinished: list[int] = []  # tokens of prompt and answer, if the answer can be continued
        self._cut: set[int] = set()  # which messages are answers that did not end
        self._retries = 0

    def process(self, text: str) -> bool:
        """Answer a message or run a command; returns False to leave. Raises ValueError for a wrong command."""
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
            self._reset()
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
            raise ValueError(f"there is no command {command}; the commands are:\n{_HELP}")
        return True

    def _system_message(self) -> list[dict[str, str]]:
        return [{"role": "system", "content": self.system}] if self.system else []

    def _reset(self) -> None:
        self.messages, self._unfinished, self._cut = [], [], set()

    def _ask(self, messages: list[dict[str, str]], sampling: SamplingSettings) -> None:
        """Stream the answer to the last message; an answer stopped by Ctrl-C is kept as far as it came."""
        llm, shown = self.llm, messages
        # When the conversation outgrows the context, its oldest exchanges are left out.
        room = llm.config.max_seq_len - min(sampling.max_new_tokens, llm.config.max_seq_len // 2)
        while llm.style.count_tokens([*self._system_message(), *shown], llm.tokenizer) > room and len(shown) > 1:
            shown = shown[2:]
        if n := (len(messages) - len(shown)) // 2:
            _note(f"the first {n} of {len(messages) // 2} exchanges no longer fit into the context and are left out")
        prompt = [*self._system_message(), *shown]
        text, stream = self._print_stream(llm.chat(prompt, sampling, stream=True), sampling)
        if not stream.token_ids:  # stopped before the first token
            return
        self.messages = [*messages, {"role": "assistant", "content": text}]
        self._set_unfinished(llm.style.encode(prompt, llm.tokenizer), stream)

    def _continue(self) -> None:
        if not self._unfinished:
            raise ValueError("/continue continues an answer that was cut or stopped; there is none")
        llm, sampling, before = self.llm, self.sampling, self.messages[-1]["content"]
        if not sampling.ignore_eos:
            sampling = sampling.changed(stop=(*sampling.stop, *llm.style.stop))
        text, stream = self._print_stream(llm.generate(self._unfinished, sampling, stream=True), sampling)
        self.messages[-1] = {"role": "assistant", "content": before + text}
        self._set_unfinished(self._unfinished, stream)

    def _set_unfinished(self, before: list[int], stream: Stream) -> None:
        """Note whether the last message is a whole answer. before: the token ids that `stream` continued."""
        self._cut.discard(len(self.messages) - 1)
        self._unfinished = []
        if stream.finish_reason != "stop":
            self._cut.add(len(self.messages) - 1)
            self._unfinished = before + stream.token_ids

    def _retry(self, text: str) -> None:
        if not self.messages:
            raise ValueError("/retry asks the last message again; there is none yet")
        try:
            temperature = float(text) if text else None
        except ValueError:
            raise ValueError(f"/retry {text}: the temperature must be a number, such as 0.7") from None
        if temperature is None:
            temperature = self.sampling.temperature or _RETRY_TEMPERATURE
            if not self.sampling.temperature:
                _note(f"at temperature {temperature}, as greedy answers are always the same")
        self._retries += 1
        seed = None if self.sampling.seed is None else self.sampling.seed + self._retries
        self._ask(self.messages[:-1], self.sampling.changed(temperature=temperature, seed=seed))

    def _set_system(self, text: str) -> None:
        if not text:
            print(f"System prompt: {self.system or '(that of the chat template)'}")
            return
        self.system = text
        self._reset()
        print("System prompt set; this is a new conversation.")

    def _save(self, name: str) -> None:
        if not name.lower().endswith(".jsonl"):
            raise ValueError(f"/save {name}: name a file that ends with .jsonl, one conversation per line")
        if not self.messages:
            raise ValueError("there is nothing to save yet")
        path = Path(name).expanduser()
        # Weight 0: finetuning on a cut answer would teach to end in mid-sentence.
        messages = [m | {"weight": 0} if i in self._cut else m for i, m in enumerate(self.messages)]
        line = json.dumps({"messages": [*self._system_message(), *messages]}, ensure_ascii=False) + "\n"
        size = path.stat().st_size if path.exists() else None
        try:
            with path.open("a+b") as file:
                if file.tell():
                    file.seek(-1, os.SEEK_END)
                    line = line if file.read(1) == b"\n" else "\n" + line
                file.write(line.encode())
        except OSError as e:
            with contextlib.suppress(OSError):  # remove what was written of the line
                path.unlink() if size is None else os.truncate(path, size)
            raise ValueError(f"{path} could not be written ({error_reason(e)}); the conversation is not lost") from e
        n = len(self.messages) // 2
        print(f"Saved the conversation ({n} exchange{'s' * (n > 1)}) to {path}")
        if n := len(self._cut):
            _note(f"{n} cut answer{'s' * (n > 1)} saved with weight 0: finetuning would learn to end there")

    def _print_stream(self, stream: Stream, sampling: SamplingSettings) -> tuple[str, Stream]:
        """Print an answer as it comes, and why it ended if it was cut."""
        start, pieces = time.perf_counter(), []
        try:
            for piece in stream:
                pieces.append(piece)
                print(piece, end="", flush=True)
            print()
        except KeyboardInterrupt:
            print()
            _note("stopped; /continue continues")
        n = len(stream.token_ids)
        if stream.finish_reason == "length":
            full = n < sampling.max_new_tokens
            cut = f"the context of {self.llm.config.max_seq_len:,} tokens is full; /reset starts anew"
            _note(cut if full else f"cut at max_new_tokens={n}; /continue, or raise --max_new_tokens")
        if sys.stderr.isatty():
            _note(f"{n} tokens, {n / (time.perf_counter() - start):.1f} tokens/s")
        return "".join(pieces), stream


def _note(text: str) -> None:
    """Print a remark to stderr, dim in a terminal."""
    dim, plain = ("\033[2m", "\033[0m") if sys.stderr.isatty() else ("", "")
    print(f"{dim}[{text}]{plain}", file=sys.stderr, flush=True)


# --- input ---------------------------------------------------------------------------------------------------------


def _read_message(read_line: Callable[[str], str]) -> str | None:
    """One message, several lines if they end with a backslash; None at the end of the input."""
    lines: list[str] = []
    while True:
        try:
            line = read_line("... " if lines else ">>> ")
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
    try:
        line = input()
        line.encode()  # in the C locale, Python reads other bytes as lone surrogates
    except UnicodeError:
        raise ValueError("standard input is not UTF-8 text; convert it, for example with iconv") from None
    return line


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
        output=create_output(always_prefer_tty=True),  # for `litlm chat MODEL > file` the prompt goes to stderr
    )  # fmt: skip
    return session.prompt


def _history() -> History:
    """Input lines of earlier sessions, readable by this user only; those of this session if there is no such file."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    class TolerantHistory(FileHistory):
        def store_string(self, string: str) -> None:
            with contextlib.suppress(OSError):  # a full disk must not end the conversation
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
    except (OSError, RuntimeError):  # RuntimeError: no home directory
        return InMemoryHistory()
    return TolerantHistory(path)
