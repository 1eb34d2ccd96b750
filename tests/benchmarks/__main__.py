"""The benchmarks of `make bench`; name others to run them instead: `python -m tests.benchmarks startup`."""

import importlib
import sys

USUAL = ("startup", "serving", "training")


def main(names: list[str]) -> None:
    for name in names or USUAL:
        module = importlib.import_module(f"tests.benchmarks.{name}")
        print(f"\n{name}: {(module.__doc__ or '').splitlines()[0]}", flush=True)
        module.bench()


if __name__ == "__main__":
    main(sys.argv[1:])
