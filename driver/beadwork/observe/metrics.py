"""The same numbers for Prometheus, on a port that listens on loopback unless a host is given."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

from beadwork.config import listen_at
from beadwork.errors import ConfigError
from beadwork.events import Dropped, Evaluated, Event, FrameKept, Joined, Lost, Waiting
from beadwork.observe.pace import Pace
from beadwork.packages import pip_install

#: upper limits of the histogram, seconds: evaluations take from a millisecond to minutes
BUCKETS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


class Metrics:
    """Serves /metrics from a thread. where: 'PORT' or 'HOST:PORT'; port 0 takes a free one.

    facts: called at every event; its `committee` and `engines` become the info metric. Raises ConfigError where the
    port cannot be opened, or prometheus_client is not installed.
    """

    def __init__(self, where: str | int, pace: Pace, total: int, facts: Callable[[], Mapping[str, Any]]) -> None:
        if importlib.util.find_spec("prometheus_client") is None:
            raise ConfigError(
                "--metrics needs prometheus_client, which is not installed", pip_install("prometheus-client")
            )
        # only here: no run needs it that does not serve metrics
        from prometheus_client import (
            CollectorRegistry,
            Counter,
            Gauge,
            Histogram,
            Info,
            ProcessCollector,
            start_http_server,
        )

        host, port = listen_at(where)
        self._pace = pace
        self._facts = facts
        self._last_info: dict[str, str] = {}
        # our own registry: any library may have added metrics to the default one
        registry = CollectorRegistry()
        ProcessCollector("beadwork", registry=registry)  # memory and open files, for those who watch for leaks

        def gauge(name: str, text: str, value: Callable[[], float | None]) -> None:
            # evaluated when Prometheus asks; NaN is its value for 'not known'
            Gauge(name, text, registry=registry).set_function(lambda: float("nan") if (v := value()) is None else v)

        self._steps = Counter("beadwork_steps", "Steps answered since this server was started", registry=registry)
        self._structures = Counter("beadwork_structures", "Structures evaluated", registry=registry)
        self._seconds = Histogram(
            "beadwork_evaluation_seconds",
            "Time of one evaluation by part; 'idle' is i-PI's, a model goes by its name",
            ["part"],
            buckets=BUCKETS,
            registry=registry,
        )
        self._energy = Gauge(
            "beadwork_potential_energy_electronvolts", "Mean over the structures last evaluated", registry=registry
        )
        self._energy_spread = Gauge(
            "beadwork_energy_spread_electronvolts", "Mean over the structures last evaluated", registry=registry
        )
        self._kept = Counter("beadwork_frames_kept", "Frames committed to the queue", registry=registry)
        self._dropped = Counter("beadwork_frames_dropped", "Frames that the queue could not take", registry=registry)
        self._waiting = Gauge(
            "beadwork_frames_waiting", "Frames in memory because the queue cannot be written", registry=registry
        )
        self._reconnects = Counter("beadwork_reconnects", "Connections to i-PI that ended unasked", registry=registry)
        self._answered = Gauge(
            "beadwork_last_answer_timestamp_seconds", "Unix time of the last answer", registry=registry
        )
        self._committee = Info("beadwork_committee", "The models that answer", registry=registry)
        gauge(
            "beadwork_force_spread_electronvolts_per_angstrom",
            "Largest of any atom in the last evaluation",
            lambda: pace.spread,
        )
        self._novelty = Gauge(
            "beadwork_novelty",
            "Largest of any atom in the last evaluation, by the part that it is new to; 1 is the edge of training",
            ["part"],
            registry=registry,
        )
        # registered only when a model has a training set: else a 0 would say that nothing was new
        self._registry = registry
        self._parts: set[str] = set()
        self._new_structures = Counter(
            "beadwork_new_structures", "Structures with an atom of a novelty above 1", registry=None
        )
        self._new_atoms = Counter("beadwork_new_atoms", "Atoms of a novelty above 1", registry=None)
        gauge("beadwork_step", "i-PI's step", lambda: None if pace.joined else pace.step)
        gauge("beadwork_total_steps", "The step at which i-PI ends", lambda: total)
        gauge("beadwork_nanoseconds_per_day", "Pace of the last hundred steps", lambda: pace.ns_per_day)
        self._energy.set(float("nan"))
        self._energy_spread.set(float("nan"))
        self._first = pace.step
        self._info()
        try:
            self._server, self._thread = start_http_server(port, host, registry=registry)
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"metrics cannot be served at {host}:{port} ({error})", "take another --metrics"
            ) from error
        self.port = int(self._server.server_port)
        self.address = f"http://{f'[{host}]' if ':' in host else host}:{self.port}/metrics"

    def __call__(self, event: Event) -> None:
        """Process one event."""
        if isinstance(event, Evaluated):
            self._add(event)
        elif isinstance(event, FrameKept):
            self._kept.inc()
        elif isinstance(event, Waiting):
            self._waiting.set(event.frames)
        elif isinstance(event, Dropped):
            self._dropped.inc()
        elif isinstance(event, Lost):
            self._reconnects.inc()
        elif isinstance(event, Joined):
            self._first = self._pace.step
        else:
            self._info()

    def _add(self, event: Evaluated) -> None:
        step = self._pace.step
        if step is not None and self._first is not None:
            self._steps.inc(max(0, step - self._first))  # negative where i-PI was started again from a RESTART
        self._first = step  # steps done while it was not known are not counted
        self._structures.inc(event.evaluated)
        for part, seconds in event.seconds.items():
            self._seconds.labels(part).observe(seconds)
        self._energy.set(event.energy)
        if event.energy_spread is not None:
            self._energy_spread.set(event.energy_spread)
        self._answered.set_to_current_time()
        self._add_novelty(event)

    def _add_novelty(self, event: Evaluated) -> None:
        novelty = self._pace.novelty
        if novelty and not self._parts:
            self._registry.register(self._new_structures)
            self._registry.register(self._new_atoms)
        self._parts |= novelty.keys()
        for part in self._parts:  # NaN where a new committee has no training set
            self._novelty.labels(part).set(novelty.get(part, float("nan")))
        self._new_structures.inc(event.new_structures)
        self._new_atoms.inc(event.new_atoms)

    def _info(self) -> None:
        """Update the info metric. Models change only together with an event, so events are when to look."""
        facts = self._facts()
        info = {"hash": str(facts["committee"] or ""), "engines": ", ".join(facts["engines"])}
        if info != self._last_info:
            self._last_info = info
            self._committee.info(info)

    def close(self) -> None:
        """Close the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
