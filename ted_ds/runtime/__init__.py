"""Processes, engines and sharding: the only place that imports deepspeed."""
