"""What a host has besides its network: a wall clock that may jump, and a small disk that may be full or stand still."""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from tests.faults.bed import BedError, Host, environment

DISK_BYTES = 256 << 20
_FIFREEZE, _FITHAW = 0xC0045877, 0xC0045878


class Clock:
    """CLOCK_REALTIME of the programs that are started with ``environment``; the others' stays right.

    Args:
        host: whose.
        shim: what ``shim`` made; None: this clock can't jump.
    """

    def __init__(self, host: Host, shim: Path | None) -> None:
        self._path = host.directory / "clock"
        self._path.write_bytes(struct.pack("q", 0))
        self.environment = {} if shim is None else {"LD_PRELOAD": str(shim), "REDIS_BED_CLOCK": str(self._path)}

    @property
    def jumps(self) -> bool:
        return bool(self.environment)

    def jump(self, off_s: float) -> None:
        """From now on it is wrong by so much."""
        # In place: the file is mapped.
        with self._path.open("r+b") as file:
            file.write(struct.pack("q", int(off_s * 1e9)))


def shim(directory: Path) -> tuple[Path | None, str]:
    """Compile the library that makes clocks jump. Returns it, or None and the reason."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        return None, "no C compiler in PATH (Debian: apt install gcc libc6-dev): wall clocks do not jump"
    built = directory / "clock.so"
    source = Path(__file__).with_name("clock.c")
    command = [compiler, "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", str(built), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return None, f"wall clocks do not jump: {compiler}: {done.stderr.strip().splitlines()[-1:]}"
    return built, ""


class Disk:
    """A file system of its own below a host: ext4 in a loop device; where that can't be, a tmpfs, which never stalls.

    It is mounted in the host's mount namespace alone, and goes with it.
    """

    def __init__(self, host: Host, place: Path) -> None:
        self._host = host
        self._place = place
        self._holder: subprocess.Popen[bytes] | None = None
        self.why_no_stall = ""
        place.mkdir(parents=True, exist_ok=True)
        image = host.directory / "disk.img"
        try:
            with image.open("wb") as file:
                file.truncate(DISK_BYTES)
            # No lazy work of the kernel in the background, and no journal to replay: a killed process loses no page.
            host.run("mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0", image)
            host.run("mount", "-o", "loop,noatime", image, place)
        except (BedError, OSError, subprocess.TimeoutExpired) as error:
            image.unlink(missing_ok=True)
            self.why_no_stall = f"no ext4 in a loop device ({error}): disks do not stall"
            host.run("mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", place)

    @property
    def seen_from_outside(self) -> Path:
        """The same place, for us."""
        return Path(f"/proc/{self._host.holder.pid}/root{self._place}")

    # Each in a process of its own: one that waits for a stalled disk can't even die, and would keep us from dying.

    def fill(self) -> None:
        """Leave no room. If that fails, nothing is filled."""
        # Blocks are taken without being written: a quarter of a gigabyte would take longer than a fault.
        most = 'fallocate -l "$(df -B1 --output=avail "$1" | tail -n 1)" "$1/ballast"'
        rest = 'for size in 1M 4K 512; do dd if=/dev/zero bs=$size >>"$1/ballast"; done'
        try:
            self._do(f"{{ {most}; {rest}; }} 2>/dev/null; true")
        except BedError:
            with suppress(BedError):
                self.empty()
            raise

    def empty(self) -> None:
        """There is room again."""
        self._do('rm -f "$1/ballast"')

    def wipe(self) -> None:
        """Nothing is left on it. Nobody may work there."""
        self._do('find "$1" -mindepth 1 -not -path "$1/lost+found*" -delete')

    def _do(self, script: str) -> None:
        try:
            self._host.run("sh", "-c", script, "sh", self._place)
        except subprocess.TimeoutExpired as error:
            raise BedError(f"the disk of {self._host} is stalled") from error

    def stall(self) -> None:
        """Whoever writes or syncs waits until ``resume``, or until we are gone."""
        if self.why_no_stall:
            raise BedError(self.why_no_stall)
        # A process of its own outlives us by long enough to thaw: a frozen file system would stay for ever.
        self._holder = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.machine", str(self.seen_from_outside)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(),
            cwd="/",
            start_new_session=True,
        )
        assert self._holder.stdout is not None
        if not self._holder.stdout.readline():
            raise BedError(f"the disk of {self._host} does not stall")

    def resume(self) -> None:
        """It goes on."""
        if self._holder is not None:
            self._holder.communicate()
            self._holder = None


def hold_still(place: Path) -> None:
    """Freeze the file system until standard input ends."""
    file_system = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.ioctl(file_system, _FIFREEZE, 0)
    try:
        print("frozen", flush=True)
        while os.read(0, 4096):
            pass
    finally:
        fcntl.ioctl(file_system, _FITHAW, 0)


if __name__ == "__main__":
    hold_still(Path(sys.argv[1]))
