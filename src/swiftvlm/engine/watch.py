"""What a vision tower does while pictures are encoded, kept until the prompt that shows them is prefilled."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from swiftvlm.errors import FamilyError, UnsupportedError
from swiftvlm.families import Family
from swiftvlm.tower import Block, Seen


@dataclass(frozen=True)
class Tile:
    """One tile's way through tower and projector: `states[i]` (tokens, dim) behind i layers."""

    states: tuple[Tensor, ...]
    features: Tensor
    embeds: Tensor


class TileMarks:
    """Hooks that note the first channels of every tile's features since the last prompt, to know tiles again by."""

    channels = 8

    def __init__(self, family: Family, model: PreTrainedModel) -> None:
        self.projector, self.entry = family.projector(model), family.tower_layers(model)[0]
        self.tiles: list[Tensor] = []
        self.used = self._fresh = False

    def attach(self) -> Iterator[RemovableHandle]:
        """Put the hooks on."""
        yield self.entry.register_forward_pre_hook(self._on_tower)
        yield self.projector.register_forward_hook(self._on_projected)

    def forget(self) -> None:
        """Let go of every mark."""
        self.tiles, self.used, self._fresh = [], False, False

    def _on_tower(self, layer: nn.Module, args: Any) -> None:
        self._fresh = True

    def _on_projected(self, projector: nn.Module, args: Any, output: Tensor) -> None:
        # A reduction projects, too, and no tower has run before that.
        if not self._fresh:
            return
        # Encoded pictures may serve several prompts; new ones behind a prompt replace them.
        if self.used:
            self.forget()
        # A copy: a view would hold on to all channels.
        self.tiles += output.detach()[..., : self.channels].clone().unbind(0)
        self._fresh = False


class TowerWatch:
    """Hooks on a model's tower and projector. `tiles`: what they noted since the last prompt; `used`: it is through."""

    def __init__(self, family: Family, model: PreTrainedModel) -> None:
        """Raises `FamilyError` where the family does not know its tower."""
        self.family, self.layers = family, family.tower_layers(model)
        self.projector, self.depth = family.projector(model), family.feature_depth(model)
        self.side = family.tower_side(model)
        self.tiles: list[Tile] = []
        self.used = False
        self._states: dict[int, Tensor] = {}

    def attach(self) -> Iterator[RemovableHandle]:
        """Put the hooks on."""
        for index, layer in enumerate(self.layers):
            yield layer.register_forward_hook(partial(self._on_layer, index), with_kwargs=True)
        yield self.projector.register_forward_hook(self._on_projected)

    def forget(self) -> None:
        """Let go of every tile."""
        self.tiles, self._states, self.used = [], {}, False

    def _on_layer(self, index: int, layer: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        # The input, too: what is behind 0 layers is no layer's output.
        self._states[index] = (args[0] if args else kwargs["hidden_states"]).detach()
        self._states[index + 1] = (output if isinstance(output, Tensor) else output[0]).detach()

    def _on_projected(self, projector: nn.Module, args: Any, output: Tensor) -> None:
        # A reduction projects, too, and no tower has run before that.
        if not self._states:
            return
        # Encoded pictures may serve several prompts; new ones behind a prompt replace them.
        if self.used:
            self.tiles, self.used = [], False
        states = [self._states[index] for index in range(len(self._states))]
        for tile, (features, embeds) in enumerate(zip(args[0].detach(), output.detach(), strict=True)):
            self.tiles.append(Tile(tuple(state[tile] for state in states), features, embeds))
        self._states = {}

    def find(self, embeds: Tensor, patch: Tensor, text: Tensor) -> Seen:
        """The tile whose patches the language model is about to get as `embeds` (m, out), and `text` ids behind.

        Raises:
            UnsupportedError: no picture was encoded to that inside this `prune`.
        """
        for tile in self.tiles:
            # One patch tells most tiles apart before all are compared.
            if self._same(tile, embeds[:1], patch[:1]) and self._same(tile, embeds, patch):
                return self._seen(tile, embeds, patch, text)
        raise UnsupportedError(
            f"the features of {len(patch)} visual tokens were not encoded inside this `with`, and this method needs to "
            "see how the vision tower made them: pass pixel_values, not features encoded before"
        )

    def _same(self, tile: Tile, embeds: Tensor, patch: Tensor) -> bool:
        # Bit for bit: the model scatters these very features into the prompt, cast to its type.
        return bool(torch.equal(tile.embeds.to(embeds)[patch.to(embeds.device)], embeds))

    def _seen(self, tile: Tile, embeds: Tensor, patch: Tensor, text: Tensor) -> Seen:
        home = tile.features.device
        patch = patch.to(home)

        def projected(features: Tensor) -> Tensor:
            # Reductions count in float32; the projector wants what the tower gave it.
            made: Tensor = self.projector(features.to(tile.features)).to(embeds)
            return made

        return Seen(
            patch,
            self.side,
            tile.features[patch],
            embeds.to(home),
            len(self.layers),
            self.depth,
            projected,
            states=lambda index: tile.states[index],
            queries=lambda index: self._heads("q", index, tile),
            keys=lambda index: self._heads("k", index, tile),
            block=self._block,
            text=text,
        )

    def _block(self, index: int) -> Block:
        layer, family = self.layers[index], self.family
        return Block(
            heads=lambda which, states: family.tower_heads(layer, which, states[None])[0],
            joined=lambda heads: family.tower_joined(layer, heads[None])[0],
            mlp=lambda states: family.tower_mlp(layer, states[None])[0],
        )

    def _heads(self, which: str, index: int, tile: Tile) -> Tensor:
        if len(tile.states[index]) != self.side**2 + 1:
            raise FamilyError(
                f"this method reads attention from a [CLS] token, but the tower made {len(tile.states[index])} tokens "
                f"of {self.side} x {self.side} patches"
            )
        return self.family.tower_heads(self.layers[index], which, tile.states[index][None])[0].float()
