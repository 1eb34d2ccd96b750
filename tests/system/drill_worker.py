"""The real Celery worker, whose jobs run the drill's body."""

import sys

from workers.jobs.slot import Slot
from workers.main import celery as celery

Slot.command = (sys.executable, "-m", "tests.system.drill_job")
