"""Asynchronous writes, by system calls alone: libaio's and io_uring's, one request each.

Neither raises an event when it is done; only a file that is open for writing shows that it may be.
The numbers are those of x86_64; io_uring's are the same everywhere.
"""

import ctypes
import mmap
import os
import struct
from typing import Final

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
# From <linux/aio_abi.h> and <asm/unistd_64.h>.
_IO_SETUP, _IO_DESTROY, _IO_GETEVENTS, _IO_SUBMIT = 206, 207, 208, 209
_CMD_PWRITE: Final = 1
_IOCB: Final = struct.Struct("=QIiHhIQQqQII")
# From <linux/io_uring.h>.
_URING_SETUP, _URING_ENTER = 425, 426
_OP_WRITE: Final = 23
_ENTER_GETEVENTS: Final = 1
_OFF_SQES: Final = 0x10000000
_SINGLE_MMAP: Final = 1
_PARAMS: Final = struct.Struct("=10I10I10I")
_SQE: Final = struct.Struct("=BBHiQQIIQ24x")


def _call(number: int, *arguments: object) -> int:
    done: int = _libc.syscall(ctypes.c_long(number), *arguments)
    if done < 0:
        raise OSError(ctypes.get_errno(), f"system call {number}")
    return done


def _check(result: int) -> None:
    if result < 0:
        raise OSError(-result, "asynchronous write")


def submit_by_aio(descriptor: int, data: bytes, at: int) -> None:
    """Write by libaio, and wait until that is done. Raises OSError."""
    context = ctypes.c_ulong(0)
    _call(_IO_SETUP, 1, ctypes.byref(context))
    try:
        buffer = ctypes.create_string_buffer(data, len(data))
        block = _IOCB.pack(
            *(0, 0, 0, _CMD_PWRITE, 0, descriptor),
            *(ctypes.addressof(buffer), len(data), at, 0, 0, 0),
        )
        control = ctypes.create_string_buffer(block, len(block))
        pointers = (ctypes.c_void_p * 1)(ctypes.addressof(control))
        _call(_IO_SUBMIT, context, ctypes.c_long(1), pointers)
        event = (ctypes.c_int64 * 4)()
        _call(_IO_GETEVENTS, context, ctypes.c_long(1), ctypes.c_long(1), event, None)
        _check(event[2])
    finally:
        _call(_IO_DESTROY, context)


def submit_by_uring(descriptor: int, data: bytes, at: int) -> None:
    """Write by io_uring, and wait until that is done. Raises OSError."""
    params = ctypes.create_string_buffer(_PARAMS.size)
    ring = _call(_URING_SETUP, 1, params)
    try:
        fields = _PARAMS.unpack(params.raw)
        entries_sq, entries_cq, features = fields[0], fields[1], fields[5]
        assert features & _SINGLE_MMAP
        # Their offsets: tail and array of requests, head of completions and the first of those.
        sq_tail, sq_array = fields[11], fields[16]
        cq_head, cq_entries = fields[20], fields[25]
        size = max(sq_array + 4 * entries_sq, cq_entries + 16 * entries_cq)
        with mmap.mmap(ring, size) as rings, mmap.mmap(ring, 64, offset=_OFF_SQES) as requests:
            buffer = ctypes.create_string_buffer(data, len(data))
            where = ctypes.addressof(buffer)
            request = (_OP_WRITE, 0, 0, descriptor, at, where, len(data), 0, 1)
            requests[: _SQE.size] = _SQE.pack(*request)
            struct.pack_into("=I", rings, sq_array, 0)
            struct.pack_into("=I", rings, sq_tail, 1)
            _call(_URING_ENTER, ring, 1, 1, _ENTER_GETEVENTS, None, 0)
            (head,) = struct.unpack_from("=I", rings, cq_head)
            _, result, _ = struct.unpack_from("=QiI", rings, cq_entries + 16 * head)
            _check(result)
    finally:
        os.close(ring)
