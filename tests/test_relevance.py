"""CDPruner's relevance from a CLIP with both towers, against the slow reference."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

import swiftvlm
from swiftvlm.errors import MethodError
from swiftvlm.methods.cdpruner import CDPruner
from swiftvlm.relevance import ClipRelevance
from tests.reference.slow_tower import cdpruner_relevance
from tests.support import PATCH, SIDE, batch_of, make_row, tiny
from tests.test_before_reference import random_tower, seen_of

LONGEST = 8  # tokens, both ends included


def clip(width: int) -> CLIPModel:
    """A tiny CLIP with the vision tower of `tiny()`, of another width if asked."""
    torch.manual_seed(1)
    vision = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=PATCH,
    )
    text = CLIPTextConfig(
        hidden_size=12,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=64,
        max_position_embeddings=LONGEST,
        bos_token_id=0,
        eos_token_id=63,
    )
    made: CLIPModel = CLIPModel(
        CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=9)
    )
    return made.eval()


class Letters:
    """Both tokenizers: a token is a letter."""

    bos_token_id, eos_token_id = 0, 63

    def decode(self, ids: Tensor, skip_special_tokens: bool) -> str:
        """One letter a token."""
        assert skip_special_tokens
        return "".join(chr(48 + int(token)) for token in ids)

    def __call__(self, words: str, add_special_tokens: bool) -> dict[str, list[int]]:
        """And back."""
        assert not add_special_tokens
        return {"input_ids": [ord(letter) - 48 for letter in words]}


def relevance(model: CLIPModel) -> ClipRelevance:
    """With letters for words."""
    return ClipRelevance(model, Letters(), Letters())


@pytest.mark.parametrize("length", [1, 6, 7, 20])
def test_relevance_equals_the_slow_reference(length):
    """Texts of one segment, of exactly one, and of several."""
    model, tower = clip(10), random_tower(4, 3)
    words = [1 + (7 * place + length) % 60 for place in range(length)]
    seen = replace(seen_of(tower), text=torch.tensor(words))
    room = LONGEST - 2
    texts = []
    for start in range(0, length, room):
        segment = torch.tensor([[0, *words[start : start + room], 63]])
        found: Any = model.get_text_features(input_ids=segment)
        texts.append(found[0] if isinstance(found, Tensor) else found.pooler_output[0])
    wanted = cdpruner_relevance(
        tower.hidden[-2][1:], model.vision_model.post_layernorm, model.visual_projection, torch.stack(texts)
    )
    torch.testing.assert_close(relevance(model)(seen), wanted, atol=1e-5, rtol=0)


def test_the_question_chooses():
    """On a model: another question keeps other patches of the same picture, and both are within the count."""
    model, found = tiny(), []
    for seed in (0, 1, 2):
        row = make_row(model, 4, text=6)
        row.ids[-6:] = [2 + (seed * 11 + 5 * i) % 50 for i in range(6)]
        with swiftvlm.prune(model, CDPruner(counts=(4,), relevance=relevance(clip(16)))) as trace:
            model(**batch_of(model, [row]))
        found.append(tuple(trace.kept[0][0].tolist()))
    assert {len(kept) for kept in found} == {4}
    assert len(set(found)) > 1


def test_another_clip_and_no_text_are_told():
    """A CLIP of another width than the tower, and a prompt whose text cannot be compared."""
    seen = seen_of(random_tower(4, 3))
    with pytest.raises(MethodError, match=r"states have 10 channels, this CLIP's 16"):
        relevance(clip(16))(seen)
    with pytest.raises(MethodError, match="no text behind the image"):
        relevance(clip(10))(seen)
