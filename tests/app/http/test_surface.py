"""The HTTP interface changes only together with its snapshot."""

from app.main import create_app
from tests.app.http.surface import FILE, lines


def test_the_snapshot_of_the_http_interface_is_fresh():
    now = lines(create_app().openapi())
    assert FILE.read_text().splitlines() == now, "run `python -m tests.app.http.surface` and read the difference"
