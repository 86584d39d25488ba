"""Templates: whether a tokenizer has what they name, and which tokens of a rendering are completions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from ted_ds.data.chat_template import (
    MARK,
    Renderer,
    UnclearError,
    cut_to,
    find_template,
    spans_of_tokens,
    vet_template,
)
from ted_ds.data.conversations import read_dialogue
from ted_ds.data.tokenizers import traits_of
from ted_ds.errors import ConfigError
from tests.tiny import ROOT, SPECIAL_TOKENS

TEMPLATES = ROOT / "ds_configs" / "chat_templates"
CHATML = (TEMPLATES / "chatml.jinja").read_text()
PLAIN = (TEMPLATES / "plain.jinja").read_text()
# as Llama 2 has it: no marks, and the space before an answer is the template's
BRACKETS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ ' ' + m.content + ' ' + eos_token }}"
    "{% else %}{{ '[INST] ' + m.content + ' [/INST]' }}{% endif %}{% endfor %}"
)
# as Qwen3 has it: an answer loses its thoughts once another question follows
FORGETFUL = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TALK = {
    "messages": [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "re x"},
        {"role": "assistant", "content": "ré je."},
        {"role": "user", "content": "more "},
        {"role": "assistant", "content": " re re\n"},
    ]
}


def of_bytes(*, trim: bool = False, template: Any = None) -> PreTrainedTokenizerFast:
    """As GPT-2's: a token has the space before its word in it; and a few tokens of ChatML."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*SPECIAL_TOKENS.values(), *alphabet, "Ġr", "Ġre", "je", ".Ċ"]
    merges = [("Ġ", "r"), ("Ġr", "e"), ("j", "e"), (".", "Ċ")]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(names)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|im_start|>"), AddedToken("<|im_end|>", special=True)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL_TOKENS)
    fast.chat_template = template
    return fast


def completions(tokenizer: Any, row: dict[str, Any], *, last_alone: bool = False) -> tuple[str, list[str]]:
    """The text of a conversation, and that of each completion's tokens."""
    template = find_template(None, tokenizer.chat_template)
    text, spans = Renderer(template, tokenizer, last_alone=last_alone).render(read_dialogue(row))
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    places = spans_of_tokens(spans, encoded["offset_mapping"])
    pairs = zip(places[::2], places[1::2], strict=True)
    return text, [tokenizer.decode(encoded["input_ids"][first:behind]) for first, behind in pairs]


# --- completions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trim", [False, True])
@pytest.mark.parametrize("with_marks", [True, False])
def test_completions_are_the_same_by_marks_and_by_what_each_turn_adds(with_marks: bool, trim: bool) -> None:
    template = CHATML if with_marks else MARK.sub("", CHATML)
    text, found = completions(of_bytes(trim=trim, template=template), TALK)
    assert text == (
        "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nre x<|im_end|>\n<|im_start|>assistant\nré je."
        "<|im_end|>\n<|im_start|>user\nmore <|im_end|>\n<|im_start|>assistant\n re re\n<|im_end|>\n"
    )
    assert found == ["ré je.<|im_end|>", " re re\n<|im_end|>"]


@pytest.mark.parametrize("template", [CHATML, MARK.sub("", CHATML)])
def test_the_last_completion_alone(template: str) -> None:
    assert completions(of_bytes(template=template), TALK, last_alone=True)[1] == [" re re\n<|im_end|>"]


@pytest.mark.parametrize("template", [CHATML, MARK.sub("", CHATML)])
def test_turns_of_a_prompt_are_read_and_not_learned(template: str) -> None:
    row = {"prompt": TALK["messages"][:4], "completion": TALK["messages"][4:]}
    assert completions(of_bytes(template=template), row)[1] == [" re re\n<|im_end|>"]


def test_a_template_that_ships_adds_nothing_but_the_end() -> None:
    text, found = completions(of_bytes(template=PLAIN), {"prompt": "re x", "completion": " re"})
    assert (text, found) == ("re x re[EOS]", [" re[EOS]"])


