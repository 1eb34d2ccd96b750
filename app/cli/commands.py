"""Commands that call a running service: train, sample, denoise, attack. Each prints JSON with --json."""

import json
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli.client import Client
from app.cli.progress import bars, console, metrics_table, watch, watch_measurement

Url = Annotated[str | None, typer.Option("--url", envvar="ANAMORPH_URL", help="Address of the service.")]
Key = Annotated[str | None, typer.Option("--key", envvar="ANAMORPH_KEY", help="API key.")]
Json = Annotated[bool, typer.Option("--json", help="Print the answer as JSON on standard output.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="File to write the picture to.")]
MEDIA = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}


def train(
    family: Annotated[
        str | None, typer.Argument(help="Family of the model, e.g. vae; GET /v1/families lists them.")
    ] = None,
    dataset: Annotated[str | None, typer.Argument(help="Name of a dataset, e.g. mnist5k.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the new model.", show_default="FAMILY-DATASET")] = None,
    options: Annotated[list[str] | None, typer.Option("--set", help="A setting of the family: --set epochs=5.")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed: the same request with the same seed gives the same model.")
    ] = None,
    effort: Annotated[str | None, typer.Option(help="lesson, good or full; the same as --set effort=...")] = None,
    init_from: Annotated[str | None, typer.Option(help="Model whose weights the training starts from.")] = None,
    fork_from: Annotated[
        str | None,
        typer.Option("--from", help="Training to go on from: the id of its job, or the model that it made."),
    ] = None,
    measure: Annotated[str | None, typer.Option(help="How to measure the model: full (default), quick, none.")] = None,
    devices: Annotated[int | None, typer.Option(help="Devices of one worker that share each batch.")] = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Do not wait for the end; `anamorph jobs show` shows the job.")
    ] = False,
    as_json: Json = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """Start a training and wait until it has ended and its model is measured."""
    client = Client(url, key)
    if not fork_from and not (family and dataset):
        raise typer.BadParameter("Name a family and a dataset, or a training to go on from with --from.")
    config = config_of(options) | ({"effort": effort} if effort else {})
    body = {"family": family, "dataset": dataset, "name": name, "seed": seed, "init_from": init_from, "config": config}
    body |= {"measure": measure, "devices": devices}
    body["fork_from"] = fork_from and training_of(client, fork_from)
    body = {field: value for field, value in body.items() if value is not None}
    job = client.ask("POST", "/v1/trainings", json=body).json()
    if not detach:
        with bars() as progress:
            job = watch_measurement(client, watch(client, job, job["request"]["name"], progress), progress)
    if as_json:
        typer.echo(json.dumps(job))
    elif detach:
        typer.echo(job["id"])
    else:
        result, effort = job["result"], job["result"].get("config", {}).get("effort")
        title = f"{result['model']} ({result['version'][:12]})" + (f", effort {effort}" if effort else "")
        console.print(metrics_table(title, result["metrics"]))


def training_of(client: Client, reference: str) -> str:
    """The id of the job that made a model; an id of a job stays as it is."""
    if re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", reference):
        return reference
    name, _, digest = reference.partition("@")
    versions = client.get(f"/v1/models/{name}")["versions"]
    jobs = [version["job"] for version in versions if version["digest"].startswith(digest) and version["job"]]
    if not jobs:
        raise typer.BadParameter(f"{reference} was not made by a training.")
    return jobs[0].rsplit("/", 1)[-1]


def sample(
    model: Annotated[str, typer.Argument(help="Name of a model that supports samples, e.g. vae-mnist5k.")],
    count: Annotated[int, typer.Option("-n", min=1, help="Number of images.")] = 16,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same images.")] = None,
    label: Annotated[str | None, typer.Option(help="Class of the images, for a conditional model.")] = None,
    output: Output = Path("samples.png"),
    as_json: Json = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """Sample images from a model and write them as one picture."""
    query = {name: value for name, value in {"n": count, "seed": seed, "label": label}.items() if value is not None}
    answer = Client(url, key).ask("GET", f"/v1/models/{model}/samples", params=query, headers={"Accept": "image/png"})
    save(output, answer.content, as_json, seed=answer.headers.get("X-Seed"))


def denoise(
    model: Annotated[str, typer.Argument(help="Name of a denoising model.")],
    image: Annotated[Path, typer.Argument(exists=True, dir_okay=False)],
    output: Output = Path("denoised.png"),
    as_json: Json = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """Remove noise from an image."""
    answer = post_image(Client(url, key), f"/v1/models/{model}/denoise", image, "image/png")
    save(output, answer.content, as_json)


def attack(
    model: Annotated[str, typer.Argument(help="Name of a classifier, segmenter or detector.")],
    image: Annotated[Path, typer.Argument(exists=True, dir_okay=False)],
    method: Annotated[str, typer.Option(help="Attack; GET /v1/attacks lists them.")] = "fgsm",
    eps: Annotated[str | None, typer.Option(help="Maximum norm of the perturbation: 0.1 or 8/255.")] = None,
    norm: Annotated[str | None, typer.Option(help="Norm: linf, l2, l1 or l0.")] = None,
    label: Annotated[str | None, typer.Option(help="True class, by name or index.")] = None,
    target: Annotated[
        str | None, typer.Option(help="Class that the model should answer. Default: any other than the true one.")
    ] = None,
    output: Output = Path("adversarial.png"),
    as_json: Json = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """Create an adversarial image for a model."""
    query = {"method": method, "eps": eps, "norm": norm, "label": label, "target": target}
    query = {name: value for name, value in query.items() if value is not None}
    answer = post_image(Client(url, key), f"/v1/models/{model}/attack", image, "application/json", **query).json()
    save(output, from_base64(answer["image"]), quiet=True)
    if as_json:
        typer.echo(json.dumps(answer))
        return
    console.print(f"{describe(answer['clean'])} -> {describe(answer['adversarial'])}")
    console.print(
        f"{'fooled' if answer['success'] else 'not fooled'}, L-infinity {answer['norms']['linf']:.4f}; {output}"
    )


def describe(facts: dict[str, Any]) -> str:
    """The prediction of a model in words: its class, its mask or its objects."""
    if "pixel_accuracy" in facts:
        return f"{facts['pixel_accuracy']:.0%} of the pixels right"
    if "objects" in facts:
        return f"{facts['found']} of {facts['objects']} objects found, {facts['false']} false"
    return f"{facts['label']} ({facts['probability']:.0%})"


def config_of(options: list[str] | None) -> dict[str, Any]:
    """`["epochs=5"]` as {"epochs": 5}: values are JSON, else text."""
    config = {}
    for option in options or []:
        name, equals, value = option.partition("=")
        if not equals:
            raise typer.BadParameter(f"--set takes NAME=VALUE, not {option!r}.")
        try:
            config[name] = json.loads(value)
        except ValueError:
            config[name] = value
    return config


def post_image(client: Client, path: str, image: Path, accept: str, **query: Any):
    media = MEDIA.get(image.suffix.lower(), "application/octet-stream")
    headers = {"Content-Type": media, "Accept": accept}
    return client.ask("POST", path, content=image.read_bytes(), params=query, headers=headers)


def from_base64(text: str) -> bytes:
    import base64

    return base64.b64decode(text)


def save(output: Path, data: bytes, as_json: bool = False, quiet: bool = False, **facts: Any) -> None:
    output.write_bytes(data)
    if as_json:
        typer.echo(json.dumps({"file": str(output), "bytes": len(data), **facts}))
    elif not quiet:
        typer.echo(str(output))
