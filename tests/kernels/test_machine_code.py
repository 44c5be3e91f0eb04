"""Every main configuration of every kernel compiles to machine code without a GPU."""

import dataclasses
import os

import pytest

from scrubjay.experiments.bench import machine_code

LEAST = min(machine_code.SHARED_LIMIT, key=lambda capability: machine_code.SHARED_LIMIT[capability])

pytestmark = [
    pytest.mark.requires("triton"),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter cannot compile"),
]


# Each takes ten seconds or more: by default only the small ones run, for the GPU with the least shared
# memory.
LONG = ("chunk_retrieval", "linear_memory", "neural_memory", "sink_attention")


@pytest.mark.parametrize(
    ("op", "capability"),
    [
        pytest.param(op, capability, marks=[] if capability == LEAST and op not in LONG else pytest.mark.slow)
        for op in machine_code.OPS
        for capability in machine_code.SHARED_LIMIT
    ],
)
def test_kernels_build_without_spills_and_use_tensor_cores(op, capability):
    configurations = machine_code.configurations(op)
    assert configurations
    for name, launch in configurations.items():
        build = launch.build(capability)
        assert build.spilled_bytes == 0, name
        assert build.shared <= machine_code.SHARED_LIMIT[capability], name
        if op != "nearest" and "float16" in name:
            assert machine_code.uses_tensor_cores(build), name


def test_registers_that_do_not_fit_are_counted_as_spilled():
    launch = machine_code.configurations("chunk_retrieval")["memory gradient: bfloat16, D=128, joint, C=64"]
    assert dataclasses.replace(launch, num_warps=1).build(80).spilled_bytes > 0
