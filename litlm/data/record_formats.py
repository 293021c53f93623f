"""Record formats: which keys a record may have, and the conversation or text that each format becomes.

Accepted are the formats of Hugging Face TRL, OpenAI's finetuning API, LLaMA-Factory (Alpaca and ShareGPT), axolotl and
mistral-finetune; the keys tell them apart. A key that says what is trained on, or what the model sees, is used or
refused by name. All other columns (id, source, category) are ignored, and named before training.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from litlm.io.errors import did_you_mean
from litlm.io.reading import parse_json, repeated_key
from litlm.prompts.messages import REASONING_KEYS, content_text

Message = dict[str, Any]

# A record has one prompt, at most one input and one answer, under any of these keys.
PROMPT_KEYS = ("instruction", "prompt", "question")
INPUT_KEYS = ("input", "context")  # appended to the prompt after a blank line
ANSWER_KEYS = ("output", "completion", "response", "answer")
_UNSUPPORTED_INPUTS = ("choices", "options", "endings", "contexts", "passage", "passages")
_TOOL_CALL_ROLES = ("function_call", "tool_call")  # their content is a tool call as JSON
_ROLE_NAMES = {
    "human": "user", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "bot": "assistant",
    "observation": "tool", "function_response": "tool", "tool_response": "tool", "function": "tool",
    **dict.fromkeys(_TOOL_CALL_ROLES, "assistant"),
}  # fmt: skip
ROLES = frozenset({"system", "developer", "user", "assistant", "tool", *_ROLE_NAMES})
_FORMATS = (
    "instruction and output (Alpaca), instruction and response (Dolly), messages (chat), conversations (ShareGPT), "
    "prompt and completion (or response), question and answer, or text"
)
_SYSTEM_KEYS = ("system", "system_prompt", "system_message")
# Whether to train on a message: OpenAI's and mistral-finetune's weight, axolotl's train and training, ms-swift's loss.
_WEIGHT_KEYS = ("weight", "train", "training", "loss", "loss_scale")
_MEDIA = dict.fromkeys(("image", "images", "video", "videos", "audio", "audios"), "litlm trains on text only")
_REFUSED_KEYS = _MEDIA | {
    "available_tools": "call it tools",
    "only_last": "use --data.loss_on completion to train on the last answer only",
    "rejected_response": "`litlm dpo` trains on pairs, with the keys chosen and rejected",
}
_TEMPLATE_KEYS = ("tools", "functions", "documents", "chat_template_kwargs")
_TEMPLATE_SWITCHES = ("enable_thinking", "reasoning_effort")
_SKIP_KEYS = ("weight", "train", "training")  # false: not to train on the record
# The keys that are used, of conversations or texts and of pairs; and those that are refused, always or beside some.
_SHARED_KEYS = frozenset(
    {"messages", "conversations", "history", *PROMPT_KEYS, *INPUT_KEYS, *REASONING_KEYS, *_SYSTEM_KEYS, *_TEMPLATE_KEYS}
)
RECORD_KEYS = _SHARED_KEYS | {*ANSWER_KEYS, "text"}
PAIR_KEYS = _SHARED_KEYS | {"chosen", "rejected"}
_CHECKED_KEYS = frozenset({*_REFUSED_KEYS, *_UNSUPPORTED_INPUTS, *_TEMPLATE_SWITCHES, *_SKIP_KEYS, "label", "kto_tag"})
_MAX_COLUMNS = 8  # that a note names
_REFUSED_MESSAGE_KEYS = _MEDIA | {
    "prefix": "a message is trained on as a whole",
    "train_detail": "a message is trained on as a whole, or not at all with weight 0",
    "training_detail": "a message is trained on as a whole, or not at all with weight 0",
    "reasoning_training_detail": "a message is trained on as a whole, or not at all with weight 0",
}


@dataclass(frozen=True)
class Conversation:
    """Messages of a record.

    n_prompt: the first messages, which are the prompt and never trained on. tools, template_kwargs: see
    `PromptStyle.bind`. A message with `train` False is not trained on; a prompt with an input has both under
    `instruction_and_input`, for styles that write them apart.
    """

    messages: list[Message]
    n_prompt: int = 0
    tools: list[dict[str, Any]] | None = None
    template_kwargs: dict[str, Any] | None = None


@dataclass(frozen=True)
class Text:
    """Text that is not a conversation; all of it is trained on."""

    text: str


def parse(record: Mapping[str, Any]) -> Conversation | Text:
    """The conversation or text of a record. Keys whose value is None count as absent.

    messages: a list of {role, content}. conversations: a list of {from, value} (or {role, content}), or of texts, the
    user's first. A prompt (`PROMPT_KEYS`) and an answer (`ANSWER_KEYS`): texts or lists of messages. A text prompt may
    come with an input (`INPUT_KEYS`), with reasoning (`REASONING_KEYS`), which precedes the answer, and with `history`,
    earlier rounds as [question, answer], which are trained on. All of these may come with a system text, `tools`,
    `documents` and `chat_template_kwargs`. text: taken as it is; may be empty.

    Raises ValueError that says what is wrong with the record.
    """
    had_text = "text" in record
    record = check_record(record)
    for key in ("messages", "conversations"):
        if key in record:
            return _from_messages(record, key)
    prompt, answer = _single_key(record, PROMPT_KEYS, "prompts"), _single_key(record, ANSWER_KEYS, "answers")
    if prompt and answer:
        return _from_prompt_and_answer(record, prompt, answer)
    content_keys = {"messages", "conversations", *PROMPT_KEYS, *INPUT_KEYS, *ANSWER_KEYS}
    if "text" in record or (had_text and not content_keys & record.keys()):
        return _from_text(record)
    raise ValueError(f"has the keys {', '.join(sorted(map(str, record))) or '(none)'}; needed are {_FORMATS}")


def _from_messages(record: dict[str, Any], key: str) -> Conversation:
    if beside := [name for name in ("history", "text") if has_value(record.get(name))]:
        raise ValueError(f"{' and '.join(beside)} can't be used beside {key}; put everything into {key}")
    _refuse_bad_label(record)
    messages = parse_messages(record[key], key)
    other = record.get("conversations") if key == "messages" else None
    if other and parse_messages(other, "conversations") != messages:
        raise ValueError("messages and conversations hold different messages; keep one of them")
    answers = ANSWER_KEYS if messages[-1]["role"] != "assistant" else ()  # else what a grader would compare with
    refuse_unused(record, (*PROMPT_KEYS, *INPUT_KEYS, *REASONING_KEYS, *answers), messages, key)
    messages = _check_has_answer(add_system_message(record, messages), key)
    return Conversation(messages, **template_arguments(record))


def _from_prompt_and_answer(record: dict[str, Any], prompt: str, answer: str) -> Conversation:
    _refuse_bad_label(record)
    asked = add_system_message(record, prompt_messages(record, prompt))
    answered = _check_has_answer(messages_under(record, answer, "assistant"), answer)
    if reasoning := _single_key(record, REASONING_KEYS, "reasoning texts"):
        if not isinstance(record[answer], str) or not isinstance(record[reasoning], str):
            raise ValueError(f"{reasoning} can't be used: it must be text beside a text as {answer}")
        if record[reasoning]:
            answered = [answered[0] | {"reasoning_content": record[reasoning]}]
    n_prompt = 0 if history_messages(record) else len(asked)
    return Conversation([*asked, *answered], n_prompt, **template_arguments(record))


def _from_text(record: dict[str, Any]) -> Text:
    text = record.get("text", "")
    if not isinstance(text, str):
        raise ValueError("text must be text; call a list of messages messages")
    if beside := [k for k in (*_SYSTEM_KEYS, *_TEMPLATE_KEYS, "history") if record.get(k)]:
        raise ValueError(
            f"{', '.join(beside)} can't be used beside text, which is trained on as it is; write it into the text, or "
            "use messages"
        )
    refuse_unused(record, (*PROMPT_KEYS, *INPUT_KEYS, *ANSWER_KEYS, *REASONING_KEYS), [{"content": text}], "text")
    return Text(text)


def _single_key(record: Mapping[str, Any], keys: Sequence[str], plural: str) -> str | None:
    """Which of the keys the record has: the one with a value, else the first; ValueError if several have one."""
    with_value = [key for key in keys if record.get(key) not in (None, "")]
    if len(with_value) > 1:
        raise ValueError(f"{' and '.join(with_value)} are {len(with_value)} {plural}; keep one of them")
    return next((key for key in (*with_value, *keys) if key in record), None)


def has_value(value: Any) -> bool:
    """Whether a value is more than what empty cells and columns are filled with."""
    return value not in (None, "", [], {}, "[]", "{}")


def _refuse_bad_label(record: Mapping[str, Any]) -> None:
    if is_false(record.get("label")):  # beside text it may be any class
        raise ValueError(f"label={record['label']!r} marks a bad answer; leave the record out")


def _check_has_answer(messages: list[Message], key: str) -> list[Message]:
    if not any(m["role"] == "assistant" for m in messages):
        raise ValueError(f"{key} has no assistant message to train on")
    return messages


def describe_unused(columns: Iterable[str], used: frozenset[str]) -> str | None:
    """Names the columns that are neither among the used keys nor refused, with a key that the data lacks where one is
    alike; None if there are none.
    """
    columns = list(columns)
    missing = used.difference(columns)
    unused = [name for name in columns if name not in used | _CHECKED_KEYS]
    if not unused:
        return None
    close = [did_you_mean(name, sorted(missing)).removeprefix("; ") for name in unused]
    named = [(name or "(no name)") + (f" ({hint})" if hint else "") for name, hint in zip(unused, close, strict=True)]
    named.sort(key=lambda text: "(did" not in text)  # so that a misspelt key is among those named
    more = f" and {len(named) - _MAX_COLUMNS:,} more" if len(named) > _MAX_COLUMNS else ""
    return f"columns not used: {', '.join(named[:_MAX_COLUMNS])}{more}"


# --- parts of records, also of preference pairs -------------------------------------------------------------------
def is_false(value: Any) -> bool:
    """Whether a value is false as written in JSON, Python or a table's cell."""
    return str(value).strip().lower() in ("false", "0", "0.0", "no", "n", "f", "off")


