"""The commands that the README names, as a newcomer runs them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.e2e.fleet_kit import free_port, run_cli
from tests.e2e.real_fleet import BASE, EXAMPLES, QUICKSTART

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.alone
def test_the_demo_asks_every_model_and_ends(tmp_path: Path) -> None:
    port = str(free_port())
    done = run_cli(
        "demo", "-f", str(QUICKSTART), "--port", port, "--state-dir", str(tmp_path), "--max-tokens", "12"
    )  # fmt: skip

    assert done.returncode == 0, done.stdout + done.stderr
    assert "no answer" not in done.stdout
    assert BASE in done.stdout
    for model in EXAMPLES:
        assert model.name in done.stdout
    assert "Why is the sky blue?" in re.sub(r"[\s│]+", " ", done.stdout)


def test_the_readmes_commands_exist() -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    targets = sorted(set(re.findall(r"\bmake ([a-z]+)\b", readme)) & {"up", "demo", "test"})
    make = shutil.which("make")
    assert make is not None
    done = subprocess.run([make, "-n", *targets], cwd=REPOSITORY, capture_output=True, text=True, check=False)

    assert targets == ["demo", "test", "up"]
    assert done.returncode == 0, done.stderr
    for command in ("lorafleet up -f examples/quickstart", "lorafleet demo -f examples/quickstart", "python -m pytest"):
        assert command in done.stdout
