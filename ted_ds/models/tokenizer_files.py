"""What the tokenizer of a model folder can give, read from its files as transformers would load them, without torch.

``tokenizer.json`` is not all of it: ``tokenizer_config.json``, ``added_tokens.json``, ``special_tokens_map.json`` and
the defaults of a tokenizer's class add tokens when it is loaded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from ted_ds.errors import CheckpointError, ConfigError
from ted_ds.models.families import FAMILY_OF
from ted_ds.models.file_kinds import TEMPLATES_FOLDER
from ted_ds.models.folder import CONFIG_FILE
from ted_ds.models.model_file import refuse_pointer, refuse_shared_ids
from ted_ds.models.sentencepiece_model import MODEL_FILE, pieces_by_id, read_sentencepiece, special_tokens
from ted_ds.models.tokenizer_settings import (
    EXTRA_TOKENS,
    ROLES,
    TOKENIZER_CONFIG_FILE,
    declared_tokens,
    is_token,
    read_object,
    read_settings,
    refuse_no_tokens,
)
from ted_ds.models.tokenizer_traits import Origin, TokenizerTraits

TOKENIZER_FILE = "tokenizer.json"
ADDED_TOKENS_FILE = "added_tokens.json"
SPECIAL_TOKENS_MAP_FILE = "special_tokens_map.json"
CHAT_TEMPLATE_FILE = "chat_template.jinja"
VOCABULARY_FILES = (
    (TOKENIZER_FILE,),
    (MODEL_FILE,),
    ("spm.model",),
    ("spiece.model",),
    ("sentencepiece.bpe.model",),
    ("tiktoken.model",),
    ("tekken.json",),
    ("vocab.json", "merges.txt"),
    ("vocab.txt",),
)
"""Files of which one set, at least, holds a vocabulary."""
READING_SETTINGS = (
    "do_lower_case",
    "strip_accents",
    "tokenize_chinese_chars",
    "add_prefix_space",
    "split_by_punct",
    "split_special_tokens",
)
"""By which transformers' classes make steps of a tokenizer anew, whatever ``tokenizer.json`` says."""
ROBERTA_ROLES = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "cls_token": "<s>",
    "mask_token": "<mask>",
}
BERT_ROLES = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
CLASS_ROLES: Mapping[str, Mapping[str, str]] = {
    "LlamaTokenizer": {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"},
    "GPT2Tokenizer": dict.fromkeys(("unk_token", "bos_token", "eos_token"), "<|endoftext|>"),
    "Qwen2Tokenizer": dict.fromkeys(("unk_token", "eos_token", "pad_token"), "<|endoftext|>"),
    "GPTNeoXTokenizer": {
        **dict.fromkeys(("unk_token", "bos_token", "eos_token"), "<|endoftext|>"),
        "pad_token": "<|padding|>",
    },
    "GemmaTokenizer": {
        "unk_token": "<unk>",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "mask_token": "<mask>",
    },
    **dict.fromkeys(("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer"), BERT_ROLES),
    "RobertaTokenizer": ROBERTA_ROLES,
    "XLMRobertaTokenizer": ROBERTA_ROLES,
    "MPNetTokenizer": {**ROBERTA_ROLES, "unk_token": "[UNK]"},
    "AlbertTokenizer": {
        **BERT_ROLES,
        "bos_token": "[CLS]",
        "eos_token": "[SEP]",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
    },
    "DebertaV2Tokenizer": {**BERT_ROLES, "bos_token": "[CLS]", "eos_token": "[SEP]"},
}
"""Tokens that transformers' classes have where the files name none for the role."""
MAY_MAKE_ENDS_ANEW = ("GPTNeoXTokenizer", "GemmaTokenizer")
AS_FILES_SAY = (*(CLASS_ROLES.keys() - MAY_MAKE_ENDS_ANEW), "PreTrainedTokenizer", "TokenizersBackend")
"""Classes known to put around a text what ``tokenizer.json`` says; others may make that step anew."""


def refuse_no_vocabulary(folder: Path) -> None:
    """Make sure that a folder holds a tokenizer: transformers makes an empty one for some model types where it has not.

    Raises:
        CheckpointError: It holds none.
    """
    if not any(all((folder / name).is_file() for name in names) for names in VOCABULARY_FILES):
        shown = ", ".join(" with ".join(names) for names in VOCABULARY_FILES if names[0] != "tekken.json")
        raise CheckpointError(
            f"{folder}: holds no tokenizer (none of {shown}); copy the tokenizer's files of this model into it"
        )


def refuse_without_padding(padding: object, end: object, *, whose: str = "its") -> None:
    """Make sure that a tokenizer has a token to fill rows with: for padding, or else the end of a text.

    Args:
        padding: Its padding token; None where it has none.
        end: Its end token, likewise.
        whose: Whose tokenizer it is, for the message.

    Raises:
        ConfigError: It has neither.
    """
    if padding is None and end is None:
        raise ConfigError(f"{whose} tokenizer has neither a padding nor an end token; add one to it")


def tokenizer_of_files(folder: Path) -> TokenizerTraits | None:
    """The tokenizer of a model folder; None where it is of a kind that only transformers can read.

    Raises:
        CheckpointError: It has none, or a file of it is damaged.
    """
    refuse_no_vocabulary(folder)
    if (folder / TOKENIZER_FILE).is_file():
        return _read_fast(folder)
    model = read_sentencepiece(folder)
    if model is not None:
        return _read_sentencepiece(folder, model)
    return _read_plain(folder)


def _read_fast(folder: Path) -> TokenizerTraits:
    file = folder / TOKENIZER_FILE
    refuse_pointer(file)
    try:
        backend = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing more specific
        raise CheckpointError(f"{file}: damaged ({error}); copy it again") from error
    table = read_object(file)["model"].get("vocab")
    if isinstance(table, Mapping):
        refuse_shared_ids(file, table)
    settings = read_settings(folder)
    origins: dict[str, Origin] = {}

    def add(token: Any, origin: Origin) -> None:
        added = _as_added(token, where=folder / origin.file if origin.file else folder)
        if added.content not in declared:  # the flags of those that are there stay as they are
            backend.add_special_tokens([added]) if added.special else backend.add_tokens([added])
        declared.add(added.content)
        origins.setdefault(added.content, origin)

    declared = {str(token) for token in backend.get_added_tokens_decoder().values()}
    sources: dict[str, str] = {}
    if isinstance(settings.get("added_tokens_decoder"), Mapping):
        for _, token in declared_tokens(folder, settings):
            add(token, Origin("added_tokens_decoder", TOKENIZER_CONFIG_FILE))
    else:
        of_map = read_object(folder / SPECIAL_TOKENS_MAP_FILE)
        refuse_no_tokens(folder / SPECIAL_TOKENS_MAP_FILE, of_map)
        settings = {**settings, **of_map}
        sources = dict.fromkeys(of_map, SPECIAL_TOKENS_MAP_FILE)
        of_file = read_object(folder / ADDED_TOKENS_FILE)
        refuse_shared_ids(folder / ADDED_TOKENS_FILE, of_file)
        for token, _ in sorted(of_file.items(), key=lambda item: item[1]):
            add(AddedToken(token, normalized=True), Origin("", ADDED_TOKENS_FILE))
    padding = backend.padding
    if padding is not None:
        settings = {"pad_token": padding["pad_token"], **settings}
        sources.setdefault("pad_token", TOKENIZER_FILE)
    backend.no_padding()  # transformers pads and cuts only where it is asked to
    backend.no_truncation()
    class_name = _class_name(folder, settings, backend) or ""
    unknown_class = class_name if class_name not in ("", *AS_FILES_SAY) else None
    defaults = CLASS_ROLES.get(class_name, {})
    roles: dict[str, str] = {}
    for role, token in _roles({**defaults, **settings}):
        origin = Origin(role, sources.get(role, TOKENIZER_CONFIG_FILE if role in settings else ""))
        add(token, origin)
        if role in ROLES:
            roles[role] = _content(token)
    return TokenizerTraits(
        backend=backend,
        roles=roles,
        origins=origins,
        settings=_shown_settings(folder, settings, READING_SETTINGS if class_name in CLASS_ROLES else ()),
        sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
        unknown_class=unknown_class,
    )


def _read_sentencepiece(folder: Path, model: Any) -> TokenizerTraits:
    settings = read_settings(folder)
    vocabulary = pieces_by_id(model)
    origins: dict[str, Origin] = {}
    for index, token in declared_tokens(folder, settings):
        vocabulary.setdefault(_content(token), index)
        origins[_content(token)] = Origin("added_tokens_decoder", TOKENIZER_CONFIG_FILE)
    named = {role: _content(token) for role, token in _roles(settings) if role in ROLES}
    roles = {**special_tokens(model), **{role: token for role, token in named.items() if token in vocabulary}}
    return TokenizerTraits(
        backend=None,
        own_vocabulary=vocabulary,
        roles=roles,
        origins=origins,
        settings=_shown_settings(folder, settings),
    )


def _read_plain(folder: Path) -> TokenizerTraits | None:
    """A vocabulary of the older kinds, a list of words or a table of ids."""
    table, words = folder / "vocab.json", folder / "vocab.txt"
    if table.is_file():
        vocabulary = read_object(table)
        refuse_shared_ids(table, vocabulary)
    elif words.is_file():
        lines = words.read_text(encoding="utf-8").splitlines()
        vocabulary = {word: index for index, word in enumerate(lines)}
    else:
        return None
    settings = read_settings(folder)
    added = read_object(folder / ADDED_TOKENS_FILE)
    refuse_shared_ids(folder / ADDED_TOKENS_FILE, added)
    origins = {token: Origin("", ADDED_TOKENS_FILE) for token in added}
    return TokenizerTraits(
        backend=None,
        own_vocabulary={**vocabulary, **added},
        roles={role: _content(token) for role, token in _roles(settings) if role in ROLES},
        origins=origins,
        settings=_shown_settings(folder, settings),
    )


def _roles(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The tokens that settings name, each with the role it is named for, in the order they are added in."""
    others = [key for key in settings if key.endswith("_token") and key not in ROLES]
    for key in (*ROLES, *others):
        if is_token(settings.get(key)):
            yield key, settings[key]
    for key in EXTRA_TOKENS:
        value = settings.get(key) or ()
        for token in value.values() if isinstance(value, Mapping) else value:
            if is_token(token):
                yield key, token


def _content(token: Any) -> str:
    return token if isinstance(token, str) else token["content"] if isinstance(token, Mapping) else token.content


def _as_added(token: Any, *, where: Path) -> AddedToken:
    if isinstance(token, AddedToken):
        return token
    if isinstance(token, str):
        return AddedToken(token, special=True, normalized=False)
    try:
        flags = {name: bool(token[name]) for name in ("single_word", "lstrip", "rstrip", "normalized") if name in token}
        return AddedToken(token["content"], special=token.get("special", True), **flags)
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{where}: {token!r} is no token ({error!r}); copy the file again") from error


def _class_name(folder: Path, settings: Mapping[str, Any], backend: Tokenizer) -> str | None:
    """The class of transformers that will load the tokenizer, as far as it has tokens of its own."""
    config = read_object(folder / CONFIG_FILE)
    family = FAMILY_OF.get(str(config.get("model_type")))
    declared = settings.get("tokenizer_class") or config.get("tokenizer_class")
    if declared is None or (family is not None and not family.believes_tokenizer_files):
        return None if family is None else family.tokenizer_class
    name = str(declared).removesuffix("Fast")
    if name == "LlamaTokenizer" and "ByteLevel" in str(backend.pre_tokenizer):
        return None  # one of its kind by name alone, which transformers sees
    return name


def _shown_settings(folder: Path, settings: Mapping[str, Any], more: Sequence[str] = ()) -> dict[str, Any]:
    file = folder / CHAT_TEMPLATE_FILE
    template = file.read_text(encoding="utf-8") if file.is_file() else settings.get("chat_template")
    others = {one.stem: one.read_text(encoding="utf-8") for one in sorted(folder.glob(f"{TEMPLATES_FOLDER}/*.jinja"))}
    if others:
        template = {**({} if template is None else {"default": template}), **others}
    return {
        "chat_template": template,
        "padding_side": settings.get("padding_side", "right"),
        "model_max_length": settings.get("model_max_length"),
        "clean_up_tokenization_spaces": bool(settings.get("clean_up_tokenization_spaces")),
        **{key: settings[key] for key in more if key in settings},
    }
