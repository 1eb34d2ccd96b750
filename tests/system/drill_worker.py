"""The real Celery worker, whose jobs run the drill's body."""

import sys

from workers.main import celery as celery
from workers.slots import Slot

Slot.command = (sys.executable, "-m", "tests.system.drill_job")
