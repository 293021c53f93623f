"""Data for supervised finetuning: records become conversations, conversations tokens and a mask of what to learn.

Forms of records are told apart by their keys (`parse` says which), so a dataset may mix them. Only what the assistant
says is learned, unless `loss_on` asks for less or more. Unusual: all token ids stand in one flat array, because lists
of Python integers would take many times the memory; an example is cut out of it when it is asked for.
"""

from __future__ import annotations

import functools
import sys
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from litlm.data.base import Batch, Dataset, Example, held_out
from litlm.data.packing import micro_batches
from litlm.data.records import listed, read_records
from litlm.prompts import Alpaca, PromptStyle, get_style
from litlm.settings.data import DataSettings
from litlm.tokenizer import Tokenizer

Message = dict[str, Any]
LossOn = Literal["assistant", "completion", "all"]

# keys of the question, joined by a blank line (all but the first optional), and the key of the answer
_PAIRS = (
    (("instruction", "input"), "output"),  # Alpaca
    (("instruction", "context"), "response"),  # Dolly
    (("prompt",), "completion"),
    (("prompt",), "response"),
    (("question",), "answer"),
)
# names that ShareGPT's files give the roles
_ROLES = {
    "human": "user", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "bot": "assistant",
    "observation": "tool", "function_response": "tool",
}  # fmt: skip
_FORMS = (
    "instruction and output (Alpaca), instruction and response (Dolly), messages (chat), conversations (ShareGPT), "
    "prompt and completion (or response), question and answer, or text"
)
_PACKED_ROW = 512  # packing makes rows at least this long, where max_len allows: short rows keep a device idle


@dataclass(frozen=True)
class Conversation:
    """messages from a record. context: how many of the first are given and never learned."""

    messages: list[Message]
    context: int = 0


@dataclass(frozen=True)
class Text:
    """Text without turns: all of it is learned."""

    text: str


# --- records ----------------------------------------------------------------------------------------------------------
def parse(record: dict[str, Any]) -> Conversation | Text:
    """What a record says. Keys without a value are keys that are not there. ValueError with what is wrong with it.

    messages: a list of role and content. conversations: of from and value (or role and content), or of texts, the
    user's first. A question and its answer under the keys of `_PAIRS`: texts, or lists of messages, of which those of
    the question are context. text: as it is. All but text may come with `system`, a text that is put in front.
    """
    record = {key: value for key, value in record.items() if value is not None}
    for key in ("messages", "conversations"):
        if key in record:
            return Conversation(_with_answer([*_system(record), *to_messages(record[key], key)], key))
    for questions, answer in _PAIRS:
        if questions[0] in record and answer in record:
            return _pair(record, questions, answer)
    if "text" in record:
        if not isinstance(record["text"], str) or not record["text"]:
            raise ValueError("text must be text, and not empty")
        return Text(record["text"])
    raise ValueError(f"has the keys {', '.join(sorted(map(str, record))) or '(none)'}; needed are {_FORMS}")


def _pair(record: dict[str, Any], questions: Sequence[str], answer: str) -> Conversation:
    asked: list[Message]
    if isinstance(record[questions[0]], list):
        asked = to_messages(record[questions[0]], questions[0])
    else:
        parts = [record.get(key, "") for key in questions]
        if not all(
            isinstance(part, str) for part in (*parts, record[answer] if isinstance(record[answer], str) else "")
        ):
            raise ValueError(f"{', '.join((*questions, answer))} must be text")
        asked = [{"role": "user", "content": "\n\n".join(filter(None, parts))}]
        if len(parts) == 2 and parts[1]:
            asked[0] |= {"parts": tuple(parts)}
    if isinstance(record[answer], list):
        said = _with_answer(to_messages(record[answer], answer), answer)
    elif isinstance(record[answer], str):
        said = [{"role": "assistant", "content": record[answer]}]
    else:
        raise ValueError(f"{', '.join((*questions, answer))} must be text")
    asked = [*_system(record), *asked]
    return Conversation([*asked, *said], len(asked))


def to_messages(value: Any, key: str) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{key} must be a list with at least one message")
    if key == "conversations" and all(isinstance(text, str) for text in value):
        return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(value)]
    messages = []
    for i, item in enumerate(value):
        message = {k: v for k, v in item.items() if v is not None} if isinstance(item, dict) else {}
        role, content = message.pop("from", message.get("role")), message.pop("value", message.get("content"))
        if not isinstance(role, str) or not isinstance(content, str):
            names = "a from and a value" if key == "conversations" else "a role and a content"
            raise ValueError(f"{key}[{i}] must have {names}, both text")
        messages.append(message | {"role": _ROLES.get(role, role), "content": content})
    return messages


