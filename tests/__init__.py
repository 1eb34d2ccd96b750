"""Tests run side by side, so that torch takes one thread in each process; more would wait for one another."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
