"""Datasets as clients see them, built-in ones that are not imported yet among them."""

from app.core import wire
from app.core.catalog.builtin_datasets import BUILTINS, Builtin
from app.core.store.datasets import Row


def view(row: Row | Builtin) -> wire.Dataset:
    """A dataset as clients see it."""
    if isinstance(row, Builtin):
        return wire.Dataset(
            name=row.id,
            title=row.title,
            **{name: getattr(row, name) for name in ("layout", "height", "width", "channels", "count")},
            classes=list(row.classes) if row.classes else None,
            builtin=True,
            installed=row.installed,
            sizes=list(row.sizes) if row.sizes else None,
            twins=row.twins,
            imported=False,
            licence=row.licence,
            attribution=row.attribution,
            links={"self": f"/v1/datasets/{row.id}", "import": f"/v1/datasets?builtin={row.id}"},
        )
    facts, here = row["facts"], f"/v1/datasets/{row['name']}"
    builtin = BUILTINS.get(row["source"].removeprefix("builtin:")) if row["source"].startswith("builtin:") else None
    return wire.Dataset(
        name=row["name"],
        title=builtin and builtin.title,
        layout=row["layout"],
        **{name: facts[name] for name in ("height", "width", "channels", "columns")},
        count=sum(max(side.values(), default=0) for side in facts["columns"].values()),
        classes=facts.get("classes"),
        **{name: row[name] for name in ("digest", "licence", "attribution", "bytes", "created_at")},
        builtin=builtin is not None,
        installed=True,
        sizes=list(builtin.sizes) if builtin and builtin.sizes else None,
        twins=facts.get("twins", False),
        imported=True,
        links={"self": here, "images": f"{here}/images", "thumbnails": f"{here}/thumbnails.png"},
    )
