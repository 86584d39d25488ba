"""The keys of a DeepSpeed JSON by section and type, those that DeepSpeed no longer has, and what ZeRO's say.

``tests/unit/config/test_deepspeed_sections.py`` holds them against the source of the DeepSpeed that is installed.
Those of ``optimizer`` and ``scheduler`` are in :mod:`~ted_ds.config.deepspeed_optimizers`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SWITCH, COUNT, BUCKET, NUMBER, TEXT, NAMES, SECTION = "switch", "count", "bucket", "number", "text", "names", "section"
RULES = {
    SWITCH: "use true or false",
    COUNT: "use a whole number, 0 or more",
    NUMBER: "use a number",
    BUCKET: "use a whole number above 0",
    TEXT: "use a text",
    NAMES: "use a list of names",
    SECTION: 'this section is a JSON object; "auto" is for values in it',
}
KEYS: Mapping[str, Mapping[str, str]] = {
    "": {
        BUCKET: "steps_per_print",
        COUNT: "train_batch_size train_micro_batch_size_per_gpu gradient_accumulation_steps sequence_parallel_size",
        NUMBER: "gradient_clipping gradient_predivide_factor",
        SWITCH: "dataloader_drop_last disable_allgather disable_python_gc dump_state memory_breakdown "
        "managed_gradient_accumulation "
        "prescale_gradients use_data_before_expert_parallelism wall_clock_breakdown zero_allow_untested_optimizer "
        "zero_force_ds_cpu_optimizer",
        TEXT: "communication_data_type gradient_allreduce_op log_level seq_parallel_communication_data_type",
        SECTION: "activation_checkpointing aio autotuning bf16 checkpoint comet comms_logger compile csv_monitor "
        "data_efficiency data_types expert_parallel flops_profiler fp16 hybrid_engine optimizer pipeline scheduler "
        "tensor_parallel tensorboard timers torch_autocast wandb weight_quantization zero_optimization",
    },
    "zero_optimization": {
        BUCKET: "reduce_bucket_size allgather_bucket_size",
        COUNT: "stage sub_group_size stage3_prefetch_bucket_size "
        "stage3_param_persistence_threshold stage3_model_persistence_threshold stage3_max_live_parameters "
        "stage3_max_reuse_distance stage3_module_granularity_threshold zero_hpz_partition_size",
        SWITCH: "contiguous_gradients reduce_scatter use_multi_rank_bucket_allreduce allgather_partitions "
        "overlap_comm compute_grad_norm load_from_fp32_weights elastic_checkpoint cpu_offload cpu_offload_param "
        "cpu_offload_use_pin_memory stage3_gather_16bit_weights_on_model_save "
        "stage3_gather_fp16_weights_on_model_save stage3_use_all_reduce_for_fetch_params "
        "stage3_allgather_sequential ignore_unused_parameters "
        "legacy_stage1 round_robin_gradients parameter_alignment zero_quantized_weights "
        "zero_quantized_nontrainable_weights zero_quantized_gradients memory_efficient_linear "
        "pipeline_loading_checkpoint override_module_apply log_trace_cache_warnings enable_sanity_checks "
        "save_muon_momentum_buffer_in_memory",
        SECTION: "offload_param offload_optimizer zenflow leaf_module",
    },
    "zero_optimization.offload_param": {
        TEXT: "device nvme_path",
        BUCKET: "buffer_count buffer_size",
        COUNT: "max_in_cpu",
        SWITCH: "pin_memory",
    },
    "zero_optimization.offload_optimizer": {
        TEXT: "device nvme_path",
        BUCKET: "buffer_count",
        SWITCH: "pin_memory pipeline_read pipeline_write fast_init super_offload",
        NUMBER: "ratio cpuadam_cores_perc",
    },
    "bf16": {
        SWITCH: "enabled immediate_grad_update check_grad_overflow bf16_master_weights_and_grads bf16_optimizer_states"
    },
    "fp16": {
        SWITCH: "enabled auto_cast consecutive_hysteresis fp16_master_weights_and_grads",
        NUMBER: "loss_scale",
        COUNT: "initial_scale_power",
        BUCKET: "loss_scale_window hysteresis min_loss_scale",
    },
    "torch_autocast": {SWITCH: "enabled", TEXT: "dtype", NAMES: "lower_precision_safe_modules"},
    "data_types": {TEXT: "grad_accum_dtype param_dtype buffer_dtype", NAMES: "keep_in_fp32_modules"},
    "activation_checkpointing": {
        SWITCH: "partition_activations contiguous_memory_optimization cpu_checkpointing profile "
        "synchronize_checkpoint_boundary",
        COUNT: "number_checkpoints",
    },
    "aio": {
        BUCKET: "block_size queue_depth intra_op_parallelism",
        SWITCH: "single_submit overlap_events use_gds",
    },
    "comms_logger": {SWITCH: "enabled prof_all verbose debug", NAMES: "prof_ops"},
    "flops_profiler": {
        SWITCH: "enabled detailed",
        NUMBER: "recompute_fwd_factor module_depth",
        COUNT: "profile_step",
        BUCKET: "top_modules",
        TEXT: "output_file",
    },
    "timers": {SECTION: "throughput"},
    "timers.throughput": {SWITCH: "enabled synchronized"},
    "tensorboard": {SWITCH: "enabled", TEXT: "output_path job_name"},
    "csv_monitor": {SWITCH: "enabled", TEXT: "output_path job_name"},
    "wandb": {SWITCH: "enabled", TEXT: "group team project"},
    "comet": {
        SWITCH: "enabled online",
        BUCKET: "samples_log_interval",
        TEXT: "project workspace api_key experiment_name experiment_key mode",
    },
}
"""The keys of each section, by type. Sections that are refused as a whole have none here."""
TYPES: Mapping[str, Mapping[str, str]] = {
    section: {key: kind for kind, keys in by_type.items() for key in keys.split()} for section, by_type in KEYS.items()
}
STAGE_3_KEYS = frozenset(key for key in TYPES["zero_optimization"] if key.startswith("stage3_") and "fp16" not in key)
"""DeepSpeed takes these without ``stage3_`` too."""
REMOVED: Mapping[str, str] = {
    "amp": "NVIDIA Apex AMP integration has been removed",
    "compression_training": "The DeepSpeed compression library has been removed",
    "curriculum_learning": "Legacy top-level 'curriculum_learning' has been removed",
    "eigenvalue": "Eigenvalue-based Mixture-of-Quantization (MoQ) has been removed",
    "elasticity": "Elastic training has been removed",
    "graph_harvesting": "Graph harvesting has been removed",
    "nebula": "Nebula checkpointing has been removed",
    "progressive_layer_drop": "Progressive Layer Dropping has been removed",
    "quantize_training": "Mixture-of-Quantization (MoQ) / 'quantize_training' has been removed",
    "sparse_attention": "DeepSpeed Sparse Attention has been removed",
    "sparse_gradients": "Sparse compression of dense torch.nn.Embedding gradients has been removed",
    "zero_optimization.mics_hierarchical_params_gather": "MiCS ZeRO-3 sharding has been removed",
    "zero_optimization.mics_shard_size": "MiCS ZeRO-3 sharding has been removed",
    "zero_optimization.zeropp_loco_param": "LoCo-Zero++ has been removed",
}
"""What DeepSpeed 0.19 no longer has, in its own words."""
OFFLOAD_PARTS = ("offload_param", "offload_optimizer")
"""The sections of ``zero_optimization`` that say where ZeRO keeps something."""


def zero_stage(config: Mapping[str, Any]) -> Any:
    """The ZeRO stage the JSON asks for (0 when it says nothing)."""
    return (config.get("zero_optimization") or {}).get("stage", 0)


def offload_device(config: Mapping[str, Any], part: str) -> Any:
    """Where the JSON keeps one of :data:`OFFLOAD_PARTS` (``none`` when it says nothing)."""
    return ((config.get("zero_optimization") or {}).get(part) or {}).get("device", "none")
