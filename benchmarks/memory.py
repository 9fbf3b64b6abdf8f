"""Peak resident memory of this process since a point in time."""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["peak_megabytes", "reset_peak"]

_STATUS = Path("/proc/self/status")


def reset_peak() -> None:
    """Forget peaks before now, where the system can (Linux); what is resident stays counted."""
    if _STATUS.exists():
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:  # some containers forbid it: the peak then includes loading the data
            return


def peak_megabytes() -> float | None:
    """Largest resident size since the last reset, in MB (1e6 bytes).

    Linux: the address space's own high-water mark. The figure of `getrusage` will not do there, because a child
    starts with its parent's.
    """
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