def check_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that have a value. Raises ValueError for keys that can't be used."""
    record = {key: value for key, value in record.items() if value is not None}
    problems = [f"{key} can't be used: {why}" for key, why in _REFUSED_KEYS.items() if record.get(key)]
    if is_false(record.get("kto_tag")):
        problems.append(f"kto_tag={record['kto_tag']!r} marks a bad answer; leave the record out")
    for key in _SKIP_KEYS:
        if is_false(record.get(key)):
            problems.append(f"{key}={record[key]!r} says not to train on the record; leave it out")
    for key in _TEMPLATE_SWITCHES:
        if record.get(key, "") != "":
            problems.append(f"{key} can't be used: put it into chat_template_kwargs")
    if problems:
        raise ValueError("; ".join(problems))
    return record


def refuse_unused(record: Mapping[str, Any], keys: Iterable[str], messages: Sequence[Message], beside: str) -> None:
    """Raise ValueError for texts (or lists) under `keys` that the messages do not hold: they would be lost."""
    texts = [str(m.get(key) or "") for m in messages for key in ("content", *REASONING_KEYS)]
    written = _normalized_text(" ".join(texts))
    values = {key: record[key] for key in keys if isinstance(record.get(key), (str, list, dict))}
    lost = lambda value: any(_normalized_text(text) not in written for text in _texts(value))  # noqa: E731
    unused = [key for key, value in values.items() if has_value(value) and lost(value)]
    if unused:
        raise ValueError(
            f"{' and '.join(unused)} can't be used beside {beside}, which does not hold it; write it there, or leave "
            "it out"
        )


