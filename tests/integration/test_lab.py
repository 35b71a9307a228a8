"""The servers and the proxy that tests and the demo run on."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import redis_agent
from redis_agent.lab.ports import free_port, free_ports
from redis_agent.lab.proxy import Cut, TcpProxy
from redis_agent.lab.zookeeper import Ensemble, LabError


def test_an_ensemble_lives_and_dies(tmp_path: Path) -> None:
    """Three servers with one leader; a killed leader is replaced and comes back; nothing is left at the end."""
    with Ensemble(tmp_path / "zk", 3, tick_ms=500) as ensemble:
        first = ensemble.leader()
        assert sorted(ensemble.mode(index) for index in range(3)) == ["follower", "follower", "leader"]
        ensemble.kill(first)
        assert ensemble.mode(first) == ""
        second = ensemble.leader()
        assert second != first
        ensemble.restart(first)
        assert ensemble.mode(first) == "follower"
        ensemble.pause(first)
        assert ensemble.mode(first) == ""
        ensemble.resume(first)
        ensemble.wait_serving(3)
        pids = [ensemble.pid(index) for index in range(3)]
    assert not [pid for pid in pids if pid and psutil.pid_exists(pid)]
    assert [ensemble.pid(index) for index in range(3)] == [None, None, None]


def test_servers_die_with_the_process_that_started_them(tmp_path: Path) -> None:
    """SIGKILL of the parent leaves no server behind."""
    script = (
        "import sys; from pathlib import Path; from redis_agent.lab.zookeeper import Ensemble\n"
        "ensemble = Ensemble(Path(sys.argv[1]), 1); ensemble.start(); print(ensemble.pid(0), flush=True)\n"
        "sys.stdin.read()"
    )
    source = str(Path(redis_agent.__file__).parents[1])
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": source},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as parent:
        assert parent.stdout is not None
        server = psutil.Process(int(parent.stdout.readline()))
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 5
    while server.is_running() and server.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_missing_java_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without java the error says which package to install."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LabError, match="default-jre-headless"):
        Ensemble(tmp_path, 1).start()


def test_free_ports_are_free_and_distinct() -> None:
    """Ports that nothing listens on, and never the same twice in one call."""
    ports = free_ports(20)
    assert len(set(ports)) == 20
    with socket.create_server(("127.0.0.1", free_port())) as listener:
        assert listener.getsockname()[1] not in ports


def test_a_cut_proxy_is_silent_and_delivers_when_restored() -> None:
    """Cut: nothing gets through and nobody is told; restored: what was sent meanwhile arrives, in order."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        TcpProxy(listener.getsockname()) as proxy,
        socket.create_connection(proxy.address) as client,
        listener.accept()[0] as server,
    ):
        client.settimeout(0.2)
        server.settimeout(0.2)
        client.sendall(b"one")
        assert server.recv(99) == b"one"
        proxy.cut()
        client.sendall(b"two")
        server.sendall(b"reply")
        for end in (client, server):
            with pytest.raises(TimeoutError):
                end.recv(99)
        proxy.cut(Cut.REPLIES)
        assert server.recv(99) == b"two"
        with pytest.raises(TimeoutError):
            client.recv(99)
        proxy.restore()
        assert client.recv(99) == b"reply"
        client.shutdown(socket.SHUT_WR)
        assert server.recv(99) == b""
        server.sendall(b"bye")
        assert client.recv(99) == b"bye"


def test_a_reset_breaks_both_ends_and_new_connections_work() -> None:
    """Reset tells both ends at once; the proxy goes on."""
    with socket.create_server(("127.0.0.1", 0)) as listener, TcpProxy(listener.getsockname()) as proxy:
        for _ in range(2):
            with socket.create_connection(proxy.address) as client, listener.accept()[0] as server:
                client.sendall(b"hello")
                assert server.recv(99) == b"hello"
                proxy.reset()
                for end in (client, server):
                    with pytest.raises(ConnectionResetError):
                        end.recv(99)
        assert proxy.connections == 0
