"""Options that several commands share: methods, budgets and shapes as text."""

import json
from contextlib import suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import typer
from transformers import AutoConfig

from swiftvlm.amounts import Budget
from swiftvlm.errors import SwiftVLMError
from swiftvlm.methods import METHODS, Method, RandomTokens, SwiftVLM, find_method, fits, kinds_of, said
from swiftvlm.shape import SHAPES, ModelShape

# What the program was asked, for the birth certificates of results.
ASKED: ContextVar[tuple[str, ...]] = ContextVar("ASKED", default=())


def read_budget(text: str | None) -> Budget:
    """`192` is a number of tokens, `0.33` or `1.0` a fraction. Raises `SwiftVLMError` for other text."""
    if text is None:
        return None
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        raise SwiftVLMError(f"--budget is an int (tokens) or a float in (0, 1] (a fraction), got {text!r}") from None


def read_shape(text: str) -> ModelShape:
    """A name in `SHAPES`, or the path of a checkpoint's config.json (or its folder). Raises `SwiftVLMError`."""
    if text in SHAPES:
        return SHAPES[text]
    path = Path(text)
    if not path.exists():
        raise SwiftVLMError(f"--shape {text!r} is neither one of {', '.join(SHAPES)} nor a config file")
    try:
        return ModelShape.of(AutoConfig.from_pretrained(path))
    except (OSError, ValueError, KeyError, TypeError, json.JSONDecodeError) as error:
        why = (str(error).splitlines() or [repr(error)])[0]
        raise SwiftVLMError(f"--shape {text!r} is no model config that transformers can read ({why})") from None


def read_method(text: str, seed: int = 0, layers: str | None = None) -> Method:
    """A method by name, its fields behind colons: `fastv`, `fastv:after=4`, `swiftvlm:layers=3/8/11:rest=drop`.

    `random` draws with `seed` unless it says otherwise; `layers` ("3,11,15") are SwiftVLM's.

    Raises:
        SwiftVLMError: no such method or field, a value that does not fit, or layers for another method.
    """
    name, *settings = text.split(":")
    known = find_method(name)
    given = [_setting(part, known) for part in settings]
    values = dict(given)
    if len(values) < len(given):
        raise SwiftVLMError(f"{text!r} gives a field more than once")
    if layers is not None:
        if name != SwiftVLM.name:
            raise SwiftVLMError(f"--layers {layers!r} is for --method {SwiftVLM.name}, not {name!r}")
        if "layers" in values:
            raise SwiftVLMError(f"{text!r} has layers of its own; leave --layers {layers!r} out")
        try:
            values["layers"] = tuple(int(layer) for layer in layers.split(","))
        except ValueError:
            raise SwiftVLMError(f"--layers are ints with commas, such as 3,11,15, got {layers!r}") from None
    if name == RandomTokens.name:
        values = {"seed": seed, **values}
    # `known` has the defaults, and fields are frozen: another instance is made.
    make: Any = type(known)
    made: Method = make(**values)
    return made


def _setting(part: str, method: Method) -> tuple[str, Any]:
    """A field and its value: `after=4`, `merged_share=0.1`, `rope=false`, `layers=3/8/11`, `rest=drop`."""
    name, _, text = part.partition("=")
    known = kinds_of(type(method))
    if name not in known or not text:
        told = f"its fields are {', '.join(known)}" if known else "it has no fields"
        raise SwiftVLMError(f"{method.name}:{part} is not FIELD=VALUE of {method.name}; {told}")
    kind, default = known[name], vars(method)[name]
    # What the text looks like, the bare word (SparseVLM's version "1.5" is one), or a tuple, also of one: whichever
    # the field's annotation allows first.
    for value in (_value(text), text, tuple(_value(one) for one in text.split("/"))):
        if fits(value, kind):
            return name, value
    such = "3/11/15" if fits((3, 11, 15), kind) else default
    told = f"is {said(kind)}" + ("" if such is None else f", such as {such}")
    raise SwiftVLMError(f"{method.name}:{name} {told}, got {text!r}")


def _value(text: str) -> bool | int | float | str:
    """Text as what it looks like."""
    # int first: float reads whole numbers, too, and a count must stay an int.
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return {"true": True, "false": False}.get(text, text)


def print_json(data: object) -> None:
    """JSON on stdout, and nothing else there."""
    typer.echo(json.dumps(data, indent=1))


def known_methods() -> str:
    """The methods' names, for help texts."""
    return ", ".join(METHODS)
