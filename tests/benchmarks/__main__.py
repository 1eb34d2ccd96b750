"""Runs every benchmark that is quick enough for `make bench`: the modules here with a `bench` function."""

import importlib
import pkgutil
import sys

import tests.benchmarks as package


def main(wanted: list[str]) -> None:
    for entry in pkgutil.iter_modules(package.__path__):
        if entry.name == "__main__" or wanted and entry.name not in wanted:
            continue
        module = importlib.import_module(f"{package.__name__}.{entry.name}")
        if hasattr(module, "bench"):
            print(f"== {entry.name}: {(module.__doc__ or '').splitlines()[0]}", flush=True)
            module.bench()


if __name__ == "__main__":
    main(sys.argv[1:])
