"""Which NVIDIA GPUs can be trusted: what the driver counts of their memory, and the errors (XID) that it reports.

After https://docs.nvidia.com/deploy/xid-errors/ and the rules of NVIDIA's DCGM: a GPU whose memory had an
uncorrectable error is to be drained and reset, one whose rows cannot be remapped is to be replaced.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any

import pynvml as _library

pynvml: Any = _library
"""It has no types."""
OF_PROGRAMS = frozenset({13, 31, 43, 45, 68, 109})
"""XIDs that a program causes by its own fault: its GPU is well."""
MOST = 1000
"""Events that are read at one look."""
WHOLE = 0xFFFFFFFF
"""The instance of an event that concerns the whole GPU."""
log = logging.getLogger(__name__)


class Health:
    """What was reported since the driver was begun with.

    A fault of memory goes when the GPU is reset, an XID when the driver is begun with anew.
    """

    def __init__(self, ignored: Collection[int] = ()) -> None:
        """``ignored``: XIDs that are no fault, beside those of programs."""
        self._ignored = OF_PROGRAMS | frozenset(ignored)
        self._events: Any = None
        self._followed: set[str] = set()
        self._xids: dict[tuple[str, int | None], int] = {}
        """By UUID of the GPU and instance, if it concerns one only."""

    def begin(self) -> None:
        """The driver was begun with anew: nothing was reported yet."""
        self._followed, self._xids = set(), {}
        try:
            self._events = pynvml.nvmlEventSetCreate()
        except pynvml.NVMLError as error:
            self._events = None
            log.debug("errors of NVIDIA GPUs cannot be followed: %s", error)

    def follow(self, uuid: str, handle: Any) -> None:
        """Hear of errors of a GPU from now on."""
        if self._events is None or uuid in self._followed:
            return
        self._followed.add(uuid)
        try:
            kind = pynvml.nvmlEventTypeXidCriticalError
            pynvml.nvmlDeviceRegisterEvents(handle, kind, self._events)
        except pynvml.NVMLError as error:
            log.debug("errors of NVIDIA GPU %s cannot be followed: %s", uuid, error)

    def unfollow(self, uuid: str) -> None:
        """A GPU does not answer: when it does again, it is to be followed anew."""
        self._followed.discard(uuid)

    def look(self) -> None:
        """Read what was reported since the last look; waits for nothing."""
        for _ in range(MOST if self._events is not None else 0):
            try:
                event = pynvml.nvmlEventSetWait_v2(self._events, 0)
                uuid = str(pynvml.nvmlDeviceGetUUID(event.device))
            except pynvml.NVMLError:  # a time-out: there is no more
                return
            xid = int(event.eventData)
            if event.eventType == pynvml.nvmlEventTypeXidCriticalError and xid not in self._ignored:
                part = None if event.gpuInstanceId == WHOLE else int(event.gpuInstanceId)
                self._xids[uuid, part] = xid

    def fault(self, uuid: str, handle: Any) -> str:
        """Why a GPU is not to be used; empty where there is no reason."""
        if _remapped(handle):
            return "rows of its memory cannot be remapped: it is to be replaced"
        errors = _uncorrected(handle)
        if errors:
            what = "error" if errors == 1 else "errors"
            return f"{errors} uncorrectable {what} of its memory since it was reset: reset it"
        return self.fault_of_part(uuid, None)

    def fault_of_part(self, uuid: str, part: int | None) -> str:
        """Why an instance of a GPU is not to be used, though the rest of the GPU may be."""
        xid = self._xids.get((uuid, part))
        return "" if xid is None else f"the driver reported XID {xid}"


def _remapped(handle: Any) -> bool:
    """Whether a remapping of rows failed; not where there is none (before Ampere)."""
    try:
        return bool(pynvml.nvmlDeviceGetRemappedRows(handle)[3])
    except pynvml.NVMLError:
        return False


def _uncorrected(handle: Any) -> int:
    """Uncorrectable errors of memory since the last reset; 0 where nothing counts them."""
    try:
        return int(
            pynvml.nvmlDeviceGetTotalEccErrors(
                handle, pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC
            )
        )
    except pynvml.NVMLError:
        return 0
