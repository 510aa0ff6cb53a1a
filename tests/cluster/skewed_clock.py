"""A Python whose wall clock is off, by an environment variable: for processes that stand in for pods on such a node.

Only what tells the time of day is off. Monotonic clocks are right on every node, and a sleep takes as long as anywhere.
"""

from __future__ import annotations

from pathlib import Path

SITE = """
import datetime, os, time
off = float(os.environ["SKEWED_CLOCK"])
right = time.time
time.time = lambda: right() + off
class Skewed(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return super().now(tz) + datetime.timedelta(seconds=off)
    @classmethod
    def utcnow(cls):
        return super().utcnow() + datetime.timedelta(seconds=off)
datetime.datetime = Skewed
"""


def environment(folder: Path, seconds: float, python_path: str) -> dict[str, str]:
    """What such a process needs in its environment."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(SITE)
    return {"SKEWED_CLOCK": str(seconds), "PYTHONPATH": f"{folder}:{python_path}".rstrip(":")}
