"""The caches of diffusers and cache-dit on the testbed, beside ours: a table of work and likeness to the uncached video.

    python benchmarks/peers.py                            # every setting, 4 prompts, 30 steps
    python benchmarks/peers.py --only "cache-dit DBCache F1" --prompts 8

Their packages live in a virtual environment of their own, out/bench/peers, that sees this environment's PyTorch; it is set
up the first time. Each setting runs in one process there, all batches in it, with the testbed's own sampler; a setting
that cannot be applied is listed with its reason. Every number: out/bench/peers.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peer_settings import PEER_SETTINGS, PeerSetting
from safetensors.torch import load_file
from torch import Tensor

from mindie_cache.demo.attach import ATTENTION, BLOCK, FORWARD
from mindie_cache.demo.metrics import psnr, ssim
from mindie_cache.demo.plan import default_prompts
from mindie_cache.demo.runner import Batch
from mindie_cache.demo.work import CALLS_A_STEP, operations
from mindie_cache.testbed import TestbedConfig, generate, load_testbed, read

ROOT = Path(__file__).resolve().parents[1]
FOLDER = Path("out/bench/peers")
PINNED, BARE = "diffusers==0.42.1", "cache-dit==1.5.3"  # the latter's dependencies are the former's, and not imported


@dataclass
class PeerResult:
    """What was measured of one setting: lists have an entry a batch; empty, and `error` says why, where it failed."""

    setting: PeerSetting
    error: str | None = None
    seconds: list[float] = field(default_factory=list)
    seconds_uncached: float = 0.0  # first batch, in the same process
    shares: list[float] = field(default_factory=list)  # matrix-product operations, of uncached
    blocks: list[float] = field(default_factory=list)  # executed blocks, of uncached
    videos: list[Tensor] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)


class PeersUnavailableError(RuntimeError):
    """The side venv cannot be set up."""


def prepare(folder: Path = FOLDER) -> Path:
    """Set up the side venv in `folder`, once, and return its Python.

    Raises:
        PeersUnavailableError: it could not be created, or a package could not be installed.
    """
    folder = Path(folder).absolute()
    python, ready = folder / "bin/python", folder / ".ready"
    mark = "\n".join([PINNED, BARE, f"torch=={torch.__version__}", sys.version])
    if ready.exists() and ready.read_text(encoding="utf-8") == mark:
        return python
    print(f"Setting up {folder.name} with {PINNED} and {BARE}.", file=sys.stderr)
    seen = Path(torch.__file__).parents[1]
    command([sys.executable, "-m", "venv", "--clear", str(folder)])
    for packages in folder.glob("lib*/python*/site-packages"):
        (packages / "host.pth").write_text(f"{seen}\n", encoding="utf-8")
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command([*pip, PINNED, f"torch=={torch.__version__}"])  # named, it is found where host.pth points and left alone
    command([*pip, "--no-deps", BARE])
    ready.write_text(mark, encoding="utf-8")
    return python


def command(words: Sequence[str]) -> None:
    """Run silently; its last words are in the error."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise PeersUnavailableError(f"{' '.join(words[1:4])} failed: {said}")


def run_peers(
    batches: Sequence[Batch],
    steps: int,
    settings: Sequence[PeerSetting] = PEER_SETTINGS,
    *,
    folder: Path = FOLDER,
    python: Path | None = None,
    device: str = "cpu",
    on_result: Callable[[PeerResult], None] = lambda result: None,
) -> list[PeerResult]:
    """Run every setting, each in one process of the side venv.

    Args:
        batches: what each process generates, in this order.
        steps: denoising steps.
        python: the interpreter to use instead of the side venv's.
        on_result: called after each setting.
    """
    results: list[PeerResult] = []
    problem = ""
    try:
        python = python or prepare(folder)
    except PeersUnavailableError as error:
        problem = str(error)
    for setting in settings:
        if python is None:
            results.append(PeerResult(setting, error=problem))
        else:
            results.append(run_setting(setting, batches, steps, python, device))
        on_result(results[-1])
    return results


def run_setting(setting: PeerSetting, batches: Sequence[Batch], steps: int, python: Path, device: str) -> PeerResult:
    """One process: request in, answer and videos out."""
    with tempfile.TemporaryDirectory() as name:
        request, answer, videos = (Path(name, part) for part in ("request.json", "answer.json", "videos.safetensors"))
        asked = {"method": setting.method, "options": setting.options, "steps": steps, "device": device}
        asked |= {"batches": [{"prompts": batch.prompts, "seeds": batch.seeds} for batch in batches]}
        asked |= {"answer": str(answer), "videos": str(videos), "threads": torch.get_num_threads()}
        request.write_text(json.dumps(asked), encoding="utf-8")
        paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        words = [str(python), __file__, "--worker", str(request)]
        environment = {**os.environ, "PYTHONPATH": paths}
        done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
        if not answer.exists():
            said = (done.stderr.strip() or "no output").splitlines()[-1]
            return PeerResult(setting, error=f"the process ended with {done.returncode}: {said}")
        reply = json.loads(answer.read_text(encoding="utf-8"))
        if reply["error"]:
            return PeerResult(setting, error=reply["error"], versions=reply["versions"])
        made = load_file(videos)
    result = PeerResult(setting, None, reply["seconds"], reply["seconds_uncached"], versions=reply["versions"])
    result.videos = [made[str(number)] for number in range(len(batches))]
    for rows, batch in zip(reply["rows"], batches, strict=True):
        share, blocks = shares(rows, len(batch.prompts), steps)
        result.shares.append(share)
        result.blocks.append(blocks)
    return result