def _texts(value: str | list[Any] | dict[str, Any]) -> list[str]:
    """A text, or the contents of messages; other objects as Python writes them."""
    items = value if isinstance(value, list) else [value]
    return [str(m.get("content", m.get("value", m))) if isinstance(m, dict) else str(m) for m in items]


def _normalized_text(text: str) -> str:
    return " ".join(text.split()).casefold()


def prompt_key(record: Mapping[str, Any]) -> str | None:
    """The key of the record's prompt, None if it has none. Raises ValueError if it has two."""
    key = _single_key(record, PROMPT_KEYS, "prompts")
    return None if key is None or record[key] == "" else key


def prompt_messages(record: Mapping[str, Any], prompt: str) -> list[Message]:
    """The messages of a prompt, after those of `history` and with its input. Raises ValueError if they don't fit."""
    earlier, asked = history_messages(record), messages_under(record, prompt, "user")
    key = _single_key(record, INPUT_KEYS, "inputs")
    input_text = (record[key] if key else "") or ""
    beside = [name for name in (key, "history") if name and has_value(record.get(name))]
    if not isinstance(record[prompt], str) and beside:
        raise ValueError(f"{' and '.join(beside)} can't be used beside a list of messages; put it into {prompt}")
    if unused := [name for name in _UNSUPPORTED_INPUTS if record.get(name)]:
        raise ValueError(f"{' and '.join(unused)} can't be used beside {prompt}; write it into {prompt}")
    if not isinstance(input_text, str):
        raise ValueError(f"{key} must be text")
    if input_text:
        parts = record[prompt], input_text
        asked = [{"role": "user", "content": "\n\n".join(filter(None, parts)), "instruction_and_input": parts}]
    return [*earlier, *asked]


