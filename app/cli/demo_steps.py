"""What the demo does with its models: each function asks the service, saves a picture sheet, returns measurements."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from app.cli import demo_sheets as sheets
from app.cli.client import Client

SHOWN, PAGE = 10, 100
DENOISED, ATTACKED = 100, 200
NOISE = 0.4
EPS = 51 / 255
SEED = 0


def denoise_digits(client: Client, model: str, picture: Path) -> dict[str, float]:
    """Mean PSNR in dB against the clean digits, before and after."""
    clean, _ = held_out(client, DENOISED)
    noise = np.random.default_rng(SEED).normal(0, NOISE, clean.shape)
    noisy = to_bytes(clean / 255 + noise)
    denoised = np.concatenate([denoise(client, model, part) for part in batches(noisy)])
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
    answers = attack(client, model, clean, labels)
    adversarial = np.stack([decoded(answer["image"]) for answer in answers])
    _attack_sheet(picture, clean, adversarial, answers)
    said = {name: [answer[name]["label"] for answer in answers] for name in ("clean", "control", "adversarial")}
    return {name: float(np.mean(np.equal(words, labels))) for name, words in said.items()}


def _attack_sheet(picture: Path, clean: np.ndarray, adversarial: np.ndarray, answers: list[dict[str, Any]]) -> None:
    """The first digits that fooled it: clean, what was added (grey is nothing), adversarial; with the model's word."""
    fooled = [index for index, answer in enumerate(answers) if answer["success"] and not answer["initially_wrong"]]
    chosen = (fooled + list(range(SHOWN)))[:SHOWN]
    change = (adversarial.astype(float) - clean)[chosen]
    lines = [clean[chosen], to_bytes(0.5 + change / (2 * 255 * EPS)), adversarial[chosen]]
    before, after = ([_says(answers[index][name]) for index in chosen] for name in ("clean", "adversarial"))
    sheets.rows(picture, ["clean", "perturbation\n(enlarged)", "adversarial"], lines, [before, [], after])


def _says(prediction: dict[str, Any]) -> str:
    return f"{prediction['label']}  {prediction['probability']:.0%}"


# ---- asking


def held_out(client: Client, count: int) -> tuple[np.ndarray, list[str]]:
    """Digits that no training has seen, the classes in turn, and their labels."""
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


def attack(client: Client, model: str, images: np.ndarray, labels: list[str]) -> list[dict[str, Any]]:
    """The answer for each image. One request for each class, because a request has one label."""
    answers: list[dict[str, Any]] = [{}] * len(images)
    for label in sorted(set(labels)):
        places = [index for index, other in enumerate(labels) if other == label]
        body = {"method": "fgsm", "eps": EPS, "label": label, "control": True}
        body["images"] = [encoded(images[index]) for index in places]
        found = client.ask("POST", f"/v1/models/{model}/attack", json=body).json()["data"]
        for index, answer in zip(places, found, strict=True):
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
