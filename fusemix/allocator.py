"""Memory that the C library keeps after it was freed."""

from __future__ import annotations

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_MIB = 2**20


def keep_freed_memory(keep: bool) -> None:
    """Let glibc keep up to 1 GiB of freed memory for the next allocations, or give it back to the system.

    By default glibc gives back what exceeds 64 MiB. The activations of a training step exceed it, and every step would
    get their pages anew from the system, zeroed: a tenth of its time and more. The peak does not change. The setting
    is the whole process's; elsewhere than with glibc (Linux) nothing happens.

    Args:
        keep: False returns to about what glibc settles at by itself, and gives back what is free now.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_MMAP_THRESHOLD, 32 * _MIB)  # the largest that is allowed; larger blocks always go back
    libc.mallopt(_TRIM_THRESHOLD, (1024 if keep else 64) * _MIB)
    if not keep:
        libc.malloc_trim(0)
