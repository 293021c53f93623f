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

# keys of the question, joined by a blank line (all but the first optional), and the key of the answer
_PAIRS = (
    (("instruction", "input"), "output"),  # Alpaca
    (("instruction", "context"), "response"),  # Dolly
    (("prompt",), "completion"),
    (("prompt",), "response"),
    (("question",), "answer"),
)
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
_KEYS = {"messages", "conversations", *(key for questions, answer in _PAIRS for key in (*questions, answer))}
# Whether a message is learned: OpenAI's and mistral-finetune's weight, axolotl's train and training, ms-swift's loss.
_WEIGHTS = ("weight", "train", "training", "loss", "loss_scale")
_MEDIA = dict.fromkeys(("image", "images", "video", "videos", "audio", "audios"), "litlm learns text alone")
_REFUSED = _MEDIA | {
    "available_tools": "call it tools",
    "only_last": "--data.loss_on completion learns the last answer alone",
    "rejected_response": "`litlm dpo` learns from pairs, with the keys chosen and rejected",
}
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

    A message with `train` False is not learned; the key is not for the style.
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
    user's first. A question and its answer under the keys of `_PAIRS`: texts, or lists of messages, of which those of
    the question are context; a text may come with `history`, earlier rounds as [question, answer], which are learned,
    too. All of these may come with `system`, a text that is put in front, `tools` and `chat_template_kwargs`. text: as
    it is, and it may be empty.
    """
    blank = "text" in record
    record = values(record)
    for key in ("messages", "conversations"):
        if key in record:
            if isinstance(record.get("history"), list) and record["history"]:
                raise ValueError(f"history stands beside {key}; put the earlier rounds there")
            messages = with_system(record, to_messages(record[key], key))
            return Conversation(_with_answer(messages, key), **template_arguments(record))
    for questions, answer in _PAIRS:
        if questions[0] in record and answer in record:
            return _pair(record, questions, answer)
    if "text" in record or (blank and not _KEYS & record.keys()):
        if not isinstance(record.get("text", ""), str):
            raise ValueError("text must be text")
        return Text(record.get("text", ""))
    raise ValueError(f"has the keys {', '.join(sorted(map(str, record))) or '(none)'}; needed are {_FORMS}")


def _pair(record: dict[str, Any], questions: Sequence[str], answer: str) -> Conversation:
    asked: list[Message]
    earlier = history(record)
    if isinstance(record[questions[0]], list):
        if earlier:
            raise ValueError(f"history stands beside a list of messages; put the earlier rounds into {questions[0]}")
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
    asked = with_system(record, [*earlier, *asked])
    return Conversation([*asked, *said], 0 if earlier else len(asked), **template_arguments(record))


def _with_answer(messages: list[Message], key: str) -> list[Message]:
    if not any(m["role"] == "assistant" for m in messages):
        raise ValueError(f"{key} has no assistant turn to learn from")
    return messages


# --- parts of records, for preference pairs as well -------------------------------------------------------------------
def values(record: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that have a value. ValueError for those that can't be honoured."""
    record = {key: value for key, value in record.items() if value is not None}
    problems = [f"{key} can't be used: {why}" for key, why in _REFUSED.items() if record.get(key)]
    # a record of KTO's: True marks a good answer, False one that must not be learned
    if str(record.get("kto_tag")).lower() == "false" or (record.get("label") is False and "completion" in record):
        problems.append("kto_tag or label is false, which marks a bad answer; leave the record out")
    if problems:
        raise ValueError("; ".join(problems))
    return record


def template_arguments(record: Mapping[str, Any]) -> dict[str, Any]:
    """tools and template_kwargs of a record, which may be JSON text; `functions` is OpenAI's older form of tools."""
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
    texts = list(dict.fromkeys(record[key] for key in ("system", "system_prompt") if record.get(key)))
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("system must be text")
    own = [m.get("content") for m in messages[:1] if m["role"] in ("system", "developer")]
    if len({*texts, *own}) > len(own or texts[:1]):
        raise ValueError("the record has two different system texts; keep one of system, system_prompt and messages")
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
    return message | ({"train": False} if not all(weights.values()) and message["role"] == "assistant" else {})


def _decoded(value: Any, name: str) -> Any:
    """What JSON text holds; other values as they are, and empty text as None."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except ValueError as e:
        raise ValueError(f"{name} is not valid JSON ({e})") from None
