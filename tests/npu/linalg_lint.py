"""What lowers to Linalg need not run well on a vector core, or at all: the vendor's rules, checked on the text of a kernel.

The rules are those of the programming guide and the migration guide of triton-ascend. Lowering lets all of this pass.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

LOCAL_BYTES = 96 * 1024  # a vector core of Atlas A2 has 192 KiB, and double buffering, which is the default, halves them
MOST_NAME = 49  # characters of a kernel's name that the runtime keeps


class Finding(NamedTuple):
    """A rule that a kernel breaks, and where."""

    rule: str
    detail: str


def lint(linalg: str, local_bytes: int = 0) -> list[Finding]:
    """Check the Linalg of one kernel and the bytes of its local buffers; return all that is wrong, without repetitions."""
    findings = [Finding(name, detail.strip()) for name, rule in RULES.items() for detail in rule(linalg)]
    if local_bytes > LOCAL_BYTES:
        findings.append(Finding("local memory", f"{local_bytes} B of {LOCAL_BYTES} B"))
    return list(dict.fromkeys(findings))


def _float64(linalg: str) -> Iterator[str]:
    """There is no double on a vector core."""
    yield from (line for line in linalg.splitlines() if re.search(r"(?:\b|x)f64\b", line))


def _int64_vectors(linalg: str) -> Iterator[str]:
    """They are computed element by element. Offsets are scalars, and those may be of any width."""
    yield from (line for line in linalg.splitlines() if re.search(r"tensor<(?:\d+x)+i64>", line))


def _integer_compares(linalg: str) -> Iterator[str]:
    """They are computed element by element, too. Masks of loads and stores do not count: the adapter makes sizes of them."""
    yield from re.findall(r"arith\.cmpi[^\n]*: tensor<(?:\d+x)+i(?:16|32|64)>", linalg)


def _scalar_loops(linalg: str) -> Iterator[str]:
    """A loop that moves single elements and no block."""
    for loop in _regions(linalg, "scf.for"):
        if re.search(r"memref\.(?:load|store) ", loop) and "memref.copy" not in loop:
            yield loop.splitlines()[0]


def _undefined_start(linalg: str) -> Iterator[str]:
    """A reduction that starts from memory nobody set, as the adapter makes of a custom function on bf16."""
    for start in re.findall(r"linalg\.reduce ins\([^)]*\) outs\((%[\w#]+)", linalg):
        yield from re.findall(rf"{re.escape(start)} = (?:tensor\.empty|bufferization\.alloc_tensor)\(\)[^\n]*", linalg)


def _external_calls(linalg: str) -> Iterator[str]:
    """They come from the vendor's library: neither on CUDA nor here are they the same function."""
    yield from re.findall(r"\bcall @(\w+)", linalg)


def _vendor_operations(linalg: str) -> Iterator[str]:
    """Operations of the vendor's own dialects have no meaning here; this one is only a hint."""
    yield from set(re.findall(r"\b((?:hivm|hfusion|annotation|gpu|triton)\.[a-z_.]+)", linalg)) - {"hivm.unlikely_condition"}


def _mixed_mode(linalg: str) -> Iterator[str]:
    """Caching multiplies no matrices: all of it belongs on vector cores."""
    mode = re.search(r'mix_mode = "(\w+)"', linalg)
    if mode is None or mode[1] != "aiv":
        yield f"mix_mode = {mode and mode[1]}"


def _long_names(linalg: str) -> Iterator[str]:
    """The runtime cuts longer names, and two kernels may become one."""
    yield from (name for name in re.findall(r"func\.func @(\w+)", linalg) if len(name) > MOST_NAME)


def _regions(text: str, operation: str) -> Iterator[str]:
    """Each occurrence of `operation` with its region, up to the brace that closes it."""
    for start in re.finditer(rf"{re.escape(operation)}\b", text):
        depth = 0
        for brace in re.finditer(r"[{}]", text[start.start() :]):
            depth += 1 if brace[0] == "{" else -1
            if not depth:
                yield text[start.start() : start.start() + brace.end()]
                break


RULES: dict[str, Callable[[str], Iterator[str]]] = {
    "float64": _float64,
    "vector of int64": _int64_vectors,
    "vector compare of integers": _integer_compares,
    "scalar access in a loop": _scalar_loops,
    "undefined start of a reduction": _undefined_start,
    "external call": _external_calls,
    "operation of the vendor": _vendor_operations,
    "not a vector kernel": _mixed_mode,
    "name too long": _long_names,
}
