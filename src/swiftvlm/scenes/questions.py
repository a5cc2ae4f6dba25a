"""The six tasks: questions about a scene with their answers.

Localization (answers are boxes): `ref` says where a thing stands, `ref+` only how it looks, `refg` is a long relational
expression. Non-localization: `text` reads a sign, `gqa` asks for an attribute, a relation or a count, `pope` for
presence. The names are those of the benchmarks whose role they play (RefCOCO, RefCOCO+, RefCOCOg, TextVQA, GQA, POPE);
the questions are ours, about rendered scenes.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

from swiftvlm.scenes.language import SIDES, Phrase, beyond, fits, fitting, looks, placed, relations
from swiftvlm.scenes.words import COLORS, KINDS, PLURALS
from swiftvlm.scenes.world import SIDE, Box, Scene, Thing

TASKS = ("ref", "ref+", "refg", "text", "gqa", "pope")
LOCALIZATION = TASKS[:3]
MOST = 4  # the largest count that is asked for


@dataclass(frozen=True)
class Question:
    """One question about one scene. `box`, in pixels, for the localization tasks."""

    task: str
    kind: str
    text: str
    answer: str
    box: Box | None = None


def box_text(box: Box, side: int = SIDE) -> str:
    """A box as the model writes it: shares of the picture's side, two digits."""
    return "[" + ", ".join(f"{min(1.0, max(0.0, value / side)):.2f}" for value in box) + "]"


def _where(task: str, phrase: Phrase, thing: Thing, scene: Scene) -> Question:
    return Question(task, task, f"where is the {phrase}?", box_text(thing.box, scene.side), thing.box)


def _pick(rng: random.Random, scene: Scene) -> Thing:
    """A thing to ask about; those that have a twin twice as often, since they need the words."""
    kinds = [thing.kind for thing in scene.things]
    return rng.choices(scene.things, [2 if kinds.count(kind) > 1 else 1 for kind in kinds])[0]


def ref(rng: random.Random, scene: Scene) -> Question | None:
    """Looks and a place: `where is the left red umbrella?`, `where is the small umbrella above the anchor?`."""
    thing = _pick(rng, scene)
    found = next((phrase for phrase in placed(rng, scene, thing) if fits(scene, thing, phrase)), None)
    return _where("ref", found, thing, scene) if found else None


def ref_plus(rng: random.Random, scene: Scene) -> Question | None:
    """Looks only: `where is the small red umbrella?`."""
    thing = _pick(rng, scene)
    found = next((phrase for phrase in looks(rng, thing) if fits(scene, thing, phrase)), None)
    return _where("ref+", found, thing, scene) if found else None


def refg(rng: random.Random, scene: Scene) -> Question | None:
    """Two relations: `where is the red umbrella above the large anchor and left of the disc?`."""
    thing = _pick(rng, scene)
    told = list(relations(rng, scene, thing))
    for phrase in looks(rng, thing):
        # Neighbours in a random order: not every pair is worth trying.
        for one, two in pairwise(told):
            long = replace(phrase, beside=(one, two))
            if fits(scene, thing, long):
                return _where("refg", long, thing, scene)
    return None


def text(rng: random.Random, scene: Scene) -> Question | None:
    """The word on the sign next to a thing."""
    if not scene.signs:
        return None
    sign = rng.choice(scene.signs)
    thing = scene.things[sign.near]
    found = next((phrase for phrase in looks(rng, thing) if fits(scene, thing, phrase)), None)
    return Question("text", "text", f"read the sign next to the {found}.", sign.text) if found else None


def _attribute(rng: random.Random, scene: Scene) -> Question | None:
    thing = _pick(rng, scene)
    return _color(rng, scene, thing) if rng.random() < 0.5 else _kind(rng, scene, thing)


def _color(rng: random.Random, scene: Scene, thing: Thing) -> Question | None:
    # A colour in the question would be the answer.
    plain = (phrase for phrase in looks(rng, thing) if phrase.color is None)
    found = next((phrase for phrase in plain if fits(scene, thing, phrase)), None)
    return Question("gqa", "color", f"what color is the {found}?", thing.color) if found else None


