"""The worker that keeps BIRD's configuration in step; BIRD itself does not run here."""

from __future__ import annotations

from pathlib import Path

import pytest

from calico_plugin.agent.bird import BirdWorker, Secrets, selects
from calico_plugin.errors import RoutingError
from calico_plugin.model.keys import ResourceKey
from calico_plugin.model.resources import Metadata, Node
from calico_plugin.model.resources.node import NodeBGPSpec, NodeSpec
from calico_plugin.model.snapshot import Snapshot
from calico_plugin.observe.metrics import Metrics
from calico_plugin.observe.problems import Problems
from calico_plugin.routing.apply import Refused


def snapshot(**nodes: str) -> Snapshot:
    """Nodes by name, with their addresses."""
    specs = {name: NodeSpec(bgp=NodeBGPSpec(ipv4_address=address)) for name, address in nodes.items()}
    made = {ResourceKey("Node", name): Node(metadata=Metadata(name=name), spec=spec) for name, spec in specs.items()}
    return Snapshot(resources={"Node": made})


def worker(run_dir: Path) -> tuple[BirdWorker, list[float]]:
    """A worker that is stepped by hand, and the pauses that it made."""
    pauses: list[float] = []
    return BirdWorker("h1", run_dir, Metrics("h1"), secrets=Secrets(run_dir), sleep=pauses.append), pauses


def test_latest_snapshot_is_written_once(tmp_path: Path) -> None:
    """Several requests within the pause give one configuration, that of the last; the same again changes no file."""
    bird, pauses = worker(tmp_path)
    bird.submit(snapshot(h1="192.0.2.1/24"))
    bird.submit(snapshot(h1="192.0.2.1/24", h2="192.0.2.2/24"))
    bird._step()
    conf = tmp_path / "bird.conf"
    assert "192.0.2.2" in conf.read_text() and pauses == [0.1]
    before = conf.stat()
    bird.submit(snapshot(h1="192.0.2.1/24", h2="192.0.2.2/24"))
    bird._step()
    assert (conf.stat().st_ino, conf.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_nothing_before_the_first_snapshot(tmp_path: Path) -> None:
    """A worker that knows nothing writes nothing."""
    bird, _ = worker(tmp_path)
    bird._step()
    assert list(tmp_path.iterdir()) == []


def test_failure_is_counted_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What BIRD refuses is raised for the back-off, and the same snapshot is rendered again at the next step."""
    bird, _ = worker(tmp_path)
    bird.submit(snapshot(h1="192.0.2.1/24"))

    def refuse(*_: object, **__: object) -> None:
        raise RoutingError("refused by the test")

    with monkeypatch.context() as patched:
        patched.setattr("calico_plugin.agent.bird.load", refuse)
        with pytest.raises(RoutingError):
            bird._step()
    assert bird._metrics.bird_failures._value.get() == 1
    bird._step()
    assert (tmp_path / "bird.conf").exists()


def test_refusal_that_nothing_is_to_blame_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told for `node status` and by a metric until a configuration is taken again."""
    bird, _ = worker(tmp_path)
    bird.submit(snapshot(h1="192.0.2.1/24"))

    def refuse(*_: object, **__: object) -> None:
        raise Refused("BIRD refused configure: /run/bird.new:2:11 no router id")

    with monkeypatch.context() as patched:
        patched.setattr("calico_plugin.agent.bird.load", refuse)
        with pytest.raises(Refused):
            bird._step()
    (told,) = Problems(tmp_path).read()["bird"]
    assert "runs on the last good one" in told and "no router id" in told
    assert bird._metrics.bird_refused._value.get() == 1
    bird._step()
    assert Problems(tmp_path).read() == {} and bird._metrics.bird_refused._value.get() == 0


def test_selector_that_makes_no_sense() -> None:
    """It leaves as the error that the renderer expects."""
    assert selects("role == 'x'", {"role": "x"}) and not selects("role == 'x'", {})
    with pytest.raises(ValueError, match="selector"):
        selects("role ==", {})


def test_secrets_are_files_below_their_directory(tmp_path: Path) -> None:
    """A name that would lead out of it gives nothing."""
    secrets = Secrets(tmp_path / "secrets")
    (tmp_path / "secrets" / "bgp").mkdir(parents=True)
    (tmp_path / "secrets" / "bgp" / "key").write_text("word\n")
    (tmp_path / "outside").write_text("no")
    assert secrets("bgp", "key") == "word"
    assert secrets("bgp", "other") is None
    assert secrets("..", "outside") is None and secrets("bgp", "../../outside") is None and secrets("", "bgp") is None
