"""Questions: their answers hold in the scene, checked by counting, and no second thing fits."""

import random
import re

import pytest

from swiftvlm.mini.packing import draw_questions, pack
from swiftvlm.mini.tokens import tokenizer
from swiftvlm.scenes import pool
from swiftvlm.scenes.language import MARGIN, Phrase, fits, fitting
from swiftvlm.scenes.questions import LOCALIZATION, TASKS, ask, box_text
from swiftvlm.scenes.words import COLORS, KINDS, PLURALS, TEST
from swiftvlm.scenes.world import Box, Scene, Sign, Thing, scene


def thing(kind: str, color: str, x: float, y: float, side: float = 40) -> Thing:
    """A square thing around a point."""
    half = side / 2
    return Thing(kind, color, float(side), 0, Box(x - half, y - half, x + half, y + half), COLORS[color])


RED_LEFT, RED_RIGHT = thing("star", "red", 50, 100), thing("star", "red", 250, 105, side=30)
BLUE, ANCHOR = thing("star", "blue", 200, 250), thing("anchor", "red", 150, 50, side=55)
SCENE = Scene("test", 0, 336, "texture:1", (RED_LEFT, RED_RIGHT, BLUE, ANCHOR), ())


@pytest.mark.parametrize(
    ("phrase", "meant"),
    [
        (Phrase("star", "blue"), BLUE),
        (Phrase("star", size="small"), RED_RIGHT),
        (Phrase("anchor", size="large"), ANCHOR),
        (Phrase("star", "red", place="left"), RED_LEFT),
        (Phrase("star", place="bottom"), BLUE),
        (Phrase("star", "red", beside=(("right of", Phrase("anchor")),)), RED_RIGHT),
        (Phrase("star", beside=(("left of", Phrase("anchor")), ("below", Phrase("anchor")))), RED_LEFT),
    ],
    ids=str,
)
def test_phrases_mean_what_they_say(phrase, meant):
    """Each description fits one thing and says so."""
    assert fits(SCENE, meant, phrase)
    assert not any(fits(SCENE, other, phrase) for other in SCENE.things if other is not meant)


@pytest.mark.parametrize(
    "phrase",
    [
        Phrase("star"),
        Phrase("star", "red"),
        Phrase("star", place="top"),  # the two red ones are level within the margin
        Phrase("star", beside=(("below", Phrase("anchor")),)),
        Phrase("star", beside=(("left of", Phrase("star")),)),  # which star?
        Phrase("moon"),
    ],
    ids=str,
)
def test_doubt_is_no_meaning(phrase):
    """A description that fits several things, nearly fits a second, or fits none, means nothing."""
    assert not any(fits(SCENE, one, phrase) for one in SCENE.things)
    assert len(fitting(SCENE, phrase)) != 1


def test_a_thing_straight_above_is_in_doubt():
    """Within the margin a thing is neither left nor right of another."""
    level = Scene("test", 0, 336, "texture:1", (ANCHOR, thing("moon", "red", 150 + MARGIN - 1, 200)), ())
    for side in ("left of", "right of"):
        assert not fits(level, level.things[1], Phrase("moon", beside=((side, Phrase("anchor")),)))


def test_boxes_as_text():
    """Shares of the side with two digits, in the form that the model writes and scorers read."""
    assert box_text(Box(33.6, 0, 336, 168)) == "[0.10, 0.00, 1.00, 0.50]"


