"""One thread a worker: the suite runs its files side by side, and threads of several workers would fight for cores.

Heavy imports stand inside: the process that only hands out tests needs none of them.
"""

from pathlib import Path

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

SOURCES = Path(__file__).parents[1] / "src"


def stating_shapes() -> list[str]:
    """Modules that state shapes, which are checked while tests run; in others the checks would only cost time."""
    files = [file for file in SOURCES.rglob("*.py") if "from jaxtyping import" in file.read_text()]
    return [".".join(file.relative_to(SOURCES).with_suffix("").parts) for file in sorted(files)]


install_import_hook(stating_shapes(), "beartype.beartype")

# The gate draws the same cases every time and has no clock; `--hypothesis-profile default` goes looking for new ones.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.load_profile("fixed")


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Of torch."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_gradients():
    """Nothing here trains."""
    import torch

    with torch.no_grad():
        yield


@pytest.fixture(scope="session")
def untrained(tmp_path_factory):
    """A folder with a tiny untrained model of the embedded kind."""
    from swiftvlm.mini import recipe
    from swiftvlm.mini.load import ship

    small = recipe.Recipe(
        width=144, heads=4, layers=6, seed_layers=2, inner=64, tower_width=32, tower_heads=2, tower_layers=1
    )
    folder = tmp_path_factory.mktemp("model") / "weights"
    assert ship(recipe.build(small), folder) < 2**22
    return str(folder)


@pytest.fixture(autouse=True)
def _no_profiles_of_the_user(tmp_path, monkeypatch):
    """Whatever a user measured before must not change what is tested."""
    monkeypatch.setenv("SWIFTVLM_PROFILES", str(tmp_path / "profiles"))
