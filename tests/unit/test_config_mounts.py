"""The state directory has to be on a local file system: the lock in it proves nothing to another host."""

from __future__ import annotations

from pathlib import Path

import pytest

from redis_agent.config import ConfigError
from redis_agent.config_host import check_local
from redis_agent.config_mounts import Mount, is_shared, mount_of, mounts

TABLE = [
    Mount("/", "overlay"),
    Mount("/var", "ext4"),
    Mount("/var/lib/shared", "autofs"),
    Mount("/var/lib/shared", "nfs4"),
    Mount("/var/lib/shared/disk", "xfs"),
    Mount("/mnt/s", "fuse.sshfs"),
]


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/etc/x", "overlay"),
        ("/var", "ext4"),
        ("/var/lib/redis-agent/cache", "ext4"),
        ("/var/lib/shared", "nfs4"),
        ("/var/lib/shared/redis-agent", "nfs4"),
        ("/var/lib/shared/disk/redis-agent", "xfs"),
        ("/var/lib/shared-not", "ext4"),
        ("/mnt/s/a", "fuse.sshfs"),
    ],
)
def test_the_deepest_and_latest_mount_counts(path: str, kind: str) -> None:
    """As the kernel resolves a path; a name that only begins alike is another one."""
    found = mount_of(Path(path), TABLE)
    assert found is not None
    assert found.kind == kind


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "ceph", "fuse.glusterfs", "fuse.sshfs", "fuse.s3fs"])
def test_what_other_hosts_may_share(kind: str) -> None:
    """Network file systems, in the kernel and through FUSE."""
    assert is_shared(kind)


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "fuse.fuse-overlayfs", "fuseblk"])
def test_what_is_local(kind: str) -> None:
    """Disks, memory, and what containers lay over them."""
    assert not is_shared(kind)


def test_a_shared_state_directory_is_refused_in_one_line(tmp_path: Path) -> None:
    """What, where, why, and a remedy; also behind a link, and below what does not exist yet."""
    link = tmp_path / "link"
    link.symlink_to("/var/lib/shared")
    for path in ("/var/lib/shared/redis-agent", f"{link}/redis-agent"):
        with pytest.raises(ConfigError) as caught:
            check_local(path, "[agent] state_dir", "cache.toml", TABLE)
        line = str(caught.value)
        assert line.startswith(
            f"cache.toml: [agent] state_dir: {path} is on a network file system (nfs4 at /var/lib/sh"
        )
        assert "local" in line
        assert "\n" not in line


def test_a_local_one_is_accepted(tmp_path: Path) -> None:
    """By the table of the test, and by that of this machine."""
    check_local("/var/lib/redis-agent", "[agent] state_dir", "cache.toml", TABLE)
    check_local(str(tmp_path), "[agent] state_dir", "cache.toml", mounts())
    assert mount_of(Path("/"), mounts()) is not None
