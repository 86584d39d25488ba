"""A transformers model that hands over the states of chosen layers, and of no others, as soon as they exist."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ted_ds.models.family import Family
from ted_ds.models.joined_rows import Rows, keep_apart
from ted_ds.models.partial import Arrival, keep_share, put_out
from ted_ds.models.parts import (
    added_to_logits,
    behind_body_of,
    blocks_of,
    embeddings_of,
    give_lm_head,
    layers_of_blocks,
    lm_head_of,
    logit_rule_of,
    put_part,
)
from ted_ds.models.passes import Passes
from ted_ds.models.positions import attention_mask_of, choose_by_text, positions_behind, positions_in_row
from ted_ds.models.predictions import DensePredictions, Predictions, VocabularyHead, VocabularyPredictions
from ted_ds.models.share import Share
from ted_ds.models.two_stacks import layers_of_stacks, run_stacks, with_decoder_inputs
from ted_ds.numerics.filters import pool
from ted_ds.numerics.layer_map import Layer, layer_names, number_of

Result = TypeVar("Result")
OnState = Callable[[int, Tensor], None]
"""Takes the place of a layer in the layer map, and its state ``[batch, seq, hidden]``."""


class TappedModel(nn.Module):
    """Runs ``model`` unchanged and taps the outputs of ``layers``.

    Layers are numbered as in :mod:`ted_ds.numerics.layer_map`: 0 is the embedding output, i the output of block i
    counted from 1. The last block's state is taken *before* the final norm. Transformers places activation
    checkpointing inside a block's call, so a tap fires once per forward pass, outside the recomputation.

    It may be a ``share`` of a model only: the state from before its blocks then has to :meth:`arrive` before each
    forward pass, and that behind them may :meth:`leave` afterwards.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        family: Family,
        layers: Sequence[Layer] = (),
        *,
        fresh_parameters: Sequence[str] = (),
        share: Share | None = None,
        places: Sequence[int] | None = None,
        pooled: bool = True,
    ) -> None:
        """Tap ``layers``.

        Args:
            model: What to run; cut down in place to its share.
            family: Where its parts are.
            layers: One side of the layer map.
            fresh_parameters: Names of weights that no file holds.
            share: What to keep of the model; None for all of it.
            places: Which places in the layer map are tapped here; None for all.
            pooled: Whether a head of its own, which is no LM head, says one thing of a text, or some of each token.
        """
        super().__init__()
        config = model.config.to_dict()
        family = family.as_configured(config)
        give_lm_head(model, family)
        self.share = share or Share.whole(len(family.block_of_layers(config)))
        first_names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._arrival: Arrival | None = keep_share(model, family, self.share)
        self.aliases = {
            f"model.{name}": f"model.{first_names[id(parameter)]}"
            for name, parameter in model.named_parameters()
            if first_names[id(parameter)] != name
        }
        """Names here of weights that have another one, earlier in the whole model, which they are tied to."""
        self._leaving: Tensor | None = None
        self._rows = Rows()
        self.model = model
        self.fresh_parameters = tuple(fresh_parameters)
        """Names of weights that no file holds: they start random."""
        self.layers = tuple(layers)
        self._places = frozenset(range(len(self.layers)) if places is None else places)
        self._captured: dict[Layer, Tensor] = {}
        self._is_running = False
        self._on_state: OnState | None = None
        self.family, self.pooled = family, pooled
        self._takes_token_types = family.num_token_types(config) > 1
        self._row_of_padding = family.row_of_padding(config)
        self._needs_positions = choose_by_text(model)
        self._num_chosen = self._num_chosen_experts()
        self.has_lm_head = self.share.has_output and model.get_output_embeddings() is not None
        self._can_predict = self.share.has_output
        if self.has_lm_head:
            self._install_lm_head()
        self.first_state: nn.Module | None = None
        """Puts out layer 0 where no module of the model does."""
        if family.embeddings_path is None and self.share.has_embeddings:
            self.first_state = nn.Identity()
            blocks_of(model, family)[0].register_forward_pre_hook(self._show_first_state)
        self.passes: Passes | None = None
        """Where several layers go through one block."""
        if family.num_shared_key is not None:
            self.passes = Passes(model, family, self.share.stop)
        modules = self.modules_of_layers()
        for layer in dict.fromkeys(self.layers[place] for place in sorted(self._places)):
            modules[layer].register_forward_hook(self._tap(layer))

    @property
    def layers_here(self) -> dict[int, Layer]:
        """What is tapped here, by its place in the layer map."""
        return {place: self.layers[place] for place in sorted(self._places)}

    @property
    def buffers_in_files(self) -> dict[str, Tensor]:
        """What does not train, and belongs into the model's files all the same, by its names there."""
        return {name: one for name, one in self.model.named_buffers() if name == self.family.logits_bias_path}

    def _num_chosen_experts(self) -> int:
        """How many experts a token goes through in a model whose routers are balanced; 0 in others."""
        config = self.model.config.to_dict()
        return self.family.num_experts(config)[1] if self.family.balance_weight(config) else 0

    @property
    def pooled_token(self) -> str:
        """Which kept token a label is read at: ``first`` or ``last``; or the ``mean`` of all."""
        key = self.family.pooling_key
        is_mean = key is not None and getattr(self.model.config, key, None) == "mean"
        return "mean" if is_mean else self.family.pooled_token

    @property
    def unread_id(self) -> int | None:
        """An id at which no label is read: the model was trained so, and transformers will use it so.

        Its own ``pad_token_id``, which a text may end with where it is the end token's, too; None where it has none.
        """
        pad_id: int | None = getattr(self.model.config.get_text_config(), "pad_token_id", None)
        return pad_id if self.pooled_token == "last" else None

    def _label_logits(self, arguments: Mapping[str, Any]) -> Tensor:
        """Logits of a classifier, ``[batch, labels]``, or ``[batch, seq, labels]`` of one of tokens.

        Or, ``[batch, 2, seq]``, of where an answer starts and where it ends.

        Those of a text not by the forward of transformers' own decoders: that finds the last token by its id alone,
        whether it is padding or not, and reads none of several rows where there is no padding id.
        """
        if self.family.pooled_token == "first" or not self.pooled:
            output = self.model(**arguments)
            return output.logits if "logits" in output else torch.stack([output.start_logits, output.end_logits], dim=1)
        hidden = self.model.base_model(**arguments).last_hidden_state
        unread = None if self.unread_id is None else arguments["input_ids"] == self.unread_id
        logits = self.model.get_submodule(self.family.label_heads[0])(hidden)
        return pool(logits, attention_mask_of(arguments), how=self.pooled_token, unread=unread)

    def named_layers(self) -> dict[str, nn.Module]:
        """Every layer's module by its name, from the embeddings to the last block; of a share, those it computes."""
        modules = self.modules_of_layers()
        if not self.share.has_embeddings:
            del modules[self.share.start]
        return dict(zip(layer_names([*modules]), modules.values(), strict=True))

    def modules_of_layers(self) -> dict[Layer, nn.Module]:
        """What puts out each layer's state here; the arriving one is put out by what stands for the embeddings."""
        if self.family.is_stacked:
            assert self.first_state is not None
            return layers_of_stacks(self.model, self.family, self.first_state)
        passes = self.passes
        layers = layers_of_blocks(self.model, self.family) if passes is None else [*passes.modules_of_layers]
        layers = layers[self.share.start : self.share.stop]
        before = embeddings_of(self.model, self.family) if self.first_state is None else self.first_state
        named: list[Layer] = [*range(self.share.start, self.share.start + len(layers) + 1)]
        return dict(zip(named, [before, *layers], strict=True))

    def _show_first_state(self, _block: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        assert self.first_state is not None
        return (self.first_state(inputs[0]), *inputs[1:])

    def arrive(self, state: Tensor) -> None:
        """Take the state of layer ``share.start``, ``[batch, seq, hidden]``, for the next forward pass."""
        assert self._arrival is not None, "it has embeddings of its own"
        self._arrival.state = state

    def leave(self) -> Tensor | None:
        """Give away the state behind the last block, ``[batch, seq, hidden]``, after a pass of a share without output.

        It is kept no longer; None where there was no pass since.
        """
        state, self._leaving = self._leaving, None
        return state

    def begin_behind(self, number: int) -> None:
        """Leave out embeddings and the first blocks from now on: the state behind these has to :meth:`arrive`."""
        self.share = replace(self.share, start=number, has_embeddings=False)
        self._arrival, self.first_state = keep_share(self.model, self.family, self.share), None

    def drop_beyond_taps(self) -> list[nn.Module]:
        """Leave out the blocks above the last tapped layer, and an LM head of its own; returns what was dropped.

        There are no predictions afterwards. A share of a model has been cut there already.
        """
        if not self.share.is_whole or "drop" in self.family.refused:
            return []
        dropped: list[nn.Module] = []
        if not self.family.is_stacked:  # whose last blocks are of a decoder, which reads all of the encoder
            dropped += self._drop_blocks()
        head = lm_head_of(self.model, self.family) if self.has_lm_head else None
        embeddings: Any = self.model.get_input_embeddings()
        if isinstance(head, VocabularyHead) and head.weight is not embeddings.weight:
            dropped.append(head)
            put_part(self.model, self.family.lm_head_path, nn.Identity())
        for path in self.family.before_lm_head if isinstance(head, VocabularyHead) else ():
            dropped.append(self.model.get_submodule(path))
            put_part(self.model, path, nn.Identity())
        self._can_predict = False
        return dropped

    def _drop_blocks(self) -> list[nn.Module]:
        """Leave out the blocks above the last tapped layer; returns them."""
        blocks = blocks_of(self.model, self.family)
        # layer 0 may be known by who takes it alone
        kept = max(*map(number_of, self.layers), 0 if self.first_state is None else 1)
        dropped: list[nn.Module] = []
        if self.passes is None:
            dropped += blocks[kept:]
            del blocks[kept:]
        elif len(blocks) > 1:  # of fewer passes, each block would have others
            kept = self.share.stop
        self.model.config.num_hidden_layers = kept
        self.share = replace(self.share, stop=kept)
        return dropped

    def _install_lm_head(self) -> None:
        head = lm_head_of(self.model, self.family)
        assert isinstance(head, nn.Linear), f"the LM head of a {self.model.config.model_type} is no linear layer"
        rule = logit_rule_of(self.model.config, self.family)
        put_part(self.model, self.family.lm_head_path, VocabularyHead.of(head, rule))

    def _vocabulary_predictions(self, hidden: Tensor, routers: Sequence[Tensor]) -> VocabularyPredictions:
        """What the LM head makes of the body's last hidden states ``[batch, seq, hidden]``."""
        head: Any = lm_head_of(self.model, self.family)
        head.added = added_to_logits(self.model, self.family)
        for module in behind_body_of(self.model, self.family):
            hidden = module(hidden)
        return VocabularyPredictions(hidden, head, routers, self._num_chosen)

    def _tap(self, layer: Layer) -> Callable[[nn.Module, Any, Any], None]:
        places = [place for place, other in enumerate(self.layers) if other == layer and place in self._places]

        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if not self._is_running:  # others may tap the same model
                return
            state: Tensor = self._rows.part(output[0] if isinstance(output, tuple | list) else output)
            if self._on_state is None:
                self._captured[layer] = state
                return
            for place in places:
                self._on_state(place, state)

        return hook

    def forward(
        self,
        inputs: Mapping[str, Tensor],
        then: Callable[[Predictions | None, tuple[Tensor, ...]], Result] | None = None,
        *,
        with_predictions: bool = True,
        on_state: OnState | None = None,
    ) -> Result | tuple[Tensor, tuple[Tensor, ...]]:
        """Run the model on ``inputs``: ``input_ids`` and what goes with them, all ``[batch, seq]``.

        Args:
            inputs: What the model takes; an encoder-decoder's ``target_ids``, too, ``[batch, targets]``, which its
                decoder is to predict.
            then: Gets the predictions and the states, within this forward pass, where an engine that shards the
                weights has them at hand.
            with_predictions: Whether to compute what the predictions need beyond the states; else they are None.
            on_state: Gets each tapped state as soon as it exists, and nothing keeps it then.

        Returns:
            What ``then`` returns. Without it, the plain logits (``[batch, seq, vocab]`` or ``[batch, labels]``), and
            the states ``[batch, seq, hidden]`` in the order of ``layers`` (none where ``on_state`` took them). A share
            without output has no predictions; of other places in the layer map, the state is None.
        """
        arguments: dict[str, Any] = dict(inputs)
        if not self._takes_token_types:  # a table of one row has none for the second text; GPT-2 would add words
            arguments.pop("token_type_ids", None)
        if self.family.is_stacked:
            arguments = with_decoder_inputs(arguments, self.model.config)
        if getattr(self.model.config, "use_cache", False):
            arguments["use_cache"] = False
        if self._needs_positions and "position_ids" not in arguments:
            arguments["position_ids"] = positions_in_row(attention_mask_of(arguments))
        if self._row_of_padding is not None:
            arguments["position_ids"] = positions_behind(self._row_of_padding, arguments)
        if self.share.is_empty:
            self._rows = Rows()
        else:
            self._rows, arguments = keep_apart(arguments, self.model, finds_documents=self.family.finds_documents)
        if self._arrival is not None:
            self._arrival.state = self._rows.join(self._arrival.state)
        with_predictions = with_predictions and self.share.has_output
        assert self._can_predict or (then is not None and not with_predictions), "its head is not here"
        self._on_state, self._is_running = on_state, True
        try:
            predictions: Predictions | None = None
            logits: Tensor | None = None
            if self.share.is_empty:
                assert self._arrival is not None
                self._leaving = put_out(self._arrival, self.modules_of_layers()[self.share.start])
            elif with_predictions and not self.has_lm_head:
                logits = self._label_logits(arguments)
                predictions = DensePredictions(logits)
            elif then is None:
                logits = self._rows.part(self.model(**arguments).logits)
            else:
                if self._num_chosen:
                    arguments["output_router_logits"] = with_predictions and torch.is_grad_enabled()
                if self.family.is_stacked:
                    outputs = run_stacks(self.model, self.family, arguments)
                else:
                    outputs = self.model.base_model(**arguments)
                hidden = self._rows.part(outputs.last_hidden_state)
                self._leaving = None if self.share.has_output else hidden
                if with_predictions:
                    predictions = self._vocabulary_predictions(hidden, getattr(outputs, "router_logits", None) or ())
            states: Any = ()
            if on_state is None:
                states = tuple(self._captured.get(layer) for layer in self.layers)
        finally:
            self._captured.clear()
            self._on_state, self._is_running = None, False
            if self._arrival is not None:
                self._arrival.state = None
        if then is None:
            assert logits is not None
            return logits, states
        return then(predictions, states)
