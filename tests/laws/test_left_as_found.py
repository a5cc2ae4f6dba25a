"""Law 8: whatever happens inside the `with`, afterwards the model is the one it was before."""

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import torch
from torch import nn
from transformers import DynamicCache

import swiftvlm
from swiftvlm.errors import SwiftVLMError
from tests.laws.generation import FAMILIES, METHODS, mixed_rows, small_row, snapshot
from tests.support import batch_of, tiny

RAISED = [ValueError, KeyboardInterrupt]


def fresh(family: str) -> nn.Module:
    """A model of this test's own: what one test leaves behind must not redden the next."""
    return tiny.__wrapped__(family)


@pytest.fixture
def model() -> nn.Module:
    """A tiny LLaVA."""
    return fresh("llava")


@pytest.fixture(params=["fastv", "swiftvlm"])
def method(request: pytest.FixtureRequest) -> Any:
    """A method that drops, and one that bypasses."""
    return METHODS[request.param]


@contextmanager
def left_as_found(model: nn.Module) -> Iterator[dict[str, torch.Tensor]]:
    """Compare attributes, hooks, configs and outputs before and after the block."""
    batch = batch_of(model, mixed_rows(model))
    logits = answer_logits(model, batch)
    before = snapshot(model), model.config.to_dict(), model.generation_config.to_dict()
    yield batch
    assert (snapshot(model), model.config.to_dict(), model.generation_config.to_dict()) == before
    assert torch.equal(answer_logits(model, batch), logits)


