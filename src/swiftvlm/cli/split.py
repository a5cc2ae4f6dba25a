"""`swiftvlm split`: layers and counts together, from profiles measured at several shares."""

import json as text
from math import isfinite
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

import swiftvlm
from swiftvlm.cli.parse import print_json
from swiftvlm.errors import SwiftVLMError
from swiftvlm.methods import SwiftVLM
from swiftvlm.selection import Split, split
from swiftvlm.shape import ModelShape

STAGES = 3


def split_budget(
    profiles: Annotated[list[Path], typer.Argument(help="Result files of swiftvlm profile, one a --share.")],
    budget: Annotated[int, typer.Option(min=1, help="Average visual tokens.")] = 192,
    visual_tokens: Annotated[int, typer.Option(min=2, help="Visual tokens of a prompt.")] = 576,
    stages: Annotated[int, typer.Option(min=1, max=6, help="The most stages that are tried.")] = STAGES,
    merged_share: Annotated[float, typer.Option(help="Merged tokens' share of a stage that bypasses.")] = 0.2,
    json: Annotated[bool, typer.Option("--json", help="JSON on stdout and nothing else.")] = False,
) -> None:
    """Choose pruning layers and the tokens each keeps together, for one budget.

    Example: swiftvlm split profile-05.json profile-20.json profile-40.json --budget 128
    """
    if not 0 <= merged_share < 1:
        raise SwiftVLMError(f"--merged-share is a fraction in [0, 1), got {merged_share}")
    known = _known(profiles)
    if len(known) < 2:
        raise SwiftVLMError(f"the split needs profiles at two shares or more, got {sorted(known)}")
    best = _best(known, budget / visual_tokens, stages, merged_share)
    method = SwiftVLM(layers=best.layers, counts=best.counts(visual_tokens, merged_share), merged_share=merged_share)
    shape = ModelShape(layers=len(next(iter(known.values()))))
    plan = swiftvlm.plan(method, None, shape, visual_tokens)
    told = "/".join(str(layer) for layer in best.layers), "/".join(str(count) for count in method.counts or ())
    facts = {
        "layers": best.layers,
        "shares": best.shares,
        "counts": method.counts,
        "value": best.value,
        "average": plan.average_tokens,
        "method": f"swiftvlm:layers={told[0]}:counts={told[1]}",
    }
    if json:
        print_json(facts)
        return
    console = Console(highlight=False)
    for layer, share in zip(best.layers, best.shares, strict=True):
        console.print(f"layer {layer}: keeps {100 * share:.0f}% of the visual tokens")
    console.print(f"P = {best.value:.3f} at {plan.average_tokens:.1f} of {visual_tokens} tokens on average")
    console.print(f"to measure it: swiftvlm eval --methods {facts['method']}", soft_wrap=True)


def _best(known: dict[float, list[float]], average: float, stages: int, merged_share: float) -> Split:
    """The best schedule of 1 to `stages` stages; the error of the last one if none can be met."""
    found: list[Split] = []
    for count in range(1, stages + 1):
        try:
            found.append(split(known, average, count, merged_share))
        except SwiftVLMError as wrong:
            missed = wrong
    if not found:
        raise missed
    return max(found, key=lambda one: one.value)


def _known(paths: list[Path]) -> dict[float, list[float]]:
    """Profiles by share. Raises `SwiftVLMError` where they are of several models, or one share is given twice."""
    found: dict[float, list[float]] = {}
    read: dict[float, Path] = {}
    models = []
    for path in paths:
        model, share, values = _profile(path)
        models.append(model)
        if share in found:
            raise SwiftVLMError(f"{read[share]} and {path} are both of share {share:g}; leave one out")
        found[share], read[share] = values, path
        if model != models[0]:
            raise SwiftVLMError(f"{path} is of another model than {paths[0]}: {models[0]}, {model}")
    return found


def _profile(path: Path) -> tuple[str, float, list[float]]:
    """Whose it is, at which share of tokens, and x_1 ... x_L."""
    try:
        data: Any = text.loads(path.read_text())
        values = [float(value) for value in data["summary"][0]["relative"]]
        if not all(map(isfinite, values)):
            raise ValueError(f"not all of {values} are numbers")
        return data["header"]["model"], float(data["header"]["share"]), values
    except (OSError, ValueError, KeyError, TypeError, IndexError) as wrong:
        raise SwiftVLMError(f"{path} is no result file of swiftvlm profile ({wrong!r})") from None
