"""The code of ``docs/python.md``, as it stands there."""

from __future__ import annotations

import re
from typing import Any

from tests.tiny import ROOT

BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks() -> list[str]:
    """Its blocks of Python, in their order."""
    return BLOCK.findall((ROOT / "docs" / "python.md").read_text(encoding="utf-8"))


def names_of(*wanted: str) -> dict[str, Any]:
    """What the blocks that define some names leave."""
    found: dict[str, Any] = {}
    for block in blocks():
        if any(re.search(rf"^(class|def) {name}\b", block, re.MULTILINE) for name in wanted):
            imports = "from __future__ import annotations\nfrom collections.abc import Sequence\nimport torch\n"
            exec(imports + block, found)
    return found