@pytest.mark.parametrize("task", TASKS)
def test_the_pool_is_fixed_and_true(task):
    """The first questions are there in order, one a scene, and what they say holds."""
    items = pool.items(task, 60)
    assert items == pool.items(task, 60)
    assert len({item.scene.seed for item in items}) == 60
    for item in items:
        question = item.question
        assert question.task == task
        if task in LOCALIZATION:
            meant = [one for one in item.scene.things if one.box == question.box]
            assert len(meant) == 1
            assert meant[0].kind in question.text
            assert question.answer == box_text(question.box)
        elif task == "text":
            assert question.answer in {sign.text for sign in item.scene.signs}
        elif question.kind == "count":
            asked = question.text.split()[2]
            kinds = {plural: kind for kind, plural in PLURALS.items()}
            true = sum(asked in (one.color, PLURALS[one.kind]) for one in item.scene.things)
            assert question.answer == str(true), (question, kinds.get(asked))
        elif task == "pope":
            *_, last = question.text.rstrip("?").split()
            color = next((word for word in question.text.split() if word in COLORS), None)
            there = any(one.kind == last and color in (None, one.color) for one in item.scene.things)
            assert question.answer == ("yes" if there else "no")


def test_pope_is_balanced_and_chances_are_sane():
    """As many yes as no; what blind answers earn lies where it must."""
    answers = [item.question.answer for item in pool.items("pope", 100)]
    assert answers.count("yes") == 50
    assert pool.chance("pope") == 0.5
    assert 0 < pool.chance("text") < 0.05
    assert 0.1 < pool.chance("ref") < 0.3
    assert 3 < pool.patches_covered("ref") < 15


def test_relation_answers_by_position():
    """`is A left or right of B` and `above or below` agree with the boxes."""
    seen = 0
    for item in pool.items("gqa", 200):
        question = item.question
        if question.kind == "relation":
            names = [word for word in re.findall(r"[a-z]+", question.text) if word in KINDS]
            one, two = ([t for t in item.scene.things if t.kind == name] for name in names)
            if len(one) == len(two) == 1 and one is not two:
                across = question.answer in ("left", "right")
                axis, words = (0, ("left", "right")) if across else (1, ("above", "below"))
                assert question.answer == words[one[0].box.center[axis] > two[0].box.center[axis]]
                seen += 1
    assert seen > 10


def test_no_word_is_unknown():
    """Every question and answer of the pools is spelt in the vocabulary, and comes back as it was."""
    made = tokenizer()
    for task in TASKS:
        for item in pool.items(task, 60):
            for text in (f" {item.question.text}", f" {item.question.answer}"):
                ids = made(text, add_special_tokens=False).input_ids
                assert made.unk_token_id not in ids, text
                assert made.decode(ids) == text


def test_coordinates_are_single_tokens():
    """A box is ten tokens with its end, one a coordinate."""
    ids = tokenizer()(" [0.12, 0.34, 0.56, 0.78]</s>", add_special_tokens=False).input_ids
    assert len(ids) == 10


def test_packs_label_answers_only():
    """Labels are the answers and nothing else; positions restart; questions that do not fit are left out."""
    one = scene(TEST, 3)
    questions = draw_questions(random.Random(0), one, 12)
    made = pack([questions, questions[:2]], 60)
    assert len(made.questions[0]) < len(questions)
    assert made.questions[1] == questions[:2]
    words = tokenizer()
    for number, question in enumerate(made.questions[0], start=1):
        mine = made.owner[0] == number
        told = made.labels[0][mine]
        assert words.decode(told[told >= 0]) == f" {question.answer}</s>"
        assert made.places[0][mine].tolist() == list(range(578, 578 + int(mine.sum())))
    assert made.labels[1][made.owner[1] == 0].eq(-100).all()


def test_scenes_without_an_answer_are_passed_over():
    """A scene that offers no question of a task gives none."""
    bare = Scene("test", 0, 336, "texture:1", (), ())
    assert all(ask(random.Random(0), bare, task) is None for task in TASKS)
    unsigned = Scene("test", 0, 336, "texture:1", (ANCHOR,), ())
    assert ask(random.Random(0), unsigned, "text") is None
    signed = Scene(
        "test", 0, 336, "texture:1", (ANCHOR,), (Sign("AB", "DejaVuSans", 20, True, Box(200, 40, 240, 60), 0),)
    )
    found = ask(random.Random(0), signed, "text")
    assert found is not None
    assert found.answer == "AB"
