"""Law 1 on the user's own prompt: a model that no family knows is pruned only if keeping everything changes nothing."""

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import nn

from swiftvlm.errors import FamilyError, SwiftVLMError, UnsupportedError
from swiftvlm.methods import Method
from swiftvlm.scores import TextAttention
from swiftvlm.shape import ModelShape
from swiftvlm.stage import Stage


@dataclass(frozen=True)
class KeepAll(Method):
    """Every stage kind of the library, with counts that keep every token: must not change a single logit."""

    name: ClassVar[str] = "keep-all"

    def stages(self, shape: ModelShape) -> tuple[Stage, ...]:
        """A stage that reads the layer just run, and one that projects with the next."""
        # One stage of each kind of probe: cached keys and fresh projections.
        stages = (Stage(1, TextAttention("previous")), Stage(max(shape.layers // 2, 2), TextAttention("next")))
        return tuple(stage for stage in stages if stage.after < shape.layers)


@runtime_checkable
class Attachable(Protocol):
    """What the check needs of a handle."""

    def attach(self) -> Any:
        """Hooks on."""

    def detach(self) -> None:
        """Hooks off."""

    def keeping_all(self, method: Method) -> "Attachable":
        """A handle on the same model and family that runs `method` at a budget of everything."""


def check_itself(handle: Attachable, model: nn.Module, request: dict[str, Any]) -> None:
    """Run the prompt once as it is and once with every token kept. Raises `FamilyError` unless logits are equal."""
    # Without the caller's cache: only the forward that waits for this check may fill it.
    inputs = {name: value for name, value in request.items() if name != "past_key_values"}
    # With its own hooks off, the model inside this forward is the user's; its inputs run three times in all.
    handle.detach()
    twin = handle.keeping_all(KeepAll())
    try:
        with torch.no_grad():
            plain = model(**inputs).logits
            twin.attach()
            kept = model(**inputs).logits
    except UnsupportedError:
        # A wrong call, not a wrong model: its own error says more.
        raise
    except (SwiftVLMError, RuntimeError, LookupError, AttributeError, TypeError) as error:
        raise FamilyError(_failure(model, f"{type(error).__name__}: {error}")) from error
    finally:
        # Hooks on again also where the check fails: whoever goes on inside the `with` is refused again.
        twin.detach()
        handle.attach()
    if not torch.equal(plain, kept):
        gap = float((plain - kept).abs().max()) if plain.shape == kept.shape else float("inf")
        raise FamilyError(_failure(model, f"logits moved by up to {gap:.3g}"))


def _failure(model: nn.Module, why: str) -> str:
    return (
        f"{type(model).__name__} cannot be pruned by the generic record: keeping every token should change nothing, "
        f"but {why}. It needs a family of its own (swiftvlm/families)"
    )
