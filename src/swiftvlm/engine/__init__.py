"""`prune`: any method on any supported model, for as long as a `with` lasts."""

from collections.abc import Sequence

from torch import nn

from swiftvlm.amounts import Budget
from swiftvlm.engine.handle import Handle
from swiftvlm.methods import Method

__all__ = ["prune"]


def prune(
    model: nn.Module,
    method: str | Method,
    *,
    budget: Budget = None,
    preset: str | None = None,
    record_states: Sequence[int] = (),
) -> Handle:
    """Prune the visual tokens of every prompt that `model` prefills inside the `with`.

        with swiftvlm.prune(model, "swiftvlm", budget=192) as trace:
            output = model.generate(**inputs, max_new_tokens=64)

    `model`: a transformers VLM of a supported family; left exactly as found afterwards. `method`: a name in
    `METHODS` or an instance. `budget`: int = visual tokens averaged over the language model's layers at layer input,
    summed over a row's images; float in (0, 1] = that fraction of the row's visual tokens; None = the method's first
    preset. A row with no more visual tokens than an int budget is untouched. `preset`: a published setting by name.
    `record_states`: layers (1-based) whose output states the trace keeps.

    Without `with`: `handle = prune(...).attach()`, then `handle.trace` and `handle.detach()`.

    Raises `MethodError`, `BudgetError` (also at the first prompt, where its size decides), `FamilyError`, or
    `UnsupportedError` when the model is called in a way that cannot be pruned correctly; the message says what to do.
    """
    return Handle(model, method, budget, preset, tuple(record_states))
