"""From tokens to text as they are generated, with stop texts that may span several tokens."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator, Sequence
from typing import Any, Literal

from litlm.tokenizer import Tokenizer

Events = Generator[tuple[int, int | None, str], None, None]  # (row, token, text)


class Stream(Iterator[Any]):
    """One answer as it is generated: an iterator of text pieces, or of token ids.

    token_ids: the new tokens so far, the end token included. finish_reason: None while it lasts, then "stop" after an
    end token or a stop text, "length" at max_new_tokens or the end of the context.
    """

    def __init__(self, events: Events, end_ids: Collection[int], text: Detokenizer | None, return_ids: bool) -> None:
        self._events, self._end_ids, self._text, self._return_ids = events, end_ids, text, return_ids
        self._closed = False
        self.token_ids: list[int] = []
        self.finish_reason: Literal["stop", "length"] | None = None

    def __next__(self) -> Any:
        for _, token, piece in self._events:
            if token is not None:
                self.token_ids.append(token)
            item = token if self._return_ids else piece
            if item is not None and item != "":
                return item
        if self._closed:
            raise StopIteration
        stopped = self.token_ids[-1] in self._end_ids or (self._text is not None and self._text.stopped)
        self.finish_reason = "stop" if stopped else "length"
        raise StopIteration

    def close(self) -> None:
        """End the answer here; its cache is freed."""
        self._events.close()
        self._closed = True


def text_events(
    steps: Generator[list[int | None], Collection[int], None], texts: list[Detokenizer] | None, end_ids: Collection[int]
) -> Events:
    """Yield (row, token, text) for each new token, with the text that is final now; at the end (row, None, rest).

    steps: `decode`'s tokens, one a row. texts: one a row; None where no text is needed. Rows whose text has stopped
    are ended.
    """
    stopped: set[int] = set()
    tokens: list[int | None] | None = next(steps)
    while tokens is not None:
        for row, token in enumerate(tokens):
            piece = ""
            if token is not None and token not in end_ids and texts is not None:
                piece = texts[row].push(token)
                if texts[row].stopped:
                    stopped.add(row)
            if token is not None:
                yield row, token, piece
        try:
            tokens = steps.send(stopped)
        except StopIteration:
            tokens = None
    for row, text in enumerate(texts or ()):
        yield row, None, text.finish()


class Detokenizer:
    """Turns the tokens of one answer into text and ends it before the first stop text; then `stopped` is True.

    Text that may be the beginning of a stop text is held back until later tokens decide. prompt: ids that the text
    continues, with the space between them.
    """

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...], prompt: Sequence[int] = ()) -> None:
        self._decoder = tokenizer.decode_stream(prompt, skip_special_tokens=True)
        self._stop, self._pending, self.stopped = stop, "", False

    def push(self, token: int) -> str:
        """Add a token; returns the text that is final now."""
        return self._add(self._decoder.push(token), final=False)

    def finish(self) -> str:
        """The rest of the text, once the answer has ended."""
        return self._add(self._decoder.flush(), final=True)

    def _add(self, piece: str, *, final: bool) -> str:
        if self.stopped:
            return ""
        text = self._pending + piece
        found = [at for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._pending = True, ""
            return text[: min(found)]
        n_pending = 0 if final else max((_overlap(text, stop) for stop in self._stop), default=0)
        split = len(text) - n_pending
        self._pending = text[split:]
        return text[:split]


def _overlap(text: str, stop: str) -> int:
    """The length of the longest suffix of `text` that is a proper prefix of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
