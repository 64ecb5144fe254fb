"""A page in a real browser."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def assert_chromium_is_content(page: Path, folder: Path, width: int) -> None:
    """Open a page in headless Chromium: no message on the console, no failure, and something on the screen."""
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("chromium is not on PATH")
    shot = folder / "shot.png"
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += ["--disable-component-update", "--disable-sync", "--no-first-run", f"--user-data-dir={folder / 'user'}"]
    command += ["--enable-logging=stderr", f"--window-size={width},900", f"--screenshot={shot}", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert shot.stat().st_size > 20_000
    assert "CONSOLE" not in done.stderr
