"""SentencePiece models as Hugging Face tokenizers that give the same ids.

transformers converts a lone ``tokenizer.model`` too, but by the class it guesses from ``config.json``, not by what the
model file says: a Llama folder without ``tokenizer_config.json`` loses the space before the first word, and every id
after it may be another one, without a warning. Here the file decides, and probes compare the outcome with
SentencePiece.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sentencepiece
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers
from tokenizers.models import BPE, Unigram

from ted_ds.errors import CheckpointError
from ted_ds.models.model_file import refuse_pointer

schema: Any = sentencepiece_model_pb2  # its classes are made as it is imported
MODEL_FILE = "tokenizer.model"
SPACE_MARK = "▁"
"""What SentencePiece writes for a space (U+2581)."""
LONGEST_BYTE_NAME = len("<0x00>")
NUM_PROBED_PIECES = 2000

Piece = schema.ModelProto.SentencePiece


def read_sentencepiece(folder: Path) -> Any | None:
    """The SentencePiece model of a model folder; None where it has none.

    ``tokenizer.model`` is also what others call a file of another kind (tiktoken's): that is none either.

    Raises:
        CheckpointError: It is a pointer of Git LFS.
    """
    file = folder / MODEL_FILE
    if not file.is_file():
        return None
    refuse_pointer(file)
    try:
        model = parse(file.read_bytes())
    except DecodeError:
        return None
    return model if model.pieces else None


def parse(content: bytes) -> Any:
    """The ``ModelProto`` of a model file.

    Raises:
        DecodeError: It is no such file.
    """
    model = schema.ModelProto()
    model.ParseFromString(content)
    return model


def pieces_by_id(model: Any) -> dict[str, int]:
    """Every piece of a model and its id."""
    return {piece.piece: index for index, piece in enumerate(model.pieces)}


def special_tokens(model: Any) -> dict[str, str]:
    """The model's own special tokens, by the names transformers gives them."""
    spec = model.trainer_spec
    ids = {"unk_token": spec.unk_id, "bos_token": spec.bos_id, "eos_token": spec.eos_id, "pad_token": spec.pad_id}
    return {role: model.pieces[index].piece for role, index in ids.items() if index >= 0}


def convert(model: Any, *, space: str = SPACE_MARK) -> Tokenizer:
    """The model as a Hugging Face tokenizer.

    Args:
        model: A ``ModelProto`` of a unigram or BPE model.
        space: How the vocabulary writes a space. ``▁`` is the name others know, but then a text's own ``▁`` comes back
            as a space, as in SentencePiece itself. With ``" "``, which suits a model that leaves spaces alone, it comes
            back as ``▁``.

    Raises:
        CheckpointError: It is of a kind that has no counterpart.
    """
    spec = model.normalizer_spec
    if model.trainer_spec.model_type not in (schema.TrainerSpec.UNIGRAM, schema.TrainerSpec.BPE):
        raise CheckpointError("a SentencePiece model of words or characters; only unigram and BPE models can be used")
    if model.trainer_spec.treat_whitespace_as_suffix or not spec.escape_whitespaces:
        raise CheckpointError("a SentencePiece model that ends words with a space mark, or has none, cannot be used")
    names = [_name(piece, space) for piece in model.pieces]
    as_unigram = model.trainer_spec.model_type == schema.TrainerSpec.UNIGRAM
    tokenizer = Tokenizer(_unigram(model, names) if as_unigram else _bpe(model, names))
    steps = list(_normalisation(spec, space))
    if steps:
        tokenizer.normalizer = normalizers.Sequence(steps)  # type: ignore[assignment]
    back: list[Any] = [decoders.Replace(space, " ")] if space != " " else []
    back += [decoders.ByteFallback(), decoders.Fuse()]
    if spec.add_dummy_prefix:
        back.append(decoders.Strip(content=" ", left=1))
    tokenizer.decoder = decoders.Sequence(back)  # type: ignore[assignment]
    for name, piece in zip(names, model.pieces, strict=True):
        if piece.type == Piece.USER_DEFINED:
            tokenizer.add_tokens([AddedToken(name, normalized=space in name)])
        elif piece.type in (Piece.CONTROL, Piece.UNKNOWN):
            tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True)])
    return tokenizer


def refuse_other_ids(model: Any, tokenizer: Tokenizer) -> None:
    """Compare a conversion with SentencePiece itself, on a text of the model's own pieces and on awkward ones.

    Raises:
        CheckpointError: They give different ids.
    """
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
    normal = [piece.piece.replace(SPACE_MARK, " ") for piece in model.pieces if piece.type == Piece.NORMAL]
    every = max(1, len(normal) // NUM_PROBED_PIECES)
    # the pieces in short texts, so that an exact tie between two ways to cut one, which rounding decides, is unlikely
    probes = ["", "a", " a", "  a  b ", "a\n\n b\t", "\r\nÀ 日本 🤗 \u0000", *normal[::every]]
    for text in probes:
        expected, given = processor.encode(text), tokenizer.encode(text, add_special_tokens=False).ids
        if expected != given:
            raise CheckpointError(
                f"its conversion reads {text!r} as {given[:8]}, SentencePiece as {expected[:8]}; add the "
                "tokenizer.json that belongs to this model"
            )


def _name(piece: Any, space: str) -> str:
    return piece.piece.replace(SPACE_MARK, space) if piece.type in (Piece.NORMAL, Piece.USER_DEFINED) else piece.piece


def _unigram(model: Any, names: list[str]) -> Unigram:
    # SentencePiece never finds byte pieces and control tokens in a text; this Unigram would. Any other way to cut the
    # text <0x41> into known characters is better than a score below the worst of as many.
    lowest = min((piece.score for piece in model.pieces if piece.type == Piece.NORMAL), default=0.0)
    never = (LONGEST_BYTE_NAME + 1) * min(lowest, -1.0)
    scores = [p.score if p.type in (Piece.NORMAL, Piece.USER_DEFINED) else never for p in model.pieces]
    return Unigram(
        list(zip(names, scores, strict=True)),
        unk_id=model.trainer_spec.unk_id,
        byte_fallback=model.trainer_spec.byte_fallback,
    )


def _bpe(model: Any, names: list[str]) -> BPE:
    normal = [index for index, piece in enumerate(model.pieces) if piece.type == Piece.NORMAL]
    known = {names[index] for index in normal}
    # SentencePiece joins any two neighbours whose union is a piece, the best piece first; all such pairs, in that order
    merges = [
        (name[:cut], name[cut:])
        for name in (names[index] for index in sorted(normal, key=lambda index: -model.pieces[index].score))
        for cut in range(len(name) - 1, 0, -1)
        if name[:cut] in known and name[cut:] in known
    ]
    return BPE(
        {name: index for index, name in enumerate(names)},
        merges,
        unk_token=model.trainer_spec.unk_piece,
        fuse_unk=True,
        byte_fallback=model.trainer_spec.byte_fallback,
    )


def _normalisation(spec: Any, space: str) -> Iterator[Any]:
    if spec.precompiled_charsmap:
        yield normalizers.Precompiled(spec.precompiled_charsmap)
    if spec.remove_extra_whitespaces:
        yield normalizers.Replace(Regex(r"\A +| +\z"), "")
        yield normalizers.Replace(Regex(" {2,}"), " ")
    if spec.add_dummy_prefix:
        yield normalizers.Prepend(" ")
    if space != " ":
        yield normalizers.Replace(" ", space)
