"""Conversations out of rows, in the forms that instruction data come in; without torch or transformers.

=================  =================================================================================================
form               columns
=================  =================================================================================================
messages           ``messages``: a list of ``{role, content}``, and whatever else the chat template reads of each
conversations      ``conversations``: a list of ``{from, value}``, as ShareGPT has them
prompt/completion  ``prompt`` and ``completion``: a text each, or a list of messages each
instruction        ``instruction``, ``output`` and maybe ``input``, which goes behind the instruction: as in Alpaca
=================  =================================================================================================

A row may have ``tools``, which is left to the template, and a ``system`` prompt beside its turns. Lists may stand there
as JSON, as they must in CSV.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ted_ds.data.samples import BadRow, Example

Message = Mapping[str, Any]
ROLES_OF_SENDERS = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "assistant": "assistant",
    "tool": "tool",
    "observation": "tool",
}
"""Of ``from``."""
FIRST = ("system", "developer")
"""Roles of what comes before the turns."""
MAY_FOLLOW: Mapping[str | None, Sequence[str]] = {
    None: ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}
"""Whose turn it may be, by whose the last one was."""


@dataclass(frozen=True)
class Dialogue(Example):
    """A conversation; its label is the number of its form, and its text what copies of it are known by."""

    messages: Sequence[Message] = ()
    tools: list[Any] | None = None
    answers: Sequence[int] = ()
    """The messages that are completions, by their place, but for those that a row has as part of its prompt."""


def _messages(row: Mapping[str, Any]) -> tuple[list[Message], int]:
    return _list_of(row, "messages"), 0


def _conversations(row: Mapping[str, Any]) -> tuple[list[Message], int]:
    return _list_of(row, "conversations"), 0


def _prompt_and_completion(row: Mapping[str, Any]) -> tuple[list[Message], int]:
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        return _single(prompt, completion)
    before = _list_of(row, "prompt")
    return [*before, *_list_of(row, "completion")], len(before)


def _instruction(row: Mapping[str, Any]) -> tuple[list[Message], int]:
    parts = [_text_of(row, name) for name in ("instruction", "input")]
    return _single("\n\n".join(part for part in parts if part), _text_of(row, "output"))


def _single(prompt: str, completion: str) -> tuple[list[Message], int]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}], 1


Read = Callable[[Mapping[str, Any]], tuple[list[Message], int]]
"""Of a row: its messages, and how many of them are its prompt."""
FORMS: Mapping[str, tuple[Sequence[str], Read]] = {
    "messages": (("messages",), _messages),
    "conversations": (("conversations",), _conversations),
    "prompt/completion": (("prompt", "completion"), _prompt_and_completion),
    "instruction": (("instruction", "output"), _instruction),
}
"""The columns that a row of each form has, and how it is read; the first form counts that fits."""
NAMES = tuple(FORMS)


def read_dialogue(row: Mapping[str, Any]) -> Dialogue:
    """The conversation in a row.

    Raises:
        BadRow: It is of no known form, roles are unknown or out of order, a completion is empty, or there is none.
    """
    given = {name for name, value in row.items() if value is not None}
    form = next((name for name, (columns, _) in FORMS.items() if given >= set(columns)), None)
    if form is None:
        wanted = "; ".join(" and ".join(columns) for columns, _ in FORMS.values())
        raise BadRow(f"no conversation in columns {', '.join(map(str, row)) or 'none'}; a row needs {wanted}")
    found, num_of_prompt = FORMS[form][1](row)
    messages = [_message(one, number) for number, one in enumerate(found, start=1)]
    system = _text_of(row, "system")
    if system and not (messages and messages[0]["role"] in FIRST):
        messages.insert(0, {"role": "system", "content": system})
        num_of_prompt += 1
    _refuse_disorder(messages)
    answers = [place for place, one in enumerate(messages) if one["role"] == "assistant" and place >= num_of_prompt]
    if not answers:
        raise BadRow("no turn of the assistant: there is nothing in it to learn")
    empty = next((place for place in answers if _is_empty(messages[place])), None)
    if empty is not None:
        raise BadRow(f"an empty completion (message {empty + 1}); leave the row out, or write what is to be learned")
    text = "\n".join(f"{one['role']}: {_shown(one)}" for one in messages)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRow("not valid Unicode (wrong encoding, or half a surrogate pair); use UTF-8") from error
    return Dialogue(text, NAMES.index(form), messages=messages, tools=_list_of(row, "tools") or None, answers=answers)


def _message(given: Any, number: int) -> Message:
    """One of a list, with ``role`` and ``content``."""
    if not isinstance(given, Mapping):
        raise BadRow(f"message {number} is {given!r:.50}; it must be an object with role and content")
    # columnar files give each object all keys that any has
    message = {name: value for name, value in given.items() if value is not None}
    if "from" in message and "role" not in message:
        message = {"role": message.pop("from"), "content": message.pop("value", None), **message}
        message["role"] = ROLES_OF_SENDERS.get(str(message["role"]), message["role"])
    role, known = message.get("role"), (*FIRST, *filter(None, MAY_FOLLOW))
    if role not in known:
        raise BadRow(f"message {number} has the role {role!r:.50}; known are {', '.join(known)}")
    content = message.setdefault("content", None)
    if not isinstance(content, str | list | None):
        raise BadRow(f"message {number} has the content {content!r:.50}; it must be text, or a list of parts")
    return message


def _refuse_disorder(messages: Sequence[Message]) -> None:
    last = None
    for number, role in enumerate((one["role"] for one in messages), start=1):
        if number == 1 and role in FIRST:
            continue
        if role not in MAY_FOLLOW[last]:
            wanted = " or ".join(MAY_FOLLOW[last])
            after = "at the start" if last is None else f"after {last}"
            raise BadRow(f"roles out of order: message {number} is of {role}, where {after} one of {wanted} is due")
        last = role


def _is_empty(message: Message) -> bool:
    content = message["content"]
    if message.get("tool_calls"):
        return False
    if isinstance(content, list):
        return not any(str(part.get("text") or "").strip() for part in content if isinstance(part, Mapping))
    return not (content or "").strip()


def _shown(message: Message) -> str:
    others = {name: value for name, value in message.items() if name not in ("role", "content")}
    content = message["content"] or ""
    parts = [content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, default=str)]
    return "".join([*parts, *([json.dumps(others, ensure_ascii=False, default=str)] if others else [])])


def _text_of(row: Mapping[str, Any], column: str) -> str:
    """The text in a column; nothing where there is none."""
    value = row.get(column)
    if value is not None and not isinstance(value, str):
        raise BadRow(f"column {column!r} holds {value!r:.50}; it must be text")
    return value or ""


def _list_of(row: Mapping[str, Any], column: str) -> list[Any]:
    """The list in a column, as JSON maybe; nothing where there is none."""
    value = row.get(column)
    if isinstance(value, str) and value:
        try:
            value = json.loads(value)
        except ValueError as error:
            raise BadRow(f"column {column!r} holds {value!r:.50}, which is no JSON ({error})") from error
    if value and not isinstance(value, list):
        raise BadRow(f"column {column!r} holds {value!r:.50}; it must be a list")
    return value or []
