"""The computed steps that a preset leads to, for methods that know them before the run."""

from __future__ import annotations

from mindie_cache.errors import ConfigError
from mindie_cache.presets.preset import Preset

_BLOCKS = 64  # plans do not depend on it; more than any preset's range


def plan_for(preset: Preset, steps: int | None = None, branch: str = "cond") -> frozenset[int] | None:
    """The steps that are computed in a run of `steps` (those of the preset, if None), from the policy itself.

    Returns:
        The 0-based steps; None if the method decides from data. For cfg_cache they are those of the unconditional branch.

    Raises:
        ConfigError: the number of steps is not known, or does not suit the settings.
    """
    from mindie_cache.policies import Schedule
    from mindie_cache.recipes import METHODS

    steps = steps or preset.made_for.steps
    if steps is None:
        raise ConfigError(f"Preset {preset.name!r} of {preset.method} does not know the number of steps. Say how many.")
    method = METHODS[preset.method]
    blocks = 1 if method.whole_forward else preset.settings.get("blocks_count", _BLOCKS)
    policies = method.build(preset.adapted(blocks, steps)).policy
    policy = next((found for found in map(policies.of, (branch, "uncond")) if isinstance(found, Schedule)), None)
    if policy is None:
        return None
    computed: set[int] = set()
    state = None
    for step in range(steps):
        decision = policy.decide(state, step, None, can_reuse=step > 0)
        state = decision.state
        if not decision.reuse:
            computed.add(step)
    return frozenset(computed)
