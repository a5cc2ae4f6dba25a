"""Train the embedded model: `python -m swiftvlm.mini.train language|tower|read|deep`.

`language` teaches a shallow language model to answer from the codes of patches, without pictures. `tower`, which may
run at the same time, teaches the vision tower and the projector to give each patch its code, on small crowded pictures
at every place of the grid. `read` puts both together: the language model learns on from what the finished tower sees.
`deep` does the same with the language model grown to its full depth. Every phase goes on where it was stopped.
"""

import json
import math
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch import nn
from transformers import LlavaForConditionalGeneration

from swiftvlm.mini.fit import fit_projector
from swiftvlm.mini.load import WEIGHTS, load_mini, ship
from swiftvlm.mini.muon import Muon
from swiftvlm.mini.phases import PHASES, Phase
from swiftvlm.mini.recipe import RECIPES, Recipe, build, grow
from swiftvlm.mini.start import prime

FIT_STEPS = 12000  # of the projector alone, before `read`
SAVE_EVERY = 90.0  # seconds
SEEING = ("model.vision_tower.", "model.multi_modal_projector.")
WARM_UP = {"deep": 0.1}  # share of the time over which the learning rate rises; new layers begin as zeros
app = typer.Typer(add_completion=False)
console = Console(stderr=True)


