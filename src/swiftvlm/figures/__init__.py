"""Figures of what pruning did. Functions return matplotlib `Figure`s and touch no global state; the caller saves.

`patches.draw_patches` shows one run on its own picture: the numbers come from `fates`, the places from `layout`.
`schematic.draw_schematic` shows the method itself, in the same palette. Only who imports these imports matplotlib.
"""
