"""The steps of the demo: each calls the service, saves a picture sheet and returns what it measured."""

import base64
import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from app.cli import demo_sheets as sheets
from app.cli.client import Client

SHOWN, PAGE = 10, 100
DENOISED, ATTACKED, ARCHIVED = 100, 200, 200
NOISE = 0.4
"""Standard deviation of the noise; pixels lie in [0, 1]."""
EPS = 51 / 255
"""Largest change of a pixel."""
SEED = 0


def denoise_digits(client: Client, model: str, picture: Path) -> dict[str, float]:
    """Mean PSNR in dB against the clean digits, before and after. Saves the first noisy digit as noisy.png."""
    clean, _ = held_out(client, DENOISED)
    noise = np.random.default_rng(SEED).normal(0, NOISE, clean.shape)
    noisy = to_bytes(clean / 255 + noise)
    denoised = np.concatenate([denoise(client, model, part) for part in batches(noisy)])
    sheets.rows(picture, ["clean", "noisy", "denoised"], [clean[:SHOWN], noisy[:SHOWN], denoised[:SHOWN]])
    picture.with_name("noisy.png").write_bytes(png(noisy[0]))
    return {"noisy": psnr(noisy, clean), "denoised": psnr(denoised, clean)}


def draw_samples(client: Client, model: str, picture: Path) -> None:
    answer = client.get(f"/v1/models/{model}/samples", n=64, seed=SEED)
    sheets.grid(picture, [decoded(text) for text in answer["images"]], columns=8)


def attack_digits(client: Client, model: str, picture: Path) -> dict[str, float]:
    """Accuracy on clean digits, with random signs of size EPS added (the control), and under FGSM of size EPS.

    The sheet shows the first digit of each class in these three forms, whatever the model makes of it. Saves as
    digit.png the first digit that the model gets right clean and with random signs, and wrong under FGSM.
    """
    clean, labels = held_out(client, ATTACKED)
    signs = np.random.default_rng(SEED).choice([-EPS, EPS], clean.shape)
    control = to_bytes(clean / 255 + signs)
    answers = attack(client, model, clean, labels)
    attacked = np.stack([decoded(answer["image"]) for answer in answers])
    predictions = {
        "clean": [answer["clean"] for answer in answers],
        "control": classify(client, model, control),
        "attacked": [answer["adversarial"] for answer in answers],
    }
    right = {name: np.equal([each["label"] for each in found], labels) for name, found in predictions.items()}
    turned = np.flatnonzero(right["clean"] & right["control"] & ~right["attacked"])
    picture.with_name("digit.png").write_bytes(png(clean[turned[0] if len(turned) else 0]))
    sheets.rows(
        picture,
        ["clean", f"random signs\n±{EPS:g}", f"FGSM\neps {EPS:g}"],
        [images[:SHOWN] for images in (clean, control, attacked)],
        [[f"{each['label']}  {each['probability']:.0%}" for each in found[:SHOWN]] for found in predictions.values()],
        [~hits[:SHOWN] for hits in right.values()],
    )
    return {name: float(hits.mean()) for name, hits in right.items()}


def save_archive(client: Client, file: Path) -> None:
    """A zip of held-out digits, one folder for each class: an example of an upload."""
    images, labels = held_out(client, ARCHIVED)
    with zipfile.ZipFile(file, "w") as archive:
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            archive.writestr(zipfile.ZipInfo(f"{label}/{number:03}.png"), png(image))


# ---- calls


def held_out(client: Client, count: int) -> tuple[np.ndarray, list[str]]:
    """Validation digits, which no training has seen, and their labels: 0, 1, ... 9, 0, 1, ..."""
    by_label: dict[str, list[str]] = {}
    start, total = 0, 1
    while start < total:
        page = client.get("/v1/datasets/mnist5k/images", split="validation", start=start, count=PAGE)
        start, total = start + PAGE, page["total"]
        for item in page["data"]:
            by_label.setdefault(item["label"], []).append(item["image"])
    turns = zip(*(by_label[label] for label in sorted(by_label)), strict=False)
    chosen = [text for turn in turns for text in turn][:count]
    labels = sorted(by_label) * len(chosen)
    return np.stack([decoded(text) for text in chosen]), labels[: len(chosen)]


def denoise(client: Client, model: str, images: np.ndarray) -> np.ndarray:
    body = {"images": [encoded(image) for image in images]}
    answer = client.ask("POST", f"/v1/models/{model}/denoise", json=body).json()
    return np.stack([decoded(text) for text in answer["images"]])


def classify(client: Client, model: str, images: np.ndarray) -> list[dict[str, Any]]:
    """The most probable class of each image."""
    body = {"images": [encoded(image) for image in images], "top": 1}
    answer = client.ask("POST", f"/v1/models/{model}/classify", json=body).json()
    return [each["predictions"][0] for each in answer["data"]]


def attack(client: Client, model: str, images: np.ndarray, labels: list[str]) -> list[dict[str, Any]]:
    """The answer for each image, in order; one request for each class, because a request has one label."""
    answers: list[dict[str, Any]] = [{}] * len(images)
    for label in sorted(set(labels)):
        places = [index for index, other in enumerate(labels) if other == label]
        body = {"method": "fgsm", "eps": EPS, "label": label, "images": [encoded(images[index]) for index in places]}
        data = client.ask("POST", f"/v1/models/{model}/attack", json=body).json()["data"]
        for index, answer in zip(places, data, strict=True):
            answers[index] = answer
    return answers


# ---- pixels


def batches(images: np.ndarray, size: int = 50) -> Sequence[np.ndarray]:
    return [images[start : start + size] for start in range(0, len(images), size)]


def to_bytes(images: np.ndarray) -> np.ndarray:
    """[0, 1] to 0 .. 255, clipped."""
    return (images.clip(0, 1) * 255).round().astype(np.uint8)


def psnr(images: np.ndarray, clean: np.ndarray) -> float:
    """Mean over the images of 10 log10(1 / MSE), in dB."""
    errors = ((images.astype(float) - clean) / 255).reshape(len(images), -1)
    return float(np.mean(-10 * np.log10((errors**2).mean(axis=1))))


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def encoded(image: np.ndarray) -> str:
    return base64.b64encode(png(image)).decode()


def decoded(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))
