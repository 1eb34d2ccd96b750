"""`python -m app.openapi` writes the description of the API to `app/openapi.json`; a test compares the two."""

from app.api.http.openapi import FILE, text
from app.main import create_app

if __name__ == "__main__":
    FILE.write_text(text(create_app().openapi()), encoding="utf-8")
