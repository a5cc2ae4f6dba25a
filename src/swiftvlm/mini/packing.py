"""Many questions behind one picture: the visual tokens are computed once for all of them.

Every question sees the picture and itself, and its positions go on right behind the picture, as if it stood alone.
"""

import random
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from swiftvlm.mini.tokens import GAP, tokenizer
from swiftvlm.scenes import GRID, Question, Scene, ask

# The shipped weights' last rounds asked `text` 7 times of 18, then `gqa` 7 times of 20 (LOG.md).
MIX = {"ref": 2, "ref+": 2, "refg": 2, "text": 5, "gqa": 3, "pope": 2}  # shares of the questions in training
EASY = {"ref": 1, "ref+": 4, "text": 2, "gqa": 3, "pope": 2}  # at the beginning: one look answers them
PREFIX = 2  # `<s>` and `USER:` before the picture


@dataclass
class Pack:
    """A batch of packed questions.

    Shapes: `ids`, `labels` (-100 outside the answers), `weights` (of the labels), `places` (positions), `owner` (number
    of the question from 1, 0 padding), all (rows, text); `questions`: those of each row in order.
    """

    ids: Tensor
    labels: Tensor
    weights: Tensor
    places: Tensor
    owner: Tensor
    questions: list[list[Question]]


@lru_cache(maxsize=1)
def words() -> PreTrainedTokenizerFast:
    """The tokenizer, made once."""
    return tokenizer()


@lru_cache(maxsize=1)
def worth() -> Tensor:
    """How much each token of an answer counts in the loss (vocabulary,).

    A box has ten tokens, four of which say anything; unweighted, they drown the one word of a colour or a yes.
    """
    table = torch.full((len(words()),), 1.5)
    ids = words().get_vocab()
    # The ids of coordinates follow each other, `0.00` to `1.00`.
    table[ids["0.00"] : ids["1.00"] + 1] = 0.4
    table[[ids[token] for token in ("]", "," + GAP, GAP + "[")]] = 0.05
    table[ids["</s>"]] = 0.6  # where a word of two letters ends is as hard to tell as its letters
    return table


def moved(made: Pack, device: torch.device) -> Pack:
    """The pack with its tensors on a device."""
    tensors: dict[str, Any] = {
        name: value.to(device) for name, value in vars(made).items() if isinstance(value, Tensor)
    }
    return replace(made, **tensors)


def draw_questions(rng: random.Random, scene: Scene, count: int, easy: bool = False) -> list[Question]:
    """Up to `count` questions about a scene in the proportions of `MIX` (or `EASY`), none twice."""
    mix = EASY if easy else MIX
    # Twice as many as wanted: some scenes offer no such question, and some questions come twice.
    tasks = rng.choices(list(mix), list(mix.values()), k=2 * count)
    found = dict.fromkeys(question for task in tasks if (question := ask(rng, scene, task, tries=3)))
    return list(found)[:count]


def pack(batch: list[list[Question]], length: int) -> Pack:
    """Questions with their answers, row by row, cut to what fits into `length` tokens."""
    # With the spaces of the chat template: a word without the space before it is another token, or none.
    told = [(f" {q.text} ASSISTANT:", f" {q.answer}</s>") for row in batch for q in row]
    asked = iter(words()([one for one, _ in told], add_special_tokens=False).input_ids)
    answered = iter(words()([two for _, two in told], add_special_tokens=False).input_ids)
    shape = (len(batch), length)
    ids, owner = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    labels, places = torch.full(shape, -100), torch.zeros(shape, dtype=torch.long)
    weights, table = torch.zeros(shape), worth()
    kept: list[list[Question]] = []
    for i, row in enumerate(batch):
        at, inside = 0, []
        for question in row:
            # Both iterators move on before a question may be left out; a shorter one behind it may still fit.
            first, second = next(asked), next(answered)
            end = at + len(first) + len(second)
            if end > length:
                continue
            ids[i, at:end] = torch.tensor(first + second)
            labels[i, end - len(second) : end] = torch.tensor(second)
            weights[i, end - len(second) : end] = table[second]
            places[i, at:end] = torch.arange(end - at) + PREFIX + GRID * GRID
            inside.append(question)
            owner[i, at:end] = len(inside)
            at = end
        kept.append(inside)
    return Pack(ids, labels, weights, places, owner, kept)


def mask(owner: Tensor, seen: int) -> Tensor:
    """Additive attention mask (rows, 1, n, n) for a prefix of `seen` tokens and packed questions behind it."""
    everyone = torch.nn.functional.pad(owner + 1, (seen, 0), value=0)  # 0 prefix, 1 padding
    # By place in the row and not by position: packed questions share their positions.
    causal = torch.ones(everyone.shape[1], everyone.shape[1], dtype=torch.bool, device=owner.device).tril()
    queries, keys = everyone[:, :, None], everyone[:, None, :]
    # Padding is an owner like any other: its rows see the prefix and themselves, so that none is empty.
    allowed = causal & ((keys == 0) | (keys == queries))
    lowest = torch.finfo(torch.float32).min
    return torch.zeros(allowed.shape, device=owner.device).masked_fill(~allowed, lowest)[:, None]
