"""The HTTP interface as text, a line for each operation. `python -m tests.app.http.surface` writes surface.txt."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from app.main import create_app

FILE = Path(__file__).with_name("surface.txt")


def operations(document: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """`METHOD:path:operation_id`, and its parameters (! marks a required one), request media types and statuses."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            members = [
                f"{item['in']}:{item['name']}{'!' * item.get('required', False)}"
                for item in operation.get("parameters", [])
            ]
            members += [f"body:{media}" for media in operation.get("requestBody", {}).get("content", {})]
            members += list(operation["responses"])
            yield f"{method.upper()}:{path}:{operation['operationId']}", sorted(members)


def lines(document: dict[str, Any]) -> list[str]:
    """One line for each operation, in alphabetical order of the paths."""
    found = sorted(operations(document), key=lambda item: item[0].split(":", 1)[::-1])
    return [" ".join([name, *members]) for name, members in found]


if __name__ == "__main__":
    FILE.write_text("\n".join(lines(create_app().openapi())) + "\n")