def answer_logits(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits of a prefill and one decoding step."""
    out = model.generate(**batch, max_new_tokens=2, do_sample=False, output_logits=True, return_dict_in_generate=True)
    return torch.stack(out.logits)


@contextmanager
def breaking(module: nn.Module, error: type[BaseException], call: int = 0) -> Iterator[None]:
    """Raise inside the module at its `call`-th forward from now."""
    calls = iter(range(100))

    def fail(*_: Any) -> None:
        if next(calls) == call:
            raise error("broken on purpose")

    handle = module.register_forward_pre_hook(fail)
    try:
        yield
    finally:
        handle.remove()


def hooks(model: nn.Module) -> int:
    """Forward hooks on the whole model."""
    return sum(len(part._forward_pre_hooks) + len(part._forward_hooks) for part in model.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_after_a_with_nothing_is_left(family, method):
    """Generating inside leaves no hook, no attribute, no changed config and the same outputs."""
    model = fresh(family)
    with left_as_found(model) as batch, swiftvlm.prune(model, method, record_states=(2, 7)) as trace:
        assert hooks(model) > 7
        model.generate(**batch, max_new_tokens=3, do_sample=False)
    assert len(trace) == 1


def test_making_a_handle_touches_nothing(model, method):
    """Only attaching puts hooks on."""
    before = snapshot(model)
    swiftvlm.prune(model, method)
    assert snapshot(model) == before


@pytest.mark.parametrize("error", RAISED)
def test_after_an_exception_inside_the_with(model, method, error):
    """An exception of the user's own code passes through, and the hooks go."""
    with left_as_found(model) as batch, pytest.raises(error):
        _run_and_raise(model, method, batch, error)


def _run_and_raise(model: nn.Module, method: Any, batch: dict[str, torch.Tensor], error: type[BaseException]) -> None:
    with swiftvlm.prune(model, method):
        model(**batch)
        raise error


@pytest.mark.parametrize(
    ("error", "family", "layer"),
    [(ValueError, "llava", 3), (KeyboardInterrupt, "llava", 0), (KeyboardInterrupt, "llava_next", 3)],
)
def test_after_an_exception_inside_a_layer(family, method, error, layer):
    """A prefill that dies half way, before and behind the first cut."""
    model = fresh(family)
    with left_as_found(model) as batch:
        broken = breaking(model.model.language_model.layers[layer].mlp, error)
        with broken, pytest.raises(error), swiftvlm.prune(model, method):
            model(**batch)


@pytest.mark.parametrize("error", RAISED)
def test_after_an_exception_while_decoding(model, method, error):
    """A decoding step that dies half way."""
    with left_as_found(model) as batch:
        broken = breaking(model.model.language_model.layers[4].self_attn, error, call=2)
        with broken, pytest.raises(error), swiftvlm.prune(model, method):
            model.generate(**batch, max_new_tokens=5)


def test_after_a_refusal(model, method):
    """The library's own errors leave nothing either."""
    with left_as_found(model) as batch, pytest.raises(SwiftVLMError), swiftvlm.prune(model, method):
        model(**batch, use_cache=False)


@pytest.mark.parametrize("layer", [1, 4])
def test_a_broken_prefill_does_not_disturb_the_next(model, method, layer):
    """Inside one `with`, a prompt after an interrupted one runs as if nothing had been."""
    batch = batch_of(model, mixed_rows(model))
    with swiftvlm.prune(model, method) as trace:
        logits = model(**batch).logits
    with swiftvlm.prune(model, method) as second:
        broken = breaking(model.model.language_model.layers[layer].mlp, KeyboardInterrupt)
        with broken, pytest.raises(KeyboardInterrupt):
            model(**batch_of(model, [small_row(model, 7)]))
        assert torch.equal(model(**batch).logits, logits)
    assert second == trace


def test_a_broken_step_does_not_disturb_the_next_prompt(model, method):
    """The same for an interrupted answer."""
    batch = batch_of(model, mixed_rows(model))
    with swiftvlm.prune(model, method):
        logits = model(**batch).logits
        step = breaking(model.model.language_model.layers[5].mlp, KeyboardInterrupt, call=1)
        with step, pytest.raises(KeyboardInterrupt):
            model.generate(**batch, max_new_tokens=5)
        assert torch.equal(model(**batch).logits, logits)


def test_attach_and_detach_do_what_the_with_does(model, method):
    """Same tokens kept, same logits, nothing left; detaching twice, or before attaching, is harmless."""
    handle = swiftvlm.prune(model, method)
    handle.detach()
    with left_as_found(model) as batch:
        with swiftvlm.prune(model, method) as trace:
            inside = model(**batch).logits
        assert handle.attach() is handle
        assert torch.equal(model(**batch).logits, inside)
        handle.detach()
        handle.detach()
    assert handle.trace == trace


def test_a_handle_can_be_attached_again(model, method):
    """The trace goes on where it ended."""
    batch = batch_of(model, mixed_rows(model))
    handle = swiftvlm.prune(model, method)
    for _ in range(2):
        handle.attach()
        model(**batch)
        handle.detach()
        model(**batch)
    assert len(handle.trace) == 2
    assert handle.trace.runs[0] == handle.trace.runs[1]


def test_hooks_of_others_stay(model, method):
    """Hooks that were there before, and one put on inside the `with`, are still there and still called."""
    layer = model.model.language_model.layers[4]
    calls: list[str] = []
    early = layer.register_forward_pre_hook(lambda *_: calls.append("early"))
    with swiftvlm.prune(model, method):
        late = layer.register_forward_hook(lambda *_: calls.append("late"))
    model(**batch_of(model, [small_row(model)]))
    early.remove()
    late.remove()
    assert calls == ["early", "late"]


@pytest.mark.parametrize(
    ("outer", "inner"), [(".", "."), (".", "model"), ("model", ".")], ids=["same", "core inside", "core outside"]
)
def test_nesting_is_refused_and_the_outer_one_goes_on(model, method, outer, inner):
    """Two prunings of one language model would cut each other's tokens."""
    modules = {".": model, "model": model.model}
    with left_as_found(model) as batch:
        with swiftvlm.prune(modules[outer], method) as trace:
            model(**batch)
            nested = swiftvlm.prune(modules[inner], method)
            with pytest.raises(SwiftVLMError, match=r"Llava\w+ is already being pruned.*leave the other `with"):
                nested.attach()
            nested.detach()
            model(**batch)
        assert len(nested.trace) == 0
    assert len(trace) == 2
    assert trace.runs[0] == trace.runs[1]


def test_attaching_twice_is_refused(model, method):
    """The same handle, too."""
    handle = swiftvlm.prune(model, method).attach()
    with pytest.raises(SwiftVLMError, match="already being pruned"):
        handle.attach()
    handle.detach()
    assert hooks(model) == 0


def test_two_models_at_once_are_two_prunings(method):
    """Nesting on different models is no nesting."""
    first, second = fresh("llava"), fresh("llava")
    batch = batch_of(first, mixed_rows(first))
    with swiftvlm.prune(second, method) as alone:
        expected = second(**batch).logits
    with swiftvlm.prune(first, method) as one, swiftvlm.prune(second, method) as two:
        first(**batch)
        assert torch.equal(second(**batch).logits, expected)
    assert (len(one), two) == (1, alone)


def test_no_cache_is_held_after_detaching(model, method):
    """Whether a prefill ended or died, a handle that is kept for its trace does not keep the prompt's cache alive."""
    batch = batch_of(model, mixed_rows(model))
    handle = swiftvlm.prune(model, method).attach()
    done, died = DynamicCache(), DynamicCache()
    caches = weakref.ref(done), weakref.ref(died)
    model(**batch, past_key_values=done)
    with breaking(model.model.language_model.layers[6].mlp, KeyboardInterrupt), suppress(KeyboardInterrupt):
        model(**batch, past_key_values=died)
    handle.detach()
    del done, died
    gc.collect()
    assert [cache() for cache in caches] == [None, None]
