"""Ranks as processes of their own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack


def ranks(size, arguments, **environment):
    """Exit codes of the processes, started as torchrun does it (which ends all of them if one dies). What they print to
    stderr is shown if the test fails."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1", **environment}
    with ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(size)]  # a full pipe would stop its rank
        started = []
        for rank, said in enumerate(files):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
            started.append(subprocess.Popen([sys.executable, *arguments], env={**common, **place}, stderr=said))
        codes = [process.wait(timeout=120) for process in started]
        for rank, said in enumerate(files):
            said.seek(0)
            sys.stderr.write(f"rank {rank}: {said.read().decode(errors='replace')}\n")
    return codes
