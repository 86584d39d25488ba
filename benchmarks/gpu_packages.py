"""The packages that :mod:`benchmarks.gpu` needs beside torch, as pip wants them: ``python -m benchmarks.gpu_packages``.

Those that are installed here, with their versions, and all that they need; none of torch's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution

ROOTS = ("ted_ds", "pytest", "pytest-timeout", "pytest-xdist")
OF_TORCH = re.compile(r"torch$|nvidia-|cuda-|triton|setuptools$")
NOT_HERE = ("torchao>=0.18",)
"""What ted_ds can do without, and tests of a GPU ask for."""


def needed(roots: Iterable[str]) -> dict[str, str]:
    """Versions of packages and of all that they need, by their names; without extras."""
    found: dict[str, str] = {}
    left = [*roots]
    while left:
        name = re.sub(r"[-_.]+", "-", left.pop()).lower()
        if name in found or OF_TORCH.match(name):
            continue
        try:
            package = distribution(name)
        except PackageNotFoundError:  # for another system or Python
            continue
        found[name] = package.version
        wanted = (one for one in package.requires or () if "extra ==" not in one)
        left += [match.group() for one in wanted if (match := re.match(r"[\w.-]+", one)) is not None]
    return found


if __name__ == "__main__":
    for one in sorted(f"{name}=={version}" for name, version in needed(ROOTS).items() if name != "ted-ds"):
        print(one)
    print(*NOT_HERE, sep="\n")
