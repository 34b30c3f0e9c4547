"""Headless Chromium for the tests in a browser: where it is, and an attempt to install it (`make browser`)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SECONDS = 900  # for one command of an installation
APT = ("apt-get", "-o", "DPkg::Lock::Timeout=120", "--quiet", "--yes")
QUIET = (  # nothing that looks for updates or a device: the tests count requests
    *("--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)


def find() -> str | None:
    """The path of a Chromium: one that is installed, or the one that Playwright has downloaded."""
    installed = next(filter(None, map(shutil.which, NAMES)), None)
    if installed:
        return installed
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if Path(path).exists() else None


def options() -> list[str]:
    """Command line of Chromium; its sandbox refuses to be started by root."""
    return [*QUIET, "--no-sandbox"] if os.name == "posix" and os.geteuid() == 0 else [*QUIET]


def main() -> None:
    """Install Chromium if there is none, and say what came of it. Never fails: without it the tests are skipped."""
    for command in (None, *_attempts()):
        if command is not None:
            _run(command)
        found = find()
        if found:
            print(f"The browser tests run in {found}.")
            return
    print("Chromium is not there and could not be installed: THE BROWSER TESTS ARE SKIPPED. apt-get install chromium helps.")


def _attempts() -> list[tuple[str, ...]]:
    """Debian's package, as root; then what Playwright downloads."""
    install = (*APT, "install", "--no-install-recommends", "chromium")
    debian = [install, (*APT, "update"), install] if shutil.which("apt-get") and os.geteuid() == 0 else []
    return [*debian, (sys.executable, "-m", "playwright", "install", "chromium")]


def _run(command: tuple[str, ...]) -> None:
    print("Trying:", " ".join(command), flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(command, env=environment, timeout=SECONDS, capture_output=True, text=True, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        print(error, flush=True)
        return
    if done.returncode:
        print((done.stderr.strip() or done.stdout.strip())[-500:], flush=True)


if __name__ == "__main__":
    main()
