"""Conversations out of rows of every form, and what is wrong with those that are none."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ted_ds.data.conversations import NAMES, read_dialogue
from ted_ds.data.samples import BadRow

TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
SYSTEM = {"role": "system", "content": "s"}


def say(*roles: str, content: str = "x") -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role in roles]


@pytest.mark.parametrize(
    ("form", "row"),
    [
        ("messages", {"messages": TURNS, "source": "somewhere"}),
        ("messages", {"messages": json.dumps(TURNS)}),  # as a CSV file has it
        ("messages", {"messages": TURNS, "prompt": "another", "completion": "thing"}),
        ("conversations", {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}),
        ("conversations", {"conversations": TURNS}),
        ("prompt/completion", {"prompt": "a", "completion": "b"}),
        ("prompt/completion", {"prompt": TURNS[:1], "completion": TURNS[1:]}),
        ("instruction", {"instruction": "a", "input": "", "output": "b"}),
        ("instruction", {"instruction": "a", "output": "b"}),
        ("instruction", {"instruction": "a", "input": None, "output": "b", "messages": None}),
    ],
)
def test_every_form_says_the_same(form: str, row: dict[str, Any]) -> None:
    dialogue = read_dialogue(row)
    assert (dialogue.messages, dialogue.answers, dialogue.tools) == (TURNS, [1], None)
    assert NAMES[dialogue.label] == form  # type: ignore[index]
    assert dialogue.text == "user: a\nassistant: b"  # copies in other forms are on the same side of a split


def test_an_input_goes_behind_its_instruction() -> None:
    dialogue = read_dialogue({"instruction": "add", "input": "1 2", "output": "3"})
    assert dialogue.messages[0]["content"] == "add\n\n1 2"


@pytest.mark.parametrize("row", [{"messages": [SYSTEM, *TURNS]}, {"messages": TURNS, "system": "s"}])
def test_a_system_prompt_comes_first(row: dict[str, Any]) -> None:
    dialogue = read_dialogue(row)
    assert (dialogue.messages, dialogue.answers) == ([SYSTEM, *TURNS], [2])


def test_turns_that_are_part_of_a_prompt_are_no_completions() -> None:
    prompt = [*TURNS, *say("user")]
    row = {"prompt": prompt, "completion": [{"role": "assistant", "content": "c"}], "system": "s"}
    dialogue = read_dialogue(row)
    assert [one["role"] for one in dialogue.messages] == ["system", "user", "assistant", "user", "assistant"]
    assert dialogue.answers == [4]


def test_calls_of_tools_are_left_to_the_template() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}], "name": None}
    row = {"messages": [*say("user"), call, *say("tool", "tool", "assistant")], "tools": '[{"name": "f"}]'}
    dialogue = read_dialogue(row)
    assert dialogue.messages[1] == {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}
    assert (dialogue.answers, dialogue.tools) == ([1, 4], [{"name": "f"}])
    assert dialogue.text.count('[{"name": "f"}]') == 1


def test_a_conversation_may_end_with_a_question() -> None:
    assert read_dialogue({"messages": say("user", "assistant", "user")}).answers == [1]


ORDER = "roles out of order: message {} is of {}, where {} one of {} is due"


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        (
            {"text": "a", "id": 1},
            "no conversation in columns text, id; a row needs messages; conversations; prompt and completion; "
            "instruction and output",
        ),
        ({"messages": say("assistant", "user")}, ORDER.format(1, "assistant", "at the start", "user")),
        ({"messages": say("user", "user", "assistant")}, ORDER.format(2, "user", "after user", "assistant")),
        (
            {"messages": say("user", "assistant", "assistant")},
            ORDER.format(3, "assistant", "after assistant", "user or tool"),
        ),
        ({"messages": say("user", "system", "assistant")}, ORDER.format(2, "system", "after user", "assistant")),
        ({"messages": say("user", "tool")}, ORDER.format(2, "tool", "after user", "assistant")),
        (
            {"messages": say("user", "asistant")},
            "message 2 has the role 'asistant'; known are system, developer, user, assistant, tool",
        ),
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": "b"}]},
            "message 2 has the role 'function_call'; known are system, developer, user, assistant, tool",
        ),
        ({"messages": ["hello"]}, "message 1 is 'hello'; it must be an object with role and content"),
        (
            {"messages": [{"role": "user", "content": 3}]},
            "message 1 has the content 3; it must be text, or a list of parts",
        ),
        ({"messages": say("user")}, "no turn of the assistant: there is nothing in it to learn"),
        ({"messages": []}, "no turn of the assistant: there is nothing in it to learn"),
        (
            {"prompt": "a", "completion": " \n"},
            "an empty completion (message 2); leave the row out, or write what is to be learned",
        ),
        (
            {"instruction": "a", "output": ""},
            "an empty completion (message 2); leave the row out, or write what is to be learned",
        ),
        (
            {"messages": [*say("user"), {"role": "assistant", "content": [{"type": "text", "text": ""}]}]},
            "an empty completion (message 2); leave the row out, or write what is to be learned",
        ),
        ({"messages": "hello"}, "column 'messages' holds 'hello', which is no JSON (Expecting value: line 1 column 1"),
        ({"messages": {"role": "user"}}, "column 'messages' holds {'role': 'user'}; it must be a list"),
        ({"instruction": ["a"], "output": "b"}, "column 'instruction' holds ['a']; it must be text"),
        (
            {"prompt": "a\ud800", "completion": "b"},
            "not valid Unicode (wrong encoding, or half a surrogate pair); use UTF-8",
        ),
    ],
)
def test_what_is_wrong_with_a_row_is_said(row: dict[str, Any], fault: str) -> None:
    with pytest.raises(BadRow) as caught:
        read_dialogue(row)
    assert str(caught.value).startswith(fault)
