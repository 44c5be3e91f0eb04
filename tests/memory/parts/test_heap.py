import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, torch
from scrubjay.memory.parts.heap import keep_freed

def faults():
    begun = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        blocks = [torch.ones(250_000) for _ in range(12)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begun

torch.set_num_threads(1)
faults()
before = faults()
keep_freed()
faults()
print(before, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have rules of their own")
def test_what_was_freed_is_asked_for_again_without_a_page_fault():
    words = subprocess.run([sys.executable, "-P", "-c", PROGRAM], capture_output=True, text=True, check=True)
    before, after = map(int, words.stdout.split())
    assert after * 10 < before
