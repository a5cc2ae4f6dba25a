"""How much a text is about each patch of an image, as CLIP sees it (CDPruner's relevance)."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPModel

from swiftvlm.errors import MethodError
from swiftvlm.tower import Seen, unit

ENDS = 2  # a text begins and ends with a token of its own


@dataclass(frozen=True, repr=False)
class ClipRelevance:
    """Minus the cosine of patch and text in CLIP's common space, mean over segments of the text; on the tower's device.

    `clip`: the whole model whose vision tower the VLM uses (LLaVA-1.5: openai/clip-vit-large-patch14-336);
    `clip_tokenizer`: its tokenizer; `tokenizer`: the VLM's, to read the question behind the image. Minus is no slip:
    CLIP's patches are least like the texts that they show (CDPruner's official code; arXiv:2506.10967).
    """

    clip: CLIPModel
    clip_tokenizer: Any
    tokenizer: Any

    def __call__(self, seen: Seen) -> Float[Tensor, " m"]:
        """One number a patch. Raises `MethodError` for a CLIP of another width than the tower, or an empty text."""
        states = seen.patches(seen.states(seen.depth))
        config: Any = self.clip.config
        wide = config.vision_config.hidden_size
        if states.shape[-1] != wide:
            raise MethodError(
                f"the tower's states have {states.shape[-1]} channels, this CLIP's {wide}: another model?"
            )
        device = self.clip.visual_projection.weight.device
        # CLIP itself norms and projects [CLS] alone; the official code does the same to every patch.
        normed = self.clip.vision_model.post_layernorm(states.to(device, self.clip.dtype))
        patches = unit(self.clip.visual_projection(normed))
        return -(patches @ self._text(seen.text).T).mean(1).to(states.device)

    def _text(self, ids: Tensor) -> Float[Tensor, "segments dim"]:
        """Directions of the text's segments, each as long as CLIP can read."""
        # The two tokenizers share no ids: the question has to go through text.
        words = self.tokenizer.decode(ids, skip_special_tokens=True).strip()
        pieces = self.clip_tokenizer(words, add_special_tokens=False)["input_ids"]
        if not pieces:
            raise MethodError(f"there is no text behind the image to compare patches with: {words!r}")
        config: Any = self.clip.config
        most = config.text_config.max_position_embeddings - ENDS
        first, last = self.clip_tokenizer.bos_token_id, self.clip_tokenizer.eos_token_id
        device = self.clip.text_projection.weight.device
        found = []
        # In pieces, over which `__call__` takes the mean, as the official code does: CLIP reads 77 tokens at a time.
        for start in range(0, len(pieces), most):
            segment = torch.tensor([[first, *pieces[start : start + most], last]], device=device)
            pooled = self.clip.text_model(input_ids=segment).pooler_output
            found.append(self.clip.text_projection(pooled)[0])
        return unit(torch.stack(found))
