"""What the tokenizers of teacher and student owe the models and each other.

One tokenizer is used everywhere, in training, evaluation and the export: the teacher's. So each of its ids must have an
embedding in both models and mean one token to both. A student that was trained with another reading of text, other
special tokens or another chat template can learn all the same, and is named. One whose ids mean other tokens reads by a
tokenizer of its own, where that can be (:mod:`ted_ds.planning.two_tokenizers`).
"""

from __future__ import annotations

from collections.abc import Iterator

from ted_ds.data.document_ends import own_ends, own_separator
from ted_ds.data.tokenizer_comparison import differences
from ted_ds.errors import CheckpointError
from ted_ds.models.files import GENERATION_CONFIG_FILE, ModelFacts
from ted_ds.models.folder import CONFIG_FILE
from ted_ds.models.tokenizer_files import TOKENIZER_FILE, refuse_without_padding
from ted_ds.models.tokenizer_traits import Origin, TokenizerTraits

PAIR = ("a", "b")
"""Any two texts."""


def refuse_ids_outside(tokenizer: TokenizerTraits, facts: ModelFacts, *, whose: str = "its") -> None:
    """Make sure that a model has an embedding of every id a tokenizer can give.

    Raises:
        CheckpointError: It has not.
    """
    rows = facts.vocab_size
    ids = {**tokenizer.vocabulary, **tokenizer.template_ids}
    outside = sorted((index, token) for token, index in ids.items() if not 0 <= index < rows)
    if not outside:
        return
    index, token = outside[-1]
    origin = tokenizer.origins.get(token)
    if index != tokenizer.vocabulary.get(token):
        origin = Origin("the post-processor", TOKENIZER_FILE)
    where = f" ({origin})" if origin is not None else ""
    more = f"; {len(outside)} ids are outside" if len(outside) > 1 else ""
    remedy = "use the tokenizer it was trained with, or resize its embeddings"
    if origin is not None and origin.key.endswith("_token"):
        roles = [tokenizer.roles[role] for role in ("eos_token", "pad_token", "unk_token") if role in tokenizer.roles]
        known = next((one for one in roles if 0 <= tokenizer.vocabulary.get(one, -1) < rows), None)
        example = f", such as {known!r}" if known is not None else ""
        remedy = f"name a token that has an embedding{example}, or resize its embeddings"
    raise CheckpointError(
        f"{whose} tokenizer gives {token!r}{where} the id {index}, but the model has embeddings for 0..{rows - 1} "
        f"({rows} rows{more}); {remedy}"
    )


def refuse_padding_outside(facts: ModelFacts) -> None:
    """Make sure that the padding id in a model's config has an embedding, which loading it looks up.

    Raises:
        CheckpointError: It has not.
    """
    rows = facts.vocab_size
    for index in facts.token_ids.get(CONFIG_FILE, {}).get("pad_token_id", ()):
        if not 0 <= index < rows:
            raise CheckpointError(
                f"its {CONFIG_FILE} has the pad_token_id {index}, but the model has embeddings for 0..{rows - 1} "
                f"({rows} rows); set it to the id of a token of its tokenizer, or remove it"
            )


def refuse_useless_tokenizer(tokenizer: TokenizerTraits) -> None:
    """Make sure that a tokenizer gives tokens, and has one to end documents and fill rows with.

    Raises:
        TedError: It does not.
    """
    if tokenizer.backend is None:
        return  # seen when it is loaded
    own_ends(tokenizer)
    refuse_without_padding(tokenizer.roles.get("pad_token"), tokenizer.roles.get("eos_token"))


def refuse_token_types_outside(tokenizer: TokenizerTraits, facts: ModelFacts, *, whose: str = "the teacher's") -> None:
    """Make sure that a model which tells types of tokens apart knows those that a tokenizer gives to a pair of texts.

    Raises:
        CheckpointError: It does not.
    """
    types = tokenizer.encode_pair(*PAIR)[1] if _reads_pairs_by_its_files(tokenizer) else []
    highest = max(types, default=0)
    if facts.num_token_types > 1 and highest >= facts.num_token_types:
        raise CheckpointError(
            f"{whose} tokenizer gives tokens of a pair the type {highest}, but the model tells types "
            f"0..{facts.num_token_types - 1} apart ({facts.family.token_types_key} in its {CONFIG_FILE}); use the "
            "tokenizer it was trained with"
        )


def undivided_pairs(tokenizer: TokenizerTraits, facts: ModelFacts) -> Iterator[str]:
    """Lines on a tokenizer that does not show a model where the second text of a pair begins, for a warning."""
    if _reads_pairs_by_its_files(tokenizer) and own_separator(tokenizer) == () and facts.num_token_types < 2:
        yield (
            "its tokenizer puts nothing between the two texts of a pair: where the second begins is for the model to "
            "find; end the first ones in the data with a mark of your own"
        )


def _reads_pairs_by_its_files(tokenizer: TokenizerTraits) -> bool:
    """Whether that is known before transformers loads it."""
    return tokenizer.backend is not None and tokenizer.unknown_class is None


def compare_readings(teacher: TokenizerTraits, student: TokenizerTraits) -> Iterator[str]:
    """Lines on all that differs between two tokenizers of one vocabulary, for a warning."""
    found = list(differences(teacher, student))
    if found:
        yield (
            f"its tokenizer differs from the teacher's, which is the one that is used and exported: {'; '.join(found)}"
        )


def doubtful_ids(facts: ModelFacts, tokenizer: TokenizerTraits | None, *, is_own: bool = False) -> Iterator[str]:
    """Lines on ids in a model's configs that no text of the tokenizer it is read by will hold, for a warning.

    That is the teacher's, or its own where models have two.
    """
    for file, ids in facts.token_ids.items():
        for key, values in ids.items():
            outside = [index for index in values if index >= facts.vocab_size]
            if outside:
                yield f"its {file} has the {key} {outside[0]}, of which it has no embedding ({facts.vocab_size} rows)"
    file = GENERATION_CONFIG_FILE
    ends = facts.token_ids.get(file, {}).get("eos_token_id", ())
    eos = tokenizer.role_id("eos_token") if tokenizer is not None else None
    if tokenizer is None or eos is None or not ends or eos in ends:
        return
    names = {index: token for token, index in tokenizer.vocabulary.items()}
    used = "its tokenizer" if is_own else "the teacher's tokenizer, which is the one that is used and exported,"
    yield (
        f"its {file} ends a text at {names.get(ends[0])!r} ({ends[0]}), {used} at {names.get(eos)!r} ({eos}); the "
        f"exported {file} follows the tokenizer"
    )
