"""The library on a device 'npu' in pure Python: tests/on_fake_npu.py, in a process of its own, because a device stays."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


@pytest.mark.skipif(
    not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this PyTorch has no devices in Python",
)
def test_on_a_device_in_python():
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MINDIE_CACHE_OPS": "reference"}
    command = [sys.executable, "-m", "pytest", "-p", "no:xdist", "-p", "no:cacheprovider", HERE / "on_fake_npu.py"]
    done = subprocess.run(command, cwd=HERE.parent, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-2_000:]
    assert " passed" in done.stdout
