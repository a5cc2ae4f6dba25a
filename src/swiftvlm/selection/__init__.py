"""Which layers to prune at: the profile of a model's layers, and the best layers given a profile."""

from swiftvlm.selection.choose import Choice as Choice
from swiftvlm.selection.choose import choose as choose
from swiftvlm.selection.choose import curve as curve
from swiftvlm.selection.choose import knee as knee
from swiftvlm.selection.choose import unevenness as unevenness
