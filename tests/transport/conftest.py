"""A lab of one's own for each test."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.transport.world import World, copy_world, make_world


@pytest.fixture(scope="session")
def lab_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("lab") / "world")


@pytest.fixture
def world(lab_world: World, tmp_path: Path) -> World:
    return copy_world(lab_world, tmp_path / "world")
