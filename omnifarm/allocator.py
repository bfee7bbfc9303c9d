"""How the C library's allocator treats large temporaries.

A forward pass frees and takes the same megabytes again in every layer. glibc gives them back to the system and faults them in
anew, page by page, which cost a sixth of serving's computing time on two CPU cores.
"""

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
"""`mallopt` parameters of glibc's malloc.h."""
_MMAP_BYTES = 32 << 20
"""Larger blocks still come from the system one by one; the most that glibc takes on every 64-bit machine."""
_PAD_BYTES = 64 << 20


def keep_freed_memory() -> bool:
    """Have this process keep the memory it frees, for its own next use; for processes that run a backbone on the CPU.

    Its memory then stays at its peak. Safe to repeat.

    Returns:
        Whether the C library can do that; elsewhere nothing changes.
    """
    if not sys.platform.startswith("linux"):
        return False
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is None:
        return False
    settings = ((_MMAP_THRESHOLD, _MMAP_BYTES), (_TOP_PAD, _PAD_BYTES), (_TRIM_THRESHOLD, 2**31 - 1))
    return all(set_option(name, value) == 1 for name, value in settings)
