"""Alive, ready, and the ports that tell it."""

from __future__ import annotations

import socket
import time
import urllib.error
import urllib.request

from calico_plugin.observe.health import Health
from calico_plugin.observe.metrics import Metrics
from calico_plugin.observe.server import Server, health_pages, metrics_pages


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def get(port: int, path: str) -> tuple[int, str]:
    """Status and text; waits for the port."""
    over = time.monotonic() + 5
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except urllib.error.URLError:
            assert time.monotonic() < over
            time.sleep(0.02)


class TestHealth:
    def test_alive_is_not_ready(self) -> None:
        """A part that has only registered is alive; it is ready when it says so."""
        health = Health()
        health.register("loop", 10)
        assert health.liveness().good and not health.readiness().good
        health.report("loop", detail="first pass done")
        assert health.readiness().good
        assert "reporting ready | first pass done" in health.readiness().text.replace("  ", "")

    def test_silence_is_bad(self) -> None:
        """A part that does not report within its time is neither; one without time-out may be silent."""
        now = [0.0]
        health = Health(lambda: now[0])
        health.register("start", None)
        health.register("loop", 10)
        for part in ("start", "loop"):
            health.report(part)
        now[0] = 10.5
        assert not health.liveness().good and not health.readiness().good
        assert "timed out" in health.liveness().text
        health.report("loop")
        assert health.liveness().good and health.readiness().good

    def test_one_bad_part_is_enough(self) -> None:
        """All must be good."""
        health = Health()
        for part in ("a", "b"):
            health.register(part, None)
            health.report(part)
        health.report("b", live=False)
        assert not health.liveness().good and health.readiness().good


class TestServer:
    def test_pages(self) -> None:
        """200 or 503 for health, 404 with the known pages for others; metrics with Felix's names as they are."""
        health, metrics = Health(), Metrics("host-1")
        health.register("loop", None)
        metrics.apply_failures.inc()
        ports = free_port(), free_port()
        servers = [
            Server("127.0.0.1", ports[0], health_pages(health)).start(),
            Server("127.0.0.1", ports[1], metrics_pages(metrics.page)).start(),
        ]
        assert get(ports[0], "/readiness")[0] == 503
        health.report("loop")
        assert get(ports[0], "/readiness")[0] == 200
        assert get(ports[0], "/other") == (404, "try /liveness, /readiness\n")
        assert "\nfelix_int_dataplane_failures 1.0\n" in get(ports[1], "/metrics")[1]
        for server in servers:
            server.close()

    def test_port_that_is_taken_is_tried_again(self) -> None:
        """The program goes on, and serves as soon as the port is free."""
        health, port = Health(), free_port()
        with socket.socket() as taken:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.bind(("127.0.0.1", port))
            taken.listen()
            server = Server("127.0.0.1", port, health_pages(health)).start()
            time.sleep(0.1)
        assert get(port, "/liveness")[0] == 200
        server.close()
