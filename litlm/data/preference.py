"""Preference pairs: a prompt with a better and a worse answer, as tokens with a mask of the answers' tokens.

A record has `chosen` and `rejected`: answers (text, or one assistant message) to its prompt (text or messages under
`prompt`, `instruction` or `question`, or messages under `conversations`), or whole conversations that differ only in
the last message. Other keys are those of `record_formats.py`.

An example of this dataset is a pair. Both answers are always in the same micro batch, each after its own copy of the
prompt, as separate documents.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor

from litlm.data.base import Batch, Dataset, Example, TokenizedDataset, best_fit_decreasing, collate
from litlm.data.record_formats import (
    INPUT_KEYS,
    PAIR_KEYS,
    Conversation,
    Message,
    add_system_message,
    check_record,
    has_content,
    history_messages,
    messages_under,
    prompt_key,
    prompt_messages,
    refuse_unused,
    template_arguments,
)
from litlm.data.records import RecordSources
from litlm.data.sft import Encoder, data_style, encode_records, plural
from litlm.prompts import PromptStyle
from litlm.prompts.messages import REASONING_KEYS, RENDERED_KEYS
from litlm.settings.data import PreferenceData
from litlm.tokenizer import Tokenizer

_FORMATS = (
    "chosen and rejected, with a prompt (or instruction and input, or question), or as whole conversations "
    "(lists of messages) that begin alike"
)


class Pair(NamedTuple):
    """The prompt with either answer. Both begin with the same tokens; `learn` marks the answer's."""

    chosen: Example
    rejected: Example


@dataclass(frozen=True)
class PreferenceBatch(Batch):
    """A micro batch of whole pairs: in `examples`, 2 i is the chosen and 2 i + 1 the rejected answer of pair i.

    reference_logps: (pairs, 2), the reference model's log-probabilities of both answers, in the order of i, if they
    were computed before training.
    """

    reference_logps: Tensor | None = None

    def answer_documents(self) -> list[tuple[int, int]]:
        """For each pair, in the order of i, the documents (counted over all rows) that are its two answers."""
        document = {n: at for at, n in enumerate(n for row in self.examples for n in row)}
        return [(document[n], document[n + 1]) for n in sorted(document) if n % 2 == 0]


