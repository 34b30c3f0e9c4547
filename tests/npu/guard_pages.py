"""Runs a function in a child process, on copies of memory that lie flush against pages which must not be touched."""

from __future__ import annotations

import ctypes
import faulthandler
import mmap
import os
import resource
import traceback
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

Side = Literal["end", "start"]
PAGE = mmap.PAGESIZE
GUARD = 2**24  # bytes on each side: a whole block too far still ends there
PROT_NONE = 0
FAILED = 97
_libc = ctypes.CDLL(None, use_errno=True)


class MemoryFault(RuntimeError):  # noqa: N818 - the name that processors have for it
    """The function touched memory outside of what it was given, or ended the process in another way."""


class Extent(NamedTuple):
    """`size` bytes from `address`."""

    address: int
    size: int

    @property
    def end(self) -> int:
        return self.address + self.size


class _Guarded:
    """A copy of an extent between inaccessible pages; `shift` is what to add to an address of the original."""

    def __init__(self, extent: Extent, side: Side) -> None:
        body = -(-extent.size // PAGE) * PAGE
        self.extent = extent
        self.memory = mmap.mmap(-1, body + 2 * GUARD)  # shared with the child: what it writes is seen here
        base = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.guards = (base, base + GUARD + body)
        self.address = base + GUARD + (body - extent.size if side == "end" else 0)
        self.shift = self.address - extent.address
        ctypes.memmove(self.address, extent.address, extent.size)

    def protect(self) -> None:
        for guard in self.guards:
            if _libc.mprotect(ctypes.c_void_p(guard), GUARD, PROT_NONE):
                raise OSError(ctypes.get_errno(), "mprotect")

    def copy_back(self) -> None:
        ctypes.memmove(self.extent.address, self.address, self.extent.size)


def run_guarded(function: Callable[[Callable[[int], int]], None], extents: Sequence[Extent], side: Side) -> None:
    """Call ``function(moved)`` in a child; ``moved(address)`` is where the copy of an extent that begins there lies.

    Extents that overlap are copied as one. A copy ends (`side="end"`) or starts (`side="start"`) exactly where memory that
    must not be touched starts or ends. Afterwards the copies are written back.

    Raises:
        MemoryFault: the function touched other memory, or ended the process.
        RuntimeError: the function raised an exception; its text is here.
    """
    blocks = [_Guarded(extent, side) for extent in _merged(extents)]

    def moved(address: int) -> int:
        holding = [block for block in blocks if address in range(block.extent.address, block.extent.end)]
        empty = [block for block in blocks if address == block.extent.address]
        return (holding or empty)[0].shift + address

    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        _in_child(function, moved, blocks, writer)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == FAILED:
        raise RuntimeError(said)
    if code:
        raise MemoryFault(f"The process ended with {code} (-11 is a memory fault); the guard page was at the {side}.")
    for block in blocks:
        block.copy_back()


def _in_child(
    function: Callable[[Callable[[int], int]], None], moved: Callable[[int], int], blocks: list[_Guarded], writer: int
) -> None:
    try:
        faulthandler.disable()  # the parent reports
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for block in blocks:
            block.protect()
        function(moved)
        os._exit(0)
    except BaseException:
        os.write(writer, traceback.format_exc()[-4000:].encode())
        os._exit(FAILED)


def _merged(extents: Sequence[Extent]) -> list[Extent]:
    """The extents without overlaps, in the order of their addresses."""
    merged: list[Extent] = []
    for extent in sorted(extents):
        if merged and extent.address < merged[-1].end:
            last = merged.pop()
            extent = Extent(last.address, max(last.end, extent.end) - last.address)
        merged.append(extent)
    return merged
