"""Packaging of ted_ds."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "ted_ds" / "__init__.py").read_text(encoding="utf-8"))
assert VERSION is not None
SHIPPED = ("ds_configs", "launchers")
"""Folders of the root that an installed package has, too (``ted_ds/config/shipped.py``)."""


class BuildWithShipped(build_py):
    """Copies what ships beside the modules into the package."""

    def run(self) -> None:
        """Build the modules, and then this."""
        super().run()
        if self.editable_mode:
            return
        for name in SHIPPED:
            place = Path(self.build_lib) / "ted_ds" / "shipped" / name
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(ROOT / name, place, ignore=shutil.ignore_patterns("__pycache__"))


setup(
    name="ted_ds",
    version=VERSION.group(1),
    description="Task-aware layer-wise distillation of language models on DeepSpeed",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["ted_ds", "ted_ds.*"]),
    cmdclass={"build_py": BuildWithShipped},
    package_data={"ted_ds.reports": ["*.jinja"]},
    python_requires=">=3.11",
    install_requires=[
        "accelerate>=1.10",  # transformers needs it to load under ZeRO-3
        "aiohttp>=3.10",  # fsspec reads http:// with it
        "datasets>=4.0",
        "deepspeed>=0.19",
        "huggingface_hub>=1.0",
        "jaxtyping>=0.3",
        "jinja2>=3.1.6",  # transformers renders chat templates with it, from this version on
        "numpy>=2.0",
        "omegaconf>=2.3",
        "psutil>=6.0",
        "packaging>=24.0",
        "protobuf>=5.26",  # sentencepiece describes its model files with it
        "pydantic>=2.11",
        "pyyaml>=6.0",
        "rich>=13.0",
        "safetensors>=0.5",
        "scikit-learn>=1.5",
        "sentencepiece>=0.2",
        "threadpoolctl>=3.5",  # scikit-learn has it, too
        "tokenizers>=0.22",
        "torch>=2.6",
        "transformers>=5.0",
        "wandb>=0.20",
        "zstandard>=0.23",
    ],
    extras_require={
        "benchmarks": ["torchdata>=0.11"],  # a rival; the other, mosaicml-streaming, needs an environment of its own
        "demo": ["gguf>=0.19"],
        "docs": ["jupytext>=1.19", "latex2mathml>=3.81", "mkdocstrings-python>=2.0", "zensical==0.0.72"],
        "int8": ["torchao>=0.18"],
        "onnx": ["onnx>=1.21", "onnxruntime>=1.23", "onnxscript>=0.7"],
        "s3": ["s3fs>=2025.3"],
        "report": ["matplotlib>=3.9"],
        "lora": ["peft>=0.18"],
        "lm_eval": ["lm-eval[hf]>=0.4.9"],
        "tensorboard": ["tensorboard>=2.19"],
        "triton": ["triton>=3.2"],  # torch for CUDA brings it along
        "trackio": ["trackio>=0.43"],
        "dev": [
            "grimp",
            "hypothesis",
            "import-linter",
            "pyright[nodejs]",
            "pytest",
            "pytest-timeout",
            "pytest-xdist[psutil]",
            "pyyaml",
            "ruff",
        ],
    },
    entry_points={"console_scripts": ["ted-ds=ted_ds.cli:entry"]},
)