@dataclass(eq=False)
class PreferenceDataset(Dataset):
    """Tokenized pairs. A micro batch of n pairs has at most 2 n rows.

    answers: of all pairs, each with its prompt: 2 i is the chosen answer of pair i, 2 i + 1 the rejected one. Their
    dataset also holds max_len and packing. reference_logps: (len, 2), see `PreferenceBatch`.
    """

    answers: TokenizedDataset
    notes: Sequence[str] = ()
    reference_logps: Tensor | None = None
    static_shapes: bool = False

    def __len__(self) -> int:
        return len(self.answers) // 2

    def __getitem__(self, index: int) -> Pair:
        return Pair(self.answers[2 * index], self.answers[2 * index + 1])

    def out_of_vocab_ids(self, vocab_size: int) -> Sequence[int]:
        return self.answers.out_of_vocab_ids(vocab_size)

    def fingerprint(self) -> int:
        return self.answers.fingerprint()

    def select(self, indexes: Sequence[int]) -> PreferenceDataset:
        answers = self.answers.select([n for i in indexes for n in (2 * i, 2 * i + 1)])
        logps = None if self.reference_logps is None else self.reference_logps[[*indexes]]
        return replace(self, answers=answers, reference_logps=logps)

    def batches(self, indexes: Sequence[int], micro_batch_size: int) -> list[Batch]:
        answers = [answer for i in indexes for answer in self[i]]
        max_len, packing, n_rows = self.answers.max_len, self.answers.packing, 2 * micro_batch_size
        if packing:
            groups = _pack_pairs([len(e.ids) - 1 for e in answers], n_rows, max_len)
        else:
            rows = [[n] for n in range(len(answers))]
            groups = [rows[k : k + n_rows] for k in range(0, len(rows), n_rows)]
        out: list[Batch] = []
        for group in groups:
            b = collate(answers, group, max_len, packing=packing, static_shapes=self.static_shapes)
            logps = None
            if self.reference_logps is not None:
                pairs = sorted(n // 2 for row in group for n in row if n % 2 == 0)
                logps = self.reference_logps[[indexes[i] for i in pairs]]
            out.append(PreferenceBatch(b.tokens, b.targets, b.lengths, b.examples, reference_logps=logps))
        return out


def _pack_pairs(lengths: Sequence[int], n_rows: int, max_len: int) -> list[list[list[int]]]:
    """Micro batches of at most n_rows rows of at most max_len tokens: for each row, which answers are in it.

    lengths: 2 i and 2 i + 1 are a pair's. Longest pairs first, each into the first micro batch with room for both.
    """
    pair_length = lambda i: lengths[2 * i] + lengths[2 * i + 1]  # noqa: E731
    members: list[list[int]] = []  # the answers of each micro batch
    rows: list[list[list[int]]] = []
    for i in sorted(range(len(lengths) // 2), key=lambda i: (-pair_length(i), i)):
        for k in range(len(members) + 1):
            if k == len(members):
                members.append([])
                rows.append([])
            candidate = [*members[k], 2 * i, 2 * i + 1]
            if sum(lengths[n] for n in candidate) > n_rows * max_len:
                continue
            bins = best_fit_decreasing([lengths[n] for n in candidate], max_len)
            if len(bins) <= n_rows:
                members[k], rows[k] = candidate, [[candidate[at] for at in row] for row in bins]
                break
    return rows


# --- records ------------------------------------------------------------------------------------------------------
def parse_pair(record: dict[str, Any]) -> tuple[list[Message], list[Message]]:
    """The conversations with the chosen and with the rejected answer. Raises ValueError that says what is wrong.

    Keys without a value, or with an empty text, count as absent.
    """
    record = check_record(record)
    if not {"chosen", "rejected"} <= record.keys():
        raise ValueError(f"has the keys {', '.join(sorted(map(str, record))) or '(none)'}; needed are {_FORMATS}")
    answers = {key: messages_under(record, key, "assistant") for key in ("chosen", "rejected")}
    prompt = _prompt(record, answers["chosen"])
    chosen, rejected = (_conversation(record, prompt, key, answer) for key, answer in answers.items())
    same = [_says_same(a, b) for a, b in zip(chosen, rejected, strict=False)]
    n = same.index(False) if False in same else len(same) - 1
    if not n == len(chosen) - 1 == len(rejected) - 1:
        raise ValueError(f"chosen and rejected part at message {n}; they must be the same but for the last, the answer")
    if any(messages[-1].get("train") is False for messages in (chosen, rejected)):
        raise ValueError("an answer has weight 0 (or train false), but a pair trains on both; leave the record out")
    refuse_unused(record, (*INPUT_KEYS, *REASONING_KEYS), [*chosen, rejected[-1]], "chosen and rejected")
    return chosen, [*chosen[:-1], rejected[-1]]


def _prompt(record: dict[str, Any], chosen: list[Message]) -> list[Message]:
    """The messages before the answer, without the record's system text; none if the record has no prompt."""
    key = prompt_key(record)
    if key is None and len(chosen) == 1:  # other records have whole conversations under these keys
        key = next((key for key in ("conversations", "messages") if record.get(key) not in (None, "")), None)
    if key is not None:
        return prompt_messages(record, key)
    if history_messages(record):
        raise ValueError("history can't be used beside messages; put the earlier rounds there")
    return []


def _conversation(record: dict[str, Any], prompt: list[Message], key: str, answer: list[Message]) -> list[Message]:
    has_prompt = len(answer) > len(prompt) and all(map(_says_same, prompt, answer))
    if answer[0]["role"] == "assistant" and not (has_prompt and len(answer) > 1):
        if not prompt:
            raise ValueError(f"{key} is only an answer; needed are {_FORMATS}")
        answer = [*prompt, *answer]
    elif prompt and not has_prompt:
        asked = prompt_key(record) or "messages"
        users = [m.get("content", "").strip() for m in answer if m["role"] == "user"]
        # a text prompt may follow a system message
        if not isinstance(record.get(asked), str) or len(prompt) > 1 or prompt[0]["content"].strip() not in users[:1]:
            raise ValueError(f"{key} is a whole conversation, but does not begin with the messages of {asked}")
    if answer[-1]["role"] != "assistant":
        raise ValueError(f"{key} ends with a message of role {answer[-1]['role']!r}, not with the assistant's answer")
    return add_system_message(record, answer)


def _says_same(a: Message, b: Message) -> bool:
    return _meaning(a) == _meaning(b)


def _meaning(message: Message) -> Any:
    """What a message says: without the random ids of tool calls, and without keys that no template reads."""
    calls = [{k: v for k, v in call.items() if k != "id"} for call in message.get("tool_calls", [])]
    reasoning = next((message[key] for key in REASONING_KEYS if message.get(key)), None)
    others = [key for key in RENDERED_KEYS if message.get(key) and key not in ("tool_calls", *REASONING_KEYS)]
    return message["role"], message.get("content", ""), calls, reasoning, {key: message[key] for key in others}


def encode_pair(
    chosen: list[Message],
    rejected: list[Message],
    encoder: Encoder,
    *,
    tools: list[dict[str, Any]] | None = None,
    template_kwargs: dict[str, Any] | None = None,
) -> Pair:
    """Both conversations as tokens, trained on in the last message.

    Raises ValueError if the style can't write them, or the prompt has other tokens before the two answers.
    """
    examples = [encoder(Conversation(messages, 0, tools, template_kwargs)) for messages in (chosen, rejected)]
    # A token may hold the end of the prompt and the beginning of one answer: then both answers begin with it.
    start = min(e.learn.index(True) for e in examples)
    if examples[0].ids[:start] != examples[1].ids[:start]:
        raise ValueError(
            f"prompt style {encoder.style.name!r} writes the prompt differently before the two answers, or the "
            "tokenizer joins the end of the prompt with the beginning of one; name a --data.style that separates them"
        )
    for e in examples:
        e.learn[start : e.learn.index(True)] = [True] * (e.learn.index(True) - start)
    return Pair(*examples)


# --- files --------------------------------------------------------------------------------------------------------
def load_preference(
    data: PreferenceData,
    tokenizer: Tokenizer,
    style: PromptStyle,
    context_len: int,
    *,
    seed: int = 0,
    static_shapes: bool = False,
) -> tuple[PreferenceDataset, PreferenceDataset | None]:
    """Training and validation pairs; the arguments are those of `load_sft`.

    Pairs cut to max_len or the context, or left out, are counted in the notes. Raises ValueError that names all records
    that can't be used.
    """
    encoder = Encoder(tokenizer, data_style(data, style), "completion")
    max_len = min(data.max_len or context_len, context_len)
    read = lambda sources: _read(sources, data, encoder, max_len, static_shapes)  # noqa: E731
    train = read(data.path)
    return (train, read(data.val_path)) if data.val_path else train.split(data.val_fraction, seed)


def _read(
    sources: Sequence[str], data: PreferenceData, encoder: Encoder, max_len: int, static_shapes: bool
) -> PreferenceDataset:
    found, counts = RecordSources(sources, data.split), Counter[str]()

    def encode(record: dict[str, Any]) -> Iterator[Example]:
        conversations = parse_pair(record)
        if not all(has_content(messages[-1]) for messages in conversations):
            counts["empty"] += 1
            return
        pair = encode_pair(*conversations, encoder, **template_arguments(record))
        chosen, rejected = (Example(e.ids[:max_len], e.learn[:max_len]) for e in pair)
        if not any(chosen.learn[1:]) or not any(rejected.learn[1:]):
            counts["no room"] += 1
        elif chosen.ids == rejected.ids:
            counts["same"] += 1
        else:
            counts["cut"] += any(len(e.ids) > max_len for e in pair)
            yield from (chosen, rejected)

    answers = TokenizedDataset.from_examples(
        encode_records(found, encode, "pairs"), max_len=max_len, packing=data.packing
    )
    reasons = {
        "cut": f"cut to max_len={max_len} tokens",
        "empty": "left out because an answer is empty",
        "no room": f"left out because the prompt alone fills max_len={max_len} tokens",
        "same": "left out because both answers are the same (or were, once cut)",
    }
    notes = [f"{found.name}: {plural(counts[key], 'pair')} {why}" for key, why in reasons.items() if counts[key]]
    if not len(answers):
        raise ValueError("\n".join([f"{found.name}: no pair is left to train on", *notes]))
    n, n_tokens, n_trained = len(answers) // 2, len(answers.ids), int(answers.learn.sum())
    summary = f"{plural(n, 'pair')} of {n_tokens / n:.0f} tokens on average, {n_trained / n:.0f} trained on"
    notes = [f"{found.name}: {summary}", *found.notes(PAIR_KEYS), *notes]
    return PreferenceDataset(answers, tuple(notes), static_shapes=static_shapes)
