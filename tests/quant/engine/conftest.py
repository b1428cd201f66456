"""Networks of `planned_networks`, lowered once for all tests."""

from collections.abc import Callable

import pytest
from torch import nn

import voxelquant as vq
from planned_networks import make_engine, make_frame
from voxelquant.sparse import SparseTensor


@pytest.fixture(scope="session")
def frame_of() -> Callable[..., SparseTensor]:
    return make_frame


@pytest.fixture(scope="session")
def engine_of() -> Callable[[str, vq.Recipe | str], nn.Module]:
    """Lowered network by name and recipe, made once."""
    made: dict[tuple[str, str], nn.Module] = {}

    def build(name: str, recipe: vq.Recipe | str) -> nn.Module:
        key = (name, recipe if isinstance(recipe, str) else recipe.model_dump_json())
        if key not in made:
            made[key] = make_engine(name, recipe)
        return made[key]

    return build
