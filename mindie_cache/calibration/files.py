"""Calibration files: where they may be written, and how, so that no half of a file is ever seen."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from mindie_cache.errors import ConfigError


def prepare(path: str | os.PathLike[str]) -> Path:
    """Make the folder of `path` and see that a file can be written there: before the work, not after it.

    Returns:
        The absolute path, so that the file is found there even if the working directory changes.

    Raises:
        ConfigError: it cannot be.
    """
    target = Path(path).absolute()
    if target.is_dir() or not target.name:
        raise ConfigError(f"output path {str(path)!r} is a folder. Name a file, e.g. {str(target / 'calibration.json')!r}.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise ConfigError(
            f"output path {str(path)!r} cannot be written: {error.strerror or error}. Choose another folder."
        ) from None
    return target


def encode(document: Mapping[str, Any]) -> str:
    """JSON, one line for each top-level key. NaN and infinity are no JSON: ValueError."""
    lines = [f"  {json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in document.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def write(path: str | os.PathLike[str], document: Mapping[str, Any]) -> None:
    """Write `document` as JSON, whole or not at all: what was there stays until the new file is complete."""
    write_text(path, encode(document))


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text, whole or not at all."""
    write_with(path, lambda file: file.write(text.encode()))


def write_with(path: str | os.PathLike[str], fill: Callable[[BinaryIO], Any]) -> None:
    """Write what `fill` puts into a binary file, whole or not at all, also where several processes write the same file."""
    target = prepare(path)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, _mode(target))
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _mode(target: Path) -> int:
    """Permissions of the file that is replaced, or those of a new file (mkstemp's are for the owner only)."""
    if target.exists():
        return target.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
