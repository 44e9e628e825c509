"""Plain dicts to frozen specs, strictly, and specs back to canonical JSON.

Decoding knows no defaults but the birth values of added fields: what is missing is an error, and so is
what is unknown. All problems of one object are reported at once, each with its path.
"""

import dataclasses
import difflib
import hashlib
import json
import math
import types
import typing
from collections.abc import Iterable, Mapping
from functools import cache, lru_cache
from typing import Any, Literal, TypeVar, Union, cast

from hybrid.spec import ConfigError

T = TypeVar("T")
_FAILED: Any = object()


# --- decoding -----------------------------------------------------------------------------------


def decode(kind: type[T], value: object, where: str = "") -> T:
    """Read `value` as `kind`: a spec class, a union of them, or any type that a spec field has.

    Raises ConfigError with a line for each thing wrong.
    """
    problems: list[str] = []
    result = _decode(kind, value, where, problems)
    if problems:
        raise ConfigError(problems)
    return cast(T, result)


def did_you_mean(given: object, valid: Iterable[str]) -> str:
    """The end of an error line: the nearest valid name if one is near, then all of them."""
    names = sorted(valid)
    near = difflib.get_close_matches(str(given), names, n=1)
    return (f"; did you mean {near[0]}?" if near else "") + f" (valid: {', '.join(names)})"


@dataclasses.dataclass(frozen=True)
class _Field:
    name: str
    type: Any
    has_default: bool
    default: Any


@cache
def _fields(kind: type) -> dict[str, _Field]:
    hints = typing.get_type_hints(kind)
    return {
        f.name: _Field(f.name, hints[f.name], f.default is not dataclasses.MISSING, f.default)
        for f in dataclasses.fields(kind)
    }


def _kind_of(spec: type) -> str | None:
    return cast("str | None", getattr(spec, "kind", None))


def _revision_of(spec: type) -> int:
    return cast(int, getattr(spec, "revision", 1))


def _decode(kind: Any, value: object, where: str, problems: list[str]) -> Any:
    origin = typing.get_origin(kind)
    if origin in (Union, types.UnionType):
        return _decode_union(typing.get_args(kind), value, where, problems)
    if origin is Literal:
        choices = typing.get_args(kind)
        if value in choices and not isinstance(value, bool):
            return value
        return _fail(problems, where, value, "one of " + ", ".join(map(str, choices)))
    if origin is tuple:
        if not isinstance(value, list | tuple):
            return _fail(problems, where, value, "a list")
        item_type = typing.get_args(kind)[0]
        return tuple(_decode(item_type, item, f"{where}[{i}]", problems) for i, item in enumerate(value))
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(cast(type, kind), value, where, problems)
    return _decode_scalar(kind, value, where, problems)


def _decode_scalar(kind: Any, value: object, where: str, problems: list[str]) -> Any:
    if kind is bool:
        return value if isinstance(value, bool) else _fail(problems, where, value, "true or false")
    if kind is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        if isinstance(value, float) and value.is_integer():
            return int(value)
        return _fail(problems, where, value, "a whole number")
    if kind is float:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value) + 0.0  # -0.0, which equals 0.0, is spelt the same
        return _fail(problems, where, value, "a finite number")
    if kind is str:
        return value if isinstance(value, str) else _fail(problems, where, value, "a text")
    if kind is type(None):
        return None if value is None else _fail(problems, where, value, "null")
    if kind in (Any, object):
        return value
    raise TypeError(f"a spec field of type {kind} cannot be decoded")


