"""``python -m ted_ds`` and ``deepspeed --module ted_ds``."""

from ted_ds.cli import entry

if __name__ == "__main__":
    entry()
