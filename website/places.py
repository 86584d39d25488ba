"""Where things are."""

from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
