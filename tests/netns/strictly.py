"""JSON schemas without room for keys that they do not name, for documents of the version under test."""

from __future__ import annotations

from tproxy.cli.schemas import Schema


def strict(schema: Schema) -> Schema:
    """Return the schema without room for keys that it does not name."""
    if "properties" in schema:
        inner = {key: strict(each) for key, each in schema["properties"].items()}
        return {**schema, "properties": inner, "additionalProperties": False}
    if "items" in schema:
        return {**schema, "items": strict(schema["items"])}
    if "additionalProperties" in schema:  # those of an object whose keys are names
        return {**schema, "additionalProperties": strict(schema["additionalProperties"])}
    return schema
