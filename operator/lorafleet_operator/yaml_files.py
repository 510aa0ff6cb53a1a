"""One YAML file: its fingerprint, and its documents or what is wrong with it. Knows YAML, not what it says."""

from __future__ import annotations

import os
from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lorafleet_operator.core.objects import Problem

SUFFIXES = (".yaml", ".yml")
LARGEST = 8 * 1024 * 1024

Signature = tuple[int, int, int, int]


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping: the parser would keep the last one without a word."""


def _mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Hashable, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        if isinstance(key_node, yaml.ScalarNode):
            if key_node.value in seen and key_node.value != "<<":
                raise yaml.MarkedYAMLError(
                    problem=f"{key_node.value!r} is written twice", problem_mark=key_node.start_mark
                )
            seen.add(key_node.value)
    loader.flatten_mapping(node)
    return loader.construct_mapping(node, deep=True)


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


@dataclass(frozen=True, slots=True)
class Parsed:
    """The documents of a file, with the line where each starts; or, when it is no YAML, the one problem."""

    documents: tuple[Any, ...] = field(default=(), repr=False)  # they may be Secrets
    lines: tuple[int, ...] = ()
    problem: Problem | None = None


def signature(path: Path) -> Signature | None:
    """What changes when a file does, in place or by a rename over it; None when there is no such file."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def list_files(path: Path) -> list[Path]:
    """The YAML files that `-f path` names: itself, or those directly in the folder (as kubectl, not below it)."""
    if not path.is_dir():
        return [path] if path.exists() else []
    return sorted(entry for entry in path.iterdir() if _counts(entry))


def _counts(entry: Path) -> bool:
    return entry.suffix in SUFFIXES and not entry.name.startswith(".") and entry.is_file()


def parse(path: Path, where: str) -> Parsed:
    """Read and parse a file; `where` is its name for people. Never raises for what the file holds."""
    try:
        size = path.stat().st_size
        if size > LARGEST:
            return Parsed(problem=Problem(where, "", f"has {size} bytes; at most {LARGEST} are read: split it"))
        loader = _StrictLoader(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        return Parsed(problem=Problem(where, "", f"cannot be read: {reason}", "Unreadable"))
    except yaml.YAMLError as error:
        return Parsed(problem=Problem(where, "", _sentence(error), "NotYAML"))
    try:
        return _documents(loader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        return Parsed(problem=Problem(where, "", _sentence(error), "NotYAML"))
    finally:
        loader.dispose()


def _documents(loader: _StrictLoader) -> Parsed:
    documents, lines = [], []
    while loader.check_node():
        node = loader.get_node()
        if node is None:
            continue
        value = loader.construct_document(node)
        for item in _expanded(value):
            documents.append(item)
            lines.append(node.start_mark.line + 1)
    return Parsed(tuple(documents), tuple(lines))


def _expanded(value: Any) -> list[Any]:
    """The items of a `kind: List`, as kubectl prints several objects; any other document is itself."""
    if isinstance(value, dict) and value.get("kind") == "List" and isinstance(value.get("items"), list):
        return list(value["items"])
    return [] if value is None else [value]


def _sentence(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
    return f"is not YAML: {place}{getattr(error, 'problem', None) or str(error) or type(error).__name__}"
