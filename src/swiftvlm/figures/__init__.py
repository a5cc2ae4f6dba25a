"""Figures of what pruning did. Functions return matplotlib `Figure`s and touch no global state; the caller saves.

`draw_patches` shows one run on its own picture: the numbers come from `fates`, the places from `layout`.
`draw_schematic` shows the method itself, in the same palette.
"""

from swiftvlm.figures.accuracy import draw_accuracy, method_of
from swiftvlm.figures.answers import Answer, draw_answers
from swiftvlm.figures.changes import draw_changes
from swiftvlm.figures.cost import draw_cost
from swiftvlm.figures.overlap import draw_overlap
from swiftvlm.figures.patches import draw_patches
from swiftvlm.figures.profile import draw_profile
from swiftvlm.figures.ranking import draw_ranking
from swiftvlm.figures.river import draw_river
from swiftvlm.figures.schematic import draw_schematic
from swiftvlm.figures.stages import draw_lost, draw_stages

__all__ = [
    "Answer",
    "draw_accuracy",
    "draw_answers",
    "draw_changes",
    "draw_cost",
    "draw_lost",
    "draw_overlap",
    "draw_patches",
    "draw_profile",
    "draw_ranking",
    "draw_river",
    "draw_schematic",
    "draw_stages",
    "method_of",
]