def shares(rows: dict[str, int], videos: int, steps: int) -> tuple[float, float]:
    """Of uncached: matrix-product operations, and executed blocks, from the rows that the worker counted."""
    config = TestbedConfig()
    cost = operations(config)
    around = cost[FORWARD] - config.blocks * cost[BLOCK]
    calls = CALLS_A_STEP * steps * videos
    done = rows.get("forward", 0) * around + rows.get("attention", 0) * cost[ATTENTION]
    done += rows.get("feed_forward", 0) * (cost[BLOCK] - cost[ATTENTION])
    return done / (calls * cost[FORWARD]), rows.get("feed_forward", 0) / (calls * config.blocks)


def reference(batches: Sequence[Batch], steps: int, device: str = "cpu") -> list[Tensor]:
    """Uncached videos of every batch, made here."""
    model = load_testbed(device)
    return [generate(model, batch.prompts, seeds=batch.seeds, steps=steps).videos.cpu() for batch in batches]


def as_row(result: PeerResult, batches: Sequence[Batch], uncached: Sequence[Tensor], steps: int) -> dict[str, Any]:
    """What `quality.py` writes down of a setting, and the share of blocks; a failure has `error` and no numbers."""
    row: dict[str, Any] = {"name": result.setting.name, "knob": result.setting.knob, "steps": steps}
    row |= {"options": result.setting.options, "versions": result.versions, "error": result.error}
    if result.error is not None:
        return row
    each = result.seconds_uncached / len(batches[0].prompts)  # a video
    pairs = list(zip(result.videos, uncached, strict=True))
    seen = zip(read(torch.cat(result.videos)), [prompt for batch in batches for prompt in batch.prompts], strict=True)
    row["seconds"] = result.seconds
    row["ratios"] = [each * len(b.prompts) / spent for b, spent in zip(batches, result.seconds, strict=True)]
    row["shares"], row["blocks"] = result.shares, result.blocks
    row["psnr"] = [value for made, wanted in pairs for value in psnr(made, wanted)]
    row["ssim"] = [value for made, wanted in pairs for value in ssim(made, wanted)]
    row["right"] = [reading.agrees(prompt) for reading, prompt in seen]
    row["share"], row["speedup"] = statistics.fmean(result.shares), statistics.median(row["ratios"])
    return row | {"bytes_peak": 0, "notes": [], "reports": []}


def peer_rows(
    batches: Sequence[Batch], steps: int, out: Path, settings: Sequence[PeerSetting] = PEER_SETTINGS, folder: Path = FOLDER
) -> list[dict[str, Any]]:
    """Rows of the settings that ran; `out`/peers.json has those that did not, too, and a line on stderr says why."""
    uncached = reference(batches, steps)
    rows: list[dict[str, Any]] = []

    def note(result: PeerResult) -> None:
        rows.append(as_row(result, batches, uncached, steps))
        words = result.error or f"{statistics.fmean(result.shares):.0%} of the work"
        print(f"{len(rows)} of {len(settings)}: {result.setting.name}, {result.setting.knob}: {words}", file=sys.stderr)
        (out / "peers.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")

    out.mkdir(parents=True, exist_ok=True)
    run_peers(batches, steps, settings, folder=folder, on_result=note)
    return [row for row in rows if row["error"] is None]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown; an identical video counts as 100 dB."""
    lines = ["| peer | setting | blocks | work | time | PSNR dB | accuracy |", "|---|---|---:|---:|---:|---:|---:|"]
    for row in rows:
        likeness = statistics.fmean(min(value, 100.0) for value in row["psnr"])
        numbers = f"{statistics.fmean(row['blocks']):.0%} | {row['share']:.0%} | {1 / row['speedup']:.0%} | {likeness:.1f}"
        lines.append(f"| {row['name']} | {row['knob']} | {numbers} | {statistics.fmean(row['right']):.0%} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="beginnings of names of settings")
    parser.add_argument("--prompts", type=int, default=4, metavar="N", help="in one batch (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=30, metavar="N", help="denoising steps (default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of the side venv (default: %(default)s)")
    parser.add_argument("--worker", type=Path, metavar="REQUEST.json", help="answer one request, in the side venv")
    options = parser.parse_args()
    if options.worker:
        from peer_worker import serve

        serve(options.worker)
        return
    chosen = [s for s in PEER_SETTINGS if options.only is None or s.name.startswith(tuple(options.only))]
    batch = Batch(tuple(default_prompts(0, options.prompts)), tuple(range(options.prompts)))
    print(table(peer_rows([batch], options.steps, options.folder.parent, chosen, options.folder)))


if __name__ == "__main__":
    main()
