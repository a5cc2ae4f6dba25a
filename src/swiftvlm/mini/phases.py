"""The phases of training: what they draw, what they minimise, what they test on held-out scenes."""

import random
from collections import defaultdict
from statistics import fmean

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from swiftvlm.mini import codes
from swiftvlm.mini.dense import WEIGHTS, Heads, letter_loss, patch_loss, read_codes
from swiftvlm.mini.forward import answer, answer_loss, see
from swiftvlm.mini.packing import Pack, draw_questions, moved, pack, words
from swiftvlm.scenes import GRID, PATCH, SIDE, TRAIN, Scene, draw, scene

# `language` and `tower` draw from seed 0 on, `fit` from 7 * 10**8, `pool` on the training pool from 2 * 10**9.
SEEN_FROM = 5 * 10**8  # first seed of the scenes that the last phases read
EASY_SHARE = 0.1  # of the language phase: few things, plain questions
QUESTIONS, TEXT = 12, 224  # questions packed behind a picture, and the tokens they may take
HELD_OUT = 10**9  # seeds of the training pool from here on are never trained on


class Phase:
    """A model and the part of it that is trained, with batches that depend on nothing but step and progress."""

    name = ""

    def __init__(self, model: LlavaForConditionalGeneration, batch: int, device: torch.device) -> None:
        self.model, self.batch, self.device = model, batch, device
        self.extra: nn.Module = nn.Identity()  # what is trained along and thrown away
        move: nn.Module = model
        move.to(device)

    def trained(self) -> list[nn.Parameter]:
        """Parameters that change."""
        raise NotImplementedError

    def loss(self, step: int, progress: float) -> tuple[Tensor, dict[str, float]]:
        """Loss of a step's batch, of shape (), and figures to log; `progress` from 0 to 1."""
        raise NotImplementedError

    def test(self) -> dict[str, float]:
        """Figures on held-out scenes."""
        raise NotImplementedError


def scenes_of(step: int, batch: int, progress: float = 1.0, first: int = 0) -> list[Scene]:
    """Scenes of a step; crowded ones come later."""
    # Up to 12, as in the test pool, from a third of the time on.
    least, most = (2, 6) if progress < EASY_SHARE else (4, 6 + round(6 * min(1.0, 3 * progress)))
    return [scene(TRAIN, first + step * batch + i, objects=(least, most)) for i in range(batch)]


def packed(scenes: list[Scene], device: torch.device, easy: bool = False, turn: int = 0) -> Pack:
    """Questions about each scene, drawn with its own seed, others every turn."""
    # 10**13 is beyond every seed: no two pairs of scene and turn share a generator.
    asked = [draw_questions(random.Random(one.seed + turn * 10**13), one, QUESTIONS, easy) for one in scenes]
    return moved(pack(asked, TEXT), device)


def right(logits: Tensor, made: Pack) -> dict[str, float]:
    """Share of answers that are right word by word, given the words before; boxes: the overlap is at least a half.

    `logits`: (rows, tokens, words).
    """
    guess, labels = logits[:, :-1].argmax(-1).cpu(), made.labels[:, 1:].cpu()
    owner = made.owner[:, 1:].cpu()
    zero = first_coordinate()
    scores: dict[str, list[float]] = defaultdict(list)
    for i, row in enumerate(made.questions):
        for j, question in enumerate(row):
            here = (owner[i] == j + 1) & (labels[i] >= 0)
            said, true = guess[i][here], labels[i][here]
            if question.box is None:
                scores[question.task].append(float(torch.equal(said, true)))
            else:
                # Coordinates stand at odd places, behind `[` and commas; any other word there becomes a number, too.
                spoken, box = ((part[1:9:2] - zero).float() / 100 for part in (said, true))
                scores[question.task].append(float(overlap(spoken, box) >= 0.5))
    return {task: round(float(np.mean(found)), 3) for task, found in sorted(scores.items())}


def first_coordinate() -> int:
    """Id of the token `0.00`; the other coordinates follow it."""
    return words().get_vocab()["0.00"]


def overlap(one: Tensor, other: Tensor) -> float:
    """Intersection over union of two boxes, each (4,)."""
    inner = (torch.minimum(one[2:], other[2:]) - torch.maximum(one[:2], other[:2])).clamp(min=0).prod()
    areas = [(box[2:] - box[:2]).clamp(min=0).prod() for box in (one, other)]
    return float(inner / (areas[0] + areas[1] - inner).clamp(min=1e-9))


def chosen(shown: Tensor, count: int, seed: int) -> Tensor:
    """Indexes (rows, count) of visual tokens: all that show something, others at random, in order of place."""
    # Noise is below 1: what is shown goes first, and is lost only where there is more of it than `count`.
    # Drawn on the CPU: devices draw other numbers.
    noise = torch.rand(shown.shape, generator=torch.Generator().manual_seed(seed)).to(shown.device)
    return (noise + shown.float()).topk(count, dim=-1).indices.sort(dim=-1).values


