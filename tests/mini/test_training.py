"""Training: its parts by their properties, and each phase for a few steps."""

import json
from dataclasses import replace
from math import exp, log

import pytest
import torch
from typer.testing import CliRunner

from swiftvlm.mini import codes, dense, fit, forward, phases, recipe, start, train
from swiftvlm.mini.muon import Muon, orthogonal
from swiftvlm.mini.packing import words
from swiftvlm.scenes.words import TEST, TRAIN
from swiftvlm.scenes.world import scene

TINY = recipe.Recipe(
    width=192, heads=6, layers=4, seed_layers=2, inner=48, tower_width=128, tower_heads=4, tower_layers=2
)
CPU = torch.device("cpu")


@pytest.fixture
def small():
    """A tiny primed model at its starting depth."""
    return start.prime(recipe.build(replace(TINY, layers=TINY.seed_layers)))


def test_codes_say_what_a_patch_shows():
    """A perfect projection reads back every label; a code stands under each thing's middle and nowhere else."""
    scenes = [scene(TEST, seed) for seed in range(20)]
    labels = codes.patches(scenes)
    encoded = codes.encode(labels, 192)
    read = dense.read_codes(encoded, labels)
    assert read["kind"] == read["color"] == read["letters"] == read["shown"] == 1.0
    assert read["edges"] > 0.99
    for i, one in enumerate(scenes):
        middles = [thing.box.center for thing in (*one.things, *one.signs)]
        for patch in range(576):
            top, left = (14 * part for part in divmod(patch, 24))
            near = any(left - 2 <= x < left + 16 and top - 2 <= y < top + 16 for x, y in middles)
            assert bool(labels.middle[i, patch]) == near == bool(encoded[i, patch, 0] == 1)
            assert near or encoded[i, patch, 2:].abs().sum() == 0
    with pytest.raises(ValueError, match="a width of 100 does not hold"):
        codes.encode(labels, 100)


def test_windows_know_their_place():
    """A smaller picture's boxes are those of the full grid at its corner."""
    one = scene(TRAIN, 3, side=168, objects=(5, 9))
    here, there = codes.patches([one]), codes.patches([one], [(4, 7)])
    shown = here.kind > 0
    shift = torch.tensor([7.0, 4.0, 7.0, 4.0]) / 24
    assert torch.allclose(there.box[shown], here.box[shown] + shift)
    assert torch.allclose(there.spot, here.spot + shift[:2])


def test_muon_steps_are_orthogonal():
    """Singular values come out near 1 whatever they were, and a step has the size of AdamW's."""
    torch.manual_seed(0)
    for shape in ((16, 16), (8, 24), (24, 8)):
        found = torch.linalg.svdvals(orthogonal(torch.randn(shape)))
        assert 0.6 < found.min() <= found.max() < 1.3
    weight = torch.nn.Parameter(torch.zeros(16, 16))
    weight.grad = torch.randn(16, 16)
    Muon([weight], lr=0.1).step()
    assert weight.detach().square().mean().sqrt() == pytest.approx(0.1 * 0.2, rel=0.3)


def test_growing_changes_no_answer(small):
    """The deeper model gives the same logits before it is trained."""
    made = phases.packed(phases.scenes_of(0, 2, 1.0), CPU)
    visual = torch.randn(2, 20, TINY.width)
    places = torch.arange(20).expand(2, -1)
    with torch.no_grad():
        before = forward.answer(small, visual, places, made)
        after = forward.answer(recipe.grow(small, TINY), visual, places, made)
    assert torch.allclose(before, after, atol=1e-5)


def test_a_packed_question_sees_itself_only(small):
    """Answers behind a picture are the same whether other questions stand there or not."""
    made = phases.packed(phases.scenes_of(0, 1, 1.0), CPU)
    visual, places = torch.randn(1, 12, TINY.width), torch.arange(12)[None]
    last = made.owner[0] == made.owner.max()
    alone = replace(
        made,
        ids=made.ids[:, last[: made.ids.shape[1]]],
        places=made.places[:, last],
        owner=torch.ones(1, int(last.sum()), dtype=torch.long),
    )
    with torch.no_grad():
        together = forward.answer(small, visual, places, made)[:, last]
        assert torch.allclose(together, forward.answer(small, visual, places, alone), atol=1e-4)


def test_the_tower_sees_as_transformers_does(small):
    """Our pass through the tower's layers is the model's own on a whole picture."""
    pixels = phases.pictures([scene(TEST, 0)])
    shade = (pixels - torch.tensor(forward.MEAN)[:, None, None]) / torch.tensor(forward.STD)[:, None, None]
    with torch.no_grad():
        theirs = small.model.vision_tower(shade, output_hidden_states=True).hidden_states[-1]
        assert torch.allclose(forward.see(small, pixels), theirs, atol=1e-4)


def test_heads_begin_at_a_neighbour(small):
    """The first four heads of the tower's first layer look at the patch left, right, above and below."""
    tower = small.model.vision_tower
    waves = tower.pre_layrnorm(tower.embeddings.position_embedding.weight[1:])
    layer = tower.encoder.layers[0]
    states = layer.layer_norm1(waves)
    attention, middle = layer.self_attn, 24 * 12 + 12
    size = attention.head_dim
    for head, target in enumerate((middle - 1, middle + 1, middle - 24, middle + 24)):
        rows = slice(head * size, (head + 1) * size)
        logits = attention.q_proj(states[middle])[rows] @ attention.k_proj(states)[:, rows].T
        assert int(logits.argmax()) == target, (head, target, int(logits.argmax()) - middle)