def _system(record: dict[str, Any]) -> list[Message]:
    system = record.get("system", "")
    if not isinstance(system, str):
        raise ValueError("system must be text")
    return [{"role": "system", "content": system}] if system else []


def _with_answer(messages: list[Message], key: str) -> list[Message]:
    if not any(m["role"] == "assistant" for m in messages):
        raise ValueError(f"{key} has no assistant turn to learn from")
    return messages


# --- tokens -----------------------------------------------------------------------------------------------------------
class Encoder:
    """Conversations and texts as examples. rewritten: in how many only the last answer could be learned so far;
    without_thoughts: in how many the template left out the thought that it asks with; empty: how many have answers to
    learn that say nothing.

    loss_on: "assistant" learns every answer that is not context, "completion" the last one, "all" every token.
    """

    def __init__(self, tokenizer: Tokenizer, style: PromptStyle, loss_on: LossOn = "assistant") -> None:
        self.tokenizer, self.style, self.loss_on = tokenizer, style, loss_on
        self.rewritten = self.without_thoughts = self.empty = 0

    def __call__(self, content: Conversation | Text) -> Example:
        if isinstance(content, Text):
            return self._text(content.text)
        messages = [self._in_style(message) for message in content.messages]
        if self.loss_on == "all":
            marked = self.style.mark(messages, first=len(messages))
            ids, _ = self.style.encode_marked(marked, self.tokenizer)
            return Example(ids, [True] * len(ids))
        last = max(i for i, message in enumerate(messages) if message["role"] == "assistant")
        first = last if self.loss_on == "completion" else content.context
        answers = [message for message in messages[first : last + 1] if message["role"] == "assistant"]
        self.empty += not any(message["content"].strip() or message.get("tool_calls") for message in answers)
        # what follows the last answer is not learned, and templates write an answer differently when it is not the end
        marked = self.style.mark(messages[: last + 1], first=first, without_thoughts=True)
        self.rewritten += marked.rewritten > 0
        self.without_thoughts += marked.without_thoughts
        return Example(*self.style.encode_marked(marked, self.tokenizer))

    def _in_style(self, message: Message) -> Message:
        """Alpaca's style has a section of its own for what an instruction is about."""
        if "parts" not in message:
            return message
        content, more = message["parts"]
        message = {key: value for key, value in message.items() if key != "parts"}
        return message | ({"content": content, "input": more} if isinstance(self.style, Alpaca) else {})

    def _text(self, text: str) -> Example:
        ids = self.tokenizer.encode(text)
        if self.tokenizer.eos_id is not None and (not ids or ids[-1] not in self.tokenizer.eos_ids):
            ids.append(self.tokenizer.eos_id)
        return Example(ids, [True] * len(ids))


# --- the data set -----------------------------------------------------------------------------------------------------
@dataclass(eq=False)
class SFTDataset(Dataset):
    """Examples ready to train on.

    ids, learn: of all examples, one behind the other; starts, ends: where each is. max_len: tokens in a row of a micro
    batch; with packing, the longest example fits and rows are filled up to it (`row_length`). whole_rows: see
    `Dataset`.
    """

    ids: np.ndarray
    learn: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    max_len: int
    packing: bool = True
    notes: Sequence[str] = ()
    whole_rows: bool = False

    @classmethod
    def of(cls, examples: Iterable[Example], *, max_len: int | None = None, packing: bool = True) -> SFTDataset:
        """max_len: the longest row that is allowed; None is as long as it takes. Longer examples are an error."""
        ids, learn, ends = array("i"), bytearray(), array("q")
        for example in examples:
            ids.extend(example.ids)
            learn.extend(example.learn)
            ends.append(len(ids))
        stops = np.frombuffer(ends, np.int64) if ends else np.zeros(0, np.int64)
        starts = np.concatenate([[0], stops[:-1]]).astype(np.int64)[: len(stops)]
        lengths = stops - starts
        longest = int(lengths.max(initial=0))
        if max_len is not None and longest > max_len:
            raise ValueError(f"an example has {longest} tokens, more than max_len={max_len}; cut it first")
        flat = np.frombuffer(ids, np.int32) if ids else np.zeros(0, np.int32)
        mask = np.frombuffer(learn, np.bool_)
        return cls(flat, mask, starts, stops, row_length(longest, max_len, packing=packing), packing)

    def __len__(self) -> int:
        return len(self.starts)

    def digest(self) -> int:
        parts = (self.ids, self.learn, self.starts, self.ends)
        return functools.reduce(lambda sum, part: zlib.crc32(np.ascontiguousarray(part).tobytes(), sum), parts, 0)

    def __getitem__(self, index: int) -> Example:
        place = slice(int(self.starts[index]), int(self.ends[index]))
        return Example(self.ids[place].tolist(), self.learn[place].tolist())

    def batches(self, indexes: Sequence[int], micro_batch_size: int) -> list[Batch]:
        examples = [self[i] for i in indexes]
        return micro_batches(examples, micro_batch_size, self.max_len, packing=self.packing, whole_rows=self.whole_rows)

    def pick(self, indexes: Sequence[int]) -> SFTDataset:
        """These examples, in this order; the tokens are shared."""
        places = np.asarray(indexes, np.int64)
        return replace(self, starts=self.starts[places], ends=self.ends[places])