def test_a_template_without_words_for_whose_turn_it_is() -> None:
    text, found = completions(of_bytes(template=BRACKETS), {"instruction": "x", "output": "re"})
    assert (text, found) == ("[INST] x [/INST] re [EOS]", [" re [EOS]"])


def test_a_turn_that_changes_once_another_follows_is_unclear_unless_the_last_alone_is_wanted() -> None:
    tokenizer = of_bytes(template=FORGETFUL)
    with pytest.raises(UnclearError) as caught:
        completions(tokenizer, TALK)
    assert str(caught.value) == (
        "the chat template writes what comes until message 3 in another way once more follows, so it is unclear what "
        "is completion; mark it in the template with {% generation %} and {% endgeneration %}, or set "
        "task.completions: last"
    )
    text, found = completions(tokenizer, TALK, last_alone=True)
    assert found == ["<think>\n\n</think>\n\n re re\n<|im_end|>"]
    assert text.count("<think>") == 1


def test_a_template_that_asks_for_thoughts_that_no_answer_has_is_unclear_whatever_is_wanted() -> None:
    # as DeepSeek-R1 has it
    template = BRACKETS + "{% if add_generation_prompt %}{{ '<think>' }}{% endif %}"
    with pytest.raises(UnclearError, match=r"until message 2 in another way .* and \{% endgeneration %\}$"):
        completions(of_bytes(template=template), {"prompt": "x", "completion": "re"}, last_alone=True)


@pytest.mark.parametrize(
    ("template", "fault"),
    [
        (
            "{% if messages[0].role == 'system' %}{{ raise_exception('System role not\nsupported') }}{% endif %}",
            "the chat template cannot write it: System role not supported",
        ),
        ("{{ messages[0].content + nothing }}", "the chat template cannot write it: 'nothing' is undefined"),
        (
            "{% for m in messages %}{% if loop.last %}{% generation %}{{ m.content }}{% endgeneration %}"
            "{% endif %}{% endfor %}",
            "the chat template marks 1 completion, and the assistant has 2 turns",
        ),
    ],
)
def test_a_template_that_cannot_write_a_conversation_says_why(template: str, fault: str) -> None:
    with pytest.raises(UnclearError, match=fault):
        completions(of_bytes(template=template), TALK)


def test_tools_reach_the_template_which_may_be_another_with_them() -> None:
    both = {"default": PLAIN, "tool_use": "{{ tools[0].name }}" + PLAIN}
    row = {"prompt": "x", "completion": "re"}
    assert completions(of_bytes(template=both), row)[0] == "xre[EOS]"
    assert completions(of_bytes(template=both), row | {"tools": [{"name": "f"}]})[0] == "fxre[EOS]"


def test_a_template_that_asks_for_the_date_is_told_the_same_one_every_day() -> None:
    template = '{% if strftime_now is defined %}{{ strftime_now("%d %b \'%y") }}{% endif %}' + PLAIN
    assert completions(of_bytes(template=template), {"prompt": "x", "completion": "re"})[0] == "26 Jul '24xre[EOS]"


# --- characters and tokens --------------------------------------------------------------------------------------------


def test_a_token_that_begins_in_the_prompt_or_ends_behind_is_of_the_completion() -> None:
    assert spans_of_tokens([(3, 6)], [(0, 2), (2, 4), (4, 5), (5, 8), (8, 9)]) == [1, 4]
    assert spans_of_tokens([(2, 4), (6, 8)], [(0, 2), (2, 4), (4, 6), (6, 8)]) == [1, 2, 3, 4]
    assert spans_of_tokens([(2, 4)], [(0, 2), (4, 5)]) == []  # the tokenizer makes nothing of it


