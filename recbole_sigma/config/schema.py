"""What each setting may be and what it is for: `properties/schema.yaml`, which explains its own keywords.

Light to import: jsonschema is imported when a value is checked, and the file is read when it is first needed.
"""

import math
import os
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

import yaml

from recbole_sigma.config.values import Given, properties_path
from recbole_sigma.errors import did_you_mean

_DIGITS = 18  # of the largest integer: sums and doubles of two still fit 64 bits
_INTERVAL = re.compile(r"\s*[\[(]([^,;]*),([^,;]*)[\])]\s*")
_KINDS: dict[type, str] = {
    bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object", type(None): "null",
}  # fmt: skip
_WORDS = {
    "boolean": "true or false",
    "integer": "a whole number",
    "number": "a number",
    "string": "text",
    "array": "a list",
    "object": "a mapping such as {name: value}",
    "null": "null",
}
_FORMATS = {
    "column": "the name of a column: text without ':'",
    "path": "the path of a directory",
    "interval": "an interval such as '[5,inf)', or several as in '[1,3];[5,9]'",
}
_ANYTHING = {"type": [*_WORDS], "items": {"type": [*_WORDS]}, "hint": "a finite number, text, a list or a mapping"}


@cache
def _schema() -> dict[str, dict[str, Any]]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's reads the file in a few milliseconds
    text = (properties_path() / "schema.yaml").read_text(encoding="utf-8")
    return dict(yaml.load(text, Loader=loader))  # noqa: S506 - a safe loader


def role(name: str) -> str:
    """What a setting is for: model, training, data, protocol, machine or location."""
    return str(_schema().get(name, {}).get("role", "model"))


def may_change(name: str) -> bool:
    """Whether a resumed run may be given another value: where it runs and when it stops, for example."""
    return bool(_schema().get(name, {}).get("may_change", role(name) in ("machine", "location")))


def identity(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that determine a run's numbers: those of cache keys and labels."""
    return {name: value for name, value in settings.items() if role(name) not in ("machine", "location")}


def check(name: str, given: Given, default: Any, choices: Mapping[str, tuple[Any, ...]]) -> None:
    """Raise a UserError that names the setting, the value and what would be right, unless the value is allowed.

    Args:
        name: the setting's.
        given: its value, and the file and line that it comes from.
        default: the value without it; its type is what counts for a setting without a line in schema.yaml.
        choices: the allowed values of some of the model's own settings.
    """
    value = given.value
    schema = dict(_schema().get(name) or _schema_of_default(default))
    if name in choices:
        schema["enum"] = list(choices[name])
    if "unsupported" in schema:
        if value != default:
            right = "leave it out" if default is None else f"leave it out, or write {_shown(default)}"
            raise given.error(f"{name}={_shown(value)} is not supported: {schema['unsupported']}; {right}")
        return
    error = next(_validator()(schema, format_checker=_format_checker()).iter_errors(value), None)
    if error is None:
        return
    if error.validator == "additionalProperties" and not error.path:
        inner = next(key for key in value if key not in schema["properties"])
        raise given.error(f"unknown {inner!r} in {name}{did_you_mean(str(inner), schema['properties'])}")
    raise given.error(f"{name} must be {_right(schema, value)}, got {_shown(value)}")


def _schema_of_default(default: Any) -> dict[str, Any]:
    """A schema for a setting without one: RecBole takes one value for a list of one, `topk: 10`."""
    if default is None:
        return _ANYTHING
    if not isinstance(default, list):
        return {"type": _KINDS[type(default)]}
    kinds = {_KINDS[type(element)] for element in default}
    if len(kinds) != 1 or kinds & {"array", "object"}:
        return {"type": "array"}
    (kind,) = kinds
    return {"type": [kind, "array"], "items": {"type": kind}, "minItems": 1}


@cache
def _validator() -> Any:
    """jsonschema's, for which true is no number, 1.0 no integer, and NaN no number."""
    from jsonschema import Draft202012Validator, validators

    def integer(_: Any, value: Any) -> bool:
        return type(value) is int and abs(value) < 10**_DIGITS

    def number(_: Any, value: Any) -> bool:
        return integer(_, value) or (type(value) is float and math.isfinite(value))

    types = Draft202012Validator.TYPE_CHECKER.redefine_many({"integer": integer, "number": number})
    return validators.extend(Draft202012Validator, type_checker=types)


@cache
def _format_checker() -> Any:
    from jsonschema import FormatChecker

    def is_column(value: Any) -> bool:
        """It stands in headers and in messages."""
        return not isinstance(value, str) or (value.isprintable() and value != "" and ":" not in value)

    def is_path(value: Any) -> bool:
        try:
            return not isinstance(value, str) or (value != "" and b"\0" not in os.fsencode(value))
        except UnicodeError:
            return False

    def is_interval(value: Any) -> bool:
        return not isinstance(value, str) or _intervals(value)

    checker = FormatChecker(formats=())
    for name, function in (("column", is_column), ("path", is_path), ("interval", is_interval)):
        checker.checks(name)(function)
    return checker


def _intervals(text: str) -> bool:
    """Whether `text` is one of RecBole's intervals or several: `[5,inf)`, `(0,1];[3,4)`."""
    matches = [_INTERVAL.fullmatch(part) for part in text.split(";")]
    try:
        return all(match and float(match[1]) <= float(match[2]) for match in matches)
    except ValueError:
        return False


def _right(schema: Mapping[str, Any], value: Any) -> str:
    """What would be right, in words: `a whole number from 1 to 1024`."""
    if "hint" in schema:
        return str(schema["hint"])
    if "enum" in schema:
        return "one of " + ", ".join("null" if choice is None else str(choice) for choice in schema["enum"])
    if "format" in schema:
        return _FORMATS[schema["format"]]
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    kind = _WORDS[kinds[0]]
    if kinds[0] == "array" and "items" in schema:
        kind = f"a list, each element {_right(schema['items'], value)}"
    if "minimum" in schema and "maximum" in schema:
        kind += f" from {schema['minimum']} to {schema['maximum']}"
    else:
        bounds = {"minimum": "of at least", "exclusiveMinimum": "greater than", "exclusiveMaximum": "less than"}
        kind += " and".join(f" {words} {schema[key]}" for key, words in bounds.items() if key in schema)
        kind += f" (at most {_DIGITS} digits)" if isinstance(value, int) and abs(value) >= 10**_DIGITS else ""
    others = ["a list of them" if other == "array" else _WORDS[other] for other in kinds[1:]]
    return " or ".join([kind, *others])


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
