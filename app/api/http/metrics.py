"""Prometheus metrics: requests and calls are counted as they happen, jobs and workers are read at scrape time."""

from collections.abc import Iterable
from time import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

from app.core.calls.client import CallClient
from app.core.jobs import state as jobs
from app.core.jobs import workers
from app.core.store.database import reading

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """One per app. Labels are bounded: no tenants, ids or names that clients choose."""

    def __init__(self, calls: CallClient):
        self.registry = CollectorRegistry()
        self.requests = Histogram(
            "http_request_duration_seconds",
            "Time to answer a request.",
            ["method", "route", "status"],
            buckets=BUCKETS,
            registry=self.registry,
        )
        self.calls = Counter(
            "calls_total", "Calls to models, by operation and outcome.", ["operation", "code"], registry=self.registry
        )
        waiting = Gauge(
            "calls_waiting_images", "Images of calls that wait for a free micro-batch.", registry=self.registry
        )
        waiting.set_function(lambda: calls.waiting_weight)
        in_flight = Gauge("calls_in_flight_batches", "Micro-batches sent and not answered yet.", registry=self.registry)
        in_flight.set_function(lambda: calls.batches_out)
        self.registry.register(Tables())

    def text(self) -> bytes:
        return generate_latest(self.registry)


class Tables:
    """Gauges read from the database at scrape time."""

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterable[Metric]:
        with reading() as conn:
            counts, live = jobs.counts(conn), workers.fresh(conn)
        states = GaugeMetricFamily("jobs", "Jobs by kind and status.", labels=["kind", "status"])
        for (kind, state), count in counts.items():
            states.add_metric([kind, state], count)
        alive = GaugeMetricFamily("workers", "Live workers, by queue.", labels=["queue"])
        for queue in ("infer", *jobs.QUEUES):
            alive.add_metric([queue], sum(queue in worker["queues"] for worker in live))
        oldest = GaugeMetricFamily("worker_silence_seconds", "Longest time since a live worker reported.")
        oldest.add_metric([], max((time() - worker["seen_at"] for worker in live), default=0.0))
        busy = GaugeMetricFamily("device_jobs", "Running jobs of a worker's device.", labels=["worker", "device"])
        for worker in live:
            for device in worker["devices"] or ():
                busy.add_metric([worker["id"], device["device"]], len(device["jobs"]))
        return [states, alive, oldest, busy]
