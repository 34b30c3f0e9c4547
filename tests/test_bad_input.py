"""Wrong configurations and wrong calls: the class of the error, and that its message tells what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from toy import Add, agent_for

import mindie_cache
from mindie_cache import (
    AdastepOptions,
    CacheAgent,
    CacheConfig,
    CacheError,
    ConfigError,
    ModelExecError,
    ParametersInvalid,
    ReuseOptions,
)

BLOCKS = dict(method="dit_block_cache", blocks_count=4, steps_count=10, step_interval=2)
ATTENTION = dict(BLOCKS, method="attention_cache")
WHOLE = dict(method="adastep", blocks_count=1, steps_count=10)


def check(error: pytest.ExceptionInfo[BaseException], kind: type[Exception], *words: str) -> None:
    """The error is of exactly this class, every word is in its message, and it is one that users may catch as ours."""
    assert type(error.value) is kind
    assert isinstance(error.value, CacheError)
    for word in words:
        assert word in str(error.value), f"{word!r} is missing in: {error.value}"


# --- configurations: (fields, words of the message)

NUMBERS = [
    (dict(BLOCKS, **{field: value}), (field, repr(value), "whole number", type(value).__name__))
    for field in ("blocks_count", "steps_count", "step_start", "step_interval", "step_end", "block_start", "block_end")
    for value in (2.0, True, "2", None)
]
RANGES = [
    (dict(BLOCKS, blocks_count=0), ("blocks_count=0", "from 1")),
    (dict(BLOCKS, blocks_count=-3), ("blocks_count=-3", "from 1")),
    (dict(BLOCKS, steps_count=0), ("steps_count=0", "from 1")),
    (dict(BLOCKS, step_interval=0), ("step_interval=0", "from 1")),
    (dict(BLOCKS, step_start=-1), ("step_start=-1", "from 0")),
    (dict(BLOCKS, step_end=-1), ("step_end=-1", "from 0")),
    (dict(BLOCKS, block_start=-1), ("block_start=-1", "from 0")),
    (dict(BLOCKS, block_end=-1), ("block_end=-1", "from 0")),
    (dict(BLOCKS, step_start=5, step_end=4), ("step_end=4", "step_start=5", "step_end>=5")),
    (dict(BLOCKS, block_start=3, block_end=2), ("block_end=2", "block_start=3", "block_end>=3")),
    (dict(BLOCKS, block_end=5), ("block_end=5", "blocks_count=4", "block_end<=4", "half-open")),
]
NAMES = [
    (dict(BLOCKS, method="dit_block_cach"), ("method='dit_block_cach'", "Did you mean 'dit_block_cache'")),
    (dict(BLOCKS, method="no such thing"), ("method='no such thing'", "adastep", "attention_cache", "dit_block_cache")),
    (dict(BLOCKS, method=""), ("method=''", "dit_block_cache")),
    (dict(BLOCKS, method=None), ("method=None", "dit_block_cache")),
    (dict(BLOCKS, method=["dit_block_cache"]), ("method=", "Allowed")),
    (dict(BLOCKS, placement="devise"), ("placement='devise'", "Did you mean 'device'")),
    (dict(BLOCKS, placement=None), ("placement=None", "device")),
    (dict(BLOCKS, placement=["device"]), ("placement=", "Allowed: device")),
]
OPTIONS = [
    (dict(BLOCKS, options={"ordr": 1}), ("options", "'ordr'", "Did you mean 'order'")),
    (dict(BLOCKS, options={"skip_thr": 0.1}), ("options", "'skip_thr'", "dit_block_cache", "Allowed")),
    (dict(BLOCKS, options={1: 1}), ("options", "unknown key 1", "Allowed")),
    (dict(WHOLE, options={"compute_steps": [1]}), ("options", "'compute_steps'", "adastep")),
    (dict(BLOCKS, options=AdastepOptions()), ("options", "AdastepOptions", "ReuseOptions")),
    (dict(WHOLE, options=ReuseOptions()), ("options", "ReuseOptions", "AdastepOptions")),
    (dict(BLOCKS, options="order=1"), ("options", "order=1", "mapping", "ReuseOptions")),
    (dict(BLOCKS, options=["order"]), ("options", "mapping")),
    (dict(BLOCKS, options={"order": -1}), ("order=-1", "from 0 to 8")),
    (dict(BLOCKS, options={"order": 9}), ("order=9", "from 0 to 8")),
    (dict(BLOCKS, options={"order": True}), ("order=True", "whole number", "bool")),
    (dict(BLOCKS, options={"order": 1.0}), ("order=1.0", "whole number", "float")),
    (dict(BLOCKS, options={"order": 1, "max_distance": -1}), ("max_distance=-1", "from 0")),
    (dict(BLOCKS, options={"max_distance": 2}), ("max_distance", "order")),
    (dict(BLOCKS, options={"ladder": "published"}), ("ladder", "order")),
    (dict(BLOCKS, options={"order": 1, "ladder": "taylor"}), ("ladder='taylor'", "newton", "published")),
    (dict(BLOCKS, options={"compute_steps": [0, 4]}), ("compute_steps", "step_interval")),
    (dict(BLOCKS, step_interval=1, options={"compute_steps": [0, 10]}), ("compute_steps=10", "from 0 to 9")),
    (dict(BLOCKS, step_interval=1, options={"compute_steps": [0, -1]}), ("compute_steps=-1", "from 0 to 9")),
    (dict(BLOCKS, step_interval=1, options={"compute_steps": [0, 1.5]}), ("compute_steps=1.5", "whole number")),
    (dict(BLOCKS, step_interval=1, options={"compute_steps": 4}), ("compute_steps=4", "list of steps")),
    (dict(BLOCKS, step_interval=1, options={"compute_steps": "0,4"}), ("compute_steps='0,4'", "list of steps")),
    (dict(WHOLE, options={"skip_thr": -0.1}), ("skip_thr=-0.1", "from 0")),
    (dict(WHOLE, options={"skip_thr": float("nan")}), ("skip_thr=nan", "from 0")),
    (dict(WHOLE, options={"skip_thr": float("inf")}), ("skip_thr=inf", "from 0")),
    (dict(WHOLE, options={"skip_thr": "0.1"}), ("skip_thr='0.1'", "number", "str")),
    (dict(WHOLE, options={"max_skip_steps": 2.5}), ("max_skip_steps=2.5", "whole number")),
    (dict(WHOLE, options={"decay_ratio": 1.01}), ("decay_ratio=1.01", "from 0.0 to 1.0")),
    (dict(WHOLE, options={"relative": 1}), ("relative=1", "true or false")),
    (dict(WHOLE, options={"parity": None}), ("parity=None", "true or false")),
    (dict(WHOLE, options={"relative": True, "parity": True}), ("relative", "parity")),
    (dict(WHOLE, blocks_count=4), ("blocks_count=4", "blocks_count=1")),
    (dict(WHOLE, step_interval=2), ("adastep", "step_interval", "AdastepOptions")),
    (dict(WHOLE, block_end=1), ("adastep", "block_end")),
]
STREAMS = [
    (dict(ATTENTION, streams=("hidden_states",)), ("streams", "attention_cache", "Remove streams")),
    (dict(WHOLE, streams=("hidden_states",)), ("streams", "adastep")),
    (dict(BLOCKS, streams=()), ("streams=()", "names")),
    (dict(BLOCKS, streams="hidden_states"), ("streams='hidden_states'", "names")),
    (dict(BLOCKS, streams=("a", "a")), ("streams=('a', 'a')", "different")),
    (dict(BLOCKS, streams=("a", "")), ("streams=('a', '')", "names")),
    (dict(BLOCKS, streams=("a", 1)), ("streams=('a', 1)", "names")),
    (dict(BLOCKS, streams=5), ("streams=5", "names")),
]


@pytest.mark.parametrize(("fields", "words"), NUMBERS + RANGES + NAMES + OPTIONS + STREAMS)
def test_wrong_configurations(fields, words):
    config = CacheConfig(**fields)  # built without checks, as MindIE-SD's is
    with pytest.raises(ConfigError) as error:
        CacheAgent(config)
    check(error, ConfigError, *words)


@pytest.mark.parametrize("value", [None, "config.yaml", {"method": "adastep"}, CacheConfig])
def test_an_agent_needs_a_config(value):
    with pytest.raises(ConfigError) as error:
        CacheAgent(value)
    check(error, ConfigError, "CacheConfig", type(value).__name__, "from_yaml")


def test_unknown_keyword_arguments_are_pythons_own_error():
    with pytest.raises(TypeError, match="step_intervall"):
        CacheConfig(**BLOCKS, step_intervall=2)


# --- files

FILES = [
    ({"method": "dit_block_cache", "blocks_count": 4}, ("lacks steps_count", "Required: method, blocks_count, steps_count")),
    ({}, ("lacks method, blocks_count, steps_count",)),
    ({**BLOCKS, "step_intervall": 2}, ("'step_intervall'", "Did you mean 'step_interval'")),
    ({**BLOCKS, "zzz": 2}, ("'zzz'", "Allowed", "blocks_count")),
    ({**BLOCKS, "blocks_count": "four"}, ("blocks_count='four'", "whole number", "str")),
    ({**BLOCKS, "options": {"ordr": 2}}, ("options", "'ordr'", "Did you mean 'order'")),
    ({**BLOCKS, "streams": ["a", "a"]}, ("streams", "different")),
    (["dit_block_cache", 4, 10], ("mapping", "list")),
    (None, ("the file is empty",)),
    ("dit_block_cache", ("mapping", "str")),
]


@pytest.mark.parametrize("reader", [CacheConfig.from_yaml, CacheConfig.from_json])
@pytest.mark.parametrize(("content", "words"), FILES)
def test_wrong_files_are_named_in_the_error(tmp_path, reader, content, words):
    path = tmp_path / "cache.settings"
    path.write_text(json.dumps(content))  # JSON is YAML, too
    with pytest.raises(ConfigError) as error:
        reader(path)
    check(error, ConfigError, str(path), *words)


@pytest.mark.parametrize(
    ("reader", "text", "kind"),
    [
        (CacheConfig.from_yaml, "method: [", "YAML"),
        (CacheConfig.from_yaml, "method: a\n\tblocks_count: 3", "YAML"),
        (CacheConfig.from_yaml, "method: !!python/object/apply:os.getcwd []", "YAML"),
        (CacheConfig.from_json, '{"method": ', "JSON"),
        (CacheConfig.from_json, "method: adastep", "JSON"),
    ],
)
def test_files_that_cannot_be_parsed(tmp_path, reader, text, kind):
    path = tmp_path / "cache.settings"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        reader(path)
    check(error, ConfigError, str(path), f"not valid {kind}")


@pytest.mark.parametrize("reader", [CacheConfig.from_yaml, CacheConfig.from_json])
def test_files_that_are_no_text(tmp_path, reader):
    path = tmp_path / "cache.settings"
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ConfigError) as error:
        reader(path)
    check(error, ConfigError, str(path))


@pytest.mark.parametrize("reader", [CacheConfig.from_yaml, CacheConfig.from_json])
def test_a_missing_file_is_named(tmp_path, reader):
    path = tmp_path / "no such file"
    with pytest.raises(FileNotFoundError) as error:
        reader(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("values", [None, [], "method", 3])
def test_from_dict_needs_a_mapping(values):
    with pytest.raises(ConfigError) as error:
        CacheConfig.from_dict(values)
    check(error, ConfigError, "mapping", type(values).__name__)


# --- calls


def block_agent(**changes: Any) -> CacheAgent:
    return agent_for("dit_block_cache", 2, 6, **changes)


def whole(*args: Any, **kwargs: Any) -> Any:
    return agent_for("adastep", 1, 6).apply(*args, **kwargs)


X = torch.zeros(2, 3)
TWO = lambda h: (h, h)  # noqa: E731 - one of many functions in the table
CALLS = [
    (lambda: block_agent().apply("block", hidden_states=X), ParametersInvalid, ("callable", "str", "agent.apply(")),
    (lambda: block_agent().apply(None, hidden_states=X), ParametersInvalid, ("callable", "NoneType")),
    (lambda: block_agent().apply(X, hidden_states=X), ParametersInvalid, ("callable", "Tensor")),
    (lambda: agent_for("attention_cache", 2, 6).apply(3, X), ParametersInvalid, ("callable", "int")),
    (lambda: agent_for("attention_cache", 2, 6).apply(None, X), ParametersInvalid, ("callable", "NoneType")),
    (lambda: block_agent().apply(Add(1.0)), ParametersInvalid, ("hidden_states is missing", "keyword", "agent.apply(")),
    (lambda: block_agent().apply(Add(1.0), X), ParametersInvalid, ("hidden_states", "keyword")),
    (lambda: block_agent().apply(Add(1.0), hidden_states=None), ParametersInvalid, ("hidden_states", "None")),
    (
        lambda: block_agent().apply(TWO, hidden_states=X),
        ParametersInvalid,
        ("two outputs", "encoder_hidden_states"),
    ),
    (lambda: block_agent().apply(lambda h: None, hidden_states=X), ModelExecError, ("returned None", "streams")),
    (lambda: block_agent().apply(lambda h: (h, None), hidden_states=X), ModelExecError, ("returned None",)),
    (
        lambda: block_agent().apply(lambda h, e: (h, e, h), hidden_states=X, encoder_hidden_states=X),
        ModelExecError,
        ("3 outputs", "1 or 2", "streams="),
    ),
    (lambda: block_agent().apply(lambda h: (), hidden_states=X), ModelExecError, ("empty tuple", "streams")),
    (
        lambda: block_agent(streams=("a", "b")).apply(lambda a, c: (a, c), a=X, c=X),
        ParametersInvalid,
        ("'b'", "a, c", "('a', 'b')"),
    ),
    (lambda: block_agent(streams=("a",)).apply(lambda a: a, X), ParametersInvalid, ("'a'", "none", "keyword")),
    (
        lambda: block_agent(streams=("a", "b")).apply(lambda a, b: a, a=X, b=X),
        ModelExecError,
        ("1 outputs", "declares 2", "('a', 'b')"),
    ),
    (
        lambda: block_agent(streams=("a",)).apply(lambda a: (a, a), a=X),
        ModelExecError,
        ("2 outputs", "declares 1"),
    ),
    (
        lambda: whole(Add(1.0), hidden_states=[1.0]),
        ParametersInvalid,
        ("latents", "hidden_states", "list"),
    ),
    (lambda: whole(lambda: X), ParametersInvalid, ("latents", "hidden_states", "NoneType")),
    (lambda: whole(Add(1.0), None), ParametersInvalid, ("latents", "NoneType")),
]


@pytest.mark.parametrize(("call", "kind", "words"), CALLS)
def test_wrong_calls(call, kind, words):
    with pytest.raises((ParametersInvalid, ModelExecError)) as error:
        call()
    check(error, kind, *words)


def test_a_stream_must_keep_its_shape_inside_the_range():
    agent = block_agent(step_start=0)
    agent.apply(lambda h: h, hidden_states=X)
    with pytest.raises(ModelExecError) as error:
        agent.apply(lambda h: h[:1], hidden_states=X)
    check(error, ModelExecError, "(2, 3)", "(1, 3)", "block_start", "block_end")


@pytest.mark.parametrize("output", [{"hidden_states": X}, "text", 3])
def test_a_block_must_return_its_streams(output):
    """What cannot be subtracted from the input is refused in words, not by Python."""
    agent = agent_for("dit_block_cache", 1, 6, step_start=0)
    with pytest.raises(ModelExecError) as error:
        agent.apply(lambda h: output, hidden_states=X)
    check(error, ModelExecError, type(output).__name__)


BRANCHES = [
    (dict(name=""), ("branch('')", "non-empty string", "uncond")),
    (dict(name=None), ("branch(None)", "non-empty string")),
    (dict(name=0), ("branch(0)", "non-empty string")),
    (dict(name=True), ("branch(True)", "non-empty string")),
    (dict(step=-1), ("step=-1", "whole number from 0")),
    (dict(step=1.0), ("step=1.0", "whole number from 0")),
    (dict(step=True), ("step=True", "whole number from 0")),
    (dict(step="1"), ("step='1'", "whole number from 0")),
    (dict(step=torch.tensor(1)), ("step=", "whole number from 0")),
    (dict(timestep=torch.tensor(900.0)), ("timestep", "Tensor", "float(timestep)", "step=")),
    (dict(timestep="900"), ("timestep", "str", "number")),
    (dict(timestep=True), ("timestep", "bool", "number")),
    (dict(timestep=float("nan")), ("timestep=nan", "finite", "step=")),
    (dict(timestep=float("inf")), ("timestep=inf", "finite")),
    (dict(step=1, timestep=900.0), ("step=1", "timestep=900.0")),
]


@pytest.mark.parametrize(("arguments", "words"), BRANCHES)
def test_wrong_branches(arguments, words):
    for branch in (mindie_cache.branch, block_agent().branch):
        with pytest.raises(ParametersInvalid) as error, branch(**arguments):
            pytest.fail("the branch was entered")
        check(error, ParametersInvalid, *words)


def test_a_request_must_be_a_key():
    with pytest.raises(ParametersInvalid) as error, mindie_cache.run(request=["a"]):
        pytest.fail("the run was entered")
    check(error, ParametersInvalid, "request", "['a']")


def test_a_wrong_call_names_no_path_of_this_machine():
    with pytest.raises(ParametersInvalid) as error:
        block_agent().apply(Add(1.0))
    assert str(Path.home()) not in str(error.value)


def test_there_are_enough_of_them():
    assert len(NUMBERS + RANGES + NAMES + OPTIONS + STREAMS + FILES + CALLS + BRANCHES) > 100
