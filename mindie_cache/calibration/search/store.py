"""The folder of a search: what it is about, uncached generations, every finished evaluation. Nothing in it is overwritten.

Ranks share it. Each process appends to a file of its own, one line an evaluation; work is claimed by locks that the
operating system releases when a process ends in whatever way, so a dead rank loses only what it was doing.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mindie_cache.calibration import files
from mindie_cache.calibration.search.made import Made
from mindie_cache.errors import ConfigError

HEADER, PROFILE, VERSION = "search.json", "profile.json", 1
_FORMAT = "mindie_cache search"
_KINDS: dict[str, Any] = {
    "key": str,
    "config": dict,
    "prompt": int,
    "scores": dict,
    "share": (int, float),
    "seconds": (int, float),
}


@dataclass(frozen=True)
class Evaluation:
    """One setting on one prompt.

    Args:
        key: of the setting and the prompt.
        config: fields of the CacheConfig.
        prompt: index.
        scores: errors by name; None stands for NaN or infinity.
        share: calls computed over all calls.
        seconds: measured; where the beginning was taken from the uncached generation, that one's are added.
        notes: warnings.
        schedule: of each branch, by name, the steps in which nothing was reused.
        uncached: seconds of the uncached generation of the prompt, as fast as the machine was at that time; 0: unknown.
    """

    key: str
    config: dict[str, Any]
    prompt: int
    scores: dict[str, float | None]
    share: float
    seconds: float
    notes: tuple[str, ...] = ()
    schedule: tuple[tuple[str, tuple[int, ...]], ...] = ()
    uncached: float = 0.0


class Store:
    """The folder `path`, made if need be.

    Args:
        header: what the search is about; a folder of another search is refused.

    Raises:
        ConfigError: the folder is of something else, or damaged, or cannot be written.
    """

    def __init__(self, path: Path, header: Mapping[str, Any], rank: int = 0):
        self.path, self.rank = path, rank
        self.mark = hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()[:12]
        self._known: dict[str, Evaluation] = {}
        self._read: dict[Path, int] = {}  # bytes of each file that are known
        self._own: Path | None = None
        self._held: dict[str, Any] = {}
        self._open({"format": _FORMAT, "version": VERSION, **header})
        self.refresh()

    def _open(self, header: dict[str, Any]) -> None:
        files.prepare(self.path / HEADER)
        head = self.path / HEADER
        if not head.exists():
            strangers = sorted(entry.name for entry in self.path.iterdir() if not entry.name.startswith("."))
            if strangers and not head.exists():  # another rank may have made it meanwhile
                raise ConfigError(
                    f"--out {self.path} is not empty and holds no search (it has {', '.join(strangers[:3])}, but no "
                    f"{HEADER}). Nothing was changed. Choose another folder."
                )
            _write_once(head, json.dumps(header, indent=1) + "\n")
        found = _read_json(head)
        if found.get("format") != _FORMAT:
            raise ConfigError(f"{head} is not the state of a search. Nothing was changed. Choose another --out.")
        for name in header.keys() | found.keys():
            if found.get(name) != json.loads(json.dumps(header.get(name))):
                raise ConfigError(
                    f"--out {self.path} holds another search: {name} is {found.get(name)!r} there, and {header.get(name)!r} "
                    "here. Nothing was changed. Repeat the arguments of that search, or choose another folder."
                )

    def refresh(self) -> None:
        """Read what ranks have finished since.

        Raises:
            ConfigError: a file is damaged. What a killed process left of its last line does not count as damage.
        """
        for path in sorted(self.path.glob("evaluations-*.jsonl")):
            start = self._read.get(path, 0)
            if path.stat().st_size <= start:
                continue
            with path.open("rb") as file:
                file.seek(start)
                whole, newline, _ = file.read().rpartition(b"\n")
            for number, line in enumerate(whole.split(b"\n") if newline else [], 1):
                entry = _parsed(line, path, number if start == 0 else 0)
                self._known.setdefault(entry.key, entry)
            self._read[path] = start + len(whole) + len(newline)

    def get(self, key: str) -> Evaluation | None:
        return self._known.get(key)

    def add(self, entry: Evaluation) -> None:
        """Append an evaluation; it is on disk when this returns."""
        if self._own is None:
            self._own = self._own_file()
        line = json.dumps({**asdict(entry), "notes": list(entry.notes)}, allow_nan=False) + "\n"
        with self._own.open("ab") as file:
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())
        self._known[entry.key] = entry

    def _own_file(self) -> Path:
        """A file that no living process writes to, and that does not end in half a line."""
        number = 0
        while True:
            path = self.path / f"evaluations-{self.rank}{f'-{number}' if number else ''}.jsonl"
            if self._lock(path.name) and _is_whole(path):
                return path
            number += 1

    def _lock(self, name: str) -> Any:
        """An open file that holds the lock of that name, or None if another process has it."""
        import fcntl

        folder = self.path / ".locks"
        folder.mkdir(exist_ok=True)
        file = (folder / name).open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        except OSError as error:
            file.close()
            raise ConfigError(
                f"--out {self.path} is on a file system without locks ({error.strerror}). Choose a folder on another one."
            ) from None
        self._held[name] = file  # a file that is collected would give its lock back
        return file

    @contextmanager
    def claim(self, key: str) -> Iterator[bool]:
        """Whether `key` is this process's to evaluate, as long as the block lasts."""
        file = self._lock(key)
        try:
            yield file is not None
        finally:
            if file is not None:
                self._held.pop(key).close()

    @contextmanager
    def waiting(self, name: str) -> Iterator[None]:
        """One process after the other."""
        while True:
            with self.claim(name) as mine:
                if mine:
                    yield
                    return
            time.sleep(0.05)

    def baseline(self, prompt: int) -> Made | None:
        """The uncached generation of a prompt, if it is there."""
        path = self.path / f"uncached-{prompt}.pt"
        if not path.exists():
            return None
        try:
            found = torch.load(path, weights_only=True)
            return Made(**{**found, "trace": tuple(found["trace"]), "step_seconds": tuple(found["step_seconds"])})
        except Exception as error:  # torch.load raises many kinds on a damaged file
            raise _damaged(path, str(error).splitlines()[0] if str(error) else type(error).__name__) from error

    def add_baseline(self, prompt: int, made: Made) -> None:
        values = {**vars(made), "trace": list(made.trace), "step_seconds": list(made.step_seconds)}
        files.write_with(self.path / f"uncached-{prompt}.pt", partial(torch.save, values))

    def read(self, name: str) -> dict[str, Any] | None:
        path = self.path / name
        return _read_json(path) if path.exists() else None

    def write(self, name: str, values: Mapping[str, Any]) -> None:
        files.write(self.path / name, values)


