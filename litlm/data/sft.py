"""Supervised finetuning data: records become conversations, and these tokens with a mask of what to train on.

A dataset may mix the record formats of `record_formats.py`. Only what the assistant says is trained on, unless
`loss_on` says otherwise.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

from litlm.data.base import Example, TokenizedDataset
from litlm.data.record_formats import RECORD_KEYS, Conversation, Message, Text, has_content, parse
from litlm.data.records import RecordSources, format_problems
from litlm.prompts import Alpaca, PromptStyle, get_style
from litlm.settings.data import DataSettings, PreferenceData
from litlm.tokenizer import Tokenizer

LossOn = Literal["assistant", "completion", "all"]


def load_sft(
    data: DataSettings,
    tokenizer: Tokenizer,
    style: PromptStyle,
    context_len: int,
    *,
    seed: int = 0,
    static_shapes: bool = False,
) -> tuple[TokenizedDataset, TokenizedDataset | None]:
    """Training and validation data.

    style: used unless `data` names one. seed: of the split. static_shapes: see `Dataset`. Examples longer than max_len
    or the context are cut, and left out if nothing to train on remains; the datasets' notes count both. Raises
    ValueError that names all records that can't be used.
    """
    encoder = Encoder(tokenizer, data_style(data, style), data.loss_on)
    max_len = min(data.max_len or context_len, context_len)
    read = lambda sources: _read(sources, data, encoder, max_len, static_shapes)  # noqa: E731
    train = read(data.path)
    return (train, read(data.val_path)) if data.val_path else train.split(data.val_fraction, seed)


def data_style(data: DataSettings | PreferenceData, default: PromptStyle) -> PromptStyle:
    """The prompt style that the settings name, or the default, with the settings' date as today's."""
    return (get_style(data.style) if data.style else default).with_date(data.date)


def _read(
    sources: Sequence[str], data: DataSettings, encoder: Encoder, max_len: int, static_shapes: bool
) -> TokenizedDataset:
    found, counts = RecordSources(sources, data.split), encoder.counts
    counts.clear()

    def encode(record: dict[str, Any]) -> Iterator[Example]:
        content = parse(record)
        if isinstance(content, Text) and not content.text.strip():
            counts["blank"] += 1
            return
        example = encoder(content)
        if any(example.learn[1:max_len]):
            counts["cut"] += len(example.ids) > max_len
            yield Example(example.ids[:max_len], example.learn[:max_len])
        else:
            counts["nothing left"] += 1

    examples = encode_records(found, encode, "examples")
    dataset = TokenizedDataset.from_examples(
        examples, max_len=max_len, packing=data.packing, static_shapes=static_shapes
    )
    counts["nothing left"] -= counts["weight 0"]
    if not len(dataset):
        remedy = f" after cutting to max_len={max_len} tokens; raise max_len" if counts["nothing left"] else ""
        raise ValueError("\n".join([f"{found.name}: nothing to train on{remedy}", *_left_out(found.name, counts)]))
    return replace(dataset, notes=tuple(_notes(dataset, found, counts, max_len)))


def _left_out(name: str, counts: Counter[str]) -> list[str]:
    reasons = {
        "blank": "the text is empty",
        "weight 0": "the answers have weight 0",
        "nothing left": "nothing to train on was left",
    }
    return [f"{name}: {plural(counts[k], 'example')} left out because {why}" for k, why in reasons.items() if counts[k]]


def _notes(dataset: TokenizedDataset, found: RecordSources, counts: Counter[str], max_len: int) -> list[str]:
    n, n_tokens, n_trained, name = len(dataset), len(dataset.ids), int(dataset.learn.sum()), found.name
    notes = [
        f"{name}: {plural(n, 'example')} of {n_tokens / n:.0f} tokens on average, {n_tokens:,} in all, {n_trained:,} "
        "trained on",
        *found.notes(RECORD_KEYS),
    ]
    if counts["cut"]:
        notes.append(f"{name}: {plural(counts['cut'], 'example')} cut to max_len={max_len} tokens")
    notes += _left_out(name, counts)
    if counts["empty"]:
        notes.append(f"{name}: {plural(counts['empty'], 'example')} with an empty answer: only its end is trained on")
    if counts["rewritten"]:
        notes.append(
            f"{name}: only the last answer of {plural(counts['rewritten'], 'conversation')} is trained on, because the "
            "template writes earlier answers differently from how the model generates them"
        )
    if counts["without thinking"]:
        notes.append(
            f"{name}: the template opens a thought and writes answers without it, so "
            f"{plural(counts['without thinking'], 'conversation')} teach answering without thinking; --data.style "
            "names another style"
        )
    return notes


def encode_records(
    records: Iterable[tuple[str, dict[str, Any]]],
    encode: Callable[[dict[str, Any]], Iterable[Example]],
    unit: str,
) -> Iterator[Example]:
    """The examples of all records, with a progress bar. unit: of the bar.

    Raises ValueError after the last record, which names all for which `encode` raised one.
    """
    from tqdm import tqdm

    problems = []
    bar: Any = dict(desc="Tokenizing", unit=f" {unit}", delay=2, leave=False, disable=None, file=sys.stderr)
    for location, record in tqdm(records, **bar):
        try:
            yield from encode(record)
        except ValueError as e:
            problems.append(f"{location}: {e}")
    if problems:
        raise ValueError(format_problems(problems))


def plural(n: int, noun: str) -> str:
    """`1 example`, `2 examples`."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


