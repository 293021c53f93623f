"""Data for supervised finetuning: records become conversations, conversations tokens and a mask of what to learn.

`forms.py` says what records may look like; a dataset may mix them. Only what the assistant says is learned, unless
`loss_on` asks for less or more. Unusual: all token ids stand in one flat array, because lists
of Python integers would take many times the memory; an example is cut out of it when it is asked for.
"""

from __future__ import annotations

import functools
import sys
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from litlm.data.base import Batch, Dataset, Example, held_out
from litlm.data.forms import Conversation, Message, Text, parse, says_something
from litlm.data.packing import micro_batches
from litlm.data.records import Sources, listed
from litlm.prompts import Alpaca, PromptStyle, get_style
from litlm.settings.data import DataSettings
from litlm.tokenizer import Tokenizer

LossOn = Literal["assistant", "completion", "all"]

_PACKED_ROW = 512  # packing makes rows at least this long, where max_len allows: short rows keep a device idle


# --- tokens -----------------------------------------------------------------------------------------------------------
class Encoder:
    """Conversations and texts as examples. rewritten: in how many only the last answer could be learned so far;
    without_thoughts: in how many the template left out the thought that it asks with; empty: how many have answers to
    learn that say nothing.

    unlearned: how many have answers to learn, but all of weight 0.

    loss_on: "assistant" learns every answer that is not context, "completion" the last one, "all" every token. Answers
    of weight 0 are never learned; with "all" they are an error.
    """

    def __init__(self, tokenizer: Tokenizer, style: PromptStyle, loss_on: LossOn = "assistant") -> None:
        self.tokenizer, self.style, self.loss_on = tokenizer, style, loss_on
        self.reset()

    def reset(self) -> None:
        """Count from 0."""
        self.rewritten = self.without_thoughts = self.empty = self.unlearned = 0

    def __call__(self, content: Conversation | Text) -> Example:
        if isinstance(content, Text):
            return self._text(content.text)
        messages = [self._in_style(message) for message in content.messages]
        given = {"tools": content.tools, "template_kwargs": content.template_kwargs}
        said = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        skip = {i for i, message in enumerate(content.messages) if message.get("train") is False}
        if self.loss_on == "all" and skip:
            raise ValueError(
                f"message {min(skip)} is not to be learned (weight 0, or train false), but loss_on=all learns every "
                "token; use loss_on=assistant"
            )
        first = said[-1] if self.loss_on == "completion" else content.context
        learned = [i for i in said if i >= first and i not in skip]
        if self.loss_on == "all" or not learned:
            ids, _ = self.style.encode_marked(self.style.mark(messages, skip=said, **given), self.tokenizer)
            self.unlearned += self.loss_on != "all"
            return Example(ids, [self.loss_on == "all"] * len(ids))
        self.empty += not any(says_something(messages[i]) for i in learned)
        # what follows the last answer is not learned, and templates write an answer differently when it is not the end
        marked = self.style.mark(messages[: learned[-1] + 1], first=first, skip=skip, without_thoughts=True, **given)
        self.rewritten += marked.rewritten > 0
        self.without_thoughts += marked.without_thoughts
        return Example(*self.style.encode_marked(marked, self.tokenizer))

    def _in_style(self, message: Message) -> Message:
        """Without what is said to us; Alpaca's style has a section of its own for what an instruction is about."""
        plain = {key: value for key, value in message.items() if key not in ("parts", "train")}
        if "parts" in message and isinstance(self.style, Alpaca):
            content, more = message["parts"]
            return plain | {"content": content, "input": more}
        return plain

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

    def outside(self, rows: int) -> Sequence[int]:
        return np.unique(self.ids[self.ids >= rows]).tolist()

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
    style = (get_style(data.style) if data.style else style).on(data.date)
    encoder = Encoder(tokenizer, style, data.loss_on)
    limit = min(data.max_len or context_len, context_len)
    train = _read(data.path, data.split, encoder, limit, packing=data.packing)
    if not data.val_path:
        return split(train, data.val_fraction, seed)
    return train, _read(data.val_path, data.split, encoder, limit, packing=data.packing)


def _read(sources: Sequence[str], split: str, encoder: Encoder, limit: int, *, packing: bool) -> SFTDataset:
    from tqdm import tqdm

    found = Sources(sources, split)
    source, problems = found.name, list[str]()
    cut = left_out = blank = 0
    encoder.reset()

    def examples() -> Iterator[Example]:
        nonlocal cut, left_out, blank
        for where, record in tqdm(
            found, desc="Tokenizing", unit=" examples", delay=2, leave=False,
            disable=None, file=sys.stderr,
        ):  # fmt: skip
            try:
                content = parse(record)
                if isinstance(content, Text) and not content.text.strip():
                    blank += 1
                    continue
                example = encoder(content)
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
    gone = left_out - encoder.unlearned
    counts = (
        (blank, "left out because the text is empty"),
        (encoder.unlearned, "left out because the answers have weight 0"),
        (gone, "left out because nothing to learn was left"),
    )
    notes = [f"{source}: {_n(number, 'example')} {why}" for number, why in counts if number]
    if not len(data):
        remedy = f" after cutting to max_len={limit} tokens; raise max_len" if gone else ""
        raise ValueError("\n".join([f"{source}: nothing to learn is left{remedy}", *notes]))
    n, tokens, learned = len(data), len(data.ids), int(data.learn.sum())
    notes = [
        f"{source}: {_n(n, 'example')} of {tokens / n:.0f} tokens on average, {tokens:,} in all, {learned:,} learned",
        *found.notes(),
        *([f"{source}: {_n(cut, 'example')} cut to max_len={limit} tokens"] if cut else []),
        *notes,
    ]
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
