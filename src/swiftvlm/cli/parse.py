"""Options that several commands share: methods, budgets and shapes as text."""

import json
from pathlib import Path

import typer
from transformers import AutoConfig

from swiftvlm.errors import SwiftVLMError
from swiftvlm.methods import METHODS, Method, RandomTokens, SwiftVLM, find_method
from swiftvlm.shape import SHAPES, ModelShape


def read_budget(text: str | None) -> int | float | None:
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


def read_method(name: str, seed: int = 0, layers: str | None = None) -> Method:
    """The method of that name; `random` draws with `seed`, `swiftvlm` prunes at `layers` ("3,11,15").

    Raises `SwiftVLMError` for layers that are no list of ints, or are given to a method without such layers.
    """
    if layers is not None:
        if name != SwiftVLM.name:
            raise SwiftVLMError(f"--layers {layers!r} is for --method {SwiftVLM.name}, not {name!r}")
        try:
            return SwiftVLM(layers=tuple(int(layer) for layer in layers.split(",")))
        except ValueError as error:
            if isinstance(error, SwiftVLMError):
                raise
            raise SwiftVLMError(f"--layers are ints with commas, such as 3,11,15, got {layers!r}") from None
    return RandomTokens(seed=seed) if name == RandomTokens.name else find_method(name)


def print_json(data: object) -> None:
    """JSON on stdout, and nothing else there."""
    typer.echo(json.dumps(data, indent=1))


def known_methods() -> str:
    """The methods' names, for help texts."""
    return ", ".join(METHODS)