def optimizers(phase: Phase, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside layers, AdamW for everything else."""
    inside = [
        weight
        for layers in (phase.model.model.language_model.layers, phase.model.model.vision_tower.encoder.layers)
        for weight in layers.parameters()
        if weight.ndim == 2
    ]
    trained = {id(weight) for weight in phase.trained()}
    matrices = [weight for weight in inside if id(weight) in trained]
    known = {id(weight) for weight in matrices}
    others = [weight for weight in phase.trained() if id(weight) not in known]
    fast = 2 * rate
    # `peak` is saved with the state: a phase that goes on keeps its first rate, whatever `--rate` says.
    return [
        Muon([{"params": matrices, "peak": fast}], lr=fast, weight_decay=0.02),
        torch.optim.AdamW([{"params": others, "peak": rate}], lr=rate, betas=(0.9, 0.98), weight_decay=0.02),
    ]


class Training:
    """One phase with its optimizer, its clock and its log, all of which survive a stop."""

    def __init__(self, phase: Phase, out: Path, minutes: float, rate: float) -> None:
        self.phase, self.out, self.rate = phase, out, rate
        self.limit = minutes * 60
        self.spent, self.step = 0.0, 0
        self.log: list[dict[str, Any]] = []
        self.optimizers = optimizers(phase, rate)

    @property
    def state_file(self) -> Path:
        """Where everything is kept between two starts."""
        return self.out / f"{self.phase.name}.pt"

    def resume(self) -> bool:
        """Go on from the last save, if there is one."""
        if not self.state_file.exists():
            return False
        state = torch.load(self.state_file, weights_only=True, map_location=self.phase.device)
        self.phase.model.load_state_dict(state["model"])
        self.phase.extra.load_state_dict(state["extra"])
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        self.spent, self.step, self.log = state["spent"], state["step"], json.loads(state["log"])
        return True

    def save(self) -> None:
        """Everything, and the log as JSON beside it; a stop in the middle leaves the last save whole."""
        state = {
            "model": self.phase.model.state_dict(),
            "extra": self.phase.extra.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "spent": self.spent,
            "step": self.step,
            "log": json.dumps(self.log),
        }
        fresh = self.state_file.with_suffix(".new")
        torch.save(state, fresh)
        fresh.replace(self.state_file)
        self.state_file.with_suffix(".json").write_text(json.dumps(self.log, indent=1))

    def set_rate(self) -> None:
        """The learning rate at this time: a short rise, then a half cosine down to a fiftieth."""
        done = min(1.0, self.spent / self.limit)
        risen = min(done / WARM_UP.get(self.phase.name, 0.02), 1.0)
        shape = risen * (0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * done)))
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                # The rise begins at 0, where the first step would be lost.
                group["lr"] = group["peak"] * max(shape, 1e-3)

    def advance(self) -> dict[str, float]:
        """One optimizer step; what it measured."""
        began = time.monotonic()
        self.set_rate()
        loss, told = self.phase.loss(self.step, min(1.0, self.spent / self.limit))
        torch.autograd.backward(loss)
        told["norm"] = float(nn.utils.clip_grad_norm_(self.phase.trained(), 1.0))
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        # Tests and saves do not count: the limit is on training.
        self.spent += time.monotonic() - began
        return told

    def run(self, every: int) -> None:
        """Train until the time is used up; test every `every` steps."""
        saved, seen = time.monotonic(), defaultdict[str, list[float]](list)
        while self.spent < self.limit:
            for key, value in self.advance().items():
                seen[key].append(value)
            if self.step % every == 0 or self.spent >= self.limit:
                means = {key: round(fmean(values), 4) for key, values in seen.items()}
                self.log.append({"step": self.step, "minutes": round(self.spent / 60, 2), **means, **self.phase.test()})
                seen.clear()
                left = (self.limit - self.spent) / 60
                console.print(f"{left:.0f} min left  {self.log[-1]}", highlight=False, soft_wrap=True)
            if time.monotonic() - saved > SAVE_EVERY:
                self.save()
                saved = time.monotonic()
        self.save()


def plot(log: list[dict[str, Any]], path: Path) -> None:
    """Loss and held-out figures over time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    minutes = [entry["minutes"] for entry in log]
    for key in log[-1]:
        if key not in ("step", "minutes", "norm"):
            axes = left if "loss" in key else right
            axes.plot(minutes, [entry.get(key) for entry in log], label=key)
    for axes, title in ((left, "training loss"), (right, "held-out accuracy")):
        axes.set_title(title)
        axes.set_xlabel("minutes")
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def begin(phase: str, recipe: Recipe, out: Path, seed: int, onward: bool) -> LlavaForConditionalGeneration:
    """The model a phase starts from: first weights, or those that the phases before it left in `out`.

    `onward`: the shipped weights instead; `read` takes the tower that a further `tower` phase left in `out`.

    Raises:
        typer.BadParameter: a phase before it has not been trained.
    """
    if onward:
        model, _ = load_mini()
        model.train()
        # As in `build`: faster backwards.
        model.set_attn_implementation("eager")
    else:
        model = prime(build(replace(recipe, layers=recipe.seed_layers), seed))
    if phase == "deep" and not onward:
        model.load_state_dict(_left(out, "read", phase))
        model = grow(model, recipe)
    if phase == "read" and not onward:
        model.load_state_dict(_left(out, "language", phase))
    if phase == "read" and (not onward or (out / "tower.pt").exists()):
        # In what the language phase left, tower and projector have their first weights still.
        seen = {key: weight for key, weight in _left(out, "tower", phase).items() if key.startswith(SEEING)}
        model.load_state_dict(seen, strict=False)
    return model


def _left(out: Path, name: str, phase: str) -> dict[str, Any]:
    """The model that a phase left."""
    if not (out / f"{name}.pt").exists():
        raise typer.BadParameter(
            f"{phase} needs {out / name}.pt: train {name} first, or go --onward from shipped weights"
        )
    state: dict[str, Any] = torch.load(out / f"{name}.pt", weights_only=True)["model"]
    return state


@app.command()
def train(
    phase: Annotated[str, typer.Argument(help="language, tower, read or deep")],
    out: Annotated[Path, typer.Option(help="where states, logs and plots go")] = Path("build/mini"),
    minutes: Annotated[float, typer.Option(help="training time of the phase in all, over every start")] = 60,
    rate: Annotated[float, typer.Option(help="peak learning rate")] = 1e-3,
    size: Annotated[str, typer.Option(help=f"one of {', '.join(RECIPES)}")] = "cpu",
    batch: Annotated[int, typer.Option(help="pictures a step")] = 8,
    threads: Annotated[int, typer.Option(help="CPU threads")] = 2,
    every: Annotated[int, typer.Option(help="steps between two tests")] = 100,
    seed: Annotated[int, typer.Option()] = 0,
    first: Annotated[Path | None, typer.Option("--from", help="a phase's state to start from")] = None,
    onward: Annotated[bool, typer.Option("--onward", help="start from the shipped weights")] = False,
    shipped: Annotated[bool, typer.Option("--ship", help="write the result into the package, in bfloat16")] = False,
) -> None:
    """Train one phase; the same command goes on with one that was stopped."""
    if phase not in PHASES or size not in RECIPES:
        raise typer.BadParameter(f"phase is one of {', '.join(PHASES)}, size one of {', '.join(RECIPES)}")
    torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    recipe = RECIPES[size]
    model = begin(phase, recipe, out, seed, onward)
    made = PHASES[phase](model, batch, device)
    # Before `resume`, so that a phase that was stopped goes on from its own state.
    if first:
        state = torch.load(first, weights_only=True)
        model.load_state_dict(state["model"])
        made.extra.load_state_dict(state["extra"])
    training = Training(made, out, minutes, rate)
    found = training.resume()
    if phase == "read" and not found and not first:
        console.print(f"projector fitted to codes: letter loss {fit_projector(model, FIT_STEPS):.3f}")
    console.print(f"{phase}: {'going on at' if found else 'starting at'} step {training.step}, {device}")
    training.run(every)
    plot(training.log, out / f"{phase}.png")
    if shipped:
        console.print(f"{ship(made.model) / 1e6:.1f} MB in {WEIGHTS}")


if __name__ == "__main__":
    app()
