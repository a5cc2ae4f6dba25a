"""Which layers to prune at: the profile of a model's layers, the best layers given a profile, and what both rest on."""

from swiftvlm.selection.choose import Choice, choose, curve, knee, rated, records, steps, unevenness
from swiftvlm.selection.explain import SHARES, Explaining, projected, summary_of
from swiftvlm.selection.measure import Profile, Profiling, profile_of
from swiftvlm.selection.split import Split, split
from swiftvlm.selection.story import Story, meets, tell_story

__all__ = [
    "SHARES",
    "Choice",
    "Explaining",
    "Profile",
    "Profiling",
    "Split",
    "Story",
    "choose",
    "curve",
    "knee",
    "meets",
    "profile_of",
    "projected",
    "rated",
    "records",
    "split",
    "steps",
    "summary_of",
    "tell_story",
    "unevenness",
]
