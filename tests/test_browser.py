"""`make browser`: it installs nothing where a Chromium is, and where none can be had it says so and does not fail."""

import sys

import browser
import pytest


@pytest.fixture
def machine(monkeypatch):
    """A machine where a Chromium appears after a command with `word`; returns the commands that were run."""
    commands = []

    def made(word):
        def run(command):
            commands.append(command)

        def find():
            return "/chromium" if word is True or any(word in command for command in commands) else None

        monkeypatch.setattr(browser, "_run", run)
        monkeypatch.setattr(browser, "find", find)
        monkeypatch.setattr(browser.shutil, "which", lambda name: f"/bin/{name}")
        monkeypatch.setattr(browser.os, "geteuid", lambda: 0)
        browser.main()
        return [command[-1] for command in commands]

    return made


def test_what_is_there_is_left_alone(machine, capsys):
    assert machine(True) == []
    assert capsys.readouterr().out == "The browser tests run in /chromium.\n"


def test_old_package_lists_are_updated(machine):
    assert machine("update") == ["chromium", "update"]


def test_where_none_can_be_had_every_way_was_tried_and_it_is_said(machine, capsys):
    assert machine("nowhere") == ["chromium", "update", "chromium", "chromium"]
    assert "THE BROWSER TESTS ARE SKIPPED" in capsys.readouterr().out


def test_a_command_that_fails_is_shown_and_does_not_stop_it(capsys):
    browser._run((sys.executable, "-c", "import sys; sys.exit('no such package')"))
    browser._run(("/no/such/command",))
    out = capsys.readouterr().out
    assert "no such package" in out
    assert "No such file" in out
