"""The model families that ted_ds knows, without torch: all that is asked by a model type is asked here.

To add one, write a :class:`~ted_ds.models.family.Family` in the file of its like; ``tests/parity/test_families.py``
then holds it against the plain transformers forward.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ted_ds.errors import ConfigError, OwnCodeError
from ted_ds.models.families.decoders import DECODERS, WITH_A_TEXT_MODEL
from ted_ds.models.families.encoder_decoders import ENCODER_DECODERS
from ted_ds.models.families.encoders import ENCODERS
from ted_ds.models.family import Family
from ted_ds.models.plug_ins import FAMILIES as PLUG_INS
from ted_ds.models.plug_ins import load_plug_in


class Families(Mapping[str, Family]):
    """Families by model type: those of ted_ds, and of installed packages one that is asked for."""

    def __init__(self, own: Mapping[str, Family]) -> None:
        self._own = dict(own)

    def __getitem__(self, name: str) -> Family:
        if name not in self._own:
            more = load_plug_in(PLUG_INS, name, Family)
            if more is None:
                raise KeyError(name)
            if name not in more.model_types:
                raise OwnCodeError(f"{PLUG_INS}: {name}: is a family of {', '.join(more.model_types)}, not of {name}")
            self._own[name] = more
        return self._own[name]

    def __iter__(self) -> Iterator[str]:
        return iter([*self._own])

    def __len__(self) -> int:
        return len(self._own)


FAMILIES = (*DECODERS, *ENCODERS, *ENCODER_DECODERS)
FAMILY_OF: Mapping[str, Family] = Families({name: family for family in FAMILIES for name in family.model_types})
KNOWN_TYPES = tuple(FAMILY_OF)
TEXT_TYPE_IN: Mapping[str, str] = WITH_A_TEXT_MODEL
SPAN_TYPES = tuple(name for name, family in FAMILY_OF.items() if family.span_head is not None)


def types_of(language_model: str) -> tuple[str, ...]:
    """The types whose language models are a ``CausalLM``, a ``MaskedLM`` or a ``Seq2SeqLM``."""
    return tuple(name for name, family in FAMILY_OF.items() if family.language_model == language_model)


def family_of(model_type: str) -> Family:
    """The family of a ``model_type``.

    Raises:
        ConfigError: No family covers it.
    """
    if model_type not in FAMILY_OF:
        raise ConfigError(f"model type {model_type!r} has no family; ted_ds knows {', '.join(sorted(FAMILY_OF))}")
    return FAMILY_OF[model_type]