def _is_whole(path: Path) -> bool:
    if not path.exists() or not path.stat().st_size:
        return True
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"


def _parsed(line: bytes, path: Path, number: int) -> Evaluation:
    where = f"line {number}: " if number else ""
    try:
        found = json.loads(line)
    except ValueError as error:
        raise _damaged(path, f"{where}no JSON ({error})") from None
    if not isinstance(found, dict) or any(not isinstance(found.get(name), kind) for name, kind in _KINDS.items()):
        raise _damaged(path, f"{where}not an evaluation of a search")
    numbers = [found.get("uncached", 0.0)] + [
        value for value in (*found["scores"].values(), found["share"], found["seconds"]) if value is not None
    ]
    if any(isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) for value in numbers):
        raise _damaged(path, f"{where}a score, share or time is no number")
    schedule = tuple([(name, tuple(steps)) for name, steps in found.get("schedule", ())])
    others: dict[str, Any] = {
        "notes": tuple(found.get("notes", ())),
        "schedule": schedule,
        "uncached": float(found.get("uncached", 0.0)),
    }
    return Evaluation(**{name: found[name] for name in _KINDS}, **others)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _damaged(path, f"no JSON ({error})") from None
    if not isinstance(found, dict):
        raise _damaged(path, "no JSON object")
    return found


def _damaged(path: Path, what: str) -> ConfigError:
    return ConfigError(
        f"{path} is damaged or not of this search: {what}. Nothing was changed. Restore it, move it away to lose what it "
        "holds, or choose another --out."
    )


def _write_once(path: Path, text: str) -> None:
    """Write a file whole, unless it is there already."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(name, 0o644)
        os.link(name, path)
    except FileExistsError:
        pass
    finally:
        Path(name).unlink(missing_ok=True)
