"""What every process of a drill does first: a clock that can jump, a planted bug, and notes of what jobs do.

Switched by variables of the environment that only the drill sets; the product reads none of them.
"""

import os
import time

from sqlalchemy.ext.compiler import compiles

from app.core.store import database
from app.core.store.database import clock
from tests.system.drill.plants import PLANTS

CLOCK_TABLE = "drill_clock"
"""One row with one number: how far the clock of the database is off, in seconds."""


def prepare() -> None:
    if os.environ.get("DRILL_CLOCK"):
        let_the_clock_jump()
    if shift := float(os.environ.get("DRILL_TIME_SHIFT", 0)):
        shift_time(shift)
    if name := os.environ.get("DRILL_BUG"):
        PLANTS[name](setattr)


def let_the_clock_jump() -> None:
    """Adds the number in the table to each reading of the database's clock, in all processes alike."""
    plain = {"sqlite": database._clock_sqlite, "postgresql": database._clock_postgresql}
    for dialect, compile_clock in plain.items():

        @compiles(clock, dialect)
        def shifted(element, compiler, compile_clock=compile_clock, **options):
            return f"({compile_clock(element, compiler, **options)} + (SELECT shift FROM {CLOCK_TABLE}))"


def shift_time(seconds: float) -> None:
    """Puts the wall clock of this process off; its monotonic clock, like any process's, is right."""
    wall, wall_ns = time.time, time.time_ns
    time.time = lambda: wall() + seconds
    time.time_ns = lambda: wall_ns() + int(seconds * 1e9)
