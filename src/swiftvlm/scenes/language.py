"""What can be said about a scene: descriptions of things, and which things they fit."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from swiftvlm.scenes.world import Scene, Thing

MARGIN = 9.0  # pixels by which one thing must stand beyond another to be called left of it, above it, ...
# (axis, sign) as `beyond` takes them: 0 is x, 1 is y, which grows downwards.
PLACES = {"left": (0, -1), "right": (0, 1), "top": (1, -1), "bottom": (1, 1)}
SIDES = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}


@dataclass(frozen=True)
class Phrase:
    """A description: what is said of a thing itself, of its place among its like, and of its place beside others."""

    kind: str
    color: str | None = None
    size: str | None = None
    place: str | None = None
    beside: tuple[tuple[str, "Phrase"], ...] = ()

    def __str__(self) -> str:
        words = [self.place, self.size, self.color]
        text = " ".join([word for word in words if word] + [self.kind])
        relations = " and ".join(f"{side} the {other}" for side, other in self.beside)
        return f"{text} {relations}" if relations else text


def beyond(one: Thing, other: Thing, axis: int, sign: int) -> bool:
    """Whether the middle of one thing lies clearly beyond that of another in a direction."""
    return sign * (one.box.center[axis] - other.box.center[axis]) > MARGIN


def _alike(scene: Scene, phrase: Phrase) -> list[Thing]:
    """Things that fit what a phrase says of the thing itself."""
    # Looks are exact, sizes too; only places and relations have a margin.
    return [
        thing
        for thing in scene.things
        if thing.kind == phrase.kind and phrase.color in (None, thing.color) and phrase.size in (None, thing.size)
    ]


def fitting(scene: Scene, phrase: Phrase) -> list[Thing]:
    """Things that a phrase may mean. A thing that nearly fits counts too, so one answer means no doubt."""
    found = _alike(scene, phrase)
    for side, other in phrase.beside:
        anchors = fitting(scene, other)
        if len(anchors) != 1:
            return []
        axis, sign = SIDES[side]
        # Only what stands clearly on the wrong side is out: whatever is within the margin may be meant.
        found = [thing for thing in found if thing is not anchors[0] and not beyond(anchors[0], thing, axis, sign)]
    if phrase.place:
        axis, sign = PLACES[phrase.place]
        # The outermost of those still in question; two that are nearly level both remain.
        found = [thing for thing in found if not any(beyond(other, thing, axis, sign) for other in found)]
    return found


def fits(scene: Scene, thing: Thing, phrase: Phrase) -> bool:
    """Whether a phrase means this thing and no other, clearly."""
    found = fitting(scene, phrase)
    if len(found) != 1 or found[0] is not thing:
        return False
    anchors = [(SIDES[side], fitting(scene, other)[0]) for side, other in phrase.beside]
    # `fitting` left out what is clearly wrong; the thing itself must be clearly right.
    return all(beyond(thing, anchor, *direction) for direction, anchor in anchors)


def looks(rng: random.Random, thing: Thing) -> list[Phrase]:
    """Ways to describe a thing by its looks, in random order."""
    ways = [Phrase(thing.kind), Phrase(thing.kind, thing.color)]
    if thing.size:
        ways += [Phrase(thing.kind, None, thing.size), Phrase(thing.kind, thing.color, thing.size)]
    rng.shuffle(ways)
    return ways


def placed(rng: random.Random, scene: Scene, thing: Thing) -> Iterator[Phrase]:
    """Ways to describe a thing by its looks and one place: among its like, or beside another thing."""
    for phrase in looks(rng, thing):
        twins = len(_alike(scene, phrase)) > 1
        for place in rng.sample(list(PLACES), 4) if twins else []:
            yield replace(phrase, place=place)
        for relation in relations(rng, scene, thing):
            yield replace(phrase, beside=(relation,))


def relations(rng: random.Random, scene: Scene, thing: Thing) -> Iterator[tuple[str, Phrase]]:
    """True relations of a thing to others that can be told by their looks, in random order."""
    others = [other for other in scene.things if other is not thing]
    rng.shuffle(others)
    for other in others:
        # By looks alone: no relation leads to another relation or to a place.
        told = next((phrase for phrase in looks(rng, other) if _alike(scene, phrase) == [other]), None)
        sides = [side for side, direction in SIDES.items() if beyond(thing, other, *direction)]
        if told and sides:
            yield rng.choice(sides), told
