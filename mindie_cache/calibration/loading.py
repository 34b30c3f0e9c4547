"""A pipeline from what a user types: a folder, a repository, or a function in a file. Imports diffusers when asked to."""

from __future__ import annotations

import importlib.util
import json
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mindie_cache.errors import ConfigError, did_you_mean

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
GET_DIFFUSERS = "pip install 'mindie_cache[diffusers]'"


class Loaded(NamedTuple):
    """A pipeline, what to call it in files, and arguments for its calls."""

    pipe: Any
    name: str
    call: Mapping[str, Any]


def from_pretrained(model: str, device: torch.device, dtype: str | None = None, offload: bool = False) -> Loaded:
    """The pipeline in a folder or repository.

    Args:
        dtype: one of DTYPES; by default bf16 on an accelerator, fp32 on the CPU.
        offload: keep each component on the CPU until it is needed.

    Raises:
        ConfigError: diffusers is not installed, or there is no such pipeline.
    """
    try:
        from diffusers import DiffusionPipeline
    except ImportError as error:
        raise ConfigError(f"A pipeline needs diffusers, which cannot be imported ({error}). {GET_DIFFUSERS}") from None
    folder = Path(model)
    if folder.exists() and not (folder / "model_index.json").is_file():
        raise ConfigError(f"{model} holds no pipeline of diffusers: it has no model_index.json. Give the pipeline's folder.")
    wanted = DTYPES[dtype] if dtype else torch.float32 if device.type == "cpu" else torch.bfloat16
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*torch_dtype.*")  # the name that every version knows
            pipe = DiffusionPipeline.from_pretrained(model, torch_dtype=wanted)
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(f"{model} cannot be loaded: {error}") from error
    return Loaded(placed(pipe, device, offload), folder.resolve().name if folder.exists() else model.rpartition("/")[2], {})


def from_file(text: str, device: torch.device, offload: bool = False) -> Loaded:
    """The pipeline that a function returns: `FILE.py:function`.

    The function takes no arguments, and returns a pipeline, or a pipeline and a mapping of arguments for its calls. Modules
    beside the file can be imported in it.

    Raises:
        ConfigError: no such file or function, or it returns something else.
    """
    file, _, name = text.rpartition(":")
    path = Path(file)
    if not file.endswith(".py") or not name.isidentifier() or not path.is_file():
        raise ConfigError(f"--pipeline {text}: give the path of a Python file and a function in it, e.g. mine.py:load.")
    function = getattr(_executed(path), name, None)
    if not callable(function):
        raise ConfigError(f"--pipeline {text}: {path} has no function {name!r}. {did_you_mean(name, _functions(path))}")
    result = function()
    pipe, call = result if isinstance(result, tuple) and len(result) == 2 else (result, {})
    if not callable(pipe) or isinstance(pipe, torch.nn.Module) or not isinstance(call, Mapping):
        raise ConfigError(
            f"--pipeline {text}: {name}() returned {type(result).__name__}. Return a pipeline, or a pipeline and a mapping "
            "of arguments for its calls."
        )
    return Loaded(placed(pipe, device, offload), type(pipe).__name__, call)


def _executed(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(folder)
    return module


def _functions(path: Path) -> list[str]:
    import ast

    return [node.name for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)]


def placed(pipe: Any, device: torch.device, offload: bool) -> Any:
    """The pipeline on the device, or with its components on the CPU until they are needed."""
    if not offload:
        return pipe.to(device) if hasattr(pipe, "to") else pipe
    if device.type == "cpu":
        raise ConfigError("--offload needs an accelerator: on the CPU everything is there already. Leave it out.")
    pipe.enable_model_cpu_offload(device=device)
    return pipe


def pictures(paths: Sequence[Path]) -> Any:
    """One picture, or a list of several."""
    from PIL import Image, UnidentifiedImageError

    try:
        found = [Image.open(path).convert("RGB") for path in paths]
    except UnidentifiedImageError as error:
        raise ConfigError(f"--image: {error}. Give a picture that Pillow can read.") from None
    return found[0] if len(found) == 1 else found


def assignments(pairs: Sequence[str]) -> dict[str, Any]:
    """`NAME=VALUE` as arguments; a value is JSON, or else text."""
    found: dict[str, Any] = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign or not name.isidentifier():
            raise ConfigError(f"--call {pair}: give NAME=VALUE, e.g. --call max_sequence_length=256.")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def lines(path: Path, argument: str = "--prompt-file") -> list[str]:
    """The prompts of a file, one a line."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(f"{argument} {path} is no UTF-8 text. Save it as one.") from None
    found = [line.strip() for line in text.split("\n") if line.strip()]
    if not found:
        raise ConfigError(f"{argument} {path} holds no prompt. Write one a line.")
    return found
