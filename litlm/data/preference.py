"""Preference pairs: a prompt with a better and a worse answer, as tokens and a mask of those that are the answer's.

A record has `chosen` and `rejected`, each an answer (text, or one assistant message) to its `prompt` (text or messages;
or `instruction`, or `question`, each with an optional `input` or `context`; or messages as `conversations`), or each a
whole conversation. The two conversations must be the same but for the last message. `system`, `history`, `tools`,
`documents` and `chat_template_kwargs` are those of `forms.py`.

Unusual: an example of this data set is a pair. Both its answers are always in the same micro batch, each with the
prompt before it, as documents of their own.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor

from litlm.data.base import Batch, Dataset, Example, collate, collate_packed, held_out
from litlm.data.forms import (
    Conversation,
    Message,
    asked_with,
    history,
    question_of,
    said_under,
    says_something,
    template_arguments,
    values,
    with_system,
)
from litlm.data.packing import best_fit
from litlm.data.records import Sources, listed
from litlm.data.sft import Encoder, SFTDataset
from litlm.prompts import PromptStyle, get_style
from litlm.prompts.messages import REASONING, SAYING
from litlm.settings.data import PreferenceData
from litlm.tokenizer import Tokenizer

_FORMS = (
    "chosen and rejected, with a prompt (or instruction and input, or question), or as whole conversations "
    "(lists of messages) that begin alike"
)


class Pair(NamedTuple):
    """The prompt with either answer. Both begin with the same tokens; `learn` marks those of the answer."""

    chosen: Example
    rejected: Example


@dataclass(frozen=True)
class PreferenceBatch(Batch):
    """A micro batch of whole pairs: `examples` has 2 i for the chosen and 2 i + 1 for the rejected answer of pair i.

    reference: (pairs, 2), in the order of i, the log-probabilities that the reference model gives to both answers, if
    they were computed before training.
    """

    reference: Tensor | None = None

    def places(self) -> list[tuple[int, int]]:
        """For each pair, in the order of i, which of the documents (counted over all rows) are its two answers."""
        place = {number: at for at, number in enumerate(n for row in self.examples for n in row)}
        return [(place[n], place[n + 1]) for n in sorted(place) if n % 2 == 0]


@dataclass(eq=False)
class PreferenceDataset(Dataset):
    """Pairs ready to train on. A micro batch of n pairs takes at most 2 n rows.

    answers: of all pairs, each with its prompt: 2 i is the chosen answer of pair i, 2 i + 1 the rejected one. They know
    how long rows are, and whether to pack. reference: (len, 2), see `PreferenceBatch`.
    """

    answers: SFTDataset
    notes: Sequence[str] = ()
    reference: Tensor | None = None
    whole_rows: bool = False

    def __len__(self) -> int:
        return len(self.answers) // 2

    def outside(self, rows: int) -> Sequence[int]:
        return self.answers.outside(rows)

    def digest(self) -> int:
        return self.answers.digest()

    def __getitem__(self, index: int) -> Pair:
        return Pair(self.answers[2 * index], self.answers[2 * index + 1])

    def batches(self, indexes: Sequence[int], micro_batch_size: int) -> list[Batch]:
        answers = [answer for i in indexes for answer in self[i]]
        width = self.answers.max_len
        if self.answers.packing:
            parts = _packed([len(e.ids) - 1 for e in answers], 2 * micro_batch_size, width)
        else:
            each = [[n] for n in range(len(answers))]
            parts = [each[k : k + 2 * micro_batch_size] for k in range(0, len(each), 2 * micro_batch_size)]
        out: list[Batch] = []
        for rows in parts:
            if self.answers.packing:
                examples = [[answers[n] for n in row] for row in rows]
                b = collate_packed(examples, rows, width if self.whole_rows else None)
            else:
                numbers = [n for (n,) in rows]
                b = collate([answers[n] for n in numbers], numbers, max_len=width, whole_rows=self.whole_rows)
            kept = None
            if self.reference is not None:
                kept = self.reference[[indexes[n // 2] for n in sorted(n for row in rows for n in row) if n % 2 == 0]]
            out.append(PreferenceBatch(b.tokens, b.targets, b.lengths, b.examples, reference=kept))
        return out

    def pick(self, indexes: Sequence[int]) -> PreferenceDataset:
        """These pairs, in this order; the tokens are shared."""
        answers = self.answers.pick([n for i in indexes for n in (2 * i, 2 * i + 1)])
        return replace(self, answers=answers, reference=None if self.reference is None else self.reference[[*indexes]])


def _packed(lengths: Sequence[int], n_row: int, max_len: int) -> list[list[list[int]]]:
    """Micro batches of at most n_row rows, none longer than max_len: for each row, which answers are in it.

    lengths: 2 i and 2 i + 1 are a pair's. Longest pairs first, each into the first micro batch with room for both.
    """
    size = lambda i: lengths[2 * i] + lengths[2 * i + 1]  # noqa: E731
    members: list[list[int]] = []  # of each micro batch, its answers
    rows: list[list[list[int]]] = []
    for i in sorted(range(len(lengths) // 2), key=lambda i: (-size(i), i)):
        for k in range(len(members) + 1):
            if k == len(members):
                members.append([])
                rows.append([])
            wanted = [*members[k], 2 * i, 2 * i + 1]
            if sum(lengths[n] for n in wanted) > n_row * max_len:
                continue
            bins = best_fit([lengths[n] for n in wanted], max_len)
            if len(bins) <= n_row:
                members[k], rows[k] = wanted, [[wanted[at] for at in row] for row in bins]
                break
    return rows


# --- records -------------------------------------------------------------------------------------------------------


def parse_pair(record: dict[str, Any]) -> tuple[list[Message], list[Message]]:
    """The conversations that end with the chosen and with the rejected answer; ValueError with what is wrong.

    Keys without a value, or with an empty text, are keys that are not there.
    """
    record = values(record)
    if not {"chosen", "rejected"} <= record.keys():
        raise ValueError(f"has the keys {', '.join(sorted(map(str, record))) or '(none)'}; needed are {_FORMS}")
    answers = {key: said_under(record, key, "assistant") for key in ("chosen", "rejected")}
    prompt = _prompt(record, answers["chosen"])
    chosen, rejected = (_conversation(record, prompt, key, answer) for key, answer in answers.items())
    same = [_alike(a, b) for a, b in zip(chosen, rejected, strict=False)]
    n = same.index(False) if False in same else len(same) - 1
    if not n == len(chosen) - 1 == len(rejected) - 1:
        raise ValueError(f"chosen and rejected part at message {n}; they must be the same but for the last, the answer")
    if any(messages[-1].get("train") is False for messages in (chosen, rejected)):
        raise ValueError("an answer has weight 0 (or train false), but a pair learns from both; leave the record out")
    return chosen, [*chosen[:-1], rejected[-1]]


def _prompt(record: dict[str, Any], chosen: list[Message]) -> list[Message]:
    """The messages before the answer, without the record's system text; none if the record has no prompt."""
    key = question_of(record)
    if key is None and len(chosen) == 1:  # others have whole conversations under these keys
        key = next((key for key in ("conversations", "messages") if record.get(key) not in (None, "")), None)
    if key is not None:
        return asked_with(record, key)
    if history(record):
        raise ValueError("history stands beside messages; put the earlier rounds there")
    return []


