"""Tools: calls and schemas in the one form that chat templates expect."""

import json
from collections.abc import Mapping
from typing import Any

from s2l_ray.data.row_errors import RowError, kind_of


def without_nulls(value: Any) -> Any:
    """Return `value` without the keys that are null, at every depth.

    Tables give all objects of a column the same keys: those that an object lacked are null.
    """
    if isinstance(value, Mapping):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [without_nulls(item) for item in value]
    return value


def tool_calls_of(value: Any) -> list[dict[str, Any]] | None:
    """Return calls as {type: function, function: {name, arguments}}; None if these are none.

    Args:
        value: a call, a list of calls, or the JSON text of either. A call has name and arguments,
            or an object of them under `function`; arguments may be JSON text.
    """
    value = _parsed(value)
    calls = value if isinstance(value, list) else [value]
    read = [_call(_parsed(call)) for call in calls]
    return [call for call in read if call is not None] if read and all(read) else None


def _call(call: Any) -> dict[str, Any] | None:
    if not isinstance(call, Mapping):
        return None
    inner = call.get("function")
    function = dict(inner) if isinstance(inner, Mapping) else _unwrapped(call)
    if not isinstance(function.get("name"), str):
        return None
    arguments = _parsed(function.get("arguments", {}))
    function["arguments"] = {} if arguments == "" else arguments
    outer = {"type": "function", **_without(call, ("function", "name", "arguments", "parameters"))}
    return outer | {"function": function}


def _unwrapped(call: Mapping[str, Any]) -> dict[str, Any]:
    """Return name and arguments of a call that has them at its top."""
    arguments = call.get("arguments", call.get("parameters", {}))
    return {"name": call.get("name"), "arguments": arguments}


def tools_of(value: Any, name: str) -> list[Any] | None:
    """Return the schemas of the tools that the field `name` of a row holds; None if it is empty.

    Args:
        value: a list of schemas, one schema, or the JSON text of either. A schema is {type:
            function, function: {...}}, as chat templates expect it, or the inner object alone.

    Raises:
        RowError: these are no schemas.
    """
    if value is None or value == "":
        return None
    parsed = _parsed(value)
    schemas = [_parsed(item) for item in (parsed if isinstance(parsed, list | tuple) else [parsed])]
    for schema in schemas:
        if not isinstance(schema, Mapping):
            raise RowError(
                "wrong type",
                f"{name!r} is {kind_of(parsed)}, not a list of tools' schemas or its JSON text; "
                "data.fields.tools names another field, or null",
            )
    return [_wrapped(without_nulls(schema)) for schema in schemas] or None


def _wrapped(schema: dict[str, Any]) -> dict[str, Any]:
    is_inner = "name" in schema and "function" not in schema and "type" not in schema
    return {"type": "function", "function": schema} if is_inner else schema


def _parsed(value: Any) -> Any:
    """Return the object or list that a JSON text stands for, and any other value as it is."""
    if not isinstance(value, str):
        return value
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        return value
    return parsed if isinstance(parsed, dict | list) else value


def _without(mapping: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {key: value for key, value in mapping.items() if key not in names}
