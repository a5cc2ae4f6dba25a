"""Does a merged token change as its members would have? (paper, section 3.4, eqs. 14-16, and figure 7)

Between two stages a group's merged token runs through the layers that its members skip, and its change is added to all
of them. Here the same prompt also runs whole: what each member would have gone through is known, and compared.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from swiftvlm.amounts import Budget, Number
from swiftvlm.engine import prune
from swiftvlm.families import find_family
from swiftvlm.methods import Method
from swiftvlm.trace import Run


@dataclass(frozen=True)
class Change:
    """From behind layer `first` to behind layer `last`: what merged tokens went through, and what members would have.

    `merged`: change of each group's merged token; `members`: change of every bypassed token in the unpruned model;
    `groups`: the group of each.
    """

    first: int
    last: int
    merged: Float[Tensor, "groups dim"]
    members: Float[Tensor, "tokens dim"]
    groups: Int[Tensor, " tokens"]

    @property
    def means(self) -> Float[Tensor, "groups dim"]:
        """The members' mean change of each group."""
        # Every group has its anchor: no count is 0.
        total = torch.zeros_like(self.merged).index_add_(0, self.groups, self.members)
        return total / self.groups.bincount(minlength=len(total))[:, None]


def changes(model: PreTrainedModel, inputs: dict[str, Any], method: Method, budget: Budget) -> list[Change]:
    """The changes behind every stage that bypasses, on one prompt (batch 1, no padding)."""
    states = _States(model)
    with torch.no_grad():
        with states:
            model(**inputs)
        # A copy: the second run notes its states in the same dict.
        whole = dict(states.outputs)
        with prune(model, method, budget=budget) as trace, states:
            model(**inputs)
    run, found = trace.last, []
    # The last stage never bypasses; it ends the stretch of the one before.
    for stage, after in enumerate(run.after[:-1]):
        # Groups whose tokens come back are bypassed; whatever is merged for good is nobody's stand-in.
        if len(run.anchors[stage][0]) and len(run.candidates[stage + 1][0]) == run.visual[0]:
            found.append(_change(run, stage, after, whole, states))
    return found


def _change(run: Run, stage: int, after: int, whole: dict[int, Tensor], states: "_States") -> Change:
    last = run.after[stage + 1]
    places = _places(run, stage, whole[after].shape[1])
    # Row g is group g: anchors ascend, and a group's number is its anchor's rank among them.
    anchors = torch.tensor([places[slot] for slot in run.anchors[stage][0].tolist()])
    groups = run.groups[stage][0]
    slots, groups = run.candidates[stage][0][groups >= 0], groups[groups >= 0]
    # From the cut run, where the anchors' slots already hold the means when layer `after` + 1 begins.
    began, ended = (part[0].float().cpu() for part in (states.inputs[after + 1], states.outputs[last]))
    # From the whole run, where every slot is its own place. In float32: these are differences of near-equal states.
    before, behind = (whole[layer][0].float().cpu() for layer in (after, last))
    return Change(after, last, ended[anchors] - began[anchors], behind[slots] - before[slots], groups)


def _places(run: Run, stage: int, length: int) -> dict[int, int]:
    """Where each slot of the prompt stands in the sequence behind a stage."""
    visual = set(run.candidates[0][0].tolist())
    # Every stage before this one bypassed, so all visual tokens were back: this stage alone says which go on.
    stay = {*run.kept[stage][0].tolist(), *run.anchors[stage][0].tolist()}
    present = [slot for slot in range(length) if slot not in visual or slot in stay]
    return {slot: place for place, slot in enumerate(present)}


class _States:
    """Hooks that note every layer's input and output, numbered from 1, for as long as a `with` lasts."""

    def __init__(self, model: PreTrainedModel) -> None:
        family = find_family(model)
        self.layers = family.layers(family.language_model(model))
        self.inputs: dict[int, Tensor] = {}
        self.outputs: dict[int, Tensor] = {}

    def __enter__(self) -> "_States":
        self.hooks = []
        for i, layer in enumerate(self.layers, 1):
            # Put on inside `prune`, so that the input is what the engine hands to the layer.
            self.hooks.append(layer.register_forward_pre_hook(self._noting(i), with_kwargs=True))
            self.hooks.append(layer.register_forward_hook(self._noted(i)))
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def _noting(self, layer: int) -> Any:
        def note(module: Any, args: Any, kwargs: Any) -> None:
            self.inputs[layer] = args[0] if args else kwargs["hidden_states"]

        return note

    def _noted(self, layer: int) -> Any:
        def note(module: Any, args: Any, output: Any) -> None:
            self.outputs[layer] = output if isinstance(output, Tensor) else output[0]

        return note


def agreement(change: Change) -> dict[str, Number]:
    """How near merged tokens' changes come to their groups' means and to single members (means over both).

    `mean cosine`, `mean error` (|merged - mean| / |mean|), `member cosine`, `member error`; and two controls:
    `other cosine` and `other error`, the same against another group's mean. Where the controls are as good, the
    layers move all visual tokens alike and grouping decides nothing.
    """
    means, own = change.means, change.merged[change.groups]
    # The other group is the one before (`roll`); a lone group meets itself.
    told = {
        **_compared("mean", change.merged, means),
        **_compared("member", own, change.members),
        **_compared("other", change.merged, means.roll(1, 0)),
    }
    return {"groups": len(means), "members": len(own), **told}


def _compared(name: str, said: Tensor, true: Tensor) -> dict[str, Number]:
    error = (said - true).norm(dim=-1) / true.norm(dim=-1).clamp(min=1e-12)
    return {f"{name} cosine": float(F.cosine_similarity(said, true).mean()), f"{name} error": float(error.mean())}