def _conversation(record: dict[str, Any], prompt: list[Message], key: str, answer: list[Message]) -> list[Message]:
    repeated = len(answer) > len(prompt) and all(map(_alike, prompt, answer))
    if answer[0]["role"] == "assistant" and not (repeated and len(answer) > 1):
        if not prompt:
            raise ValueError(f"{key} is an answer alone; needed are {_FORMS}")
        answer = [*prompt, *answer]
    elif prompt and not repeated:
        asked = question_of(record) or "messages"
        own = [m.get("content", "").strip() for m in answer if m["role"] == "user"]
        # a text may stand behind a system message that it does not know of
        if not isinstance(record.get(asked), str) or len(prompt) > 1 or prompt[0]["content"].strip() not in own[:1]:
            raise ValueError(f"{key} is a whole conversation, but does not begin with the messages of {asked}")
    if answer[-1]["role"] != "assistant":
        raise ValueError(f"{key} ends with a message of role {answer[-1]['role']!r}, not with the assistant's answer")
    return with_system(record, answer)


def _alike(a: Message, b: Message) -> bool:
    return _meaning(a) == _meaning(b)


def _meaning(message: Message) -> Any:
    """What a message says: without the ids of calls, which are drawn anew for each, and columns of the file's own."""
    calls = [{k: v for k, v in call.items() if k != "id"} for call in message.get("tool_calls", [])]
    reasoning = next((message[key] for key in REASONING if message.get(key)), None)
    more = {key: message[key] for key in SAYING if message.get(key) and key not in ("tool_calls", *REASONING)}
    return message["role"], message.get("content", ""), calls, reasoning, more