def test_names_begin_at_their_kind(small):
    """In the first layer a word that names a kind attends more to a patch of that kind than to any other patch."""
    language = small.model.language_model
    labels = codes.patches([scene(TEST, 0)])
    shown = (labels.kind[0] > 0).nonzero()[:, 0]
    patches = codes.encode(labels, TINY.width)[0, shown]
    layer, size = language.layers[0], language.layers[0].self_attn.head_dim
    keys = layer.self_attn.k_proj(layer.input_layernorm(patches))[:, :size]
    names = ["\u2581" + phases.codes.KINDS[kind - 1] for kind in labels.kind[0, shown].tolist() if kind <= 24]
    ids = torch.tensor(words().convert_tokens_to_ids(list(dict.fromkeys(names))))
    queries = layer.self_attn.q_proj(layer.input_layernorm(language.embed_tokens(ids)))[:, :size]
    best = (queries @ keys.T).argmax(-1)
    kinds = [codes.KINDS.index(name[1:]) + 1 for name in dict.fromkeys(names)]
    right = [int(labels.kind[0, shown[i]]) == kind for i, kind in zip(best.tolist(), kinds, strict=True)]
    assert sum(right) >= 0.75 * len(right)


def test_the_letter_loss_by_hand():
    """Codes as they should be cost next to nothing; a letter at a tenth of its height, or one too many, costs a lot."""
    labels = codes.patches([scene(TEST, 1)])
    sign = (labels.middle & (labels.kind == codes.SIGN))[..., None]
    assert sign.any()
    word = torch.where(sign, labels.word + 1, 0)
    right = codes.encode(labels, 192)
    assert dense.letter_loss(right, word) < 0.3
    assert dense.letter_loss(0.1 * right, word) > 2
    one, none = torch.zeros(1, 1, codes.WIDTH), torch.tensor([[[2, 1, 1]]])  # the word A, in three slots
    slots = one[..., codes.WIDTH - codes.WIDTHS["word"] :].view(1, 1, codes.SLOTS, -1)
    letters = slots.shape[-1]
    slots[..., 0, 0] = 1.0
    full, empty = log(1 + exp(-4) + (letters - 1) * exp(-8)), log(1 + letters * exp(-4))
    assert dense.letter_loss(one, none) == pytest.approx((full + 2 * empty) / 3)
    slots[..., 2, 0] = 1.0  # one too many
    wrong = log(1 + exp(4) + (letters - 1) * exp(-4))
    assert dense.letter_loss(one, none) == pytest.approx((full + empty + wrong) / 3)
    # Patches that show no sign do not count.
    noisy = torch.where(sign, right, torch.randn_like(right))
    assert dense.letter_loss(noisy, word) == pytest.approx(float(dense.letter_loss(right, word)))


def test_the_projector_alone_learns_the_codes(small, monkeypatch):
    """A few hundred steps on what an untrained tower sees already bring the loss of the letters down."""
    monkeypatch.setattr(fit, "WINDOWS", 8)
    monkeypatch.setattr(fit, "WHOLE", 8)
    before = [weight.clone() for weight in small.model.vision_tower.parameters()]
    torch.manual_seed(0)
    with torch.enable_grad():
        early, late = fit.fit_projector(small, 10), fit.fit_projector(small, 150)
    assert late < early
    assert all(torch.equal(a, b) for a, b in zip(before, small.model.vision_tower.parameters(), strict=True))


def test_boxes_do_not_drown_words():
    """A colour's word counts for as much as a box's four coordinates nearly do."""
    made = phases.packed(phases.scenes_of(0, 4, 1.0), CPU)
    for row, asked in enumerate(made.questions):
        for number, question in enumerate(asked, start=1):
            worth = float(made.weights[row][(made.owner[row] == number) & (made.labels[row] >= 0)].sum())
            assert 2 < worth < 6, question


def test_every_phase_runs_resumes_and_ships(tmp_path, monkeypatch):
    """The four commands in order on a tiny recipe; a stopped phase goes on; mistakes are told."""
    monkeypatch.setitem(train.RECIPES, "tiny", TINY)
    monkeypatch.setattr(train, "ship", lambda model: 1)
    monkeypatch.setattr(phases.Read, "pictures", 2)
    monkeypatch.setattr(train, "FIT_STEPS", 3)
    monkeypatch.setattr(fit, "WINDOWS", 8)
    monkeypatch.setattr(fit, "WHOLE", 0)
    for phase in (phases.Language, phases.Tower, phases.Read):
        monkeypatch.setattr(phase, "test", lambda self: {"ref": 0.5})
    run = CliRunner()

    def go(phase: str, *extra: str):
        options = ["--out", str(tmp_path), "--size", "tiny", "--batch", "2", "--every", "1", "--threads", "1", *extra]
        with torch.enable_grad():
            return run.invoke(train.app, [phase, *options])

    assert go("deep").exit_code == 2
    assert go("flying").exit_code == 2
    for phase in ("language", "tower", "read", "deep"):
        result = go(phase, "--minutes", "0.001", "--ship")
        assert result.exit_code == 0, result.output
        log = json.loads((tmp_path / f"{phase}.json").read_text())
        assert log[-1]["ref"] == 0.5
        assert (tmp_path / f"{phase}.png").stat().st_size > 5000
    steps = json.loads((tmp_path / "language.json").read_text())[-1]["step"]
    assert go("language", "--minutes", "0.1").exit_code == 0
    assert json.loads((tmp_path / "language.json").read_text())[-1]["step"] > steps


def test_labels_may_live_on_another_device():
    """What is made from labels is made where they are: `meta` refuses a CPU tensor beside it, as CUDA does."""
    assert codes.waves(torch.zeros(2, 3, 4, device="meta")).device.type == "meta"
    assert phases.chosen(torch.zeros(2, 9, dtype=torch.bool, device="meta"), 4, seed=0).device.type == "meta"
