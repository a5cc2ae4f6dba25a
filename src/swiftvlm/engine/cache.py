"""What the engine asks of transformers' KV cache, and the refusal of caches it cannot follow."""

from typing import Any

from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import Cache, DynamicLayer

from swiftvlm.errors import FamilyError, UnsupportedError


def check_cache(cache: Any) -> None:
    """Raise `UnsupportedError` unless every layer of the cache can have a length of its own."""
    if cache is None:
        raise UnsupportedError(
            f"pruning needs the KV cache (got past_key_values={cache}): without it every generated token would choose "
            "visual tokens anew. Leave use_cache at True"
        )
    # By type, not isinstance: layers that slide or quantise inherit from DynamicLayer and hold something else.
    other = (
        [layer for layer in cache.layers if type(layer) is not DynamicLayer] if isinstance(cache, Cache) else [cache]
    )
    if other:
        raise UnsupportedError(
            f"pruning makes every layer's cache as long as its own tokens, which {type(other[0]).__name__} in "
            f"{type(cache).__name__} cannot be; use transformers.DynamicCache (the default of generate)"
        )


def check_text_config(config: PreTrainedConfig) -> None:
    """Raise `FamilyError` for decoders whose layers do not all attend to the whole sequence."""
    # transformers itself knows which layers slide: an empty cache for this config has one object a layer.
    odd = {type(layer).__name__ for layer in DynamicCache(config=config).layers if type(layer) is not DynamicLayer}
    if odd:
        raise FamilyError(
            f"the language model ({config.model_type}) has layers that do not attend to the whole sequence "
            f"({', '.join(sorted(odd))}); sliding windows are not supported yet"
        )


def lengths(cache: Any) -> list[int]:
    """Cached tokens in each layer; an empty list before the first forward."""
    return [] if cache is None else [int(layer.get_seq_length()) for layer in cache.layers]


def past_length(cache: Any) -> int:
    """Cached tokens in layer 0, which positions and masks of the whole model are sized by."""
    return 0 if cache is None else int(cache.get_seq_length())


def cached_keys(cache: Any, index: int, hidden: Tensor) -> Tensor | None:
    """The rotated keys (batch, kv_heads, tokens, head_dim) a layer cached for `hidden` (batch, tokens, dim), its input;

    None where they are those of other tokens, or already elsewhere (an offloaded cache).
    """
    # During this very prefill the layer just run has cached what its own attention read: no second projection.
    if cache is None or len(cache.layers) <= index:
        return None
    keys: Tensor | None = cache.layers[index].keys
    serve = keys is not None and keys.shape[-2] == hidden.shape[1] and keys.device == hidden.device
    return keys if serve else None


def kv_bytes(cache: Any) -> int:
    """Bytes of all keys and values in the cache, the whole batch."""
    both = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    return sum(tensor.numel() * tensor.element_size() for tensor in both)
