# SPDX-License-Identifier: GPL-3.0-or-later
"""rsync's checksums of contents that pass through this process."""

from __future__ import annotations

from typing import Any, Optional

_XXHASH = "libxxhash.so.0"  # what rsync itself is linked with, where it has xxh128


class CantCompute(Exception):
    """This process has no way to compute an algorithm that rsync has."""


class Digest:
    """The checksum of a file, as rsync's ``%C`` shows it.

    :raises CantCompute: only rsync can, on this host
    """

    def __init__(self, algorithm: str) -> None:
        self._sum: Any = _md5() if algorithm == "md5" else _Xxh128() if algorithm == "xxh128" else None
        if self._sum is None:
            raise CantCompute(algorithm)

    def update(self, buffer: bytearray, length: int) -> None:
        """Take the first bytes of a buffer in."""
        self._sum.update(buffer if length == len(buffer) else memoryview(buffer)[:length])

    def hexdigest(self) -> str:
        return str(self._sum.hexdigest())


def computes(algorithm: str) -> bool:
    """Tell whether a checksum can be computed in this process."""
    try:
        Digest(algorithm)
    except CantCompute:
        return False
    return True


def _md5() -> Any:
    import hashlib  # pylint: disable=import-outside-toplevel

    try:
        return hashlib.md5()
    except ValueError as error:  # a host in FIPS mode
        raise CantCompute("md5") from error


_library: Optional[Any] = None


def _xxhash() -> Any:
    """Return the library with its functions declared.

    :raises CantCompute: this host has none, or one before 0.8, which has another xxh128
    """
    global _library  # pylint: disable=global-statement
    if _library is None:
        import ctypes  # pylint: disable=import-outside-toplevel

        try:
            library = ctypes.CDLL(_XXHASH)
            library.XXH3_createState.restype = ctypes.c_void_p
            library.XXH3_freeState.argtypes = [ctypes.c_void_p]
            library.XXH3_128bits_reset.argtypes = [ctypes.c_void_p]
            library.XXH3_128bits_update.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
            library.XXH3_128bits_digest.argtypes = [ctypes.c_void_p]
            library.XXH3_128bits_digest.restype = _two_halves()
            library.XXH_versionNumber.restype = ctypes.c_uint
        except (OSError, AttributeError) as error:
            raise CantCompute(str(error)) from error
        if library.XXH_versionNumber() < 800:
            raise CantCompute(_XXHASH)
        _library = library
    return _library


def _two_halves() -> Any:
    import ctypes  # pylint: disable=import-outside-toplevel

    class XXH128Hash(ctypes.Structure):  # xxhash.h: XXH128_hash_t
        _fields_ = [("low64", ctypes.c_uint64), ("high64", ctypes.c_uint64)]

    return XXH128Hash


class _Xxh128:
    def __init__(self) -> None:
        self._functions = _xxhash()
        self._state = self._functions.XXH3_createState()
        if not self._state:
            raise MemoryError("XXH3_createState")
        self._functions.XXH3_128bits_reset(self._state)

    def __del__(self) -> None:
        if getattr(self, "_state", None):
            self._functions.XXH3_freeState(self._state)

    def update(self, buffer: Any) -> None:
        import ctypes  # pylint: disable=import-outside-toplevel

        self._functions.XXH3_128bits_update(self._state, (ctypes.c_char * len(buffer)).from_buffer(buffer), len(buffer))

    def hexdigest(self) -> str:
        value = self._functions.XXH3_128bits_digest(self._state)
        return "%016x%016x" % (value.high64, value.low64)
