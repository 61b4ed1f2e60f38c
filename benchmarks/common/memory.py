"""What becomes of freed memory: on Linux most of what large arrays on CPU cost."""

import ctypes
import sys

# Parameters of mallopt(3), from glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -3, -4, -8


def keep_freed_memory() -> bool:
    """Tells glibc to reuse freed memory instead of giving it back; whether it was told.

    XLA allocates its temporary arrays anew in each call. By default glibc gives every array above
    32 MB back to the kernel, which then zeroes it page by page at the next call: adding 1 to 32 MB
    took 12 ms so, and 1.7 ms with the memory kept.
    """
    libc = _glibc()
    if libc is None:
        return False
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_ARENA_MAX, 1))
    return all(libc.mallopt(parameter, setting) == 1 for parameter, setting in settings)


def return_freed_memory() -> bool:
    """Tells glibc to give freed memory back at once, now and from now on; whether it was told.

    What is resident is then what is in use, which is what a measurement of memory wants to see.
    """
    libc = _glibc()
    if libc is None:
        return False
    settings = ((_MMAP_THRESHOLD, 2**16), (_TRIM_THRESHOLD, 2**16))
    told = all(libc.mallopt(parameter, setting) == 1 for parameter, setting in settings)
    libc.malloc_trim(0)
    return told


def _glibc() -> ctypes.CDLL | None:
    """The C library, where it is glibc."""
    if sys.platform != "linux":
        return None
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt, libc.malloc_trim  # noqa: B018
    except (OSError, AttributeError):
        return None
    return libc
