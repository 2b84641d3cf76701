"""What schemathesis cannot know of this server, and the checks that are our own. `test_schema.py` runs it with them."""

from __future__ import annotations

from typing import Any

import schemathesis
from schemathesis.checks import CheckContext
from schemathesis.core.transport import Response
from schemathesis.hooks import HookContext

MODEL = "leo"

# Faults that the document tells: none of them may be found in a body that is valid by it.
TOLD = {
    "array_above_max_length",
    "array_below_min_length",
    "decimal_above_max_value",
    "decimal_below_min_value",
    "empty_array",
    "empty_string",
    "integer_above_max_value",
    "integer_below_min_value",
    "invalid_type",
    "invalid_value",
    "missing_required_parameter",
    "object_above_max_length",
    "string_above_max_length",
    "string_below_min_length",
    "unknown_parameter",
    "unsupported_parameter",
    "unsupported_value",
}


@schemathesis.hook
def before_load_schema(context: HookContext, document: dict[str, Any]) -> None:
    """The schema of a stream is read as that of each of its events."""
    for operations in document["paths"].values():
        for operation in operations.values():
            stream = operation["responses"].get("200", {}).get("content", {}).get("text/event-stream")
            if stream is not None:
                data = {"anyOf": [stream["schema"]["x-event-data"], {"$ref": "#/components/schemas/ErrorAnswer"}]}
                encoded = {"contentMediaType": "application/json", "contentSchema": data}
                text = {"type": "string", "if": {"const": "[DONE]"}, "else": encoded}
                stream["schema"] = {"type": "object", "properties": {"data": text}}


@schemathesis.hook
def before_call(context: HookContext, case: schemathesis.Case, kwargs: dict[str, Any]) -> None:
    """A name of a model is the served one's: any other is answered with 404, whatever else is asked."""
    if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
        case.body["model"] = MODEL


@schemathesis.check
def refused_for_what_no_schema_says(context: CheckContext, response: Response, case: schemathesis.Case) -> None:
    """A body that is valid by its schema is refused for no fault that a schema can tell."""
    if case.meta is None or not case.meta.generation.mode.is_positive or response.status_code != 400:
        return
    error = response.json()["error"]
    if error["message"].endswith("expected an integer, but got a decimal number instead."):
        return  # such as 1.0, which JSON Schema counts among the integers
    assert error["code"] not in TOLD, f"the schema does not tell of this: {error}"
