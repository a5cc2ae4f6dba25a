"""`Family`: what the engine must know of a model, and nothing about any method."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from swiftvlm.errors import FamilyError

Rotary = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Family:
    """One family of VLMs whose visual tokens run through a Llama-like decoder.

    `model_types`: the `config.model_type`s it serves; `first_stage`: the fewest layers that must run before a cut;
    `tiled`: how many tiles an image became does not follow from its features alone, so `cells` must be shown `tiles`.
    Methods here fit models whose image features replace placeholder tokens and whose decoder layers own `self_attn`
    with `q_proj` and `k_proj`; a family overrides what differs. Modules are called, never their weights read: weights
    may be quantised, offloaded or carry adapters.
    """

    name: str = "generic"
    model_types: tuple[str, ...] = ()
    first_stage: int = 1
    tiled: bool = False

    def core(self, model: PreTrainedModel) -> PreTrainedModel:
        """The module that embeds images and calls the language model (`model.model` under a generation head)."""
        inner = dict(model.named_children()).get("model")
        return inner if isinstance(inner, PreTrainedModel) else model

    def language_model(self, model: PreTrainedModel) -> PreTrainedModel:
        """The decoder: a module with `layers` and `rotary_emb`. Raises `FamilyError` where there is none."""
        decoder = dict(self.core(model).named_children()).get("language_model")
        if not isinstance(decoder, PreTrainedModel) or "layers" not in dict(decoder.named_children()):
            raise FamilyError(
                f"{type(model).__name__} has no language model with visual tokens inside (`.language_model.layers`): "
                "there is nothing to prune"
            )
        # Cross-attention layers never see visual tokens in their sequence, and linear ones have no map to score with.
        odd = [i for i, layer in enumerate(self.layers(decoder), 1) if "self_attn" not in dict(layer.named_children())]
        if odd:
            raise FamilyError(
                f"{type(model).__name__}'s language model has layers without self-attention ({odd}). Cross-attention "
                "VLMs such as Llama 3.2 Vision are not supported, nor are linear-attention hybrids"
            )
        return decoder

    def layers(self, decoder: PreTrainedModel) -> Sequence[nn.Module]:
        """The decoder layers in order."""
        return list(decoder.get_submodule("layers").children())

    def visual(self, model: PreTrainedModel, input_ids: Int[Tensor, "batch prompt"]) -> Bool[Tensor, "batch prompt"]:
        """Which tokens of the prompt are image features. Raises `FamilyError` if the config names no placeholder."""
        # Old LLaVA configs say "index", new ones "id"; a dict takes both without asking the class.
        config = model.config.to_dict()
        token = config.get("image_token_id", config.get("image_token_index"))
        if token is None:
            raise FamilyError(
                f"{type(model).__name__}'s config has no image_token_id, so visual tokens cannot be found"
            )
        is_visual: Tensor = input_ids == token
        return is_visual

    def cells(
        self, model: PreTrainedModel, features: Float[Tensor, "visual dim"], tiles: Sequence[Tensor] = ()
    ) -> Int[Tensor, "visual 4"] | None:
        """(image, tile, row, column) of every visual token of one row of the batch; None where a family cannot say.

        `features`: the row's visual tokens as the decoder receives them. `tiles`: first channels (patches, few) of the
        features of every tile that was encoded, in order. -1 in tile, row and column: a token without a place, such as
        a newline.
        """
        return None

    def tile_grid(self, model: PreTrainedModel, request: Mapping[str, Any], image: int) -> tuple[int, int] | None:
        """(rows, columns) of an image's tiles beside its thumbnail; None for a family with one view an image."""
        return None

    def tower_layers(self, model: PreTrainedModel) -> Sequence[nn.Module]:
        """The vision tower's layers in order. Raises `FamilyError` where the family does not know them."""
        raise FamilyError(
            f"{self.name} models cannot be pruned before the language model: what their vision tower looks at is not "
            "known here; choose a method that acts inside the language model"
        )

    def tower_side(self, model: PreTrainedModel) -> int:
        """Patches along an edge of a tile."""
        vision: Any = model.config.vision_config
        return int(vision.image_size // vision.patch_size)

    def projector(self, model: PreTrainedModel) -> nn.Module:
        """What turns the tower's features into visual tokens."""
        return self.core(model).get_submodule("multi_modal_projector")

    def feature_depth(self, model: PreTrainedModel) -> int:
        """How many layers of the tower have run where features are taken. Raises `FamilyError` for several depths."""
        config: Any = model.config
        depth = config.vision_feature_layer
        if not isinstance(depth, int):
            raise FamilyError(f"features of several depths ({depth}) cannot be pruned before the language model")
        # A negative one counts hidden_states, of which there is one more than layers: the first is the embedding.
        return depth if depth >= 0 else len(self.tower_layers(model)) + 1 + depth

    def tower_heads(
        self, layer: nn.Module, which: str, hidden: Float[Tensor, "tiles tokens dim"]
    ) -> Float[Tensor, "tiles heads tokens head_dim"]:
        """Query ("q"), key ("k") or value ("v") vectors of a tower's layer for its (unnormalised) input, not scaled."""
        attention: Any = layer.get_submodule("self_attn")
        projected = attention.get_submodule(f"{which}_proj")(layer.get_submodule("layer_norm1")(hidden))
        heads: Tensor = projected.view(*hidden.shape[:2], -1, attention.head_dim).transpose(1, 2)
        return heads

    def tower_joined(
        self, layer: nn.Module, heads: Float[Tensor, "tiles heads tokens head_dim"]
    ) -> Float[Tensor, "tiles tokens dim"]:
        """What a tower's layer makes of its attention's outcome, the residual not added."""
        joined: Tensor = layer.get_submodule("self_attn.out_proj")(heads.transpose(1, 2).flatten(2))
        return joined

    def tower_mlp(
        self, layer: nn.Module, hidden: Float[Tensor, "tiles tokens dim"]
    ) -> Float[Tensor, "tiles tokens dim"]:
        """The second half of a tower's layer, the residual not added."""
        made: Tensor = layer.get_submodule("mlp")(layer.get_submodule("layer_norm2")(hidden))
        return made

    def queries(
        self, layer: nn.Module, hidden: Float[Tensor, "batch chosen dim"], rotary: Rotary | None
    ) -> Float[Tensor, "batch heads chosen head_dim"]:
        """Query vectors of a layer for its (unnormalised) input states; turned by `rotary` unless None."""
        return self._project(layer, "q", hidden, rotary)

    def keys(
        self, layer: nn.Module, hidden: Float[Tensor, "batch tokens dim"], rotary: Rotary | None
    ) -> Float[Tensor, "batch kv_heads tokens head_dim"]:
        """Key vectors of a layer for its (unnormalised) input states; turned by `rotary` unless None."""
        return self._project(layer, "k", hidden, rotary)

    def values(
        self, layer: nn.Module, hidden: Float[Tensor, "batch tokens dim"]
    ) -> Float[Tensor, "batch kv_heads tokens head_dim"]:
        """Value vectors of a layer for its (unnormalised) input states."""
        return self._project(layer, "v", hidden, None)

    def _project(self, layer: nn.Module, which: str, hidden: Tensor, rotary: Rotary | None) -> Tensor:
        attention: Any = layer.get_submodule("self_attn")
        projected = attention.get_submodule(f"{which}_proj")(layer.get_submodule("input_layernorm")(hidden))
        heads = projected.view(*hidden.shape[:2], -1, attention.head_dim)
        # Qwen3 and its like normalise every head's vector; a score without it would rank differently in silence.
        norm = dict(attention.named_children()).get(f"{which}_norm")
        heads = (norm(heads) if norm is not None else heads).transpose(1, 2)
        if rotary is None:
            plain: Tensor = heads
            return plain
        # The next layer may stand on the next device (`device_map`).
        cos, sin = (part.to(heads.device) for part in rotary)
        # transformers turns queries and keys in one call: the same vectors stand in for both.
        turned: Tensor = apply_rotary_pos_emb(heads, heads, cos, sin)[0]
        return turned

    def final_norm(self, decoder: PreTrainedModel) -> nn.Module:
        """The norm behind the last layer."""
        return decoder.get_submodule("norm")

    def scaling(self, layer: nn.Module) -> float:
        """What q.k is multiplied by before the softmax."""
        attention: Any = layer.get_submodule("self_attn")
        return float(attention.scaling)

    def rotary(
        self,
        decoder: PreTrainedModel,
        hidden: Float[Tensor, "batch tokens dim"],
        positions: Float[Tensor, "batch tokens"],
    ) -> Rotary:
        """cos and sin, each (batch, tokens, head_dim), at any positions, fractional ones included."""
        cos, sin = decoder.get_submodule("rotary_emb")(hidden, position_ids=positions)
        return cos, sin


def clip_layers(tower: nn.Module) -> Sequence[nn.Module]:
    """The layers of a CLIP tower, which owns its encoder, or (before transformers 5.20) a model that does."""
    owners = [tower, *tower.children()]
    encoder = next(owner.get_submodule("encoder") for owner in owners if "encoder" in dict(owner.named_children()))
    return list(encoder.get_submodule("layers").children())


def grid_cells(image: int, tile: int, rows: int, columns: int) -> Int[Tensor, "cells 4"]:
    """The (image, tile, row, column) of a full grid in raster order."""
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    fixed = torch.tensor([image, tile]).expand(rows * columns, 2)
    return torch.cat([fixed, row.reshape(-1, 1), column.reshape(-1, 1)], dim=1)
