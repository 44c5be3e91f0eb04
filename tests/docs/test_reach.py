"""The plotted reach of a memory agrees with its settings."""

import pytest
from PIL import Image

from scrubjay.memory.hcam import HCAMConfig
from scrubjay.memory.sink import SinkConfig


@pytest.fixture(scope="module")
def reach(from_docs):
    return from_docs("reach")


def test_without_memory_only_the_current_step_has_influence(reach):
    parts = reach.measure_reach("none")
    assert (parts[:, 0] == 1).all()
    assert not parts[:, 1:].any()


def test_a_window_ends_and_sinks_reach_beyond_it(reach):
    config = SinkConfig(dim=64)
    beyond = reach.measure_reach("sink")[:, config.num_layers * config.window :]
    assert beyond[:, -config.num_sinks :].all()
    assert not beyond[:, : -config.num_sinks].any()


def test_stored_chunks_of_hcam_have_influence_without_memory_gradients(reach):
    config = HCAMConfig(dim=64)
    assert (reach.measure_reach("hcam") > reach.LEAST).sum(axis=1).min() > config.top_k * config.chunk_size


def test_draw_reach_writes_a_picture(reach, tmp_path):
    reach.draw_reach("none", tmp_path / "none.png")
    with Image.open(tmp_path / "none.png") as picture:
        assert picture.width > 390