class Language(Phase):
    """The language model alone, on the codes of patches, shaken so that it bears a tower that errs."""

    name = "language"
    # 12 objects of at most 4 patches each; easy scenes have half as many, and half the tokens.
    visual = 48

    def trained(self) -> list[nn.Parameter]:
        return [*self.model.model.language_model.parameters(), *self.model.lm_head.parameters()]

    def _read(self, scenes: list[Scene], seed: int, easy: bool = False) -> tuple[Tensor, Pack]:
        labels = codes.patches(scenes)
        places = chosen(labels.middle, self.visual // (1 + easy), seed)
        generator = torch.Generator().manual_seed(seed)
        # 0.004 is 1.3 pixels. The answers stay exact.
        labels.box = labels.box + 0.004 * torch.randn(labels.box.shape, generator=generator)
        vectors = codes.encode(labels, self.model.lm_head.in_features)
        vectors = vectors.gather(1, places[..., None].expand(-1, -1, vectors.shape[-1]))
        vectors = vectors + 0.1 * torch.randn(vectors.shape, generator=generator)
        made = packed(scenes, self.device, easy)
        return answer(self.model, vectors.to(self.device), places.to(self.device), made), made

    def loss(self, step: int, progress: float) -> tuple[Tensor, dict[str, float]]:
        logits, made = self._read(scenes_of(step, self.batch, progress), step, progress < EASY_SHARE)
        loss = answer_loss(logits, made)
        return loss, {"loss": float(loss.detach())}

    @torch.no_grad()
    def test(self) -> dict[str, float]:
        logits, made = self._read(scenes_of(0, 48, first=HELD_OUT), 0)
        return {"held-out loss": float(answer_loss(logits, made)), **right(logits, made)}


class Tower(Phase):
    """The tower and the projector, on crowded pictures of 12 x 12 patches anywhere in the grid.

    Every other step's pictures are full of signs, since letters take longest to learn.
    """

    name = "tower"
    side, every = SIDE // 2, 7  # one step of so many sees whole pictures, a quarter as many

    def __init__(self, model: LlavaForConditionalGeneration, batch: int, device: torch.device) -> None:
        super().__init__(model, batch, device)
        self.heads = Heads(model.model.multi_modal_projector.linear_1.in_features).to(device)
        self.extra = self.heads

    def trained(self) -> list[nn.Parameter]:
        seeing = self.model.model.vision_tower, self.model.model.multi_modal_projector
        # `see` stops in front of this norm, as the model's own features do: it never gets a gradient.
        unused = {id(weight) for weight in self.model.model.vision_tower.post_layernorm.parameters()}
        return [p for part in (*seeing, self.extra) for p in part.parameters() if id(p) not in unused]

    def _look(self, seeds: range, side: int, plates: bool = False) -> tuple[dict[str, Tensor], Tensor, codes.Patches]:
        # As many on a window as on a whole picture, which is four times as large.
        objects = (4 if side == SIDE else 5, 12)
        scenes = [scene(TRAIN, seed, side=side, objects=objects, plates=plates) for seed in seeds]
        dice = random.Random(scenes[0].seed)
        # 13 places a side for a window, one for a whole picture.
        room = GRID - side // PATCH + 1
        corners = [(dice.randrange(room), dice.randrange(room)) for _ in scenes]
        labels = codes.patches(scenes, corners)
        hidden = see(self.model, pictures(scenes).to(self.device), corners)
        projected = self.model.model.multi_modal_projector(hidden[:, 1:])
        for name, value in vars(labels).items():
            setattr(labels, name, value.to(self.device))
        return patch_loss(self.heads, hidden, projected, labels), projected, labels

    def loss(self, step: int, progress: float) -> tuple[Tensor, dict[str, float]]:
        whole = step % self.every == 0
        count, side = (max(1, self.batch // 4), SIDE) if whole else (self.batch, self.side)
        seeds = range(step * self.batch, step * self.batch + count)
        losses, _, _ = self._look(seeds, side, plates=not whole and step % 2 == 0)
        # Windows alone go into the log, so that its means are of one kind of pictures.
        return total(losses), {} if whole else {f"{key} loss": float(value.detach()) for key, value in losses.items()}

    @torch.no_grad()
    def test(self) -> dict[str, float]:
        _, projected, labels = self._look(range(HELD_OUT, HELD_OUT + 64), self.side)
        _, whole, theirs = self._look(range(HELD_OUT, HELD_OUT + 24), SIDE)
        found = read_codes(whole, theirs)
        return read_codes(projected, labels) | {f"{key} (whole)": value for key, value in found.items()}


def total(losses: dict[str, Tensor]) -> Tensor:
    """The patches' losses, each of shape (), in one figure."""
    return torch.stack([WEIGHTS.get(key, 1.0) * value for key, value in losses.items()]).sum()


def pictures(scenes: list[Scene]) -> Tensor:
    """Scenes as pixels (rows, 3, h, w), 0 to 1."""
    return torch.from_numpy(np.stack([np.asarray(draw(one)) for one in scenes])).permute(0, 3, 1, 2).float() / 255


class Read(Tower):
    """The language model, still shallow, with the projector, on what the finished tower sees.

    The tower's output on each picture is computed once and read again with other questions, pass after pass. Most steps
    give the language model only part of the visual tokens, all that show something among them: reading costs less, and
    what stands elsewhere is not needed.
    """

    name = "read"
    visual, every = 96, 7  # visual tokens of a step; in one step of so many all of them, of a quarter of the scenes
    pictures = 960  # whose features are kept in memory: 0.4 GB at width 192

    def __init__(self, model: LlavaForConditionalGeneration, batch: int, device: torch.device) -> None:
        super().__init__(model, batch, device)
        # By seed, never emptied: `pictures` scenes and the 40 of `test`.
        self.seen: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def trained(self) -> list[nn.Parameter]:
        # Without the heads that `Tower` made: of patches only the letters are asked still, from the projector.
        parts = self.model.model.language_model, self.model.lm_head, self.model.model.multi_modal_projector
        return [weight for part in parts for weight in part.parameters()]

    @torch.no_grad()
    def _features(self, seeds: range) -> list[Tensor]:
        """Of these scenes' patches: the tower's output (rows, patches, width), middles, and words (0 beside signs)."""
        if any(seed not in self.seen for seed in seeds):
            scenes = [scene(TRAIN, seed) for seed in seeds]
            labels = codes.patches(scenes)
            hidden = see(self.model, pictures(scenes).to(self.device))[:, 1:]
            word = torch.where((labels.middle & (labels.kind == codes.SIGN))[..., None], labels.word + 1, 0)
            found = hidden, labels.middle.to(self.device), word.to(self.device)
            self.seen.update(zip(seeds, zip(*found, strict=True), strict=True))
        return [torch.stack(parts) for parts in zip(*(self.seen[seed] for seed in seeds), strict=True)]

    def _read(self, seeds: range, count: int, seed: int, turn: int = 0) -> tuple[Tensor, Pack, Tensor]:
        """Logits of the answers, the questions, and the loss of the letters that the projector passes on."""
        hidden, middles, word = self._features(seeds)
        # (rows, count, 1), ascending: `answer` gives visual tokens in order of place.
        places = chosen(middles, count, seed)[..., None]
        visual = self.model.model.multi_modal_projector(hidden.gather(1, places.expand(-1, -1, hidden.shape[-1])))
        told = word.gather(1, places.expand(-1, -1, word.shape[-1]))
        made = packed([scene(TRAIN, one) for one in seeds], self.device, turn=turn)
        return answer(self.model, visual, places[..., 0], made), made, letter_loss(visual, told)

    def loss(self, step: int, progress: float) -> tuple[Tensor, dict[str, float]]:
        turn, place = divmod(step, self.pictures // self.batch)
        whole = step % self.every == 0
        first = SEEN_FROM + place * self.batch
        seeds = range(first, first + (max(1, self.batch // 4) if whole else self.batch))
        logits, made, letters = self._read(seeds, GRID * GRID if whole else self.visual, step, turn)
        told = answer_loss(logits, made)
        return told + 0.3 * letters, {"loss": float(told.detach()), "letter loss": float(letters.detach())}

    @torch.no_grad()
    def test(self) -> dict[str, float]:
        parts = [range(HELD_OUT + i, HELD_OUT + i + 8) for i in range(0, 40, 8)]
        found = [self._read(seeds, GRID * GRID, 0) for seeds in parts]
        losses = [float(answer_loss(logits, made)) for logits, made, _ in found]
        letters = fmean(float(one[2]) for one in found)
        figures = joined([right(logits, made) for logits, made, _ in found])
        return {"held-out loss": fmean(losses), "held-out letter loss": letters, **figures}


class Deep(Read):
    """The same, grown to its full depth."""

    name = "deep"


def joined(parts: list[dict[str, float]]) -> dict[str, float]:
    """Means of the figures of several batches, rounded."""
    # A batch may have asked no question of some task.
    keys = sorted({key for part in parts for key in part})
    return {key: round(fmean(part[key] for part in parts if key in part), 3) for key in keys}


PHASES: dict[str, type[Phase]] = {phase.name: phase for phase in (Language, Tower, Read, Deep)}
