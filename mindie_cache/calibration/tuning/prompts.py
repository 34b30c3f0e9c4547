"""Which prompts are recorded and which are held out: the user's, or some that suit the model."""

from __future__ import annotations

from pathlib import Path

from mindie_cache import testbed
from mindie_cache.calibration import loading
from mindie_cache.calibration.search.targets import Target, TestbedTarget, UserTarget
from mindie_cache.calibration.testbed import DEFAULT_PROMPTS
from mindie_cache.errors import ConfigError

Drawn = tuple[tuple[tuple[str, int], ...], tuple[tuple[str, int], ...]]
GENERAL = (  # of many kinds: people, animals, text, crowds, still and moving things
    "a red fox walking through fresh snow at dawn",
    "a busy street market at night, neon signs reflected in puddles",
    "close-up portrait of an old fisherman, soft window light",
    "an aerial view of waves breaking on black rocks",
    "a child blowing soap bubbles in a sunny garden",
    "a steam train crossing a stone bridge in the mountains",
    "a wooden shop sign that says OPEN, shallow depth of field",
    "a cat jumping from a table onto a sofa",
    "a bowl of ramen with steam rising, macro photograph",
    "dancers in colourful costumes on a stage",
    "a sailing boat in heavy rain, seen from the shore",
    "an astronaut planting a flag on a desert planet",
)


def draw(target: Target, path: Path | None, recorded: int, held_out: int | None, seed: int) -> Drawn:
    """Prompts with seeds: to record, and to hold out.

    Args:
        path: a file with one prompt a line; the first ones are recorded. None: those of the user's Python file, or of this
            package.
        held_out: None: 8 on the testbed, otherwise 4, or what the file has.

    Raises:
        ConfigError: there are too few.
    """
    texts = _texts(target, path)
    wanted = held_out if held_out is not None else 8 if isinstance(target, TestbedTarget) else 4
    if path is not None and held_out is None:
        wanted = max(2, len(texts) - recorded)
    if len(texts) < recorded + wanted:
        raise ConfigError(
            f"{len(texts)} prompts are given, but {recorded} are recorded and {wanted} others are held out. Give more, or "
            "lower --recorded and --held-out."
        )
    if len(set(texts)) < len(texts):
        raise ConfigError("a prompt is given twice: what is held out must not be recorded. Keep one of them.")
    pairs = [(text, seed + index) for index, text in enumerate(texts[: recorded + wanted])]
    return tuple(pairs[:recorded]), tuple(pairs[recorded:])


def _texts(target: Target, path: Path | None) -> list[str]:
    if path is not None:
        texts = loading.lines(path, "--prompts")
        if isinstance(target, TestbedTarget):
            testbed.data.tokenize(texts)  # a prompt that the model does not know is refused now
        return texts
    if isinstance(target, UserTarget) and callable(getattr(target.module, "prompts", None)):
        return list(target.module.prompts())
    if isinstance(target, TestbedTarget):
        others = [prompt for prompt in testbed.all_prompts() if prompt not in DEFAULT_PROMPTS]
        stride = 41  # of all colours, shapes and directions in turn
        return [*DEFAULT_PROMPTS[:2], *[others[(stride * i) % len(others)] for i in range(len(others))]]
    return list(GENERAL)
