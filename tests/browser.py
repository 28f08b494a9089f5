"""A page in a real browser, without a screen."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

CHROMIUM = shutil.which("chromium")


def browse(page: Path | str, profile: Path) -> tuple[str, str]:
    """The elements of a page, a file or an address, after its script has run, and what the browser's console said."""
    command = [
        *(str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *(f"--user-data-dir={profile}", "--enable-logging=stderr", "--virtual-time-budget=4000"),
        *("--window-size=1400,2600", "--dump-dom", page if isinstance(page, str) else page.resolve().as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout, done.stderr
