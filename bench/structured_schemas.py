"""The schema of `bench.structured`: what a form-filling request looks like, with every common keyword."""

from __future__ import annotations

from typing import Any

PERSON: dict[str, Any] = {
    "schema": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 30},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "tags": {"type": "array", "items": {"enum": ["kind", "brave", "shy"]}, "maxItems": 3},
            "address": {
                "type": "object",
                "properties": {
                    "street": {"type": "string", "maxLength": 30},
                    "zip": {"type": "string", "pattern": "^[0-9]{5}$"},
                },
                "required": ["street", "zip"],
                "additionalProperties": False,
            },
        },
        "required": ["name", "age", "tags", "address"],
        "additionalProperties": False,
    },
    "example": {
        "name": "Ann Example", "age": 34, "tags": ["kind", "shy"],
        "address": {"street": "Long Road 5", "zip": "12345"},
    },
}  # fmt: skip


def person_named(field: str) -> dict[str, Any]:
    """Another schema, as large."""
    schema: dict[str, Any] = PERSON["schema"]
    properties = {field if name == "name" else name: value for name, value in schema["properties"].items()}
    return {**schema, "properties": properties, "required": list(properties)}