def row_length(longest: int, limit: int | None, *, packing: bool) -> int:
    """Tokens in a row for examples of up to `longest` tokens.

    That many, so that packed rows take no more memory than the longest examples without packing; with packing at least
    512, where the limit allows, because very short rows keep a device idle. A model's context is only ever the limit:
    rows of 128k tokens would not fit into memory, and short ones learn the same.
    """
    length = max(longest, _PACKED_ROW) if packing else longest
    return length if limit is None else min(length, limit)


def split(data: SFTDataset, fraction: float, seed: int) -> tuple[SFTDataset, SFTDataset | None]:
    """Set a share aside for validation, as `held_out` does; None if that is nothing."""
    kept, held = held_out(len(data), fraction, seed)
    return (data.pick(kept), replace(data.pick(held), notes=())) if held else (data, None)


def load_sft(
    data: DataSettings, tokenizer: Tokenizer, style: PromptStyle, context_len: int, *, seed: int = 0
) -> tuple[SFTDataset, SFTDataset | None]:
    """The data to train and to validate on. style: the model's own, for settings that name none. seed: of the split.

    Every record that can't be used is named. An example that is longer than max_len or the context loses its end; one
    that has nothing to learn left is left out. The notes of both say how many.
    """
    encoder = Encoder(tokenizer, get_style(data.style) if data.style else style, data.loss_on)
    limit = min(data.max_len or context_len, context_len)
    train = _read(data.path, data.split, encoder, limit, packing=data.packing)
    if data.val_path is None:
        return split(train, data.val_fraction, seed)
    return train, _read(data.val_path, data.split, encoder, limit, packing=data.packing)


def _read(source: str, split: str, encoder: Encoder, limit: int, *, packing: bool) -> SFTDataset:
    from tqdm import tqdm

    problems: list[str] = []
    cut = left_out = 0
    encoder.rewritten = encoder.without_thoughts = encoder.empty = 0

    def examples() -> Iterator[Example]:
        nonlocal cut, left_out
        for where, record in tqdm(
            read_records(source, split=split), desc="Tokenizing", unit=" examples", delay=2, leave=False,
            disable=None, file=sys.stderr,
        ):  # fmt: skip
            try:
                example = encoder(parse(record))
            except ValueError as e:
                problems.append(f"{where}: {e}")
                continue
            ids, learn = example.ids[:limit], example.learn[:limit]
            if any(learn[1:]):
                cut += len(example.ids) > limit
                yield Example(ids, learn)
            else:
                left_out += 1

    data = SFTDataset.of(examples(), max_len=limit, packing=packing)
    if problems:
        raise ValueError(listed(problems))
    if not len(data):
        raise ValueError(
            f"{source}: nothing to learn is left after cutting to max_len={limit} tokens; raise max_len"
            if left_out else f"{source} holds no examples"
        )  # fmt: skip
    n, tokens, learned = len(data), len(data.ids), int(data.learn.sum())
    notes = [
        f"{source}: {_n(n, 'example')} of {tokens / n:.0f} tokens on average, {tokens:,} in all, {learned:,} learned"
    ]
    if cut:
        notes.append(f"{source}: {_n(cut, 'example')} cut to max_len={limit} tokens")
    if left_out:
        notes.append(f"{source}: {_n(left_out, 'example')} left out because nothing to learn was left")
    if encoder.empty:
        notes.append(f"{source}: {_n(encoder.empty, 'example')} with an empty answer: only its end is learned")
    if encoder.rewritten:
        notes.append(
            f"{source}: only the last answer of {_n(encoder.rewritten, 'conversation')} is learned, because the "
            "template writes earlier answers differently from how the model says them"
        )
    if encoder.without_thoughts:
        notes.append(
            f"{source}: the template asks for a thought and writes answers without it, so "
            f"{_n(encoder.without_thoughts, 'conversation')} teach answering without one; --data.style names another"
        )
    return replace(data, notes=tuple(notes))


def _n(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
