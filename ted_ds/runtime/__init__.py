"""Processes, engines and sharding: the only place that imports deepspeed."""

import logging

# said at each import on a machine without a GPU; a run's first line names its device
logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in record.getMessage())
