"""`Handle`: hooks on a model as it is, for as long as a `with` lasts. Nothing is copied, swapped or left behind."""

import inspect
import warnings
from collections.abc import Callable
from types import TracebackType
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from swiftvlm.amounts import Budget
from swiftvlm.engine.before import shorten
from swiftvlm.engine.cache import check_cache, check_text_config, kv_bytes, past_length
from swiftvlm.engine.guards import (
    arguments,
    check_continuation,
    check_later_turn,
    check_prompt,
    check_request,
    check_unknown_cache,
)
from swiftvlm.engine.prefill import Prefill
from swiftvlm.engine.prompt import Prompt
from swiftvlm.engine.record import recorder
from swiftvlm.engine.selfcheck import check_itself
from swiftvlm.engine.trim import settle, trim, trimmable
from swiftvlm.engine.watch import TileMarks, TowerWatch
from swiftvlm.errors import FamilyError, MethodError, SwiftVLMError
from swiftvlm.families import find_family
from swiftvlm.methods import Method, check_stages, find_method
from swiftvlm.shape import ModelShape
from swiftvlm.trace import Trace

Inputs = dict[str, Any]
Changed = tuple[tuple[Any, ...], Inputs]


class Handle:
    """One method on one model. `with handle as trace`, or `attach()` and `detach()`; see `swiftvlm.prune`."""

    def __init__(
        self, model: nn.Module, method: str | Method, budget: Budget, preset: str | None, record_states: tuple[int, ...]
    ) -> None:
        self.method, self.family = find_method(method), find_family(model)
        # find_family has refused everything else.
        self.model = cast(PreTrainedModel, model)
        # The generic record must first pass law 1 on a real prompt.
        self.trusted = bool(self.family.model_types)
        self.core, self.decoder = self.family.core(self.model), self.family.language_model(self.model)
        self.layers = self.family.layers(self.decoder)
        check_text_config(self.decoder.config)
        if missing := self.method.missing():
            raise MethodError(missing)
        self.shape = ModelShape.of(self.model)
        self.stages = check_stages(self.method, self.method.stages(self.shape), self.shape)
        if self.stages and self.stages[0].after < self.family.first_stage:
            raise FamilyError(
                f"{self.method.name} cuts after layer {self.stages[0].after}, but {self.family.name} models can be cut "
                f"after layer {self.family.first_stage} at the earliest"
            )
        outside = [layer for layer in record_states if not 1 <= layer <= self.shape.layers]
        if outside:
            raise SwiftVLMError(f"record_states names layers 1 to {self.shape.layers}, got {outside}")
        self.budget, self.preset, self.record_states = budget, preset, record_states
        reduces = self.method.reduction is not None
        self.watch = TowerWatch(self.family, self.model) if reduces else None
        self.marks = TileMarks(self.family, self.model) if self.family.tiled else None
        self.seeing = [one for one in (self.watch, self.marks) if one is not None]
        self.trace = Trace()
        self._hooks: list[RemovableHandle] = []
        self._request: Inputs = {}
        # What the current forward is: the prompt it prefills or continues, its cache, the keys of an uncut layer.
        self._current: Prefill | None = None
        self._cache: Any = None
        self._prefilling = False
        self._columns = 0
        self._slices: dict[tuple[int, torch.device], Inputs] = {}
        self._states: dict[int, Tensor] = {}
        # Weak: a prompt's indexes live exactly as long as the user keeps its cache.
        self._known: WeakKeyDictionary[Any, Prefill] = WeakKeyDictionary()
        # A wrong preset or two budgets are told now, before any prompt.
        self.method.plan(self.shape, 0, 1, budget, preset)

    def attach(self) -> "Handle":
        """Put the hooks on. Raises `SwiftVLMError` if the model already carries some."""
        # Our own hooks are the only mark we leave on a model, so they also tell whether one is there.
        if any(isinstance(owner(hook), Handle) for hook in self.decoder._forward_pre_hooks.values()):
            raise SwiftVLMError(
                f"this {type(self.model).__name__} is already being pruned: leave the other `with swiftvlm.prune(...)`"
            )
        before = self._add_before
        before(self.model, self._on_model)
        if self.core is not self.model:
            before(self.core, self._on_core)
        before(self.decoder, self._on_decoder)
        for index, layer in enumerate(self.layers):
            before(layer, LayerHook(self, index))
            if index + 1 in self.record_states:
                self._hooks.append(layer.register_forward_hook(self._recording(index + 1)))
        self._hooks.append(self.decoder.register_forward_hook(self._on_decoded))
        for seeing in self.seeing:
            self._hooks += seeing.attach()
        return self

    def detach(self) -> None:
        """Take every hook off; the trace stays. Harmless when nothing is attached."""
        while self._hooks:
            self._hooks.pop().remove()
        # `_known` stays: prompts prefilled under these hooks go on under the next ones.
        self._current, self._cache, self._request = None, None, {}
        self._slices.clear()
        for seeing in self.seeing:
            seeing.forget()

    def keeping_all(self, method: Method) -> "Handle":
        """A handle on the same model that runs `method` at a budget of everything, for the self-check."""
        with warnings.catch_warnings():
            # The user has been told already.
            warnings.simplefilter("ignore")
            twin = Handle(self.model, method, 1.0, None, ())
        twin.trusted = True
        return twin

    def __enter__(self) -> Trace:
        self.attach()
        return self.trace

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.detach()

    def _add_before(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        self._hooks.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def _on_model(self, model: nn.Module, args: tuple[Any, ...], kwargs: Inputs) -> None:
        """Seam (a), outside: what only the generation head is told (labels, logits_to_keep)."""
        self._request = arguments(model, args, kwargs)
        ids = self._request.get("input_ids")
        if self.trusted or not isinstance(ids, Tensor) or not bool(self.family.visual(self.model, ids).any()):
            return
        # Trust is earned by a prompt with an image that passes; one that failed will fail again.
        check_itself(self, model, self._request)
        self.trusted = True

    def _on_core(self, core: nn.Module, args: tuple[Any, ...], kwargs: Inputs) -> None:
        """Seam (a), inside: ids and image inputs of this forward."""
        self._request |= arguments(core, args, kwargs)

    def _on_decoder(self, decoder: nn.Module, args: tuple[Any, ...], kwargs: Inputs) -> Changed | None:
        """Seam (b): decide what this forward is, a prompt to prune, tokens behind one, or none of our business."""
        # Taken once: a decoder called again on its own must not find the last prompt's request.
        request, self._request = self._request, {}
        cache = kwargs.get("past_key_values", request.get("past_key_values"))
        self._current, self._prefilling = None, False
        self._slices.clear()
        # A new dict, not `clear`: the last run has the old one until somebody reads it.
        self._states = {}
        embeds = kwargs.get("inputs_embeds")
        # The language model is used on its own: there can be no image in it.
        if embeds is None or not request:
            return None
        past = past_length(cache)
        self._columns = past + embeds.shape[1]
        if past == 0:
            self._prefilling = True
            self._current, kwargs = self._begin(request, kwargs, embeds)
            # A cut before layer 0 has shortened the prompt by now.
            self._columns = kwargs["inputs_embeds"].shape[1]
            return args, kwargs
        self._continue(cache, request.get("input_ids"), embeds.shape[1], kwargs.get("attention_mask"))
        before = None if self._current is None else self._current.before
        return None if before is None else (args, before.to(embeds.device).later({"past_key_values": cache, **kwargs}))

    def _continue(self, cache: Any, ids: Any, new_tokens: int, mask: Any) -> None:
        # One new token cannot be an image, and asking the device at every step would make decoding wait for it.
        asks = new_tokens > 1 and bool(self.stages) and isinstance(ids, Tensor)
        has_visual = asks and bool(self.family.visual(self.model, ids).any())
        prefill = self._known.get(cache)
        if prefill is None or has_visual:
            check_unknown_cache(cache, has_visual, mask, new_tokens)
        # A prompt of which nothing was cut has an ordinary cache and goes on like any other.
        elif prefill.segments or prefill.before is not None:
            check_later_turn(prefill.before is not None, new_tokens)
            check_continuation(cache, prefill.held, prefill.decoded, new_tokens)
            prefill.decoded = True
            self._current = prefill

    def _begin(self, request: Inputs, given: Inputs, embeds: Tensor) -> tuple[Prefill, Inputs]:
        """The prefill of a prompt, and the decoder's arguments, which a cut before layer 0 changes."""
        ids = check_prompt(request)
        visual = self.family.visual(self.model, ids)
        prompt = Prompt.read(ids, given.get("attention_mask"), visual, embeds)
        for seeing in self.seeing if any(prompt.visual) else ():
            seeing.used = True
        counted = zip(prompt.visual, prompt.text, strict=True)
        plans = tuple(self.method.plan(self.shape, seen, text, self.budget, self.preset) for seen, text in counted)
        # All visual tokens, hidden ones too: families count off whole images.
        tiles = () if self.marks is None else self.marks.tiles
        cells = [self.family.cells(self.model, row[mask], tiles) for row, mask in zip(embeds, visual, strict=True)]
        # All rows within the budget: no stage runs at all, which makes the no-op exact (law 9).
        if not any(plan.cuts for plan in plans):
            return Prefill(self.family, self.decoder, (), prompt, plans, None, cells), given
        check_request(request)
        position, reduction = given.get("position_ids"), self.method.reduction
        if self.watch is None or reduction is None:
            return Prefill(self.family, self.decoder, self.stages, prompt, plans, position, cells), given
        before, prompt, plans, cells, changed = shorten(self.watch, reduction, prompt, plans, cells, embeds, position)
        position = changed["position_ids"]
        prefill = Prefill(self.family, self.decoder, self.stages, prompt, plans, position, cells, before)
        return prefill, {**given, **changed}

    def on_layer(self, index: int, args: tuple[Any, ...], kwargs: Inputs) -> Changed | None:
        """Seam (c): before a decoder layer, cut the states if a stage is due and hand the layer its slices."""
        prefill = self._current
        if prefill is None:
            return None
        # Decoder layers take their states by position; a family may pass them by name.
        hidden, rest = (args[0], args[1:]) if args else (kwargs["hidden_states"], ())
        kwargs = {name: value for name, value in kwargs.items() if name != "hidden_states"}
        if self._prefilling:
            if index == 0:
                # Not earlier: where the caller gives no cache, the decoder makes one behind its own pre-hook.
                self._register(prefill, kwargs.get("past_key_values"))
            hidden = prefill.stage(index, hidden, kwargs, flat="flash" in str(self.decoder.config._attn_implementation))
        kwargs |= self._sliced(prefill, index, hidden, kwargs)
        # Behind the slicing: a probe turns these states with their own cos and sin.
        if self._prefilling:
            prefill.remember(index, hidden, kwargs)
        return (hidden, *rest), kwargs

    def _register(self, prefill: Prefill, cache: Any) -> None:
        if prefill.stages or prefill.before is not None:
            check_cache(cache)
        self._cache = cache
        if cache is not None:
            self._known[cache] = prefill

    def _sliced(self, prefill: Prefill, index: int, hidden: Tensor, inputs: Inputs) -> Inputs:
        """What differs in this layer's arguments; worked out once for each segment, device and forward."""
        segment = prefill.segment(index)
        if segment is None:
            # Gapped position ids would switch FlashAttention to packed sequences; RoPE travels in the embeddings.
            return {} if prefill.before is None else {"position_ids": None}
        # 32 layers share a handful of segments, and `device_map` a handful of devices.
        key = (segment.start, hidden.device)
        if key not in self._slices:
            segment = segment.to(hidden.device)
            if self._prefilling:
                self._slices[key] = segment.prefill(hidden, inputs, prefill.rotate)
            else:
                self._slices[key] = segment.step(hidden, inputs, self._columns, prefill.rotate)
        return self._slices[key]

    def _recording(self, layer: int) -> Callable[[nn.Module, Any, Any], None]:
        def keep(module: nn.Module, args: Any, output: Any) -> None:
            if self._prefilling:
                self._states[layer] = (output if isinstance(output, Tensor) else output[0]).detach()

        return keep

    def _on_decoded(self, decoder: nn.Module, args: Any, output: Any) -> None:
        """After the last layer: a finished prefill becomes a run of the trace."""
        if self._current is not None and self._prefilling:
            # The record counts the bytes that trimming left, but must not see the `before` that `settle` sets.
            trims = self._cache is not None and trimmable(self._current)
            if trims:
                trim(self._current, self._cache)
            size = 0 if self._cache is None else kv_bytes(self._cache)
            self.trace.add(recorder(self.method.name, self.shape, self._current, size, self._states))
            if trims:
                settle(self._current)
            self._current.forget()
        self._current, self._cache, self._prefilling = None, None, False


class LayerHook:
    """A layer's pre-hook that knows its index; a class, so that the model can tell whose hooks it carries."""

    def __init__(self, handle: Handle, index: int) -> None:
        self.handle, self.index = handle, index

    def __call__(self, layer: nn.Module, args: tuple[Any, ...], kwargs: Inputs) -> Changed | None:
        """Seam (c)."""
        return self.handle.on_layer(self.index, args, kwargs)


def owner(hook: Callable[..., Any]) -> Any:
    """The object a bound method belongs to, or None."""
    return hook.__self__ if inspect.ismethod(hook) else None
