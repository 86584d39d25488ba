"""Where a recipe's models become objects: loaded, cut to this rank's stage, hosted, gathered, saved."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ted_ds.assembly.given import Given
from ted_ds.config.deepspeed_keys import zero_stage
from ted_ds.config.lora import Lora
from ted_ds.config.pair import Student, Teacher
from ted_ds.errors import TedError
from ted_ds.models.adapters import AdapterSettings, add_adapters, has_adapters, merged_state, save_adapters
from ted_ds.models.choices import choose_among_rows
from ted_ds.models.companions import accompany, hub_name
from ted_ds.models.execution import checkpoint_activations, compile_blocks
from ted_ds.models.family import Family
from ted_ds.models.files import read_model_facts
from ted_ds.models.found import family_of_folder
from ted_ds.models.frozen_prefix import freeze_prefix
from ted_ds.models.loading import DTYPES, LoadSettings, load_model
from ted_ds.models.quantised import quantise_blocks
from ted_ds.models.share import Share
from ted_ds.models.taps import TappedModel
from ted_ds.models.tensor_files import read_ahead
from ted_ds.numerics.layer_map import Layer
from ted_ds.planning.hosting import IN_WORDS, Hosting
from ted_ds.planning.memory import SHARDED_HOSTS, gib
from ted_ds.planning.phase_memory import with_head
from ted_ds.planning.pipeline_cut import Stage
from ted_ds.runtime.determinism import seed_everything
from ted_ds.runtime.free_memory import free_host_bytes
from ted_ds.runtime.frozen import FrozenModel, frozen_engine_config, offload_to
from ted_ds.runtime.sharding import full_state_dict, sharded_loading

TASK_TYPES = {
    "CausalLM": "CAUSAL_LM",
    "Seq2SeqLM": "SEQ_2_SEQ_LM",
    "SequenceClassification": "SEQ_CLS",
    "TokenClassification": "TOKEN_CLS",
    "QuestionAnswering": "QUESTION_ANS",
}
"""peft's words for a model with its head, where it has one."""


