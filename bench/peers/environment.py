"""A peer's own virtual environment in the user's cache folder: never a dependency of the project, nor in its locks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


def cache() -> Path:
    """`$XDG_CACHE_HOME/lorafleet/peers`, in the home directory where that is not set."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "lorafleet" / "peers"


@dataclass(frozen=True, slots=True)
class Environment:
    """Pinned packages, and `overrides` of what those ask for where the package index does not carry it."""

    name: str
    packages: tuple[str, ...]
    overrides: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        return cache() / self.name

    @property
    def python(self) -> Path:
        return self.folder / "env" / "bin" / "python"

    def install(self) -> Path:
        """The environment's interpreter; installs first unless exactly these packages are installed already."""
        wanted = "\n".join([*self.packages, "overridden by", *self.overrides, ""])
        done = self.folder / "installed.txt"
        if done.is_file() and done.read_text() == wanted:
            return self.python
        print(f"installing {', '.join(self.packages)} into {self.folder} (once)", flush=True)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        overrides = self.folder / "overrides.txt"
        overrides.write_text("\n".join([*self.overrides, ""]))
        uv = shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        if uv is None:
            sys.exit("uv is not in the project's environment: run `make test` once")
        subprocess.run([uv, "venv", "-q", "--python", sys.executable, str(self.folder / "env")], check=True)
        subprocess.run(
            [uv, "pip", "install", "-q", "--python", str(self.python), *self.packages, "--overrides", str(overrides)],
            check=True,
        )
        done.write_text(wanted)
        return self.python
