"""A small catalog in the form that `app.core.catalog.load()` returns."""

LABEL = {"anyOf": [{"type": "integer"}, {"type": "string"}, {"type": "null"}], "default": None}
SEED = {"type": "integer", "minimum": 0, "exclusiveMaximum": 2**63, "default": 0}
EPS = {"anyOf": [{"type": "number", "minimum": 0, "maximum": 1}, {"$ref": "#/$defs/Fraction"}], "default": "8/255"}
FRACTION = {"type": "string", "pattern": "^[0-9]{1,6}/255$", "examples": ["8/255"]}


def schema(**properties) -> dict:
    return {"type": "object", "additionalProperties": False, "properties": properties}


def operation(takes: str, gives: str, *needs: str, params: dict | None = None, **more) -> dict:
    about = {"summary": f"From {takes} to {gives}.", "needs": list(needs), "takes": takes, "gives": gives}
    about |= {
        "method": "POST",
        "sheet": False,
        "any_size": False,
        "multiplies": ["n"],
        "dataset": False,
        "report": None,
    }
    return about | {"params": params or schema()} | more


def attack(name: str, **properties) -> dict:
    own = schema(method={"const": name, "default": name, "type": "string"}, label=LABEL, eps=EPS, **properties)
    return {
        "summary": f"The attack {name}.",
        "norms": ["linf"],
        "access": "gradients",
        "minimal": False,
        "sweep": 9,
        "price": {"forwards": "3", "backwards": "1", "at_once": "1"},
        "params": own | {"$defs": {"Fraction": FRACTION}},
    }


CONFIG = schema(
    images={"anyOf": [{"type": "integer", "minimum": 1, "maximum": 10**9}, {"type": "null"}], "default": None},
    latent_dim={"type": "integer", "minimum": 1, "maximum": 4096, "default": 32},
    learning_rate={"type": "number", "exclusiveMinimum": 0, "maximum": 1, "default": 0.001},
    body={"type": "string", "enum": ["mlp", "conv"], "default": "conv"},
    effort={"type": "string", "enum": ["lesson", "good", "full"]},
)


def family(layouts: list[str], needs: list[str], capabilities: list[str]) -> dict:
    about = {"summary": "A kind of model.", "lecture": "", "layouts": layouts, "needs": needs}
    return about | {"capabilities": capabilities, "operations": [], "config": CONFIG}


CATALOG = {
    "families": {
        "vae": family(["plain", "labelled"], ["images"], ["Encodes", "Decodes", "HasPrior", "Denoises"]),
        "classifier": family(["labelled"], ["images", "labels"], ["Classifies"]),
        "pix2pix": family(["paired"], ["input", "target"], ["Translates"]),
    },
    "attacks": {
        "fgsm": attack("fgsm", norm={"type": "string", "enum": ["linf", "l2"], "default": "linf"}),
        "pgd": attack("pgd", steps={"type": "integer", "minimum": 1, "maximum": 1000, "default": 40}, seed=SEED),
    },
    "perturbations": {
        "universal": {
            "params": schema(
                method={"type": "string", "enum": ["sgd", "deepfool"], "default": "sgd"},
                eps={"anyOf": [{"type": "number", "minimum": 0, "maximum": 1000}, {"type": "string"}], "default": None},
                target=LABEL,
                steps={"type": "integer", "minimum": 1, "maximum": 100_000, "default": 100},
            )
        }
    },
    "operations": {
        "denoise": operation("images", "images", "Denoises"),
        "reconstruct": operation("images", "images", "Encodes", "Decodes"),
        "refine": operation("images", "images", "Refines", any_size=True),
        "improve": operation("images", "images", "Refines", any_size=True, alias_of="refine"),
        "encode": operation("images", "latents", "Encodes"),
        "decode": operation("latents", "images", "Decodes", params=schema(label=LABEL)),
        "interpolate": operation(
            "either",
            "images",
            "Decodes",
            sheet=True,
            counts=["steps"],
            params=schema(steps={"type": "integer", "minimum": 2, "maximum": 128, "default": 9}),
        ),
        "samples": operation(
            "nothing",
            "images",
            "HasPrior",
            "Decodes",
            method="GET",
            sheet=True,
            params=schema(
                n={"type": "integer", "minimum": 1, "maximum": 1024, "default": 16},
                seed=SEED,
                label=LABEL,
                truncation={"type": "number", "minimum": 0, "maximum": 2, "default": 1.0},
            ),
        ),
        "classify": operation(
            "images",
            "facts",
            "Classifies",
            params=schema(top={"type": "integer", "minimum": 1, "maximum": 1000, "default": 5}),
        ),
        "attack": operation(
            "images",
            "images",
            "Classifies",
            params={"discriminator": "method", "branches": "attacks"},
            json_first=True,
        ),
    },
    "defences": {
        "jpeg": {
            "summary": "Compresses.",
            "params": schema(quality={"type": "integer", "minimum": 1, "maximum": 100, "default": 75}),
        },
        "purify": {
            "summary": "Autoencodes.",
            "params": schema(model={"type": "string", "format": "model"}) | {"required": ["model"]},
        },
    },
    "detectors": {
        "squeezing": {
            "summary": "Squeezes.",
            "params": schema(quantile={"type": "number", "minimum": 0.5, "maximum": 1, "default": 0.95}),
        },
    },
}
