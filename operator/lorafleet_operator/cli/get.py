"""`lorafleet get`: prints what the running fleet says of its objects. Reads `status.json`, talks to nobody."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from lorafleet_operator.cli.terminal import object_header, object_row, plain_table
from lorafleet_operator.core.status import KINDS
from lorafleet_operator.errors import FleetNotRunning, LorafleetError, UsageError
from lorafleet_operator.local import state_folder
from lorafleet_operator.local.state_folder import StateFolder, read_json

WORDS = {
    "BaseModel": ("basemodels", "basemodel", "bm"),
    "LoRAAdapter": ("loraadapters", "loraadapter", "lad", "adapters", "adapter"),
    "Tenant": ("tenants", "tenant", "ten"),
}
WATCH_SECONDS = 0.25

Object = Mapping[str, Any]


def run(options: argparse.Namespace) -> int:
    """Print the objects, once or again with every change. Raises FleetNotRunning when no fleet ever ran here."""
    kinds = kinds_of(options.kind)
    path = Path(options.state_dir) if options.state_dir else state_folder.default_path(os.environ)
    state = StateFolder(path.expanduser())
    found = select(_objects(state), kinds, options.namespace, options.name)
    if options.name and not found:
        raise LorafleetError(f"there is no {options.kind} {options.name!r} in this fleet")
    if state.owner() is None:
        print("lorafleet: the fleet does not run; this is the last that was known of it", file=sys.stderr)
    if options.output in ("yaml", "json"):
        print(_structured(found, options.output, single=bool(options.name)))
    elif not found:
        print("no objects found", file=sys.stderr)
    else:
        print_tables(found, kinds, wide=options.output == "wide")
    if options.watch:
        _watch(state, options, kinds, found)
    return 0


def kinds_of(word: str) -> tuple[str, ...]:
    """The kinds that a word of the command line stands for. Raises UsageError."""
    if word.lower() in ("lorafleet", "all"):
        return KINDS
    for kind, words in WORDS.items():
        if word.lower() in words:
            return (kind,)
    known = ", ".join(words[0] for words in WORDS.values())
    raise UsageError(f"unknown kind {word!r}: choose one of {known}, or lorafleet for all of them")


def select(objects: Sequence[Object], kinds: Sequence[str], namespace: str | None, name: str | None) -> list[Object]:
    """The objects of these kinds, in this namespace (a Tenant has none) and of this name; by kind, then by name."""
    found = [
        document
        for document in objects
        if document["kind"] in kinds
        and name in (None, document["metadata"]["name"])
        and (namespace is None or document["metadata"].get("namespace", namespace) == namespace)
    ]
    return sorted(found, key=lambda d: (kinds.index(d["kind"]), _identity(d)))


def _identity(document: Object) -> tuple[str, str, str]:
    return document["kind"], document["metadata"].get("namespace", ""), document["metadata"]["name"]


def _objects(state: StateFolder) -> list[Object]:
    document = read_json(state.status)
    if not isinstance(document, dict) or document.get("version") != 1:
        raise FleetNotRunning(
            f"no fleet has run with the state folder {state.root}: start one with lorafleet up -f DIR"
        )
    return list(document["objects"])


def _structured(found: Sequence[Object], output: str, *, single: bool) -> str:
    document: Any = (
        found[0] if single and len(found) == 1 else {"apiVersion": "v1", "kind": "List", "items": list(found)}
    )
    if output == "json":
        return json.dumps(document, indent=2, ensure_ascii=False)
    return str(yaml.safe_dump(document, sort_keys=False, allow_unicode=True)).rstrip()


def print_tables(found: Sequence[Object], kinds: Sequence[str], *, wide: bool) -> None:
    """The objects as kubectl prints them, one table for each kind."""
    now = datetime.now(UTC)
    tables = []
    for kind in kinds:
        mine = [document for document in found if document["kind"] == kind]
        namespaced = kind != "Tenant"
        rows = [object_row(kind, document, wide=wide, namespaced=namespaced, now=now) for document in mine]
        if len(kinds) > 1:
            rows = [_prefixed(kind, row, namespaced) for row in rows]
        if rows:
            tables.append("\n".join(plain_table(object_header(kind, wide=wide, namespaced=namespaced), rows)))
    print("\n\n".join(tables), flush=True)


def _prefixed(kind: str, row: list[str], namespaced: bool) -> list[str]:
    """Names as kubectl prints them when it prints several kinds: `loraadapter/pirate`."""
    at = 1 if namespaced else 0
    return [*row[:at], f"{kind.lower()}/{row[at]}", *row[at + 1 :]]


def _watch(state: StateFolder, options: argparse.Namespace, kinds: Sequence[str], shown: list[Object]) -> None:
    before = {_identity(document): document for document in shown}
    stamp = _stamp(state.status)
    while True:
        time.sleep(WATCH_SECONDS)
        if (now := _stamp(state.status)) == stamp:
            continue
        stamp = now
        after = {_identity(d): d for d in select(_objects(state), kinds, options.namespace, options.name)}
        changed = [document for key, document in after.items() if before.get(key) != document]
        if changed and options.output in ("yaml", "json"):
            print(_structured(changed, options.output, single=True), flush=True)
        elif changed:
            print_tables(changed, kinds, wide=options.output == "wide")
        for kind, namespace, name in before.keys() - after.keys():
            print(f"{kind.lower()}/{name}{' in ' + namespace if namespace else ''} is gone", flush=True)
        before = after


def _stamp(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except FileNotFoundError:
        return 0, 0
    return stat.st_ino, stat.st_mtime_ns
