"""Is a directory on a file system that other hosts may share? By the type of what is mounted there."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import psutil

SHARED = frozenset(
    {
        *("nfs", "nfs4", "cifs", "smb3", "smbfs", "ncpfs", "afs", "coda", "davfs", "sshfs"),
        *("ceph", "glusterfs", "lustre", "beegfs", "gpfs", "orangefs", "pvfs2", "gfs2", "ocfs2", "panfs"),
    }
)
"""Through the kernel or through FUSE (``fuse.glusterfs``). What a virtual machine or a container gets from its own host
(9p, virtiofs, overlay) is not among them."""
SHARED_BY_FUSE = frozenset(
    {"s3fs", "rclone", "gcsfuse", "blobfuse", "juicefs", "moosefs", "mfs", "goofys", "curlftpfs"}
)


class Mount(NamedTuple):
    """One line of the table of mounts."""

    point: str
    kind: str


def mounts() -> list[Mount]:
    """What this process sees, in the order in which it was mounted."""
    return [Mount(each.mountpoint, each.fstype) for each in psutil.disk_partitions(all=True)]


def mount_of(path: Path, table: Iterable[Mount]) -> Mount | None:
    """Where an absolute path without links is: the deepest mount point wins, and of several at one point the latest."""
    found = None
    for mount in table:
        inside = path.is_relative_to(mount.point)
        if inside and (found is None or len(Path(mount.point).parts) >= len(Path(found.point).parts)):
            found = mount
    return found


def is_shared(kind: str) -> bool:
    """Other hosts may have it mounted, too."""
    name = kind.lower()
    by_fuse = name.removeprefix("fuse.")
    return by_fuse in SHARED or (by_fuse != name and by_fuse in SHARED_BY_FUSE)
