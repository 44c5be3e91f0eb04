import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, torch
from scrubjay.kernels.derivatives import retain_freed_memory

def faults():
    begun = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        blocks = [torch.ones(250_000) for _ in range(12)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begun

torch.set_num_threads(1)
faults()
before = faults()
retain_freed_memory()
faults()
print(before, faults())
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_is_allocated_again_without_page_faults():
    result = subprocess.run([sys.executable, "-P", "-c", PROGRAM], capture_output=True, text=True, check=True)
    before, after = map(int, result.stdout.split())
    assert after * 10 < before
