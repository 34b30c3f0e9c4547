"""Drop-in for MindIE-SD: its arithmetic on blocks of integers, where a skipped step shows as a repeated number."""

import pytest

from mindie_cache import CacheAgent, CacheConfig, CacheError, ConfigError, ModelExecError, ParametersInvalid

GENERATIONS = 5  # in a row on one agent: stale state would show

# 7 blocks that add step + 1; refresh at steps 1 and 3 (blocks 2..6 add 4 (step + 1)), reuse at steps 2 and 4
BLOCK_TABLE = [
    [1, 2, 3, 4, 5, 6, 7],
    [9, 11, 13, 15, 17, 19, 21],
    [24, 27, 35, 35, 35, 35, 38],
    [42, 46, 50, 54, 58, 62, 66],
    [71, 76, 92, 92, 92, 92, 97],
]


def block_agent(**changes):
    fields = dict(blocks_count=7, steps_count=5, step_start=1, step_interval=2, block_start=2, block_end=6)
    return CacheAgent(CacheConfig(method="dit_block_cache", **{**fields, **changes}))


def generate(agent, block, steps=5, blocks=7, streams=1):
    """One generation of integers through `blocks` calls a step; returns the first stream, a row a step."""
    states, rows = (0,) * streams, []
    for step in range(steps):
        row = []
        for _ in range(blocks):
            names = ("hidden_states", "encoder_hidden_states")[:streams]
            out = agent.apply(block, **dict(zip(names, states, strict=True)), delta=step + 1)
            states = out if isinstance(out, tuple) else (out, *states[1:])
            row.append(out)
        rows.append(row)
    return rows


def test_one_input_one_output():
    agent = block_agent()
    for _ in range(GENERATIONS):
        assert generate(agent, lambda h, delta: h + delta) == BLOCK_TABLE


def test_two_inputs_one_output():
    agent = block_agent()
    for _ in range(GENERATIONS):
        assert generate(agent, lambda h, e, delta: h + delta, streams=2) == BLOCK_TABLE


def test_two_inputs_two_outputs():
    agent = block_agent()
    for _ in range(GENERATIONS):
        rows = generate(agent, lambda h, e, delta: (h + delta, e + delta), streams=2)
        assert rows == [[(value, value) for value in row] for row in BLOCK_TABLE]


def test_attention_table():
    agent = CacheAgent(CacheConfig("attention_cache", 5, 7, step_start=1, step_end=5, step_interval=3))
    for _ in range(GENERATIONS):
        rows = [[agent.apply(lambda value: value, 5 * step + call) for call in range(5)] for step in range(7)]
        sources = [0, 1, 1, 1, 4, 4, 6]  # the step each row's values come from
        assert rows == [[5 * source + call for call in range(5)] for source in sources]


def test_attention_keeps_tuples():
    agent = CacheAgent(CacheConfig("attention_cache", 5, 7, step_start=1, step_end=5, step_interval=3))
    for _ in range(GENERATIONS):
        rows = [[agent.apply(lambda i, j: (i, j), step, call) for call in range(5)] for step in range(7)]
        assert rows == [[(source, call) for call in range(5)] for source in [0, 1, 1, 1, 4, 4, 6]]


def test_attention_forwards_everything_unchanged():
    agent = CacheAgent(CacheConfig("attention_cache", 1, 2, step_interval=2))
    seen = []

    def attention(*args, **kwargs):
        seen.append((args, kwargs))
        return args[0]

    agent.apply(attention, 1, 2, hidden_states=3, flag=None)
    assert seen == [((1, 2), {"hidden_states": 3, "flag": None})]


def test_block_gets_streams_positionally_first():
    seen = []

    def block(*args, **kwargs):
        seen.append((args, kwargs))
        return args[0], args[1]

    block_agent().apply(block, encoder_hidden_states=2, temb=9, hidden_states=1)
    assert seen == [((1, 2), {"temb": 9})]


@pytest.mark.parametrize(
    "fields",
    [
        dict(step_start=10, step_end=100, step_interval=2),  # starts after the last step
        dict(step_start=5, step_end=5, step_interval=2),  # empty window
        dict(step_start=2, step_end=5, step_interval=1),  # every step refreshes
        dict(step_start=2, step_end=5, step_interval=2, block_start=10, block_end=100),  # starts after the last block
        dict(step_start=2, step_end=5, step_interval=2, block_start=5, block_end=5),  # empty range
    ],
)
def test_bypass_forwards_the_call_as_it_was_made(fields):
    with pytest.warns(UserWarning, match="is off and every call is forwarded"):
        agent = CacheAgent(CacheConfig(method="attention_cache", blocks_count=10, steps_count=10, **fields))
    assert agent.apply(lambda *args, **kwargs: (args, kwargs), 20, hidden_states=3) == ((20,), {"hidden_states": 3})
    assert "off" in str(agent.report())


def test_errors_are_mindies_and_pythons():
    assert issubclass(ConfigError, ValueError)
    assert issubclass(ParametersInvalid, ValueError)
    assert issubclass(ModelExecError, RuntimeError)
    assert all(issubclass(error, CacheError) for error in (ConfigError, ParametersInvalid, ModelExecError))


def test_two_outputs_need_the_encoder_keyword():
    with pytest.raises(ParametersInvalid, match="encoder_hidden_states"):
        generate(block_agent(), lambda h, delta: (h, delta))


def test_three_outputs_need_a_declaration():
    with pytest.raises(ModelExecError, match="streams="):
        generate(block_agent(), lambda h, e, delta: (h, e, delta), streams=2)


def test_hidden_states_must_be_a_keyword():
    with pytest.raises(ParametersInvalid, match="hidden_states"):
        block_agent().apply(lambda h, delta: h, 1, delta=1)
    with pytest.raises(ParametersInvalid, match="hidden_states"):
        block_agent().apply(lambda h, delta: h, hidden_states=None, delta=1)


def test_none_is_not_an_output():
    with pytest.raises(ModelExecError, match="None"):
        generate(block_agent(), lambda h, delta: None if h > 16 else h + delta)
    with pytest.raises(ModelExecError, match="None"):
        generate(block_agent(), lambda h, e, delta: (h + delta, None), streams=2)


def test_function_must_be_callable():
    agent = CacheAgent(CacheConfig("attention_cache", 10, 10, 2, 3, 8, 2, 1000))
    with pytest.raises(ParametersInvalid, match="callable"):
        agent.apply("")


def test_config_has_mindies_fields_in_order_and_checks_late():
    config = CacheConfig("no such method", 0, -1, -2, 0, -3, -4, -5)  # MindIE-SD's config is checked by its agent
    assert (config.step_start, config.step_interval, config.step_end) == (-2, 0, -3)
    assert (config.block_start, config.block_end) == (-4, -5)
    defaults = CacheConfig("attention_cache", 1, 1)
    assert (defaults.step_start, defaults.step_interval, defaults.step_end) == (0, 1, 10000)
    assert (defaults.block_start, defaults.block_end) == (0, 10000)
