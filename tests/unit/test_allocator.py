"""In a process of its own: the setting lasts for the process."""

import subprocess
import sys

import pytest

_PROGRAM = """
import ctypes, resource
from omnifarm.allocator import keep_freed_memory

if {keeps}:
    assert keep_freed_memory() and keep_freed_memory()

def take_and_free():
    blocks = [bytearray(20_000_000 + 1_000_000 * number) for number in range(3)]

take_and_free()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    take_and_free()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_memory_that_was_freed_is_used_again_without_asking_for_it() -> None:
    faults = {}
    for keeps in (True, False):
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM.format(keeps=keeps)], capture_output=True, text=True, check=True
        )
        faults[keeps] = int(done.stdout)
    assert faults[True] < faults[False] / 10, faults