def _decode_union(members: tuple[Any, ...], value: object, where: str, problems: list[str]) -> Any:
    if value is None and type(None) in members:
        return None
    rest = tuple(member for member in members if member is not type(None))
    if len(rest) == 1:
        return _decode(rest[0], value, where, problems)
    specs = {_kind_of(cast(type, member)): member for member in rest if dataclasses.is_dataclass(member)}
    if specs and isinstance(value, Mapping):
        kind = value.get("kind")
        if kind not in specs:
            names = [str(name) for name in specs]
            problems.append(f"{_at(where, 'kind')} = {_show(kind)}: unknown{did_you_mean(kind, names)}")
            return _FAILED
        return _decode(specs[cast(str, kind)], value, where, problems)
    for member in rest:
        attempt: list[str] = []
        result = _decode(member, value, where, attempt)
        if not attempt:
            return result
    return _fail(problems, where, value, " or ".join(_describe(member) for member in rest))


def _decode_dataclass(kind: type, value: object, where: str, problems: list[str]) -> Any:
    if not isinstance(value, Mapping):
        return _fail(problems, where, value, f"settings: {', '.join(_fields(kind))}")
    fields = _fields(kind)
    own_kind, found_before = _kind_of(kind), len(problems)
    for key, given in value.items():
        if key in fields:
            continue
        if key == "kind" and own_kind is not None:
            if given != own_kind:
                _fail(problems, _at(where, "kind"), given, own_kind)
        elif key == "revision":
            if given != _revision_of(kind):
                _fail(problems, _at(where, "revision"), given, f"revision {_revision_of(kind)}, the one this code has")
        else:
            problems.append(f"{_at(where, key)} = {_show(given)}: unknown setting{did_you_mean(key, fields)}")
    arguments: dict[str, Any] = {}
    for name, field in fields.items():
        if name in value:
            arguments[name] = _decode(field.type, value[name], _at(where, name), problems)
        elif not field.has_default:
            problems.append(f"{_at(where, name)}: missing; expected {_describe(field.type)}")
    if len(problems) > found_before:
        return _FAILED
    return kind(**arguments)


def _fail(problems: list[str], where: str, value: object, expected: str) -> Any:
    problems.append(f"{where or 'the value'} = {_show(value)}: expected {expected}")
    return _FAILED


def _at(where: str, key: object) -> str:
    return f"{where}.{key}" if where else str(key)


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    type(None): "null",
    Any: "a value",
}


def _describe(kind: Any) -> str:
    if kind in _WORDS:
        return _WORDS[kind]
    if typing.get_origin(kind) in (Union, types.UnionType):
        return " or ".join(_describe(member) for member in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        return f"a list ({_describe(typing.get_args(kind)[0])} each)"
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(kind)))
    return _kind_of(kind) or str(getattr(kind, "__name__", kind))


# --- canonical JSON -----------------------------------------------------------------------------


def canonical_json(spec: Any) -> str:
    """The one spelling of a spec: sorted keys, no spaces, ASCII; equal specs give equal text.

    Kinds are named, revisions above 1 too, and added fields are left out at their birth value. Floats are written
    in Python's shortest form that reads back the same. Raises ValueError for NaN and infinities.
    """
    return _canonical(spec)


def _canonical(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ",".join(map(_canonical, value)) + "]"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        # A model repeats a few distinct blocks many times, and a sweep the same parts in every cell.
        return _canonical_spec(type(value), cast(Any, value))
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


@lru_cache(maxsize=65536)
def _canonical_spec(cls: type, spec: Any) -> str:
    members: dict[str, str] = {}
    if _kind_of(cls) is not None:
        members["kind"] = json.dumps(_kind_of(cls))
    if _revision_of(cls) != 1:
        members["revision"] = json.dumps(_revision_of(cls))
    for field in dataclasses.fields(cls):
        value = getattr(spec, field.name)
        if "birth" in field.metadata and value == field.metadata["birth"]:
            continue
        members[field.name] = _canonical(value)
    return "{" + ",".join(f"{json.dumps(name)}:{members[name]}" for name in sorted(members)) + "}"


def encode(spec: Any) -> Any:
    """A spec as plain data: what its canonical JSON says."""
    return json.loads(canonical_json(spec))


def digest(text: str) -> str:
    """The first 12 hex digits of a text's SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]
