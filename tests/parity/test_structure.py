"""Families that have no record: what is found of their structure, and what of it is refused."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import CONFIG_MAPPING

from ted_ds.errors import CheckpointError
from ted_ds.models.adapters import without_adapters
from ted_ds.models.companions import Origins
from ted_ds.models.cutting import cut
from ted_ds.models.families import FAMILY_OF
from ted_ds.models.files import facts_by, read_model_facts
from ted_ds.models.found import family_as_json, family_from_json
from ted_ds.models.heads import load_lm_output
from ted_ds.models.loading import auto_class
from ted_ds.models.structure.find import find_family
from ted_ds.models.taps import TappedModel
from ted_ds.planning.adapters import adapter_sizes
from tests.optional import use_peft
from tests.parity.test_adapters import IDS, as_trained, assert_exports_say_what_was_trained, logits
from tests.plain import logits_of
from tests.structures import REFUSED, TAKEN, content_of
from tests.tiny import VOCAB_SIZE, model_config

QUICK = ("gpt_neo", "bloom", "cohere", "mamba", "jamba", "openai-gpt", "roformer", "camembert")
"""Of each kind one: from a table, by distance, with scaled logits, without attention, of two kinds of blocks, without
a final norm, of an encoder, and of one with an activation before its LM head."""
WITH_ADAPTERS = ("openai-gpt", "roformer")
"""Of these, some that hold their maps in both ways, beside a head that is not theirs."""
KNOWN = ("llama", "gpt2", "gemma2", "bert", "roberta")


@pytest.fixture(scope="module")
def found():
    """What was found of each type, once."""
    answers = {}

    def find(name):
        if name not in answers:
            try:
                answers[name] = find_family(content_of(name))
            except CheckpointError as error:
                answers[name] = error
        return answers[name]

    return find


def model_of(name, family, seed=3):
    config = CONFIG_MAPPING[name].from_dict(content_of(name))
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = auto_class(family.language_model).from_config(config).eval()
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


def quick_or_slow(names, quick=QUICK):
    return [*quick, *(pytest.param(one, marks=pytest.mark.slow) for one in names if one not in quick)]


@pytest.mark.parametrize("name", quick_or_slow(TAKEN))
def test_what_is_accepted_is_what_plain_transformers_computes(tmp_path, name, found):
    """On other weights and texts than those it was tried with; and once more when it is cut."""
    family = found(name)
    assert not isinstance(family, CheckpointError), family
    assert {*family.refused} - {"torch_compile"} == {*TAKEN[name]}
    model = model_of(name, family)
    model.save_pretrained(tmp_path / "whole")
    tensors = {name: tuple(one.shape) for name, one in load_file(tmp_path / "whole" / "model.safetensors").items()}
    facts = facts_by(json.loads((tmp_path / "whole" / "config.json").read_text()), tensors, family)
    if family.language_model not in family.refused:
        assert facts.as_language_model.total == sum(parameter.numel() for parameter in model.parameters())
    ids = torch.randint(5, VOCAB_SIZE, (2, 17), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        plain = model(input_ids=ids, output_hidden_states=True, use_cache=False)
        states = plain.hidden_states
        count = model.config.num_hidden_layers
        starts_at = count + 1 - (len(states) - (1 if family.final_norm_path is None else 0))
        tapped = TappedModel(model, family, range(count + 1))
        logits, taps = tapped({"input_ids": ids})
        assert torch.equal(logits, plain.logits)
        own = [*states[:-1]] if family.final_norm_path else [*states]
        offset = 0 if len(states) == count + 1 and torch.equal(own[0], taps[0]) else 1
        for layer, state in enumerate(own, start=offset):
            assert torch.equal(taps[layer], state), (layer, starts_at)
        if family.language_model not in family.refused:
            torch.testing.assert_close(tapped({"input_ids": ids}, lambda own, _: logits_of(own)), logits)
    if "cut" not in family.refused:
        blocks = [0, count - 1]
        (tmp_path / "cut").mkdir()
        cut(
            tmp_path / "whole",
            tmp_path / "cut",
            blocks=blocks,
            family=family,
            origins=Origins(tmp_path / "whole", None),
        )
        names = [*load_file(tmp_path / "cut" / "model.safetensors")]
        assert {family.block_number(one) for one in names} == {None, 0, 1}


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", quick_or_slow([one for one in TAKEN if "adapters" not in TAKEN[one]], WITH_ADAPTERS))
def test_adapters_of_a_found_family_are_exported_as_they_were_trained(tmp_path, name, found):
    use_peft()
    family, base = found(name), tmp_path / "base"
    model_of(name, family).save_pretrained(base)
    auto = auto_class(family.language_model)
    model = as_trained(auto.from_pretrained(base).eval(), family, None)
    with torch.no_grad(), without_adapters(model):
        assert torch.equal(logits(model), logits(auto.from_pretrained(base).eval()))
    of_adapters = sum(one.numel() for one in model.parameters() if one.requires_grad)
    tensors = {tensor: tuple(one.shape) for tensor, one in load_file(base / "model.safetensors").items()}
    facts = facts_by(json.loads((base / "config.json").read_text()), tensors, family)
    assert of_adapters == sum(adapter_sizes(facts.parameters.maps, None, 4))
    model(IDS).logits.square().mean().backward()
    assert not [name for name, one in model.named_parameters() if one.requires_grad and one.grad is None]
    assert_exports_say_what_was_trained(model, base, auto)


@pytest.mark.parametrize(
    "name",
    [*("blenderbot", "xlnet", "fnet"), *(pytest.param(one, marks=pytest.mark.slow) for one in [*REFUSED][3:])],
)
def test_what_cannot_be_verified_is_refused_with_the_reason(name, found):
    expected = REFUSED[name]
    with pytest.raises(CheckpointError, match=expected):
        raise found(name)


@pytest.mark.parametrize("name", KNOWN)
def test_of_a_type_with_a_record_the_same_is_found(name):
    family = find_family({**model_config(name, vocab=VOCAB_SIZE).to_dict(), "model_type": name})
    record = FAMILY_OF[name]
    for fact in (
        *("token_embeddings_path", "blocks_path", "final_norm_path", "before_lm_head", "lm_head_path", "positions"),
        *("language_model", "pooled_token", "span_head", "label_heads", "embeddings_path", "arrival_path"),
        *("attention_dropouts", "logits_cap_key", "token_types_key", "before_blocks", "lm_activation"),
        "unread_lm_bias",
    ):
        assert getattr(family, fact) == getattr(record, fact), fact
    assert {*family.hidden_dropouts} == {*record.hidden_dropouts}
    assert family_from_json(json.loads(json.dumps(family_as_json(family)))) == family


def test_logits_that_are_no_products_are_refused_where_no_entry_explains_them(monkeypatch):
    forward = transformers.BloomForCausalLM.forward

    def scaled(self, *arguments, **more):
        output = forward(self, *arguments, **more)
        output.logits = output.logits * 1.0371
        return output

    monkeypatch.setattr(transformers.BloomForCausalLM, "forward", scaled)
    family = find_family(content_of("bloom"))
    assert "the cross-entropy of its predictions is not what transformers' logits come to" in family.refused["CausalLM"]


def test_a_model_that_does_something_between_its_blocks_is_refused(monkeypatch):
    forward = transformers.models.bloom.modeling_bloom.BloomBlock.forward

    def shifted(self, state, *arguments, **more):
        return forward(self, state + 0.0, *arguments, **more)

    class Between(transformers.models.bloom.modeling_bloom.BloomBlock):
        def __call__(self, state, *arguments, **more):
            return super().__call__(state * 1.0, *arguments, **more)

    monkeypatch.setattr(transformers.models.bloom.modeling_bloom, "BloomBlock", Between)
    with pytest.raises(CheckpointError, match=r"the model does something of its own between them"):
        find_family(content_of("bloom"))


def test_facts_of_a_found_family_are_read_from_its_folder(tmp_path, monkeypatch, found):
    """In a process of its own, as ``ted-ds check`` does; and at once where it was found before."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = model_of("camembert", found("camembert"))
    model.save_pretrained(tmp_path / "model")
    facts = read_model_facts(tmp_path / "model")
    assert facts.family.blocks_path == found("camembert").blocks_path
    assert facts.family.found
    assert (facts.num_blocks, facts.hidden_size, facts.num_heads) == (3, 16, 2)
    before, head = load_lm_output(tmp_path / "model", torch.float32)
    state = torch.randn(1, 4, 16, generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        logits = torch.nn.functional.linear(before(state), head.weight, head.bias)
        torch.testing.assert_close(logits, model.lm_head(state), rtol=1e-6, atol=1e-6)
