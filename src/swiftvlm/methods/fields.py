"""What a method's fields may hold: their annotations, enforced.

Python enforces none: a wrong value would fail far from where it was given, or silently be another method.
"""

import math
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from swiftvlm.errors import MethodError

# How a plain kind is said, and what is of it: bool is an int to Python, not to a user.
PLAIN: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    bool: ("True or False", lambda value: isinstance(value, bool)),
    int: ("an int", lambda value: type(value) is int),
    float: ("a finite number", lambda value: type(value) in (int, float) and math.isfinite(value)),
    str: ("a word", lambda value: isinstance(value, str)),
    Callable: ("a function", callable),
    NoneType: ("None", lambda value: value is None),
}


def kinds_of(method: type) -> dict[str, Any]:
    """The annotation of every field of a method; none where one of them cannot be resolved."""
    try:
        hints = get_type_hints(method)
    except NameError:  # a user's own, imported for type checkers only
        return {}
    return {field.name: hints[field.name] for field in fields(method)} if is_dataclass(method) else {}


def check_fields(method: object) -> None:
    """Check every field against its annotation; lists and numpy's numbers become plain ones. Raises `MethodError`."""
    for name, kind in kinds_of(type(method)).items():
        value = vars(method)[name]
        if fits(value, kind):
            continue
        if not fits(plain(value), kind):
            raise MethodError(f"{name} is {said(kind)}, got {value!r}")
        object.__setattr__(method, name, plain(value))  # the fields are frozen


def plain(value: object) -> object:
    """A list as a tuple, and any number as Python's own."""
    if isinstance(value, list | tuple):
        return tuple(plain(one) for one in value)
    # bool is a number to Python: as 1, True would pass for an int.
    if isinstance(value, bool) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def fits(value: object, kind: Any) -> bool:
    """Whether a value is of a kind: plain ones, choices of words, tuples and unions of them; others are not judged."""
    origin, parts = get_origin(kind) or kind, get_args(kind)
    if origin in (Union, UnionType):
        return any(fits(value, part) for part in parts)
    if origin is Literal:
        return value in parts
    if origin is tuple and parts[1:] == (...,):
        return isinstance(value, tuple) and all(fits(one, parts[0]) for one in value)
    return origin not in PLAIN or PLAIN[origin][1](value)


def said(kind: Any) -> str:
    """A kind in words: "an int", "a tuple of ints or None", "one of ('top', 'grid')"."""
    origin, parts = get_origin(kind) or kind, get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(said(part) for part in parts)
    if origin is Literal:
        return f"one of {parts}"
    if origin is tuple:
        return "a tuple of ints" if parts[0] is int else "a tuple of such"
    return PLAIN[origin][0] if origin in PLAIN else str(kind)
