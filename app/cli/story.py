"""What the demo does with its models: each function asks the service, saves a picture sheet, returns measurements."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from app.cli import sheets
from app.cli.client import Client

SHOWN = 10
DENOISED, ATTACKED = 100, 200
NOISE = 0.4
EPS = 0.1
SEED = 0


def denoise_digits(client: Client, model: str, picture: Path) -> dict[str, float]:
    """Mean PSNR in dB against the clean digits, before and after."""
    clean, _ = held_out(client, DENOISED)
    noise = np.random.default_rng(SEED).normal(0, NOISE, clean.shape)
    noisy = to_bytes(clean / 255 + noise)
    denoised = np.concatenate([post(client, f"/v1/models/{model}/denoise", part) for part in batches(noisy)])
    sheets.rows(picture, ["clean", "noisy", "denoised"], [clean[:SHOWN], noisy[:SHOWN], denoised[:SHOWN]], [])
    for name, images in (("digit.png", clean), ("noisy.png", noisy)):
        picture.with_name(name).write_bytes(png(images[0]))  # to try the README's commands with
    return {"noisy": psnr(noisy, clean), "denoised": psnr(denoised, clean)}


def draw_samples(client: Client, model: str, picture: Path) -> None:
    answer = client.get(f"/v1/models/{model}/samples", n=64, seed=SEED)
    sheets.grid(picture, [decoded(text) for text in answer["images"]], columns=8)


def attack_digits(client: Client, model: str, picture: Path) -> dict[str, float]:
    """Accuracy on clean digits, on digits with random signs of size EPS, and under FGSM of size EPS."""
    clean, labels = held_out(client, ATTACKED)
    signs = np.random.default_rng(SEED).choice([-EPS, EPS], clean.shape)
    random = to_bytes(clean / 255 + signs)
    answers = [attack(client, model, image, label) for image, label in zip(clean, labels, strict=True)]
    adversarial = np.stack([decoded(answer["image"]) for answer in answers])
    said = {name: classify(client, model, images) for name, images in (("clean", clean), ("random", random))}
    said["fgsm"] = [answer["adversarial"]["label"] for answer in answers]
    _attack_sheet(picture, clean, adversarial, answers)
    right = {name: float(np.mean([a == b for a, b in zip(words, labels, strict=True)])) for name, words in said.items()}
    return {"eps": EPS, **right}


def _attack_sheet(picture: Path, clean: np.ndarray, adversarial: np.ndarray, answers: list[dict[str, Any]]) -> None:
    """The first digits that fooled it: clean, what was added (grey is nothing), adversarial; with the model's word."""
    chosen = [index for index, answer in enumerate(answers) if answer["success"]][:SHOWN] or list(range(SHOWN))
    change = adversarial.astype(float) - clean
    perturbation = to_bytes(0.5 + change / (2 * 255 * EPS))
    lines = [images[chosen] for images in (clean, perturbation, adversarial)]
    captions = [
        [_says(answers[index]["clean"]) for index in chosen],
        [],
        [_says(answers[index]["adversarial"]) for index in chosen],
    ]
    sheets.rows(picture, ["clean", "perturbation\n(enlarged)", "adversarial"], lines, captions)


def _says(prediction: dict[str, Any]) -> str:
    return f"{prediction['label']}  {prediction['probability']:.0%}"


# ---- asking


def held_out(client: Client, count: int) -> tuple[np.ndarray, list[str]]:
    """Digits that no training has seen, and their labels."""
    page = client.get("/v1/datasets/mnist5k/images", split="validation", start=0, count=count)["data"]
    return np.stack([decoded(item["image"]) for item in page]), [str(item["label"]) for item in page]


def post(client: Client, path: str, images: np.ndarray) -> np.ndarray:
    answer = client.ask(
        "POST", path, json={"images": [encoded(image) for image in images]}, headers={"Accept": "application/json"}
    )
    return np.stack([decoded(text) for text in answer.json()["images"]])


def classify(client: Client, model: str, images: np.ndarray) -> list[str]:
    """The first guess for each image."""
    guesses = []
    for part in batches(images):
        body = {"images": [encoded(image) for image in part]}
        answer = client.ask("POST", f"/v1/models/{model}/classify", json=body).json()
        guesses += [result["predictions"][0]["label"] for result in answer["data"]]
    return guesses


def attack(client: Client, model: str, image: np.ndarray, label: str) -> dict[str, Any]:
    query = {"method": "fgsm", "eps": EPS, "label": label}
    headers = {"Content-Type": "image/png", "Accept": "application/json"}
    return client.ask("POST", f"/v1/models/{model}/attack", params=query, content=png(image), headers=headers).json()


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
