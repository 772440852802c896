"""The JSON schemas of what ``status --json`` and ``connections --json`` print, in ``etc``.

``python -m tproxy.cli.schemas`` (``make options``) writes them anew in a checkout. Tests compare them with
this module, with what the commands print, and with docs/contract.md, which says what the keys mean.

A document may have more keys than its schema. ``version`` grows when a key goes or changes its meaning.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tproxy.cli import connections, report
from tproxy.operations.connections import FIELDS

ROOT = Path(__file__).parents[2]

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
YES_OR_NO: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0}
NUMBER: Schema = {"type": "number", "minimum": 0}

_KINDS: dict[str, Schema] = {
    "text": TEXT,
    "MAC": TEXT,
    "yes or no": YES_OR_NO,
    "count": COUNT,
    "seconds": NUMBER,
    "count or null": {"type": ["integer", "null"], "minimum": 0},
    "rate": {"type": ["number", "null"], "minimum": 0},
}


def _object(**keys: Schema) -> Schema:
    return {"type": "object", "properties": keys, "required": [*keys]}


def _list(each: Schema) -> Schema:
    return {"type": "array", "items": each}


def _by_name(each: Schema) -> Schema:
    """An object whose keys are names."""
    return {"type": "object", "additionalProperties": each}


def _one_of(*words: str) -> Schema:
    return {"enum": [*words]}


def _or_null(schema: Schema) -> Schema:
    return {**schema, "type": [schema["type"], "null"]}


def _document(title: str, version: int, **keys: Schema) -> Schema:
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": title,
        **_object(version={"const": version}, **keys),
    }


def of_status() -> Schema:
    """Return the schema of ``tproxy status --json``."""
    network = _object(name=TEXT, id=TEXT)
    endpoint = _object(
        endpoint=TEXT, state=_one_of("good", "failed", "not tried"), since=_or_null(NUMBER), why=TEXT
    )
    service = _object(
        port=COUNT,
        protocol=_one_of("tcp", "udp"),
        address=TEXT,
        order=COUNT,
        networks=_list(network),
        name=TEXT,
        endpoint=TEXT,
        endpoints=_list(endpoint),
        listening=YES_OR_NO,
        problem=TEXT,
        open=COUNT,
        total=COUNT,
        bytes_to_endpoint=COUNT,
        bytes_to_guest=COUNT,
        last_error=TEXT,
        last_error_at=_or_null(NUMBER),
        limited=_by_name(COUNT),
        options=_by_name({"type": ["number", "string"]}),
    )
    route = _object(
        id=TEXT,
        guest=TEXT,
        mac=TEXT,
        bridge_port=TEXT,
        expires=_or_null(COUNT),
        open=COUNT,
        total=COUNT,
        bytes_to_guest=COUNT,
        bytes_to_client=COUNT,
        last_error=TEXT,
        last_error_at=_or_null(NUMBER),
        limited=_by_name(COUNT),
    )
    bridge = _object(
        network=TEXT,
        network_id=TEXT,
        networks=_list(network),
        relay=_or_null(COUNT),
        obstacles=_list(_object(kind=TEXT, text=TEXT)),
        services=_list(service),
        routes=_list(route),
    )
    worker = _object(
        pid=COUNT,
        draining=YES_OR_NO,
        open=COUNT,
        cpu_seconds=NUMBER,
        bridges=_list(_object(bridge=TEXT, open=COUNT)),
    )
    daemon = _object(
        version=TEXT,
        pid=COUNT,
        started=NUMBER,
        connections=COUNT,
        max_connections=COUNT,
        workers=_list(worker),
        bridges=_by_name(bridge),
    )
    processes = _list(_object(title=TEXT, pid=COUNT))
    return _document("tproxy status --json", report.VERSION, processes=processes, daemon=_or_null(daemon))


def of_connections() -> Schema:
    """Return the schema of ``tproxy connections --json`` and ``tproxy kill --json``."""
    keys = {name: {**_KINDS[kind], "description": meaning} for name, (kind, meaning) in FIELDS.items()}
    return _document(
        "tproxy connections --json, tproxy kill --json",
        connections.VERSION,
        seconds=_or_null(NUMBER),
        silent=_list(COUNT),
        connections=_list(_object(**keys)),
    )


def files() -> dict[str, str]:
    """Return the contents of the files, by their paths in a checkout."""
    schemas = {"etc/status.schema.json": of_status(), "etc/connections.schema.json": of_connections()}
    return {path: json.dumps(schema, indent=2) + "\n" for path, schema in schemas.items()}


if __name__ == "__main__":
    for _path, _content in files().items():
        (ROOT / _path).write_text(_content)
