"""`ModelShape`: the widths and depths of a language model that counting needs, read from a config or given by hand."""

from dataclasses import dataclass
from typing import Any

from swiftvlm.errors import FamilyError


@dataclass(frozen=True)
class ModelShape:
    """The shape of a Llama-like decoder: everything that plans, FLOPs and KV bytes depend on.

    `layers`: decoder layers; `hidden`: model width d; `intermediate`: width m of the gated MLP (three matrices);
    `heads`, `kv_heads`: query and key/value heads; `head_dim`: width of one head, `hidden / heads` unless given;
    `vocab`: rows of the output head. The defaults are those of LLaVA-1.5-7B (Vicuna-7B).
    """

    layers: int = 32
    hidden: int = 4096
    intermediate: int = 11008
    heads: int = 32
    kv_heads: int = 32
    head_dim: int | None = None
    vocab: int = 32064

    def __post_init__(self) -> None:
        for name in ("layers", "hidden", "intermediate", "heads", "kv_heads", "vocab"):
            value = self.__dict__[name]
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise FamilyError(f"ModelShape.{name} must be a positive int, got {value!r}")
        if self.head_dim is not None and self.head_dim < 1:
            raise FamilyError(f"ModelShape.head_dim must be a positive int or None, got {self.head_dim!r}")
        if self.head_dim is None and self.hidden % self.heads:
            raise FamilyError(
                f"hidden ({self.hidden}) must be a multiple of heads ({self.heads}) unless head_dim is given"
            )
        if self.heads % self.kv_heads:
            raise FamilyError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")

    @property
    def head_width(self) -> int:
        """Width of one attention head."""
        return self.head_dim or self.hidden // self.heads

    @property
    def query_width(self) -> int:
        """Width of all query heads together (the paper's d where no `head_dim` is given)."""
        return self.heads * self.head_width

    @property
    def kv_width(self) -> int:
        """Width of all key heads together: `hidden`, unless key/value heads are shared (GQA)."""
        return self.kv_heads * self.head_width

    def kv_bytes(self, tokens_per_layer: tuple[int, ...], bytes_per_value: int = 2) -> int:
        """Bytes of keys and values for one row whose layer i caches `tokens_per_layer[i]` tokens (text included)."""
        return sum(tokens_per_layer) * 2 * self.kv_width * bytes_per_value

    @classmethod
    def of(cls, source: Any) -> "ModelShape":
        """Read the shape of a transformers model or config (a VLM's own `text_config` is found).

        Raises `FamilyError` where the config has no decoder widths.
        """
        # A VLM's config holds the decoder's own config inside; a plain decoder's config is its own text config.
        config = source.config if hasattr(source, "config") else source
        text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
        try:
            return cls(
                layers=text.num_hidden_layers,
                hidden=text.hidden_size,
                intermediate=text.intermediate_size,
                heads=text.num_attention_heads,
                kv_heads=text.num_key_value_heads,
                # Not every config names it; then the heads share the hidden width.
                head_dim=text.to_dict().get("head_dim"),
                vocab=text.vocab_size,
            )
        except AttributeError as missing:
            raise FamilyError(
                f"cannot read a decoder's shape from {type(source).__name__}: {missing}. "
                "Pass a transformers VLM, its config, or build swiftvlm.ModelShape(layers=..., hidden=...) by hand"
            ) from None


LLAVA_1_5_7B = ModelShape()
LLAVA_1_5_13B = ModelShape(layers=40, hidden=5120, intermediate=13824, heads=40, kv_heads=40)
SHAPES = {"llava-1.5-7b": LLAVA_1_5_7B, "llava-1.5-13b": LLAVA_1_5_13B}
