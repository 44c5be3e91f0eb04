"""Launches of the scan kernels; the results are tested under the interpreter."""

import inspect

import pytest

from scrubjay.kernels.elementwise.gpu import configurations

pytestmark = pytest.mark.requires("triton")

LAUNCHES = configurations()


@pytest.mark.parametrize("name", LAUNCHES)
def test_a_launch_passes_all_kernel_arguments_and_covers_every_channel(name):
    launch = LAUNCHES[name]
    names = list(inspect.signature(launch.kernel.fn).parameters)
    assert {*launch.arguments, *launch.constants} == set(names)
    rows, blocks = launch.grid
    numbers = launch.arguments["states_ptr"]
    assert rows == numbers.shape[0]
    step, block = launch.constants["STEP"], launch.constants["BLOCK"]
    assert launch.arguments["T"] == numbers.shape[1]
    assert launch.arguments["D"] * step == numbers.shape[2]
    assert (blocks - 1) * block < launch.arguments["D"] <= blocks * block
    assert (launch.arguments["start_ptr"] is not None) == ("starts" in name)


def test_configurations_cover_numbers_and_pairs_forward_and_backward():
    assert {launch.constants["STEP"] for launch in LAUNCHES.values()} == {1, 2}
    assert sum(name.startswith("forward") for name in LAUNCHES) * 2 == len(LAUNCHES)