def encode_pair(
    chosen: list[Message],
    rejected: list[Message],
    encoder: Encoder,
    *,
    tools: list[dict[str, Any]] | None = None,
    template_kwargs: dict[str, Any] | None = None,
) -> Pair:
    """Both conversations as tokens, of which the last message's are to be learned."""
    examples = [encoder(Conversation(said, 0, tools, template_kwargs)) for said in (chosen, rejected)]
    # Where a token holds the prompt's last and an answer's first characters, that answer begins a token earlier: then
    # both do.
    start = min(e.learn.index(True) for e in examples)
    if examples[0].ids[:start] != examples[1].ids[:start]:
        raise ValueError(f"prompt style {encoder.style.name!r} writes the prompt differently before the two answers")
    for e in examples:
        e.learn[start : e.learn.index(True)] = [True] * (e.learn.index(True) - start)
    return Pair(*examples)


# --- files ---------------------------------------------------------------------------------------------------------


def load_preference(
    data: PreferenceData, tokenizer: Tokenizer, style: PromptStyle, context_len: int, *, seed: int = 0
) -> tuple[PreferenceDataset, PreferenceDataset | None]:
    """The pairs to train and to validate on. style: the model's own, for settings that name none. seed: of the split.

    Every record that can't be used is named. Pairs that lost an end to max_len or the context, or were left out, are
    counted in the notes.
    """
    style = (get_style(data.style) if data.style else style).on(data.date)
    encoder = Encoder(tokenizer, style, "completion")
    limit = min(data.max_len or context_len, context_len)
    train = _read(data.path, data.split, encoder, limit, packing=data.packing)
    if data.val_path:
        return train, _read(data.val_path, data.split, encoder, limit, packing=data.packing)
    kept, held = held_out(len(train), data.val_fraction, seed)
    return (train.pick(kept), replace(train.pick(held), notes=())) if held else (train, None)


def _read(sources: Sequence[str], split: str, encoder: Encoder, limit: int, *, packing: bool) -> PreferenceDataset:
    from tqdm import tqdm

    found = Sources(sources, split)
    source, problems = found.name, list[str]()
    cut = empty = gone = same = 0

    def answers() -> Iterator[Example]:
        nonlocal cut, empty, gone, same
        for where, record in tqdm(
            found, desc="Tokenizing", unit=" pairs", delay=2, leave=False, disable=None,
            file=sys.stderr,
        ):  # fmt: skip
            try:
                conversations = parse_pair(record)
                if not all(says_something(messages[-1]) for messages in conversations):
                    empty += 1
                    continue
                pair = encode_pair(*conversations, encoder, **template_arguments(record))
            except ValueError as e:
                problems.append(f"{where}: {e}")
                continue
            chosen, rejected = (Example(e.ids[:limit], e.learn[:limit]) for e in pair)
            if not any(chosen.learn[1:]) or not any(rejected.learn[1:]):
                gone += 1
            elif chosen.ids == rejected.ids:
                same += 1
            else:
                cut += any(len(e.ids) > limit for e in pair)
                yield from (chosen, rejected)

    data = SFTDataset.of(answers(), max_len=limit, packing=packing)
    if problems:
        raise ValueError(listed(problems))
    counts = (
        (cut, f"cut to max_len={limit} tokens"),
        (empty, "left out because an answer is empty"),
        (gone, f"left out because the prompt alone fills max_len={limit} tokens"),
        (same, "left out because both answers are the same (or were, once cut)"),
    )
    notes = [f"{source}: {_pairs(n)} {text}" for n, text in counts if n]
    if not len(data):
        raise ValueError("\n".join([f"{source}: no pair is left to learn from", *notes]))
    n = len(data) // 2
    first = (
        f"{source}: {_pairs(n)} of {len(data.ids) / n:.0f} tokens on average, {int(data.learn.sum()) / n:.0f} learned"
    )
    return PreferenceDataset(data, (first, *found.notes(), *notes))


def _pairs(n: int) -> str:
    return f"{n:,} pair{'' if n == 1 else 's'}"
