"""The world of the embedded model: pictures of things and signs on a grid of patches, and questions about them."""

from swiftvlm.scenes.drawing import draw
from swiftvlm.scenes.pool import POOL_SIZE, POOL_VERSION, QUICK_SIZE, VISUAL_TOKENS, Item, chance, items
from swiftvlm.scenes.questions import LOCALIZATION, TASKS, Question, ask
from swiftvlm.scenes.sprites import letter_spans
from swiftvlm.scenes.words import COLORS, KINDS, LENGTHS, LETTERS, PLURALS, POOLS, TRAIN
from swiftvlm.scenes.world import GRID, PATCH, SIDE, Box, Scene, Sign, Thing, scene

__all__ = [
    "COLORS",
    "GRID",
    "KINDS",
    "LENGTHS",
    "LETTERS",
    "LOCALIZATION",
    "PATCH",
    "PLURALS",
    "POOLS",
    "POOL_SIZE",
    "POOL_VERSION",
    "QUICK_SIZE",
    "SIDE",
    "TASKS",
    "TRAIN",
    "VISUAL_TOKENS",
    "Box",
    "Item",
    "Question",
    "Scene",
    "Sign",
    "Thing",
    "ask",
    "chance",
    "draw",
    "items",
    "letter_spans",
    "scene",
]
