"""Each op beside what one would write by hand in PyTorch, and beside the speed of memory, at the sizes of real models.

    python benchmarks/ops.py                                # the best device there is; on the CPU the smaller sizes
    python benchmarks/ops.py --device npu --models wan-14b flux
    python benchmarks/ops.py --break-even                   # from which size on a kernel is faster than PyTorch's operators

The two take turns, round by round; the table has medians. "GB/s" counts the bytes that have to be moved: each input read
once, each output written once. "of copy" compares that with `Tensor.copy_` of the reference in the same run, which is the
limit. What runs as "ours" is what `mindie-cache doctor` shows; MINDIE_CACHE_OPS chooses another one. Every result is
checked against the one by hand. The numbers also go to out/bench/ops.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from mindie_cache import ops
from mindie_cache.device import resolve, synchronize
from mindie_cache.doctor import versions

OUT = Path("out/bench/ops.json")
MODELS = {  # tokens and channels of one branch's token stream
    "flux": (4096 + 512, 3072),  # FLUX.1, 1024 x 1024
    "qwen-image": (6889, 3072),  # 1328 x 1328
    "wan-1.3b": (32760, 1536),  # Wan2.1, 832 x 480, 81 frames
    "hunyuan-video": (118800, 3072),  # 1280 x 720, 129 frames
    "wan-14b": (75600, 5120),  # Wan2.1, 1280 x 720, 81 frames
}
ON_CPU = ("flux", "qwen-image", "wan-1.3b")
WEIGHTS = (2.5, -1.5)


class Row(NamedTuple):
    """One op: `ours` and the same `by_hand` on the same tensors, and the `bytes` that it has to move."""

    name: str
    ours: Callable[[], Any]
    by_hand: Callable[[], Any]
    bytes: int


def rows(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> list[Row]:
    generator = torch.Generator().manual_seed(0)
    x, y, z = (torch.randn(shape, generator=generator, dtype=torch.float32).to(dtype).to(device) for _ in range(3))
    (cy, sy), (cz, sz) = ops.quantize_rows(y), ops.quantize_rows(z)
    one, codes = x.numel() * x.element_size(), x.numel()
    first, second = WEIGHTS

    def codes_by_hand(value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scale = value.abs().amax(-1, keepdim=True).float() / 127
        return (value / scale).round().to(torch.int8), scale.squeeze(-1)

    def ratio_by_hand() -> torch.Tensor:
        now, before = x.float(), y.float()
        ratio = now.norm(dim=-1) / before.norm(dim=-1)
        return torch.stack((ratio.mean(), ratio.std(), (1 - torch.cosine_similarity(now, before, dim=-1)).mean()))

    def decoded(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        return (codes * scales[:, None]).to(dtype)

    return [
        Row("copy", x.clone, lambda: torch.empty_like(x).copy_(x), 2 * one),
        Row("combine, hold", lambda: ops.combine((y,), (1.0,), x), lambda: x + y, 3 * one),
        Row("combine, 2", lambda: ops.combine((y, z), WEIGHTS, x), lambda: x + first * y + second * z, 4 * one),
        Row(
            "combine, 2 int8",
            lambda: ops.combine((cy, cz), WEIGHTS, x, (sy, sz)),
            lambda: x + first * decoded(cy, sy) + second * decoded(cz, sz),
            2 * one + 2 * codes,
        ),
        Row(
            "relative_l1",
            lambda: ops.relative_l1(x, y),
            lambda: torch.stack(((x - y).abs().sum(), y.abs().sum())).float(),
            2 * one,
        ),
        Row("residual_delta", lambda: ops.residual_delta(x, y), lambda: x - y, 3 * one),
        Row("residual_delta, int8", lambda: ops.quantized_delta(x, y), lambda: codes_by_hand(x - y), 2 * one + codes),
        Row("quantize_rows", lambda: ops.quantize_rows(x), lambda: codes_by_hand(x), one + codes),
        Row("dequantize_rows", lambda: ops.dequantize_rows(cy, sy, dtype), lambda: decoded(cy, sy), one + codes),
        Row("magnitude_ratio", lambda: ops.magnitude_ratio(x, y), ratio_by_hand, 2 * one),
    ]


def check(row: Row) -> None:
    """Both do the same, as far as the types of the one by hand allow."""
    for got, wanted in zip(*[out if isinstance(out, tuple) else (out,) for out in (row.ours(), row.by_hand())], strict=True):
        error = (got.float() - wanted.float()).norm() / wanted.float().norm()
        assert error < 0.03, f"{row.name}: {error:.3f} relative difference"


def seconds(call: Callable[[], Any], device: torch.device, repeats: int) -> float:
    synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    synchronize(device)
    return (time.perf_counter() - start) / repeats


def measure(row: Row, device: torch.device, rounds: int) -> tuple[float, float]:
    """Median seconds of ours and by hand; both are called before, and often enough to be measurable."""
    once = max(seconds(row.ours, device, 1), seconds(row.by_hand, device, 1), 1e-6)
    repeats = max(1, min(100, int(0.05 / once)))
    pairs = [(seconds(row.ours, device, repeats), seconds(row.by_hand, device, repeats)) for _ in range(rounds)]
    return statistics.median([ours for ours, _ in pairs]), statistics.median([hand for _, hand in pairs])


def table(models: list[str], dtype: torch.dtype, device: torch.device, rounds: int) -> list[dict[str, Any]]:
    found = []
    for model in tqdm(models, desc="models"):
        limit = 0.0
        for row in rows(MODELS[model], dtype, device):
            check(row)
            ours, hand = measure(row, device, rounds)
            speed = row.bytes / ours / 1e9
            limit = limit or speed
            found.append(
                {
                    "model": model,
                    "op": row.name,
                    "megabytes": row.bytes / 1e6,
                    "ours_ms": ours * 1e3,
                    "by_hand_ms": hand * 1e3,
                    "times_faster": hand / ours,
                    "gigabytes_per_second": speed,
                    "of_copy": speed / limit,
                }
            )
    return found


def break_even(dtype: torch.dtype, device: torch.device, rounds: int) -> list[dict[str, Any]]:
    """Elements from which on the kernel of an op is at least as fast as the reference."""
    found: dict[str, int] = {}
    for tokens in tqdm([2**power for power in range(15)], desc="sizes"):
        for row in rows((tokens, 1024), dtype, device):
            if row.name in ("copy", "combine, hold", "residual_delta"):
                continue
            by_reference = Row(row.name, row.ours, _referenced(row.ours), row.bytes)
            ours, reference = measure(by_reference, device, rounds)
            if ours > reference:
                found.pop(row.name, None)
            else:
                found.setdefault(row.name, tokens * 1024)
    return [{"op": name, "from_elements": elements} for name, elements in found.items()]


def _referenced(call: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> Any:
        with ops.use("reference"):
            return call()

    return run


def markdown(found: list[dict[str, Any]]) -> str:
    names = list(found[0])
    lines = [f"| {' | '.join(names)} |", f"|{' --- |' * len(names)}"]
    for entry in found:
        cells = [f"{value:.3g}" if isinstance(value, float) else str(value) for value in entry.values()]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, npu, cuda:1, ...")
    parser.add_argument("--models", nargs="+", choices=MODELS, help="default: all; on the CPU " + ", ".join(ON_CPU))
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--rounds", type=int, default=9, metavar="N")
    parser.add_argument("--break-even", action="store_true", help="instead: the sizes from which on kernels are faster")
    parser.add_argument("--out", type=Path, default=OUT, metavar="FILE")
    options = parser.parse_args()
    device, dtype = resolve(options.device), getattr(torch, options.dtype)
    models = options.models or [name for name in MODELS if device.type != "cpu" or name in ON_CPU]
    if options.break_even:
        if device.type == "cpu":
            parser.error("there are no kernels for the CPU; name a device that has some")
        found = break_even(dtype, device, options.rounds)
    else:
        found = table(models, dtype, device, options.rounds)
    chosen = [choice._asdict() for choice in ops.explain(device.type)]
    name = str(device) if device.type == "cpu" else getattr(torch, device.type).get_device_name(device)
    facts = {"device": name, "dtype": options.dtype, "threads": torch.get_num_threads(), "versions": versions()}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({**facts, "implementations": chosen, "rows": found}, indent=1))
    print(f"{name}, {options.dtype}\n\n{markdown(found)}\n\n{options.out} has the versions and implementations too.")


if __name__ == "__main__":
    main()
