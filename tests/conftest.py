"""What every test gets: hypothesis profiles, a clean environment, and optional extra inputs."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent

#: Settings of a developer's shell that would change what a program prints.
SHELL_SETTINGS = ("CLICOLOR", "CLICOLOR_FORCE", "COLUMNS", "FORCE_COLOR", "LANG", "LANGUAGE", "NO_COLOR")

settings.register_profile("dev", max_examples=25, deadline=None)
settings.register_profile("ci", max_examples=250, deadline=None, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") == "true" else "dev")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name in SHELL_SETTINGS or name.startswith(("ANONTLS_", "LC_")):
            monkeypatch.delenv(name)


@pytest.fixture
def shared() -> Path:
    """Extra inputs beside the checkout; the tests that want them are skipped where there are none."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("no folder ../shared")
    return folder
