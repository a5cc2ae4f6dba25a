"""Refusals: ways of calling the model that pruning cannot follow, each with its way out."""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from swiftvlm.engine.cache import lengths, past_length
from swiftvlm.errors import UnsupportedError


def arguments(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a forward by name, positional ones too."""
    bound: dict[str, Any] = dict(inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments)
    # A forward's **kwargs arrive as one argument of that name.
    bound.update(bound.pop("kwargs", {}))
    return bound


def check_request(request: Mapping[str, Any]) -> None:
    """Refuse what a pruned prefill cannot answer, from the arguments of the whole model's forward."""
    labels = request.get("labels")
    if labels is not None:
        raise UnsupportedError(
            f"labels of shape {tuple(labels.shape)} cannot be matched with pruned logits, as long as the last layer's "
            "sequence; compute the loss on logits of the answer's tokens, or outside prune()"
        )
    routers = request.get("output_router_logits")
    if routers:
        raise UnsupportedError(
            f"output_router_logits={routers!r} is not supported, because routers of different layers see different "
            "tokens; leave it out"
        )
    # generate asks for 1; assisted decoding for 1 + its guesses, which is all that tells the two apart here.
    keep = request.get("logits_to_keep")
    if isinstance(keep, Tensor) or (isinstance(keep, int) and keep > 1):
        raise UnsupportedError(
            f"logits_to_keep={keep!r} at a pruned prefill: assisted decoding prefills the prompt and its guesses "
            "together, which hides the end of the prompt. Generate without an assistant; to read several logits "
            "yourself, leave logits_to_keep at 0 and slice them"
        )


def check_prompt(request: Mapping[str, Any]) -> Tensor:
    """The prompt's ids, (batch, prompt). Raises `UnsupportedError` where only embeddings were given."""
    input_ids = request.get("input_ids")
    if not isinstance(input_ids, Tensor):
        given = sorted(name for name, value in request.items() if value is not None)
        raise UnsupportedError(
            f"visual tokens are found by their ids: pass input_ids, not only {', '.join(given) or 'nothing'}"
        )
    return input_ids


def check_unknown_cache(cache: Any, has_visual: bool, mask: Any, new_tokens: int) -> None:
    """Refuse a filled cache that this `prune` did not see being filled, unless it is an unpruned text turn.

    `mask`: the attention mask given to the decoder, which counts all tokens there have been.
    """
    if has_visual:
        raise UnsupportedError(
            f"an image in a later turn, on a cache that already holds {past_length(cache)} tokens, is not supported: "
            "start a new cache and give the whole conversation as one prompt"
        )
    # Layers of one length are an ordinary cache, and a text turn on it is none of our business.
    if len(set(lengths(cache))) > 1:
        raise UnsupportedError(
            f"this cache holds between {min(lengths(cache))} and {max(lengths(cache))} tokens a layer: it was pruned "
            "inside another prune(), or is a copy. Keep the whole conversation inside one `with`, on the same cache"
        )
    # Cut before the first layer, or behind the last, all layers are of one length, and shorter than what was said.
    held = past_length(cache)
    if isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[1] > held + new_tokens:
        raise UnsupportedError(
            f"this cache holds {held} tokens, but the attention mask knows of {mask.shape[1] - new_tokens} before the "
            f"{new_tokens} new ones: it was pruned inside another prune(), or is a copy. Keep the whole conversation "
            "inside one `with`, on the same cache"
        )


def check_continuation(cache: Any, prompt: int, decoded: bool, new_tokens: int) -> None:
    """Refuse tokens behind a pruned prompt that would be wrong without anybody noticing."""
    # Cropping generated tokens takes as many from every layer; cropping the prompt would take others from each.
    past = past_length(cache)
    if past < prompt:
        raise UnsupportedError(
            f"the cache was cropped to {past} tokens, into its pruned prompt of {prompt}: crop only tokens behind the "
            "prompt, or prefill again"
        )
    # A later turn of many tokens is fine: by then the first answer has shown where the prompt ended.
    if new_tokens > 1 and not decoded:
        raise UnsupportedError(
            f"{new_tokens} tokens arrive at once directly behind a pruned prompt: was it prefilled in chunks, as a "
            "shared prefix, or is this assisted decoding? The visual tokens were chosen by the last token of the first "
            "piece. Prefill the whole prompt in one call; to score a given answer, feed its first token alone"
        )


def check_later_turn(cut_before: bool, new_tokens: int) -> None:
    """Refuse a later turn on a prompt of which layer 0's cache holds a part, shorter than the conversation."""
    # generate feeds whatever is longer than layer 0's cache, so it would feed parts of the prompt again.
    if cut_before and new_tokens > 1:
        raise UnsupportedError(
            f"{new_tokens} tokens arrive at once behind a prompt that was cut before the language model, or in the "
            "caches of all layers: they are shorter than the conversation, so generate would feed parts of it twice. "
            "Give the whole conversation as one prompt on a new cache"
        )