class ModelMaker:
    """Makes the models of a run on this rank. Every rank must call everything."""

    def __init__(self, given: Given) -> None:
        self._recipe, self._world, self._deepspeed_json = given.recipe, given.world, given.deepspeed_json
        self._kind = given.kind
        self._tokenizers, self._screen, self._hosting = given.tokenizers, given.screen, given.hosting
        assert given.plan.teacher is not None  # it is known once its files are here
        self._largest_of_teacher = max(given.plan.teacher.parameters.sizes)
        self._readers, self._origins = given.readers, given.origins
        self._hands_over: torch.dtype | None = None
        """Of the states that a frozen model gives; None for what it computes in."""

    def as_if(self, *, precision: str, host: str) -> ModelMaker:
        """What makes the same models of a recipe of another precision, and with its teacher on another host."""
        other = copy.copy(self)
        other._recipe = self._recipe.model_copy(update={"precision": precision})
        other._hosting = Hosting(host, "to compare")
        return other

    def _in_fewer_bits(self, precision: str) -> ModelMaker:
        """What makes a teacher of another precision, which gives its states in that of the recipe."""
        other = self.as_if(precision=precision, host=self._hosting.host)
        other._hosting, other._hands_over = replace(self._hosting, precision=None), DTYPES[self._recipe.precision]
        return other

    def frozen(
        self,
        side: str,
        path: Path,
        layers: Sequence[Layer] = (),
        *,
        stage: Stage | None = None,
        new_head_allowed: bool = False,
        compiles: bool = True,
    ) -> FrozenModel:
        """A frozen, tapped model: the ``teacher`` on its host, the ``student`` whole or sharded like it.

        Args:
            side: Which of them.
            path: Its folder.
            layers: Its side of the layer map.
            stage: This rank's of a pipeline it is part of; None for all of the model, to be run on its own.
            new_head_allowed: Whether a head may start random; with ``preflight: warn`` a teacher's may anyhow.
            compiles: Whether its blocks are compiled where the recipe says so.
        """
        precision = self._hosting.precision
        if side == "teacher" and precision not in (None, self._recipe.precision):
            maker = self._in_fewer_bits(str(precision))
            return maker.frozen(side, path, layers, stage=stage, new_head_allowed=new_head_allowed, compiles=compiles)
        new_head_allowed = new_head_allowed or self._recipe.preflight == "warn"
        share = _share(stage, side)
        host = self._hosting.host
        if side == "student":
            host = "zero3" if self._hosting.is_sharded else "replica"
        if share is None and self._world.num_stages > 1:
            host = "zero3"  # no rank is meant to hold all of it
        engine_config: dict[str, Any] | None = None
        if host in SHARDED_HOSTS:
            offload = offload_to(host, self._recipe.teacher.offload_dir, self._largest_of_teacher)
            engine_config = frozen_engine_config(self._deepspeed_json, self._recipe.precision, offload=offload)
        model, fresh = self._load(
            side, path, engine_config, share, new_head_allowed=new_head_allowed, compiles=compiles
        )
        tapped = self._tap(path, model, fresh, layers, share, stage)
        if host == "int8":
            quantise_blocks(tapped.model, family_of_folder(path), self._world.device)
        facts = read_model_facts(path)
        frozen = FrozenModel(
            tapped,
            device=self._world.device,
            engine_config=engine_config,
            num_parameters=with_head(self._recipe, facts).total if facts.quantisation else None,
            hands_over=self._hands_over,
        )
        held = self._world.gather((frozen.num_parameters, frozen.num_parameters_held, frozen.bytes_held))
        total = held[0][0] if share is None else sum(count for count, *_ in held[:: self._world.num_replicas])
        where = IN_WORDS[host] if share is None else "each stage its part" + (", in 8 bits" if host == "int8" else "")
        self._screen.say(
            f"  {path}: {total:,} parameters, {where}; per rank "
            f"{', '.join(f'{count:,}' for _, count, _ in held)}, at most {gib(max(size for *_, size in held))}"
        )
        return frozen

    def share(self, frozen: FrozenModel, module: nn.Module) -> None:
        """Keep once what a frozen model and the module beside it have in common; before an engine takes that."""
        if zero_stage(self._deepspeed_json) == 3:  # the engine will shard its own
            return
        for parameter in module.parameters():
            if not parameter.requires_grad:  # the engine would bring it to the device only later
                parameter.data = parameter.data.to(self._world.device)
        shared = self._world.gather(frozen.share_with(module))
        if any(shared):
            counts = ", ".join(f"{count:,}" for count in shared)
            self._screen.say(f"  parameters equal on both sides, kept once; per rank {counts}")

    def drop_beyond_taps(self, frozen: FrozenModel) -> None:
        """Free what no matched layer needs of a frozen model that is not asked for predictions."""
        dropped = self._world.gather(frozen.drop_beyond_taps())
        if any(dropped):
            freed = ", ".join(f"{count:,}" for count in dropped)
            self._screen.say(f"  parameters that no matched layer needs, freed per rank: {freed}")

    def trained(
        self, side: str, path: Path, config: Mapping[str, Any], layers: Sequence[Layer] = (), *, stage: Stage | None
    ) -> TappedModel:
        """A tapped model to be trained under a completed DeepSpeed config; ZeRO-3 shards it as it loads."""
        share = _share(stage, side)
        shard_config = config if zero_stage(config) == 3 else None
        model, fresh = self._load(side, path, shard_config, share, new_head_allowed=True, trains=True)
        if self._recipe.activation_checkpointing:
            checkpoint_activations(model, family_of_folder(path))
        lora = self._recipe.student.lora
        if side == "student" and lora is not None:
            self._add_adapters(model, family_of_folder(path), lora, fresh)
        elif side == "student" and self._recipe.student.freeze_embeddings:
            embeddings: Any = model.get_input_embeddings()
            embeddings.requires_grad_(False)
        if side == "student" and self._recipe.student.freeze_blocks is not None:
            freeze_prefix(model, family_of_folder(path), self._recipe.student.freeze_blocks)
        return self._tap(path, model, fresh, layers, share, stage)

    def _add_adapters(self, model: PreTrainedModel, family: Family, lora: Lora, fresh: Sequence[str]) -> None:
        """Put the recipe's adapters into a student, the same on every rank, and say what trains."""
        settings = AdapterSettings(lora.rank, lora.scaled_by, lora.dropout, lora.targets)
        seed_everything(self._recipe.seed, phase="adapters")
        with self._world.together():
            add_adapters(model, family, settings, fresh)
        total, trained = (
            sum(getattr(one, "ds_numel", one.numel()) for one in model.parameters() if one.requires_grad or not trains)
            for trains in (False, True)
        )
        self._screen.say(f"  adapters of rank {lora.rank}: {trained:,} of the student's {total:,} parameters train")

    def output_of(self, side: str, path: Path, num_blocks: int) -> TappedModel:
        """What a model makes of the state behind its last block, frozen: all of it but embeddings and blocks."""
        share = Share(num_blocks, num_blocks, has_embeddings=False, has_output=True)
        model, fresh = self._load(side, path, None, share, new_head_allowed=True)
        return self._tap(path, model, fresh, (), share, None).requires_grad_(False)

    def base_of(self, tapped: TappedModel, layers: Sequence[Layer]) -> TappedModel:
        """A student's model once more, tapped at the teacher's side of the layer map; before an engine takes it."""
        return TappedModel(tapped.model, tapped.family, layers, pooled=self._recipe.task.pooled)

    def _tap(
        self,
        path: Path,
        model: PreTrainedModel,
        fresh: Sequence[str],
        layers: Sequence[Layer],
        share: Share | None,
        stage: Any,
    ) -> TappedModel:
        places = stage.places if share is not None and layers else None
        family = family_of_folder(path)
        return TappedModel(
            model, family, layers, fresh_parameters=fresh, share=share, places=places, pooled=self._recipe.task.pooled
        )

    def _load(
        self,
        side: str,
        path: Path,
        shard_config: Mapping[str, Any] | None,
        share: Share | None,
        *,
        new_head_allowed: bool,
        trains: bool = False,
        compiles: bool = True,
    ) -> tuple[PreTrainedModel, list[str]]:
        """A model with the blocks of its share, and the names of its head's weights that start random."""
        # a new head must start the same on every rank and, by its own seed, in every phase that needs one
        seed_everything(self._recipe.seed, phase="model")
        with self._world.together():  # a sharded load communicates: make sure first that every rank can read it
            read_model_facts(path)
        if shard_config is None and share is None:  # else ranks read different parts, or one rank reads for all
            free = free_host_bytes(self._world)
            self._world.first_on_host(lambda: read_ahead(path, free))
        loaded: tuple[PreTrainedModel, list[str]] | TedError
        try:
            loaded = load_model(
                path,
                LoadSettings(
                    DTYPES[self._recipe.precision],
                    sharded_loading(shard_config) if shard_config else contextlib.nullcontext(),
                    self._recipe.attention,
                    self._world.device,
                    self._dropout_of(side, path) if trains else {},
                ),
                head=self._kind.head_config,
                architecture=self._recipe.task.architecture,
                new_head_allowed=new_head_allowed,
                share=share,
            )
        except TedError as error:
            loaded = error
        model, fresh = self._world.settle(loaded)
        if self._recipe.task.rows_per_example > 1:
            choose_among_rows(model, self._recipe.task.rows_per_example)
        self._name_padding(side, path, model)
        if compiles and self._recipe.torch_compile and shard_config is None:
            compile_blocks(model, family_of_folder(path))
        return model, fresh

    def _dropout_of(self, side: str, path: Path) -> dict[str, float]:
        """What the recipe says of the dropout of a model that trains, in words of its config."""
        section: Teacher | Student = getattr(self._recipe, side)
        family = read_model_facts(path).family
        return {
            key: share
            for what, share in section.dropout.given.items()
            for key in family.dropout_keys(what, self._recipe.task.architecture)
        }

    def _name_padding(self, side: str, path: Path, model: PreTrainedModel) -> None:
        """Let a model's config name what its tokenizer pads with, by which transformers finds a decoder's last token.

        Not where this would change the token that any text is read at: a text may end with the end token, which often
        stands for padding. Nor where positions begin behind that id. Such a model keeps the id it was trained with, or
        none, as does its export.
        """
        if family_of_folder(path).padding_row_key == "pad_token_id":
            return
        config: Any = model.config.get_text_config()
        pad_id: Any = self._tokenizers[side].pad_token_id
        pad_ids = {getattr(config, "pad_token_id", None), pad_id}
        if self._readers.of(side).last_token_ids.isdisjoint(pad_ids):
            config.pad_token_id = pad_id

    # --- trained weights ----------------------------------------------------------------------------------------

    def whole_state(self, module: nn.Module) -> dict[str, Tensor]:
        """A module's whole weights from all ranks, on rank 0."""
        aliases: Mapping[str, str] = getattr(module, "aliases", {})
        state = full_state_dict(module, keep=self._world.replica == 0)
        own = {name: weight for name, weight in state.items() if name not in aliases}
        return self._world.collect_stages(own) if self._world.num_stages > 1 else own if self._world.is_main else {}

    def save(self, side: str, tapped: TappedModel, state: Mapping[str, Tensor], folder: Path) -> None:
        """Write a plain transformers folder; ``state`` is what :meth:`whole_state` says of ``tapped``. One rank."""
        model = tapped.model
        if self._world.num_stages > 1:  # its own parts are not all of them
            with torch.device("meta"):
                whole: Any = type(model)(model.config)
            whole.to(model.dtype)  # which its config.json says
            if model.can_generate():
                whole.generation_config = model.generation_config
            model = whole
        own_names = {name.removeprefix("model."): weight for name, weight in state.items()}
        if has_adapters(model):
            own_names = merged_state(model, own_names)
        own_names |= {name: buffer.cpu() for name, buffer in tapped.buffers_in_files.items()}
        model.save_pretrained(folder, state_dict=own_names)
        accompany(folder, self._origins, side)

    def save_adapters(self, tapped: TappedModel, state: Mapping[str, Tensor], folder: Path) -> None:
        """Write the student's adapters, beside its base, as peft reads them; ``state`` is as for :meth:`save`."""
        base = self._origins.student or self._origins.teacher
        own_names = {name.removeprefix("model."): weight for name, weight in state.items()}
        task_type = TASK_TYPES.get(self._recipe.task.architecture)
        name = hub_name(base) or base.resolve().name
        save_adapters(tapped.model, own_names, folder, base=name, task_type=task_type)


def _share(stage: Stage | None, side: str) -> Share | None:
    return None if stage is None else stage.shares[side]
