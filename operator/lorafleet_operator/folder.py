"""What the `-f` files declare, kept up to date. A file that breaks costs one message; what it declared last goes on.

Blocking (it reads files): callers run `scan` in a thread. Holds no opinion on what the objects mean for a fleet.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lorafleet_operator.core import api
from lorafleet_operator.core.documents import Document, assemble, retain
from lorafleet_operator.core.objects import Desired, Problem, Problems
from lorafleet_operator.core.validation import admit
from lorafleet_operator.yaml_files import Signature, list_files, parse, signature


@dataclass(frozen=True, slots=True)
class _File:
    """A file as last taken: `documents` are its last good ones (None: it never was good), `problems` why no newer."""

    signature: Signature | None
    documents: tuple[Document, ...] | None
    problems: tuple[Problem, ...] = ()


class Folder:
    """Reads the paths of `-f`, each a file or a folder. `desired` is the last result; a new object for each change."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        self.desired = Desired()
        self._retained = Desired()
        self._files: dict[Path, _File] = {}
        self._missing: frozenset[Path] = frozenset()
        self._seen: dict[Path, Signature | None] | None = None
        self._news: list[Problem] = []
        # Replaced as a whole, as everything here: the world reads it while a thread scans.
        self._documents: tuple[Any, ...] = ()

    def scan(self) -> bool:
        """Look at the files; True when `desired` is new.

        After the first look a change counts once two looks in a row agree, so that no half-written file is taken:
        an editor that truncates, then writes, is waited for.
        """
        now = {path: signature(path) for path in self._list()}
        before, self._seen = self._seen, now
        changed = [path for path in now if self._is_new(path, now[path]) and _settled(path, now, before)]
        removed = [path for path in self._files if path not in now and (before is None or path not in before)]
        missing = frozenset(path for path in self.paths if not path.exists())
        if not changed and not removed and missing == self._missing and before is not None:
            return False
        files = {**self._files, **{path: self._take(path, now[path]) for path in changed}}
        for path in removed:
            if path not in missing and path.parent not in missing:  # what `-f` names is missed, not removed
                del files[path]
        self._files, self._missing = files, missing
        self._assemble()
        return True

    def news(self) -> list[Problem]:
        """The problems that no earlier call has told: each is said once, until it goes away and comes again."""
        told, self._news = self._news, []
        return told

    def documents(self) -> tuple[Any, ...]:
        """The raw documents of all files, in order, as far as they are good; for `-o yaml` and annotations."""
        return self._documents

    def _list(self) -> list[Path]:
        return list(dict.fromkeys(file for path in self.paths for file in list_files(path)))

    def _is_new(self, path: Path, found: Signature | None) -> bool:
        known = self._files.get(path)
        return known is None or known.signature != found

    def _take(self, path: Path, found: Signature | None) -> _File:
        where = _shown(path)
        parsed = parse(path, where)
        base_dir = str(path.absolute().parent)
        documents = tuple(Document(value, where, base_dir) for value in parsed.documents)
        problems = (parsed.problem,) if parsed.problem else _unidentified(documents, parsed.lines)
        if not problems:
            return _File(found, documents)
        known = self._files.get(path)
        return _File(found, known.documents if known else None, problems)

    def _assemble(self) -> None:
        files = self._ordered()
        documents = [document for file in files for document in file.documents or ()]
        # A file without a last good version may hide any object: then nothing that is missing counts as removed.
        lost = [problem for file in files if file.documents is None for problem in file.problems]
        kept = [problem for file in files if file.documents is not None for problem in file.problems]
        kept += [_missed(path) for path in sorted(self._missing)]
        current = assemble(documents, lost)
        self._retained = retain(self._retained, replace(current, problems=(*current.problems, *kept)))
        told = set(self.desired.problems)
        self.desired = admit(self._retained)
        self._documents = tuple(document.value for document in documents)
        self._news += [problem for problem in self.desired.problems if problem not in told]

    def _ordered(self) -> list[_File]:
        return [self._files[path] for path in sorted(self._files, key=self._place)]

    def _place(self, path: Path) -> tuple[int, str]:
        """Files come in the order of `-f`, and by name within a folder."""
        for index, root in enumerate(self.paths):
            if path == root or path.parent == root:
                return index, str(path)
        return len(self.paths), str(path)


def _settled(path: Path, now: dict[Path, Signature | None], before: dict[Path, Signature | None] | None) -> bool:
    return before is None or (path in before and before[path] == now[path])


def _unidentified(documents: tuple[Document, ...], lines: tuple[int, ...]) -> tuple[Problem, ...]:
    """What is wrong with documents that cannot even be named: nobody can tell which object they replace."""
    found: list[Problem] = []
    for document, line in zip(documents, lines, strict=True):
        read = api.read(document.value, f"{document.where}:{line}", document.base_dir)
        if isinstance(read, Problems) and read.key is None:
            found += read.problems
    return tuple(found)


def _missed(path: Path) -> Problem:
    message = "does not exist any more: what it declared last goes on; put it back, or stop the fleet"
    return Problem(_shown(path), "", message, "Missing")


def _shown(path: Path) -> str:
    """A path as people name it: relative where that is shorter."""
    absolute, here = path.absolute(), Path(os.getcwd())
    return str(absolute.relative_to(here)) if absolute.is_relative_to(here) else str(absolute)
