"""What a session runs: it says which GPUs CUDA shows it, takes memory of the first, and uses it or rests.

Nothing but the driver's own library is needed. Usage: ``program.py MEBIBYTES [busy]``.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from typing import Any

MIB = 2**20
MULTIPROCESSORS = 16
"""``CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT``"""


def main() -> None:
    """Say what is seen and taken as one line of JSON, then go on until killed."""
    wanted, busy = int(sys.argv[1]), sys.argv[2:] == ["busy"]
    cuda = ctypes.CDLL("libcuda.so.1")
    count = ctypes.c_int()
    if cuda.cuInit(0) != 0 or cuda.cuDeviceGetCount(ctypes.byref(count)) != 0 or not count.value:
        tell(devices=0)
        return
    device, context, address = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
    unique = (ctypes.c_ubyte * 16)()
    asked(cuda.cuDeviceGet(ctypes.byref(device), 0))
    asked(cuda.cuDeviceGetUuid_v2(unique, device))
    asked(cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device))
    asked(cuda.cuCtxSetCurrent(context))
    processors = ctypes.c_int()
    asked(cuda.cuDeviceGetAttribute(ctypes.byref(processors), MULTIPROCESSORS, device))
    taken = cuda.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(wanted * MIB))
    tell(
        devices=count.value,
        uuid=bytes(unique).hex(),
        multiprocessors=processors.value,
        refused=taken,
    )
    while not taken:
        if busy:
            words = ctypes.c_size_t(wanted * MIB // 4)
            asked(cuda.cuMemsetD32_v2(address, ctypes.c_uint(1), words))
            asked(cuda.cuCtxSynchronize())
        else:
            time.sleep(1)


def asked(result: int) -> None:
    """Raise unless a call of the driver succeeded."""
    if result:
        raise RuntimeError(f"the driver answers {result}")


def tell(**facts: Any) -> None:
    """One line, at once."""
    print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    main()
