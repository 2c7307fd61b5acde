"""Decoded images kept in memory that forked processes share. Used by the pre-training data set.

The loader's processes see each other's images, so that the limit holds for all of them together.
"""

from __future__ import annotations

import mmap
import multiprocessing

import numpy as np
from numpy.typing import NDArray

_STATE, _START, _HEIGHT, _WIDTH = range(4)  # columns of the index
_FREE, _WRITING, _KEPT = range(3)


class ImageCache:
    """Up to ``limit_bytes`` of (H, W, 3) uint8 images by their number below ``images``; those kept first stay.

    Made before the processes that share it are forked. Memory is taken as images come.
    """

    def __init__(self, images: int, limit_bytes: int) -> None:
        self._limit = limit_bytes
        if not limit_bytes:
            return
        self._lock = multiprocessing.get_context("fork").Lock()
        self._pixels = np.frombuffer(_shared(limit_bytes), np.uint8)
        self._index = np.frombuffer(_shared(32 * (images + 1)), np.int64).reshape(-1, 4)  # a row each, and a last one
        self._used = self._index[images]  # whose start is where the next image goes

    def has_room(self, size_bytes: int) -> bool:
        """Return whether an image of this size would be kept."""
        return bool(self._limit) and int(self._used[_START]) + size_bytes <= self._limit

    def get(self, number: int) -> NDArray[np.uint8] | None:
        """Return an image that is kept, as a read-only view."""
        if not self._limit:
            return None
        with self._lock:
            state, start, height, width = self._index[number].tolist()
        if state != _KEPT:
            return None
        image = self._pixels[start : start + 3 * height * width].reshape(height, width, 3)
        image.flags.writeable = False
        return image

    def keep(self, number: int, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return ``image``, kept for the next time if there is room."""
        if not self.has_room(image.nbytes):
            return image
        with self._lock:
            start = int(self._used[_START])
            if self._index[number, _STATE] != _FREE or start + image.nbytes > self._limit:
                return image
            self._used[_START] += image.nbytes
            self._index[number] = _WRITING, start, *image.shape[:2]
        self._pixels[start : start + image.nbytes] = image.reshape(-1)
        with self._lock:  # another process must not see the state before the pixels
            self._index[number, _STATE] = _KEPT
        return image


def _shared(size_bytes: int) -> mmap.mmap:
    """Return zeros in memory that processes forked from this one share, taken from the system page by page."""
    # Without a reserve: a limit larger than the memory costs nothing until it is used.
    return mmap.mmap(-1, size_bytes, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0))
