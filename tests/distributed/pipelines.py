"""Stages of tiny models on real ranks, and what they train."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from ted_ds.config.deepspeed import complete
from ted_ds.data.loader import Collator
from ted_ds.models.families import family_of
from ted_ds.models.share import Share
from ted_ds.models.student import FilteredModel
from ted_ds.models.taps import TappedModel
from ted_ds.numerics.filters import FilterBank
from ted_ds.numerics.task_terms import TASK_TERMS
from ted_ds.runtime.cargo import Waybill
from ted_ds.runtime.frozen import FrozenModel
from ted_ds.runtime.pipeline import PipelineRunner, Travellers
from ted_ds.runtime.sharding import full_state_dict
from ted_ds.stages.distill import AbsentTeacher, DistillObjective
from ted_ds.stages.finetune import FinetuneObjective
from ted_ds.stages.learn_filters import FilterObjective
from tests.distributed.steps import training_steps
from tests.distributed.training import (
    FILTER_DIM,
    GLOBAL_BATCH,
    HIDDEN,
    MICRO_BATCH,
    NUM_STEPS,
    STUDENT_LAYERS,
    TEACHER_LAYERS,
    WEIGHTS,
    load_tapped,
    plan,
    raw_config,
    samples,
)
