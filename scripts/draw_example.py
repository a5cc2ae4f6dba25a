"""Draw the README's example with the tool itself: `swiftvlm run --save` on a rendered scene and a random checkpoint.

    python -m scripts.draw_example --into docs/figures

The checkpoint has LLaVA-1.5's depth and grid (32 layers, 24 x 24 patches) but tiny random weights: the picture shows
what the tool draws, not what a trained model looks at.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw

from swiftvlm.cli.app import main as swiftvlm
from tests.checkpoints import save_checkpoint

SIDE = 336


def scene() -> Image.Image:
    """A sky, a hill, a house with a sign."""
    picture = Image.new("RGB", (SIDE, SIDE), "#a9cbe8")
    draw = ImageDraw.Draw(picture)
    draw.ellipse((230, 30, 290, 90), fill="#f6c945")
    draw.polygon([(0, 250), (120, 150), (250, 240), (336, 190), (336, 336), (0, 336)], fill="#6d9a5b")
    draw.rectangle((90, 170, 210, 280), fill="#c7694f")
    draw.polygon([(75, 170), (150, 105), (225, 170)], fill="#7a3b34")
    draw.rectangle((135, 225, 165, 280), fill="#4b2e2a")
    draw.rectangle((228, 200, 320, 232), fill="#f4f1e6", outline="#4b2e2a", width=3)
    draw.text((240, 206), "OPEN", fill="#222222", font_size=20)
    return picture


def main() -> int:
    """Render, run, and keep the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--into", type=Path, default=Path("docs/figures"), help="folder, made where it is missing")
    folder = parser.parse_args().into
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        checkpoint, picture, saved = (Path(work) / name for name in ("checkpoint", "scene.png", "out"))
        save_checkpoint(checkpoint, "llava", side=SIDE, patch=14, layers=32)
        scene().save(picture)
        command = ["run", str(picture), "What is on the sign?", "--model", str(checkpoint), "--budget", "192", "--json"]
        code = swiftvlm([*command, "--max-new-tokens", "1", "--save", str(saved)])
        if code == 0:
            (folder / "run-example.png").write_bytes((saved / "picture.png").read_bytes())
    return code


if __name__ == "__main__":
    sys.exit(main())
