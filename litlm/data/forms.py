"""Forms of records: what each becomes, a conversation or a text. They are told apart by their keys.

Accepted are the keys of Hugging Face TRL, OpenAI's finetuning, LLaMA-Factory (Alpaca's and ShareGPT's form), axolotl
and mistral-finetune. Unusual: a key that says what is learned or what the model sees is used, or refused by its name;
all other columns (id, source, category) are passed over.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from litlm.prompts.messages import text_of

Message = dict[str, Any]

# Keys of a question, of what it is about, and of its answer: a record has one of each, whichever they are.
_QUESTIONS = ("instruction", "prompt", "question")
_INPUTS = ("input", "context")  # behind the question and a blank line
_ANSWERS = ("output", "completion", "response", "answer")
_UNUSED = ("choices", "options", "endings", "contexts", "passage", "passages")  # of a question, too
_CALLS = ("function_call", "tool_call")  # roles of a tool's call that is written as JSON
# names that files give the roles
_ROLES = {
    "human": "user", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "bot": "assistant",
    "observation": "tool", "function_response": "tool", "tool_response": "tool", "function": "tool",
    **dict.fromkeys(_CALLS, "assistant"),
}  # fmt: skip
ROLES = frozenset({"system", "developer", "user", "assistant", "tool", *_ROLES})
_FORMS = (
    "instruction and output (Alpaca), instruction and response (Dolly), messages (chat), conversations (ShareGPT), "
    "prompt and completion (or response), question and answer, or text"
)
_KEYS = {"messages", "conversations", *_QUESTIONS, *_INPUTS, *_ANSWERS}
_SYSTEMS = ("system", "system_prompt", "system_message")
# Whether a message is learned: OpenAI's and mistral-finetune's weight, axolotl's train and training, ms-swift's loss.
_WEIGHTS = ("weight", "train", "training", "loss", "loss_scale")
_MEDIA = dict.fromkeys(("image", "images", "video", "videos", "audio", "audios"), "litlm learns text alone")
_REFUSED = _MEDIA | {
    "available_tools": "call it tools",
    "only_last": "--data.loss_on completion learns the last answer alone",
    "rejected_response": "`litlm dpo` learns from pairs, with the keys chosen and rejected",
}
_ARGUMENTS = ("tools", "functions", "documents", "chat_template_kwargs")
_SWITCHES = ("enable_thinking", "reasoning_effort")  # of chat templates
_REFUSED_OF_MESSAGES = _MEDIA | {
    "prefix": "a turn is learned as a whole",
    "train_detail": "a turn is learned as a whole, or not at all with weight 0",
    "training_detail": "a turn is learned as a whole, or not at all with weight 0",
    "reasoning_training_detail": "a turn is learned as a whole, or not at all with weight 0",
}


@dataclass(frozen=True)
class Conversation:
    """messages from a record. context: how many of the first are given and never learned. tools, template_kwargs: what
    the record says of them, see `PromptStyle.bind`.

    A message with `train` False is not to be learned; the key is not for the style.
    """

    messages: list[Message]
    context: int = 0
    tools: list[dict[str, Any]] | None = None
    template_kwargs: dict[str, Any] | None = None


@dataclass(frozen=True)
class Text:
    """Text without turns: all of it is learned."""

    text: str


def parse(record: Mapping[str, Any]) -> Conversation | Text:
    """What a record says. Keys without a value are keys that are not there. ValueError with what is wrong with it.

    messages: a list of role and content. conversations: of from and value (or role and content), or of texts, the
    user's first. A question (`_QUESTIONS`) and its answer (`_ANSWERS`): texts, or lists of messages, of which those of
    the question are context; a text may come with what it is about (`_INPUTS`) and with `history`, earlier rounds as
    [question, answer], which are learned, too. All of these may come with `system`, a text that is put in front,
    `tools`, `documents` and `chat_template_kwargs`. text: as it is, and it may be empty.
    """
    blank = "text" in record
    record = values(record)
    for key in ("messages", "conversations"):
        if key in record:
            if isinstance(record.get("history"), list) and record["history"]:
                raise ValueError(f"history stands beside {key}; put the earlier rounds there")
            if record.get("text"):
                raise ValueError(f"text stands beside {key}; keep one of them")
            _refuse_bad_answers(record)
            said = to_messages(record[key], key)
            other = record.get("conversations") if key == "messages" else None
            if other and to_messages(other, "conversations") != said:
                raise ValueError("messages and conversations hold different messages; keep one of them")
            messages = with_system(record, said)
            return Conversation(_with_answer(messages, key), **template_arguments(record))
    question, answer = _only(record, _QUESTIONS, "questions"), _only(record, _ANSWERS, "answers")
    if question and answer:
        _refuse_bad_answers(record)
        return _pair(record, question, answer)
    if "text" in record or (blank and not _KEYS & record.keys()):
        if not isinstance(record.get("text", ""), str):
            raise ValueError("text must be text")
        if beside := [k for k in (*_SYSTEMS, *_ARGUMENTS, "history") if record.get(k)]:
            raise ValueError(
                f"{', '.join(beside)} can't be used beside text, which is learned as it is; write it into the text, or "
                "use messages"
            )
        return Text(record.get("text", ""))
    raise ValueError(f"has the keys {', '.join(sorted(map(str, record))) or '(none)'}; needed are {_FORMS}")


def _pair(record: dict[str, Any], question: str, answer: str) -> Conversation:
    asked = with_system(record, asked_with(record, question))
    said = _with_answer(said_under(record, answer, "assistant"), answer)
    return Conversation([*asked, *said], 0 if history(record) else len(asked), **template_arguments(record))


def _only(record: Mapping[str, Any], keys: Sequence[str], what: str) -> str | None:
    """Which of the keys the record has: the one with a value, else the first that is there."""
    having = [key for key in keys if record.get(key) not in (None, "")]
    if len(having) > 1:
        raise ValueError(f"{' and '.join(having)} are {len(having)} {what}; keep one of them")
    return next((key for key in (*having, *keys) if key in record), None)


def _refuse_bad_answers(record: Mapping[str, Any]) -> None:
    if is_false(record.get("label")):  # of a text it may be any class
        raise ValueError(f"label={record['label']!r} marks a bad answer; leave the record out")


def _with_answer(messages: list[Message], key: str) -> list[Message]:
    if not any(m["role"] == "assistant" for m in messages):
        raise ValueError(f"{key} has no assistant turn to learn from")
    return messages


# --- parts of records, for preference pairs as well -------------------------------------------------------------------
def question_of(record: Mapping[str, Any]) -> str | None:
    """The key of the record's question, if it has one; ValueError if it has two."""
    key = _only(record, _QUESTIONS, "questions")
    return None if key is None or record[key] == "" else key