def messages_under(record: Mapping[str, Any], key: str, role: str) -> list[Message]:
    """The messages under a key; a text is one message of that role. Raises ValueError for other values."""
    value = record[key]
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if not isinstance(value, (list, dict)):
        raise ValueError(f"{key} must be text or a list of messages")
    return parse_messages(value, key)


def template_arguments(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record's `tools` and `template_kwargs`, which may be JSON text; `functions` is OpenAI's older form of tools.

    `documents` become one of the template_kwargs. Raises ValueError for values of another form.
    """
    tools, functions = (_decode_json(record.get(key), key) or None for key in ("tools", "functions"))
    kwargs = _decode_json(record.get("chat_template_kwargs"), "chat_template_kwargs") or None
    if tools and functions:
        raise ValueError("tools and functions are both there; keep tools")
    key, schemas = ("functions", functions) if functions else ("tools", tools)
    if schemas is not None and not _is_list_of_dicts(schemas):
        raise ValueError(f"{key} must be a list of JSON schemas, or that as JSON text")
    if kwargs is not None and not isinstance(kwargs, dict):
        raise ValueError("chat_template_kwargs must be an object: variables of the chat template and their values")
    documents = _decode_json(record.get("documents"), "documents") or None
    if documents is not None:
        if not _is_list_of_dicts(documents):
            raise ValueError("documents must be a list of objects, or that as JSON text")
        if kwargs and "documents" in kwargs:
            raise ValueError("documents and chat_template_kwargs.documents are both there; keep documents")
        kwargs = {**(kwargs or {}), "documents": documents}
    if functions:
        schemas = [{"type": "function", "function": function} for function in functions]
    return {"tools": schemas, "template_kwargs": kwargs}


def history_messages(record: Mapping[str, Any]) -> list[Message]:
    """The messages of `history`: earlier rounds, each [question, answer]. Raises ValueError for another form."""
    rounds = _decode_json(record.get("history"), "history") or []
    if not isinstance(rounds, list) or not all(
        isinstance(pair, (list, tuple)) and len(pair) == 2 and all(isinstance(text, str) for text in pair)
        for pair in rounds
    ):
        raise ValueError("history must be a list of rounds, each [question, answer]")
    roles = ("user", "assistant")
    return [{"role": role, "content": text} for pair in rounds for role, text in zip(roles, pair, strict=True)]


def add_system_message(record: Mapping[str, Any], messages: list[Message]) -> list[Message]:
    """The messages after the record's system text. Raises ValueError if there are two different ones."""
    if wrong := [key for key in _SYSTEM_KEYS if record.get(key) and not isinstance(record[key], str)]:
        raise ValueError(f"{' and '.join(wrong)} must be text")
    texts = list(dict.fromkeys(record[key] for key in _SYSTEM_KEYS if record.get(key)))
    own = [m.get("content") for m in messages[:1] if m["role"] in ("system", "developer")]
    if len({*texts, *own}) > len(own or texts[:1]):
        raise ValueError(
            f"the record has two different system texts; keep one of {', '.join(_SYSTEM_KEYS)} and messages"
        )
    return messages if own or not texts else [{"role": "system", "content": texts[0]}, *messages]


# --- messages -----------------------------------------------------------------------------------------------------
def parse_messages(value: Any, key: str) -> list[Message]:
    """Messages in OpenAI's or ShareGPT's form, a list or a single one.

    key: where they are, for errors. Raises ValueError for other forms, and for what can't be trained on.
    """
    value = [value] if isinstance(value, dict) else value
    if not isinstance(value, list) or not value:
        raise ValueError(f"{key} must be a list with at least one message")
    if key == "conversations" and all(isinstance(text, str) for text in value):
        return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(value)]
    return [_parse_message(item, f"{key}[{i}]", key) for i, item in enumerate(value)]


