"""Large-scale distillation of language models on DeepSpeed: task-aware layer-wise distillation (TED) and baselines."""

__version__ = "0.1.0"