def _kind(rng: random.Random, scene: Scene, thing: Thing) -> Question | None:
    """What stands somewhere in a colour; another thing of that colour must clearly stand on the other side."""
    told = next(relations(rng, scene, thing), None)
    same = [other for other in scene.things if other.color == thing.color and other is not thing]
    if not same:
        return Question("gqa", "kind", f"what is the {thing.color} thing?", thing.kind)
    if told is None or not all(_other_side(scene, other, told) for other in same):
        return None
    return Question("gqa", "kind", f"what is the {thing.color} thing {told[0]} the {told[1]}?", thing.kind)


def _other_side(scene: Scene, thing: Thing, told: tuple[str, Phrase]) -> bool:
    """Whether a thing stands clearly on the other side of what a relation names, or is that thing."""
    side, phrase = told
    axis, sign = SIDES[side]
    # Exactly one fits: `relations` names only what its looks tell from all others.
    anchor = fitting(scene, phrase)[0]
    return thing is anchor or beyond(anchor, thing, axis, sign)


def _relation(rng: random.Random, scene: Scene) -> Question | None:
    if len(scene.things) < 2:
        return None
    one, two = rng.sample(scene.things, 2)
    told = [next((p for p in looks(rng, thing) if fits(scene, thing, p)), None) for thing in (one, two)]
    axis, words, last = rng.choice([(0, ("left", "right"), "of the"), (1, ("above", "below"), "the")])
    # The answer must be clear: within the margin neither word is right.
    first = beyond(two, one, axis, 1)
    if None in told or not (first or beyond(one, two, axis, 1)):
        return None
    question = f"is the {told[0]} {words[0]} or {words[1]} {last} {told[1]}?"
    return Question("gqa", "relation", question, words[0] if first else words[1])


def _count(rng: random.Random, scene: Scene) -> Question | None:
    # The number comes before what is counted: most kinds and colours stand there once or not at all.
    wanted = rng.choice((0, 1, 1, 2, 2, 3, 4))
    kinds = {kind: sum(thing.kind == kind for thing in scene.things) for kind in KINDS}
    colors = {color: sum(thing.color == color for thing in scene.things) for color in COLORS}
    asked = [(f"how many {PLURALS[kind]} are there?", n) for kind, n in kinds.items() if n == wanted]
    asked += [(f"how many {color} things are there?", n) for color, n in colors.items() if n == wanted]
    if wanted == 0:
        asked = rng.sample(asked, 1)
    if not asked or wanted > MOST:
        return None
    question, number = rng.choice(asked)
    return Question("gqa", "count", question, str(number))


def gqa(rng: random.Random, scene: Scene) -> Question | None:
    """An attribute (half of the questions), a relation or a count."""
    return rng.choice((_attribute, _attribute, _relation, _count))(rng, scene)


def pope(rng: random.Random, scene: Scene) -> Question | None:
    """Presence; half of the answers are yes. Three in ten absent things differ from a present one in colour only."""
    thing = rng.choice(scene.things)
    there = {(other.kind, other.color) for other in scene.things}
    bare = rng.random() < 0.4
    kind, color, answer = thing.kind, thing.color, "yes"
    if rng.random() < 0.5:
        answer = "no"
        if not bare and rng.random() < 0.5:
            # Out of all colours: a combination reserved for the test pool may be asked for, and is absent in training.
            color = rng.choice([other for other in COLORS if (kind, other) not in there])
        else:
            # There in no colour, so that the bare question has the same answer.
            kind = rng.choice([other for other in KINDS if all(other != present for present, _ in there)])
    words = kind if bare else f"{color} {kind}"
    article = "an" if words[0] in "aeiou" else "a"
    return Question("pope", "presence", f"is there {article} {words}?", answer)


MAKERS: dict[str, Callable[[random.Random, Scene], Question | None]] = dict(
    zip(TASKS, (ref, ref_plus, refg, text, gqa, pope), strict=True)
)


def ask(rng: random.Random, scene: Scene, task: str, tries: int = 8) -> Question | None:
    """A question of a task about a scene, or None if the scene offers none."""
    for _ in range(tries if scene.things else 0):
        question = MAKERS[task](rng, scene)
        if question:
            return question
    return None
