"""What a memory is drawn to hear is what its sizes say that it can."""

import pytest
from PIL import Image

from scrubjay.memory.hcam import HCAMConfig
from scrubjay.memory.sink import SinkConfig


@pytest.fixture(scope="module")
def reach(from_docs):
    return from_docs("reach")


def test_without_memory_only_the_present_step_is_heard(reach):
    parts = reach.heard("none")
    assert (parts[:, 0] == 1).all()
    assert not parts[:, 1:].any()


def test_a_window_ends_and_sinks_are_heard_beyond_it(reach):
    config = SinkConfig(dim=64)
    beyond = reach.heard("sink")[:, config.num_layers * config.window :]
    assert beyond[:, -config.num_sinks :].all()
    assert not beyond[:, : -config.num_sinks].any()


def test_what_hcam_stores_is_heard_though_it_learns_without_its_gradient(reach):
    config = HCAMConfig(dim=64)
    assert (reach.heard("hcam") > reach.LEAST).sum(axis=1).min() > config.top_k * config.chunk_size


def test_it_is_drawn(reach, tmp_path):
    reach.draw_reach("none", tmp_path / "none.png")
    with Image.open(tmp_path / "none.png") as picture:
        assert picture.width > 390