def asked_with(record: Mapping[str, Any], question: str) -> list[Message]:
    """The messages of a question, behind those of `history` and with the text that it is about."""
    earlier, asked = history(record), said_under(record, question, "user")
    about = _only(record, _INPUTS, "texts that the question is about")
    more = (record[about] if about else "") or ""
    beside = [key for key in (about, "history") if key and record.get(key) not in (None, "", [], "[]")]
    if not isinstance(record[question], str) and beside:
        raise ValueError(f"{' and '.join(beside)} stands beside a list of messages; put it into {question}")
    if unused := [key for key in _UNUSED if record.get(key)]:
        raise ValueError(f"{' and '.join(unused)} can't be used beside {question}; write it into {question}")
    if not isinstance(more, str):
        raise ValueError(f"{about} must be text")
    if more:
        parts = record[question], more
        asked = [{"role": "user", "content": "\n\n".join(filter(None, parts)), "parts": parts}]
    return [*earlier, *asked]


def said_under(record: Mapping[str, Any], key: str, role: str) -> list[Message]:
    """The messages under a key, where a text is one of that role."""
    value = record[key]
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if not isinstance(value, (list, dict)):
        raise ValueError(f"{key} must be text or a list of messages")
    return to_messages(value, key)


def is_false(value: Any) -> bool:
    """Whether a value is false as JSON, Python or a cell of a table writes it."""
    return str(value).strip().lower() in ("false", "0", "0.0", "no", "n", "f", "off")


