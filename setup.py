"""Build of mindie_cache. The top-level folder ops/ is installed as the package mindie_cache.ops."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "([^"]+)"', (HERE / "mindie_cache/version.py").read_text())[1]
OPS = ["mindie_cache.ops", *(f"mindie_cache.ops.{name}" for name in find_packages("ops"))]

TESTS = ["pytest", "pytest-xdist", "hypothesis", "build", "matplotlib", "playwright"]
ZOO = ["diffusers==0.42.1", "transformers", "accelerate", "peft", "sentencepiece", "ftfy"]  # what the tests run on

setup(
    name="mindie_cache",
    version=VERSION,
    description="Caching for diffusion-transformer inference on Ascend NPU, CUDA and CPU",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=[*find_packages(include=["mindie_cache", "mindie_cache.*"]), *OPS],
    package_dir={"mindie_cache.ops": "ops"},
    package_data={
        "mindie_cache": ["py.typed"],
        "mindie_cache.calibration.tuning.report": ["*.css", "*.js"],
        "mindie_cache.testbed": ["*.safetensors", "*.json"],
        "mindie_cache.presets": ["*.json"],
    },
    install_requires=["torch>=2.5", "numpy", "pyyaml", "einops", "safetensors", "tqdm", "pillow"],
    extras_require={
        "npu": ["torch_npu", "triton-ascend"],
        "cuda": ["triton"],
        "diffusers": ["diffusers>=0.30", "transformers"],
        "plot": ["matplotlib"],
        "search": ["optuna"],
        "dev": [*TESTS, *ZOO, "optuna", "ruff", "mypy", "types-PyYAML", "types-tqdm"],
    },
    entry_points={"console_scripts": ["mindie-cache=mindie_cache.cli:main"]},
    classifiers=[
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
