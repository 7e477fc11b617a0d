"""How much memory this process may still take: of the device, the machine, or the container it is in."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

_CGROUPS, _OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def free_memory(device: torch.device) -> int:
    """Give bytes free on a CUDA device; of any other the machine's that are available, within a container's limit."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return min([int(psutil.virtual_memory().available), *cgroup_room(_CGROUPS, _OWN)])


def own_memory(device: torch.device) -> int:
    """Give bytes that this process holds already: resident, or allocated on a CUDA device."""
    if device.type == "cuda":
        return int(torch.cuda.memory_reserved(device))
    return int(psutil.Process().memory_info().rss)


def cgroup_room(root: Path, own: Path) -> list[int]:
    """Give bytes left below each limit that is set on this process's control group or one above it.

    Args:
        root: where control groups are mounted.
        own: the file that names this process's.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, kinds, name = line.split(":", 2)
        if kinds not in ("", "memory"):
            continue
        top, names = (root, ("memory.max", "memory.current")) if not kinds else (root / kinds, _OLD)
        place = top / name.lstrip("/")
        for folder in [place, *place.parents]:  # in a container the name may be one of the world outside
            if folder == top or top in folder.parents:
                found += _room(folder, *names)
    return found


_OLD = ("memory.limit_in_bytes", "memory.usage_in_bytes")


def _room(folder: Path, limit: str, used: str) -> list[int]:
    """[limit - used, where a page of a file that can be dropped is not used], [] without a limit."""
    try:
        most, taken = (folder / limit).read_text().strip(), int((folder / used).read_text())
        facts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return []
    if not most.isdigit() or int(most) >= 2**60:
        return []
    files = int(facts.get("total_inactive_file", facts.get("inactive_file", 0)))
    return [max(0, int(most) - max(0, taken - files))]
