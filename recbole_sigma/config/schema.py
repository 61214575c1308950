"""What each setting may be and is for, by `properties/schema.yaml`; jsonschema is imported when a value is checked."""

import json
import math
import re
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

from recbole_sigma.config.values import Given, schemas
from recbole_sigma.errors import did_you_mean

_KINDS: dict[type, str] = {
    bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object", type(None): "null",
}  # fmt: skip
_WORDS = {
    "boolean": "true or false", "integer": "a whole number", "number": "a number", "string": "text",
    "array": "a list", "object": "a mapping such as {name: value}", "null": "null",
}  # fmt: skip
_BOUNDS = {
    "minimum": "at least", "exclusiveMinimum": "greater than", "maximum": "at most", "exclusiveMaximum": "less than",
}  # fmt: skip
_ANYTHING = {"type": [*_WORDS], "items": {"type": [*_WORDS]}, "hint": "a finite number, text, a list or a mapping"}
_DIGITS = 18  # of the largest integer: sums and doubles of such numbers still fit 64 bits
_INTERVAL = re.compile(r"\s*[\[(]([^,;]*),([^,;]*)[\])]\s*")


def role(name: str) -> str:
    """What a setting is for: model, training, data, protocol, machine or location."""
    return str(schemas().get(name, {}).get("role", "model"))


def may_change(name: str) -> bool:
    """Whether a resumed run may be given another value: where it runs and when it stops, for example."""
    return bool(schemas().get(name, {}).get("may_change", role(name) in ("machine", "location")))


def needs_no_default(name: str) -> bool:
    """Whether schema.yaml alone says what a setting may be."""
    return name in schemas() and "unsupported" not in schemas()[name]


def identity(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that determine a run's numbers: those of cache keys and labels."""
    return {name: value for name, value in settings.items() if role(name) not in ("machine", "location")}


def different_data(one: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """A setting by which two runs learn from different interactions, None if there is no such setting."""

    def decide(settings: Mapping[str, Any]) -> dict[str, Any]:
        own = {name: value for name, value in settings.items() if role(name) == "data" or name == "time_order"}
        protocol = settings.get("eval_args") or {}
        return own | {f"eval_args {part}": protocol.get(part) for part in ("split", "order", "group_by")}

    first, second = decide(one), decide(other)
    return next((name for name in sorted(first.keys() & second.keys()) if first[name] != second[name]), None)


def check(name: str, given: Given, default: Any, choices: Mapping[str, tuple[Any, ...]]) -> None:
    """Raise a UserError that names the setting, the value and what would be right, unless the value is allowed.

    A setting without a line in schema.yaml takes the type of its `default`. `choices` are those of the model class.
    """
    value = given.value
    schema = dict(schemas().get(name) or _schema_of_default(default))
    if reason := schema.get("unsupported"):
        if value == default:
            return
        instead = "" if default is None else f", or write {_shown(default)}"
        raise given.error(f"{name}: {_shown(value)} is not supported: {reason}; leave it out{instead}")
    if name in choices:
        schema["enum"] = choices[name]
    error = next(_validator()(schema).iter_errors(value), None)
    if error and error.validator == "additionalProperties" and not error.path:
        inner = next(key for key in value if key not in schema["properties"])
        nearest = did_you_mean(str(inner), schema["properties"]) or f"; {name} must be {_right(schema)}"
        raise given.error(f"unknown {inner!r} in {name}{nearest}")
    if error:
        limit = f" (at most {_DIGITS} digits)" if isinstance(value, int) and abs(value) >= 10**_DIGITS else ""
        wrong = error.instance if isinstance(value, list) else value  # of a list, the wrong element
        raise given.error(f"{name} must be {_right(schema)}{limit}, got {_shown(wrong)}")


def _schema_of_default(default: Any) -> dict[str, Any]:
    """A schema for a setting without one. RecBole takes one value for a list of one."""
    if default is None:
        return _ANYTHING
    kinds = {_KINDS[type(element)] for element in default} if isinstance(default, list) else ()
    if len(kinds) != 1 or {*kinds} & {"array", "object"}:
        return {"type": _KINDS[type(default)]}
    (kind,) = kinds
    return {"type": [kind, "array"], "items": {"type": kind}, "minItems": 1}


@cache
def _validator() -> Callable[[Mapping[str, Any]], Any]:
    """jsonschema's validator of a schema, with types and formats of ours."""
    from jsonschema import Draft202012Validator, FormatChecker, validators

    def is_integer(_: Any, value: Any) -> bool:
        return type(value) is int and abs(value) < 10**_DIGITS

    def is_number(_: Any, value: Any) -> bool:
        return math.isfinite(value) if type(value) is float else is_integer(_, value)

    def is_column(value: Any) -> bool:
        return not isinstance(value, str) or (value.isprintable() and value != "" and ":" not in value)

    def is_interval(value: Any) -> bool:
        matches = [_INTERVAL.fullmatch(part) for part in value.split(";")] if isinstance(value, str) else []
        return all(match and float(match[1]) <= float(match[2]) for match in matches)

    types = Draft202012Validator.TYPE_CHECKER.redefine_many({"integer": is_integer, "number": is_number})
    formats = FormatChecker(formats=())
    formats.checks("column")(is_column)
    formats.checks("interval", ValueError)(is_interval)
    return partial(validators.extend(Draft202012Validator, type_checker=types), format_checker=formats)


def _right(schema: Mapping[str, Any]) -> str:
    """What would be right, in words: `a whole number or null, at least 1 and at most 1024`."""
    if "hint" in schema:
        return str(schema["hint"])
    if "enum" in schema:
        return "one of " + ", ".join(str(choice) for choice in schema["enum"] if choice is not None)
    kinds = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
    bounds = " and ".join(f"{words} {schema[keyword]}" for keyword, words in _BOUNDS.items() if keyword in schema)
    return ", ".join(filter(None, (" or ".join(_WORDS[kind] for kind in kinds), bounds)))


def _shown(value: Any) -> str:
    text = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