def has_content(message: Message) -> bool:
    """Whether a message has any text or tool call."""
    return bool(message.get("content", "").strip() or message.get("tool_calls"))


def _parse_message(item: Any, where: str, key: str) -> Message:
    message = {k: v for k, v in item.items() if v is not None} if isinstance(item, dict) else {}
    for ours, theirs in (("role", "from"), ("content", "value")):
        if {ours, theirs} <= message.keys() and len({_role_or_repr(message[name]) for name in (ours, theirs)}) > 1:
            raise ValueError(f"{where} has a {ours} and a {theirs} that differ; keep one of them")
    role, content = message.pop("from", message.get("role")), message.pop("value", message.get("content"))
    for name, why in _REFUSED_MESSAGE_KEYS.items():
        if message.pop(name, None):
            raise ValueError(f"{where}.{name} can't be used: {why}")
    calls = _decode_json(message.pop("tool_calls", None), f"{where}.tool_calls")
    call = message.pop("function_call", None)  # OpenAI's older form
    if role in _TOOL_CALL_ROLES:
        call, content = content, None
    if call:
        call = _decode_json(call, f"{where}, a tool call,")
        call = call if isinstance(call, list) else [call]
        calls = [*(calls or []), *({"type": "function", "function": function} for function in call)]
    if isinstance(content, list):
        try:
            content = content_text(content)
        except ValueError as e:
            raise ValueError(f"{where} has {e}") from None
    if not isinstance(role, str) or not isinstance(content, str) and (content is not None or not calls):
        names = "a from and a value" if key == "conversations" else "a role and a content"
        raise ValueError(f"{where} must have {names}, both text")
    message |= {"role": _ROLE_NAMES.get(role, role), "content": content}
    if content is None:
        del message["content"]
    if calls:
        message["tool_calls"] = _parse_tool_calls(calls, where)
    return _apply_weight(message, where)


def _parse_tool_calls(calls: Any, where: str) -> list[dict[str, Any]]:
    """Tool calls whose arguments are objects, as chat templates want them, not OpenAI's JSON text."""
    if not _is_list_of_dicts(calls):
        raise ValueError(f"{where}.tool_calls must be a list of objects")
    parsed = []
    for call in calls:
        function = call.get("function", call)
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise ValueError(f"{where} has a tool call without the name of a function")
        if isinstance(function.get("arguments"), str):
            arguments = _decode_json(function["arguments"], f"{where}, arguments of {function['name']}") or {}
            function = function | {"arguments": arguments}
        parsed.append(call | {"function": function} if "function" in call else function)
    return parsed


def _apply_weight(message: Message, where: str) -> Message:
    """The message with `train` False in place of a weight of 0, and without other weights."""
    weights = {key: message.pop(key) for key in _WEIGHT_KEYS if key in message}
    for key, weight in weights.items():
        if not isinstance(weight, (bool, int, float)) or weight not in (0, 1):
            raise ValueError(f"{where}.{key}={weight!r}: a message is trained on (1, true) or not (0, false)")
        if weight and key in ("train", "training") and message["role"] != "assistant":
            raise ValueError(
                f"{where}.{key}={weight!r} on a message of role {message['role']!r}: only the assistant's are trained "
                "on (or all tokens, with --data.loss_on all)"
            )
    return message | ({} if all(weights.values()) else {"train": False})


def _role_or_repr(value: Any) -> str:
    """A role or content in a form to compare."""
    return _ROLE_NAMES.get(value, value) if isinstance(value, str) else repr(value)


def _is_list_of_dicts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _decode_json(value: Any, name: str) -> Any:
    """The value of JSON text, None for blank text; other values are returned as they are."""
    if not isinstance(value, str):
        return value
    try:
        decoded = parse_json(value) if value.strip() else None
    except ValueError as e:
        raise ValueError(f"{name} is not valid JSON ({e})") from None
    if (key := repeated_key(decoded)) is not None:
        raise ValueError(f"{name} has the key {key!r} twice; keep one of them")
    return decoded
