#!/usr/bin/env python3
"""Writes the chart's README.md: every value with its default, what values.yaml says above it, what the schema allows.

usage: charts/readme.py [--check]     with --check, nothing is written: exit status 1 when README.md is out of date
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parent / "lorafleet"
README = CHART / "README.md"
HEAD = """\
# lorafleet

<!-- Written by charts/readme.py from Chart.yaml, values.yaml and values.schema.json: then `make chart-readme`. -->

{description}. Kubernetes {kube}.

```
helm install lorafleet charts/lorafleet -n lorafleet-system --create-namespace
kubectl apply -f your-fleet.yaml
kubectl get lorafleet -A
```

**Upgrades.** The CustomResourceDefinitions are templates, so `helm upgrade` brings them up to date (`crds.install`).
Runtime tokens and a webhook certificate that the chart made are kept. `helm template` sees no cluster and makes new
ones each time: where something else applies what it renders, name a Secret of yours (`tokens.existingSecret`) and let
cert-manager make the certificate.

**Uninstalling** runs no hook and waits for nobody: no object of ours has a finalizer. With `crds.keep` (the default)
your objects stay, and base models that run go on serving; `kubectl delete lorafleet -A --all`, before or after, takes
everything away.

**A value that the chart does not know** is refused by its name, and so is one out of bounds.

"""


@dataclass(frozen=True)
class Value:
    """One row: a dotted path, its default as YAML, the comment above it, what is allowed."""

    path: str
    default: str
    says: str
    allowed: str


def readme() -> str:
    """The text of README.md."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    lines = [HEAD.format(description=chart["description"], kube=chart["kubeVersion"].removesuffix("-0"))]
    lines += ["| value | default | what it is |\n", "| --- | --- | --- |\n"]
    for value in values():
        says = " ".join(filter(None, (value.says, f"({value.allowed})" if value.allowed else "")))
        lines.append(f"| `{value.path}` | `{value.default}` | {says.replace('|', chr(92) + '|')} |\n")
    return "".join(lines)


def values() -> Iterator[Value]:
    """Every value of values.yaml in its order. A mapping on one line is one value."""
    text = (CHART / "values.yaml").read_text()
    schema = json.loads((CHART / "values.schema.json").read_text())
    root = yaml.compose(text)
    assert isinstance(root, yaml.MappingNode)
    yield from _below(root, schema, "", text.splitlines())


def _below(node: yaml.MappingNode, schema: dict[str, Any], path: str, lines: list[str]) -> Iterator[Value]:
    for key, value in node.value:
        here = f"{path}{key.value}"
        allowed = schema["properties"][key.value]
        says = _comment(lines, key.start_mark.line)
        if isinstance(value, yaml.MappingNode) and not value.flow_style and "properties" in allowed:
            if says:
                yield Value(here, "", says, "")
            yield from _below(value, allowed, f"{here}.", lines)
        else:
            yield Value(here, _default(value), says, _allowed(allowed))


def _comment(lines: list[str], line: int) -> str:
    """The comment lines right above a key, at its depth."""
    indent = len(lines[line]) - len(lines[line].lstrip())
    found: list[str] = []
    while line > 0 and lines[line - 1].startswith(" " * indent + "#"):
        line -= 1
        found.insert(0, lines[line].strip().lstrip("#").strip())
    return " ".join(found)


def _default(node: yaml.Node) -> str:
    plain = yaml.safe_load(yaml.serialize(node))
    return json.dumps(plain) if plain in ("", [], {}) else yaml.safe_dump(
        plain, default_flow_style=True, sort_keys=False, width=10_000
    ).removesuffix("\n").removesuffix("...").strip()  # fmt: skip


def _allowed(schema: dict[str, Any]) -> str:
    """What the schema says of one value, or of the parts of a mapping."""
    if "properties" in schema:
        parts = ((name, _allowed(part)) for name, part in schema["properties"].items())
        return "; ".join(f"{name}: {text}" for name, text in parts if text)
    if "enum" in schema:
        return " or ".join(str(choice) for choice in schema["enum"])
    if "minimum" in schema:
        return f"{schema['minimum']} to {schema['maximum']}"
    return ""


def main() -> int:
    """Write it, or compare."""
    text = readme()
    if sys.argv[1:] == ["--check"]:
        if not README.exists() or README.read_text() != text:
            print(f"{README} is out of date: run `make chart-readme`", file=sys.stderr)
            return 1
        return 0
    README.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
