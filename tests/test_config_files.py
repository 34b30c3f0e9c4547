"""A configuration goes through YAML and JSON and comes back as it was; MindIE-SD's settings files can be read."""

from __future__ import annotations

import json
import re
from dataclasses import fields

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mindie_cache import AdastepOptions, CacheConfig, ConfigError, ReuseOptions

WORDS = st.text("abcdefghij_", min_size=1, max_size=8)


@st.composite
def options_of(draw, method):
    order = draw(st.integers(0, 3))
    values = {"order": order}
    if order:
        values["max_distance"] = draw(st.none() | st.integers(0, 5))
        values["ladder"] = draw(st.sampled_from(["newton", "published"]))
    if method == "adastep":
        values["skip_thr"] = draw(st.floats(0.001, 1.0))
        values["max_skip_steps"] = draw(st.integers(0, 5))
        values["parity"] = draw(st.booleans())
        return AdastepOptions(**values)
    return ReuseOptions(**values)


@st.composite
def configs(draw):
    method = draw(st.sampled_from(["dit_block_cache", "attention_cache", "adastep"]))
    options = draw(st.none() | options_of(method))
    if method == "adastep":
        return CacheConfig(method, 1, draw(st.integers(1, 99)), options=options)
    blocks, start, first = draw(st.integers(1, 60)), draw(st.integers(0, 50)), draw(st.integers(0, 59))
    return CacheConfig(
        method,
        blocks,
        draw(st.integers(1, 99)),
        start,
        draw(st.integers(1, 9)),
        draw(st.integers(start, 200)),
        min(first, blocks),
        draw(st.integers(min(first, blocks), blocks)),
        options=options,
        streams=tuple(draw(st.none() | st.lists(WORDS, min_size=1, max_size=3, unique=True)) or ()) or None
        if method == "dit_block_cache"
        else None,
    )


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(config=configs())
@pytest.mark.parametrize("form", ["yaml", "json"])
def test_files_carry_everything(config, form, tmp_path):
    path = tmp_path / f"cache.{form}"
    text = getattr(config, f"to_{form}")(path)
    assert path.read_text() == text
    again = getattr(CacheConfig, f"from_{form}")(path)
    assert again == config.validated()
    assert getattr(again, f"to_{form}")() == text


def test_only_what_differs_from_the_defaults_is_written():
    config = CacheConfig("dit_block_cache", 4, 10, step_interval=3)
    assert config.to_dict() == {"method": "dit_block_cache", "blocks_count": 4, "steps_count": 10, "step_interval": 3}
    tuned = CacheConfig("dit_block_cache", 4, 10, options={"order": 1, "compute_steps": [0, 3]}, streams=["a", "b"])
    assert tuned.to_dict()["options"] == {"order": 1, "compute_steps": [0, 3]}
    assert tuned.to_dict()["streams"] == ["a", "b"]
    assert yaml.safe_load(tuned.to_yaml()) == json.loads(tuned.to_json()) == tuned.to_dict()
    assert list(tuned.to_dict())[:3] == ["method", "blocks_count", "steps_count"]


def test_a_file_written_by_hand(tmp_path):
    path = tmp_path / "cache.yaml"
    path.write_text(
        """
        # every third step, as for Qwen-Image-Edit
        method: dit_block_cache
        blocks_count: 60
        steps_count: 40
        step_start: 10
        step_interval: 3
        step_end: 35
        block_start: 10
        block_end: 50
        options: {order: 1}
        """
    )
    assert CacheConfig.from_yaml(path) == CacheConfig(
        "dit_block_cache", 60, 40, 10, 3, 35, 10, 50, options=ReuseOptions(order=1)
    )
    assert CacheConfig.from_yaml(str(path)) == CacheConfig.from_yaml(path)


def test_options_may_be_left_out_or_null(tmp_path):
    path = tmp_path / "cache.json"
    for extra in ({}, {"options": None, "streams": None}, {"options": {}}):
        path.write_text(json.dumps({"method": "dit_block_cache", "blocks_count": 4, "steps_count": 10, **extra}))
        assert CacheConfig.from_json(path) == CacheConfig("dit_block_cache", 4, 10).validated()


def test_non_ascii_names_survive(tmp_path):
    config = CacheConfig("dit_block_cache", 4, 10, streams=("隐藏", "größe"))
    for form in ("yaml", "json"):
        getattr(config, f"to_{form}")(tmp_path / form)
        assert getattr(CacheConfig, f"from_{form}")(tmp_path / form) == config.validated()


def test_writing_validates_and_writes_nothing_that_is_wrong(tmp_path):
    path = tmp_path / "cache.yaml"
    with pytest.raises(ValueError, match="block_end=9"):
        CacheConfig("dit_block_cache", 4, 10, block_end=9).to_yaml(path)
    assert not path.exists()


def test_a_configuration_is_frozen_and_validation_keeps_it():
    config = CacheConfig("dit_block_cache", 4, 10, options={"order": 1})
    checked = config.validated()
    assert (config.options, checked.options) == ({"order": 1}, ReuseOptions(order=1))
    assert checked.validated() == checked
    with pytest.raises(AttributeError):
        config.steps_count = 5


def test_every_option_has_a_default():
    for kind in (ReuseOptions, AdastepOptions):
        assert {field.name for field in fields(kind)} == set(vars(kind()))


TWICE = """
method: dit_block_cache
blocks_count: 4
steps_count: 10
step_interval: 2
step_interval: 3
"""
TWICE_INSIDE = '{"method": "dit_block_cache", "blocks_count": 4, "steps_count": 10, "options": {"order": 1, "order": 2}}'


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", TWICE, "a.yaml: key 'step_interval' is given twice. Keep one of them."),
        ("a.json", TWICE_INSIDE, "a.json: key 'order' is given twice. Keep one of them."),
        ("b.yaml", TWICE_INSIDE, "b.yaml: key 'order' is given twice. Keep one of them."),
        ("a.yaml", "", "a.yaml: the file is empty."),
        ("a.yaml", "# method: adastep", "a.yaml: the file is empty."),
        ("a.json", "  ", "a.json: the file is empty."),
        ("a.json", "{", "a.json is not valid JSON: Expecting property name"),
        ("a.yaml", "a: [", "a.yaml is not valid YAML: while parsing a flow node"),
        ("a.yaml", "\udcff", "a.yaml is not valid YAML: 'utf-8' codec"),
        ("a.json", "[]", "a.json: A cache configuration is a mapping of fields, but this is a list."),
    ],
)
def test_files_that_are_refused(tmp_path, monkeypatch, name, text, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text(text, errors="surrogateescape")
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        (CacheConfig.from_json if name.endswith("json") else CacheConfig.from_yaml)(name)


def test_merging_in_yaml_is_no_repetition(tmp_path):
    path = tmp_path / "cache.yaml"
    path.write_text(
        "<<: {<<: {blocks_count: 8}, method: dit_block_cache, blocks_count: 9, steps_count: 10}\nblocks_count: 4\n"
    )
    assert CacheConfig.from_yaml(path) == CacheConfig("dit_block_cache", 4, 10).validated()


def test_numpy_numbers_are_accepted_and_written_as_plain_ones():
    config = CacheConfig("dit_block_cache", np.int64(2), np.int64(6), step_start=np.int64(1), step_interval=2)
    assert json.loads(config.to_json()) == {
        "method": "dit_block_cache",
        "blocks_count": 2,
        "steps_count": 6,
        "step_start": 1,
        "step_interval": 2,
    }
