"""The C library's allocator, told what a daemon that takes large messages needs of it."""

from __future__ import annotations

import ctypes
from typing import Final

# malloc.h
_M_MMAP_THRESHOLD: Final = -3
_LARGE_BYTES: Final = 2 * 2**20


def give_large_blocks_back() -> None:
    """Have blocks of 2 MiB and more returned to the system as soon as they are free.

    glibc would raise this limit to 32 MiB by itself after the first of them. Then messages of 4 MiB come to lie
    between smaller blocks, in each thread's arena, and stay there: 60 MiB after a few hundred of them.
    """
    # Another C library has no such function, and its own ways.
    if (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
