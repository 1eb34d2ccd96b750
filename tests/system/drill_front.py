"""The kill drill's front end: accepts jobs under idempotency keys and promises each by a line on standard output."""

import random
import sys
import time

from app.core.errors import Unavailable
from app.core.jobs import state as jobs
from app.core.jobs.sweeper import Sweeper
from app.core.store.database import transaction


def main(count: int, steps: int, step_seconds: float) -> None:
    sweeper = Sweeper()
    sweeper.start()
    for number in range(count):
        job_id = accept(number, steps, step_seconds)
        sweeper.wake_event.set()
        print(number, job_id, flush=True)
        time.sleep(0.05)
    while True:  # rings on, like a web server without requests
        time.sleep(60)


def accept(number: int, steps: int, step_seconds: float) -> str:
    """The same request whenever it is made: what a client that got no answer sends again."""
    steps = random.Random(number).randint(steps // 2, steps)
    spec = {"seed": number, "steps": steps, "step_seconds": step_seconds}
    kind, tenant = ("training", "drill")[number % 2], f"tenant{number % 3}"
    while True:
        try:
            with transaction() as conn:
                return jobs.accept(conn, tenant=tenant, kind=kind, spec=spec, key=f"job-{number}")[0]["id"]
        except Unavailable:
            time.sleep(0.2)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