def values(record: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that have a value. ValueError for those that can't be honoured."""
    record = {key: value for key, value in record.items() if value is not None}
    problems = [f"{key} can't be used: {why}" for key, why in _REFUSED.items() if record.get(key)]
    if is_false(record.get("kto_tag")):
        problems.append(f"kto_tag={record['kto_tag']!r} marks a bad answer; leave the record out")
    for key in ("weight", "train", "training"):
        if is_false(record.get(key)):
            problems.append(f"{key}={record[key]!r} says that the record is not to be learned; leave it out")
    for key in _SWITCHES:
        if record.get(key, "") != "":
            problems.append(f"{key} can't be used: put it into chat_template_kwargs")
    if problems:
        raise ValueError("; ".join(problems))
    return record


def template_arguments(record: Mapping[str, Any]) -> dict[str, Any]:
    """tools and template_kwargs of a record, which may be JSON text; `functions` is OpenAI's older form of tools.

    `documents` are one of the template's variables.
    """
    tools, functions = (_decoded(record.get(key), key) or None for key in ("tools", "functions"))
    kwargs = _decoded(record.get("chat_template_kwargs"), "chat_template_kwargs") or None
    if tools and functions:
        raise ValueError("tools and functions are both there; keep tools")
    key = "functions" if functions else "tools"
    listed = functions or tools
    if listed is not None and not (isinstance(listed, list) and all(isinstance(tool, dict) for tool in listed)):
        raise ValueError(f"{key} must be a list of JSON schemas, or that as JSON text")
    if kwargs is not None and not isinstance(kwargs, dict):
        raise ValueError("chat_template_kwargs must be an object: variables of the chat template and their values")
    documents = _decoded(record.get("documents"), "documents") or None
    if documents is not None:
        if not (isinstance(documents, list) and all(isinstance(document, dict) for document in documents)):
            raise ValueError("documents must be a list of objects, or that as JSON text")
        if kwargs and "documents" in kwargs:
            raise ValueError("documents and chat_template_kwargs.documents are both there; keep documents")
        kwargs = {**(kwargs or {}), "documents": documents}
    if functions:
        listed = [{"type": "function", "function": function} for function in functions]
    return {"tools": listed, "template_kwargs": kwargs}


def history(record: Mapping[str, Any]) -> list[Message]:
    """Earlier rounds, each [question, answer], as messages."""
    rounds = _decoded(record.get("history"), "history") or []
    if not isinstance(rounds, list) or not all(
        isinstance(pair, (list, tuple)) and len(pair) == 2 and all(isinstance(text, str) for text in pair)
        for pair in rounds
    ):
        raise ValueError("history must be a list of rounds, each [question, answer]")
    roles = ("user", "assistant")
    return [{"role": role, "content": text} for pair in rounds for role, text in zip(roles, pair, strict=True)]


def with_system(record: Mapping[str, Any], messages: list[Message]) -> list[Message]:
    """The messages behind the record's system text."""
    if wrong := [key for key in _SYSTEMS if record.get(key) and not isinstance(record[key], str)]:
        raise ValueError(f"{' and '.join(wrong)} must be text")
    texts = list(dict.fromkeys(record[key] for key in _SYSTEMS if record.get(key)))
    own = [m.get("content") for m in messages[:1] if m["role"] in ("system", "developer")]
    if len({*texts, *own}) > len(own or texts[:1]):
        raise ValueError(f"the record has two different system texts; keep one of {', '.join(_SYSTEMS)} and messages")
    return messages if own or not texts else [{"role": "system", "content": texts[0]}, *messages]


def to_messages(value: Any, key: str) -> list[Message]:
    """A list of messages in the forms of OpenAI or ShareGPT, or a single one. key: for what is said of wrong ones."""
    value = [value] if isinstance(value, dict) else value
    if not isinstance(value, list) or not value:
        raise ValueError(f"{key} must be a list with at least one message")
    if key == "conversations" and all(isinstance(text, str) for text in value):
        return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(value)]
    return [_message(item, f"{key}[{i}]", key) for i, item in enumerate(value)]


