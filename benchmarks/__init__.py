"""What ted_ds promises about speed and memory, measured: ``python -m benchmarks.NAME [--quick] [--json FILE]``."""
