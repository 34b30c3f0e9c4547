"""The report: marks, counts, bytes, reasons, and how they are shown."""

from __future__ import annotations

import json

import pytest
import torch
from toy import Add, AddBoth, agent_for, block_rows, block_step, call_rows

from mindie_cache import CacheAgent, CacheConfig, Report, StepRecord

STEPS = 6


def adds(count=3):
    return [Add(10.0**power) for power in range(count)]


def test_a_report_before_the_first_call_is_empty():
    report = agent_for("dit_block_cache", 3, STEPS).report()
    assert (report.method, report.unit, report.steps) == ("dit_block_cache", "block", ())
    assert (report.calls, report.calls_reused, report.share_computed) == (0, 0, 1.0)
    assert (report.bytes_now, report.bytes_peak, report.seconds) == (0, 0, 0.0)
    assert "not called yet" in str(report)


@pytest.mark.parametrize(
    ("method", "unit"), [("dit_block_cache", "block"), ("attention_cache", "attention call"), ("adastep", "forward")]
)
def test_the_unit_says_what_a_call_is(method, unit):
    agent = agent_for(method, 1, STEPS)
    agent.apply(Add(1.0), hidden_states=torch.zeros(1))
    assert agent.report().unit == unit
    assert f" {unit}s reused" in str(agent.report())


def test_records_of_a_block_range():
    agent = agent_for("dit_block_cache", 3, STEPS, block_start=1)
    block_rows(agent, adds(), STEPS)
    report = agent.report()
    reused = [0, 0, 2, 2, 0, 2]
    assert [record.calls_reused for record in report.steps] == reused
    assert [record.reused for record in report.steps] == [bool(count) for count in reused]
    assert [record.step for record in report.steps] == list(range(STEPS))
    assert {record.branch for record in report.steps} == {"cond"}
    assert {record.calls for record in report.steps} == {3}
    assert (report.calls, report.calls_reused) == (18, 6)
    assert report.share_computed == pytest.approx(12 / 18)
    reasons = ["refresh", "refresh", "interval", "interval", "refresh", "interval"]
    assert [record.reason for record in report.steps] == reasons


def test_each_branch_has_its_line_and_a_missing_step_is_a_blank():
    agent, block = agent_for("dit_block_cache", 1, STEPS), Add(1.0)
    for step in range(STEPS):
        for branch in ("cond", "uncond")[: 1 + (step in (1, 2, 5))]:
            with agent.branch(branch):
                block_step(agent, [block], step, step)
    lines = str(agent.report()).splitlines()
    assert "  cond     ##..#." in lines
    assert "  uncond    #.  #" in lines


def test_bytes_are_those_of_the_kept_features():
    hidden = 2 * 8  # two float64
    blocks = agent_for("dit_block_cache", 3, STEPS)
    block_rows(blocks, adds(), 1)
    assert blocks.report().bytes_now == 0  # step 0 lies before the window
    block_step(blocks, adds(), 1, 1.0)
    blocks.reset()
    block_rows(blocks, adds(), 2)
    assert blocks.report().bytes_now == hidden
    attention = agent_for("attention_cache", 3, STEPS, options={"order": 2})
    calls = adds()
    for step, snapshots in enumerate((1, 2, 2, 2, 3)):  # every computed step counts for a prediction
        call_rows(attention, calls, [step])
        assert attention.report().bytes_now == snapshots * 3 * 4
    call_rows(attention, calls, [5])
    assert attention.report().bytes_now == 0
    assert attention.report().bytes_peak == 3 * 3 * 4


def test_bytes_of_two_streams_in_their_own_dtypes():
    agent, block = agent_for("dit_block_cache", 1, STEPS), AddBoth(1.0)
    for _ in range(2):
        agent.apply(block, hidden_states=torch.zeros(5), encoder_hidden_states=torch.zeros(3, dtype=torch.bfloat16))
    assert agent.report().bytes_now == 5 * 4 + 3 * 2


def test_bytes_count_every_branch():
    agent, block = agent_for("attention_cache", 1, STEPS), Add(1.0)
    for step in range(2):
        for branch in "abc":
            with agent.branch(branch):
                agent.apply(block, torch.zeros(4), step)
    assert agent.report().bytes_now == 3 * 16


def test_the_report_is_of_the_run_of_this_context_or_else_the_latest():
    agent, blocks = agent_for("dit_block_cache", 3, STEPS), adds()
    block_rows(agent, blocks, STEPS)
    assert len(agent.report().steps) == STEPS
    with agent.run(request="a"):
        block_rows(agent, blocks, 2)
        assert len(agent.report().steps) == 2
    with agent.run(request="b"):
        block_rows(agent, blocks, 1)
    with agent.run(request="a"):
        assert len(agent.report().steps) == 2
    assert len(agent.report().steps) == 1
    agent.reset()


def test_a_report_is_a_value_that_later_calls_do_not_change():
    agent, blocks = agent_for("dit_block_cache", 3, STEPS), adds()
    block_rows(agent, blocks, 3)
    report = agent.report()
    text = str(report)
    for step in (3, 4, 5):
        block_step(agent, blocks, step, step)
    assert (len(report.steps), str(report)) == (3, text)
    with pytest.raises(AttributeError):
        report.method = "other"


def test_json_has_every_field_and_the_totals():
    agent = agent_for("attention_cache", 2, STEPS)
    call_rows(agent, adds(2), STEPS)
    report = agent.report()
    values = json.loads(report.to_json())
    records = [StepRecord(**record) for record in values.pop("steps")]
    totals = {name: values.pop(name) for name in ("calls", "calls_reused", "share_computed")}
    assert Report(**values, steps=tuple(records)) == report
    assert totals == {"calls": 12, "calls_reused": 6, "share_computed": 0.5}


def test_text_of_a_known_report():
    steps = tuple(StepRecord("cond", step, 4, 4 * (step in (1, 3)), "any") for step in (0, 1, 3))
    text = str(Report("dit_block_cache", "block", steps, 3 * 2**19, 2**21, 0.25))
    assert text.splitlines() == [
        "dit_block_cache: 8 of 12 blocks reused (67%), 1.50 MiB kept, 2.00 MiB at peak, 0.250 s",
        "  cond     #. .",
        "  one mark a step: # computed, . reused, ' ' not called",
    ]


def test_a_bypass_says_why():
    with pytest.warns(UserWarning, match="off"):
        agent = CacheAgent(CacheConfig("dit_block_cache", 3, STEPS, step_start=9, step_interval=2))
    block_rows(agent, adds(), STEPS)
    report = agent.report()
    assert report.note.startswith("off: step_start=9")
    assert report.note in str(report)
    assert report.steps == ()


def test_seconds_are_those_of_the_run():
    agent, blocks = agent_for("dit_block_cache", 3, STEPS), adds()
    block_rows(agent, blocks, STEPS)
    seconds = agent.report().seconds
    assert seconds > 0
    assert agent.report().seconds == seconds  # the run is over: its time stands still