class Encoder:
    """Encodes conversations and texts as examples.

    loss_on: "assistant" trains on every answer after the prompt, "completion" on the last one, "all" on every token.
    Answers of weight 0 are never trained on, and refused with "all". counts: of examples whose trained answers are all
    empty, or whose answers all have weight 0; of those where only the last answer could be used (rewritten), and where
    the template left out the thought that it opens in prompts (without thinking).
    """

    def __init__(self, tokenizer: Tokenizer, style: PromptStyle, loss_on: LossOn = "assistant") -> None:
        self.tokenizer, self.style, self.loss_on = tokenizer, style, loss_on
        self.counts: Counter[str] = Counter()

    def __call__(self, content: Conversation | Text) -> Example:
        """Raises ValueError if the style can't write the conversation."""
        if isinstance(content, Text):
            return self._encode_text(content.text)
        messages = [self._message(message) for message in content.messages]
        options = {"tools": content.tools, "template_kwargs": content.template_kwargs}
        answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        skip = {i for i, message in enumerate(content.messages) if message.get("train") is False}
        if self.loss_on == "all" and skip:
            raise ValueError(
                f"message {min(skip)} is not to be trained on (weight 0, or train false), but loss_on=all trains on "
                "every token; use loss_on=assistant"
            )
        first = answers[-1] if self.loss_on == "completion" else content.n_prompt
        trained = [i for i in answers if i >= first and i not in skip]
        if self.loss_on == "all" or not trained:
            rendered = self.style.render_with_spans(messages, skip=answers, **options)
            ids, _ = self.style.encode_rendered(rendered, self.tokenizer)
            self.counts["weight 0"] += self.loss_on != "all"
            return Example(ids, [self.loss_on == "all"] * len(ids))
        self.counts["empty"] += not any(has_content(messages[i]) for i in trained)
        # Later messages are not trained on, and templates write an answer differently if any follow.
        rendered = self.style.render_with_spans(
            messages[: trained[-1] + 1], first=first, skip=skip, allow_missing_thinking=True, **options
        )
        self.counts["rewritten"] += rendered.n_rewritten > 0
        self.counts["without thinking"] += rendered.missing_thinking
        return Example(*self.style.encode_rendered(rendered, self.tokenizer))

    def _message(self, message: Message) -> Message:
        """Without keys for litlm alone. Alpaca's style writes a prompt's input in a section of its own."""
        plain = {key: value for key, value in message.items() if key not in ("instruction_and_input", "train")}
        if "instruction_and_input" in message and isinstance(self.style, Alpaca):
            content, input_text = message["instruction_and_input"]
            return plain | {"content": content, "input": input_text}
        return plain

    def _encode_text(self, text: str) -> Example:
        ids = self.tokenizer.encode(text)
        if self.tokenizer.eos_id is not None and (not ids or ids[-1] not in self.tokenizer.eos_ids):
            ids.append(self.tokenizer.eos_id)
        return Example(ids, [True] * len(ids))
