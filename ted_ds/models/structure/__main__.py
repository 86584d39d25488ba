"""``python -m ted_ds.models.structure``: a ``config.json`` comes in, and what was found of it goes out as JSON."""

from __future__ import annotations

import json
import os
import sys

from ted_ds.errors import CheckpointError
from ted_ds.models.found import family_as_json, family_from_json
from ted_ds.models.structure.find import find_family


def main() -> None:
    """Read a config from the standard input, and print one line."""
    try:
        family = find_family(json.load(sys.stdin))
    except CheckpointError as error:
        answer = {"refused": str(error)}
    else:
        content = family_as_json(family)
        assert family_from_json(content) == family, "a record that JSON does not hold"
        answer = {"family": content}
    print(f"\n{json.dumps(answer)}", flush=True)
    os._exit(0)  # the teardown of torch's threads may abort


if __name__ == "__main__":
    main()