def test_white_space_that_is_left_out_of_offsets_is_counted_where_it_stands() -> None:
    # as byte-level tokenizers trim: the second and the last token are spaces
    assert spans_of_tokens([(2, 6)], [(0, 2), (3, 3), (3, 5), (6, 6), (6, 7)]) == [1, 4]
    assert spans_of_tokens([(3, 5)], [(0, 2), (3, 3), (3, 5), (6, 6), (6, 7)]) == [2, 3]
    assert spans_of_tokens([(0, 1)], []) == []


def test_what_is_cut_off_or_has_nothing_before_it_is_not_learned() -> None:
    assert cut_to([2, 5, 7, 9], 8) == [2, 5, 7, 8]
    assert cut_to([2, 5, 7, 9], 7) == [2, 5]
    assert cut_to([0, 3], 8) == [1, 3]
    assert cut_to([0, 1], 8) == []
    assert cut_to([5, 9], 5) == []


# --- which template ---------------------------------------------------------------------------------------------------


def test_a_template_is_the_recipes_or_the_tokenizers(tmp_path: Path) -> None:
    own = find_template(None, CHATML)
    assert own.in_words == (
        "written by the chat template of the teacher's tokenizer; its generation marks say what is completion"
    )
    file = tmp_path / "a.jinja"
    file.write_text(BRACKETS)
    given = find_template(file, CHATML)
    assert given.text() == BRACKETS
    assert given.in_words == (
        f"written by task.chat_template: {file}; renderings before and after each turn say what is completion"
    )
    assert own.sha256 != given.sha256 == find_template(file, None).sha256


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read (No such file or directory); give a file with a template in Jinja"),
        (b" \n", "is empty; give a file with a template in Jinja"),
        (b"\xff", "cannot be read (it is not UTF-8); give a file with a template in Jinja"),
    ],
)
def test_a_file_that_holds_no_template_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    file = tmp_path / "a.jinja"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        find_template(file, None)
    assert str(caught.value) == f"task.chat_template: {file}: {message}"


@pytest.mark.parametrize("own", [None, "", {}, {"rag": "x"}])
def test_no_template_at_all_is_refused(own: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        find_template(None, own)
    assert str(caught.value) == (
        "task.chat_template: the teacher's tokenizer has no chat template; name a file with one, or one that "
        "ships: chatml, plain"
    )


@pytest.mark.parametrize(
    ("template", "missing"),
    [
        ("{{ bos_token }}{{ eos_token }}", "bos_token"),
        ("{{ '<|user|>' + messages[0].content + '<|im_end|>' }}", "<|user|>"),
        ("<s>{{ bos_token }}<start_of_turn></s><｜User｜>", "bos_token, <s>, <start_of_turn>, </s>, <｜User｜>"),
        ("<|im_start|>{{ eos_token }}{{ m < 3 or n > 4 }}{# no <b> #}", ""),
    ],
)
def test_a_template_must_name_tokens_that_there_are_unless_the_model_came_with_it(
    tmp_path: Path, template: str, missing: str
) -> None:
    traits, file = traits_of(of_bytes()), tmp_path / "a.jinja"
    file.write_text(template)
    doubts = vet_template(find_template(None, template), traits)
    if not missing:
        assert doubts == vet_template(find_template(file, None), traits) == []
        return
    assert doubts == [f"its chat template names {missing}, which its tokenizer does not have"]
    with pytest.raises(ConfigError) as caught:
        vet_template(find_template(file, None), traits)
    assert str(caught.value) == (
        f"task.chat_template: {file}: names {missing}, which the teacher's tokenizer has not; use a template made for "
        "it, or add the tokens to tokenizer and models first"
    )


def test_a_template_that_is_no_jinja_is_refused_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "a.jinja"
    file.write_text("{% generation %}\n{% if x %}{% endgeneration %}")
    with pytest.raises(ConfigError) as caught:
        vet_template(find_template(file, None), traits_of(of_bytes()))
    assert str(caught.value).startswith(f"task.chat_template: {file}: line 2: Unexpected end of template.")
    assert str(caught.value).endswith("; correct the template")
