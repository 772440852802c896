"""The JSON schemas in etc are those of the code."""

from __future__ import annotations

import jsonschema
import pytest

from tproxy.cli import schemas


@pytest.mark.parametrize("path", schemas.files())
def test_the_file_is_what_the_code_says(path: str) -> None:
    assert (schemas.ROOT / path).read_text() == schemas.files()[path], "run `make options`"


@pytest.mark.parametrize(
    "schema", [schemas.of_status(), schemas.of_connections()], ids=["status", "connections"]
)
def test_the_schema_is_a_schema(schema: schemas.Schema) -> None:
    jsonschema.Draft202012Validator.check_schema(schema)
