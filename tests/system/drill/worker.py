"""The real Celery worker on the drill's stage; its jobs run in `tests.system.drill.job`."""

import sys

from tests.system.drill import stage

stage.prepare()

from workers.jobs.slot import Slot  # noqa: E402
from workers.main import celery as celery  # noqa: E402

Slot.command = (sys.executable, "-m", "tests.system.drill.job")
