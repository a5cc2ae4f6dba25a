"""Draw the figures of the documentation anew: docs/figures/schematic.svg and .png.

    python scripts/draw_figures.py --into docs/figures

The same matplotlib writes the same bytes: no date, no version, no random ids.
"""

import argparse
from pathlib import Path

import matplotlib

from swiftvlm.figures import draw_schematic


def main() -> None:
    """Draw and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--into", type=Path, default=Path("docs/figures"), help="folder, made where it is missing")
    folder = parser.parse_args().into
    folder.mkdir(parents=True, exist_ok=True)
    # Ids in an SVG are hashes salted with a random number unless a salt is given.
    with matplotlib.rc_context({"svg.hashsalt": "swiftvlm"}):
        figure = draw_schematic()
        figure.savefig(folder / "schematic.svg", metadata={"Date": None, "Creator": None})
        figure.savefig(folder / "schematic.png", dpi=160, metadata={"Software": None})
    print(f"schematic.svg and schematic.png are in {folder}")


if __name__ == "__main__":
    main()
