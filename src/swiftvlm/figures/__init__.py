"""Figures of what pruning did. Functions return matplotlib `Figure`s and touch no global state; the caller saves.

`patches.draw_patches` shows one run on its own picture, `schematic.draw_schematic` the method itself; both share one
palette. matplotlib is imported only by who imports these modules.
"""