def says_something(message: Message) -> bool:
    """Whether an answer has any text, or calls a tool."""
    return bool(message.get("content", "").strip() or message.get("tool_calls"))


def _message(item: Any, where: str, key: str) -> Message:
    message = {k: v for k, v in item.items() if v is not None} if isinstance(item, dict) else {}
    for ours, theirs in (("role", "from"), ("content", "value")):
        if {ours, theirs} <= message.keys() and len({_plain(message[ours]), _plain(message[theirs])}) > 1:
            raise ValueError(f"{where} has a {ours} and a {theirs} that differ; keep one of them")
    role, content = message.pop("from", message.get("role")), message.pop("value", message.get("content"))
    for name, why in _REFUSED_OF_MESSAGES.items():
        if message.pop(name, None):
            raise ValueError(f"{where}.{name} can't be used: {why}")
    calls = _decoded(message.pop("tool_calls", None), f"{where}.tool_calls")
    call = message.pop("function_call", None)  # OpenAI's older form
    if role in _CALLS:  # ShareGPT's form: the call is what is said
        call, content = content, None
    if call:
        call = _decoded(call, f"{where}, a call of a tool,")
        call = call if isinstance(call, list) else [call]
        calls = [*(calls or []), *({"type": "function", "function": function} for function in call)]
    if isinstance(content, list):
        try:
            content = text_of(content)
        except ValueError as e:
            raise ValueError(f"{where} has {e}") from None
    if not isinstance(role, str) or not isinstance(content, str) and (content is not None or not calls):
        names = "a from and a value" if key == "conversations" else "a role and a content"
        raise ValueError(f"{where} must have {names}, both text")
    role = _ROLES.get(role, role)
    message |= {"role": role, "content": content}
    if content is None:
        del message["content"]
    if calls:
        message["tool_calls"] = _calls(calls, where)
    return _weighted(message, where)


def _calls(calls: Any, where: str) -> list[dict[str, Any]]:
    """Calls of tools with arguments as chat templates want them: not as OpenAI's JSON text."""
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise ValueError(f"{where}.tool_calls must be a list of objects")
    made = []
    for call in calls:
        function = call.get("function", call)
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise ValueError(f"{where} has a call of a tool without the name of a function")
        if isinstance(function.get("arguments"), str):
            arguments = _decoded(function["arguments"], f"{where}, arguments of {function['name']}") or {}
            function = function | {"arguments": arguments}
        made.append(call | {"function": function} if "function" in call else function)
    return made


def _weighted(message: Message, where: str) -> Message:
    """With `train` False in place of any weight, if it is not to be learned."""
    weights = {key: message.pop(key) for key in _WEIGHTS if key in message}
    for key, weight in weights.items():
        if not isinstance(weight, (bool, int, float)) or weight not in (0, 1):
            raise ValueError(f"{where}.{key}={weight!r}: a message is learned (1, true) or not (0, false)")
        if weight and key in ("train", "training") and message["role"] != "assistant":
            raise ValueError(
                f"{where}.{key}={weight!r} on a message of role {message['role']!r}: only the assistant's are learned "
                "(or all tokens, with --data.loss_on all)"
            )
    return message | ({} if all(weights.values()) else {"train": False})


def _plain(value: Any) -> str:
    """A role by our name for it, or a content, to compare."""
    return _ROLES.get(value, value) if isinstance(value, str) else repr(value)


def _decoded(value: Any, name: str) -> Any:
    """What JSON text holds; other values as they are, and empty text as None."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except ValueError as e:
        raise ValueError(f"{name} is not valid JSON ({e})") from None
