"""The `anamorph` command against a running service: what it prints, what it writes, how it exits."""

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from app.cli import demo
from app.cli.client import Client
from app.cli.remote import config_of

ROOT = Path(__file__).parents[2]
TINY = {"images": 640, "batch_size": 64}


@pytest.fixture
def anamorph(service, tmp_path):
    """Runs the command in an empty folder, against the shared service."""

    def run(*words: str, url: str | None = service.url) -> subprocess.CompletedProcess:
        address = ["--url", url] if url else []
        command = [sys.executable, "-m", "app.cli", *words, *address]
        options = {
            "cwd": tmp_path,
            "env": os.environ | {"PYTHONPATH": str(ROOT)},
            "capture_output": True,
            "text": True,
            "timeout": 120,
        }
        return subprocess.run(command, **options)

    return run


@pytest.fixture
def digit(service, tmp_path) -> Path:
    path = tmp_path / "digit.png"
    page = service.client().get("/v1/datasets/mnist5k/images", params={"split": "validation", "count": 1}).json()
    path.write_bytes(base64.b64decode(page["data"][0]["image"]))
    return path


def test_train_follows_to_the_end_and_prints_the_job(anamorph):
    words = ["--set", "images=128", "--set", "batch_size=64", "--name", "cli-train", "--json"]
    found = anamorph("train", "autoencoder", "digits8", *words)
    assert found.returncode == 0, found.stderr
    job = json.loads(found.stdout)
    assert job["status"] == "succeeded" and job["result"]["model"] == "cli-train"

    shown = anamorph("jobs", "show", job["id"], "--json")
    assert json.loads(shown.stdout)["id"] == job["id"]
    listed = json.loads(anamorph("jobs", "ls", "--limit", "100", "--json").stdout)
    assert job["id"] in [item["id"] for item in listed["data"]]


def test_a_detached_training_prints_its_id_and_can_be_cancelled(anamorph):
    words = ["--set", "images=100000000", "--name", "cli-cancel", "--detach"]
    job = anamorph("train", "autoencoder", "digits8", *words).stdout.strip()
    assert anamorph("jobs", "cancel", job).returncode == 0
    shown = json.loads(anamorph("jobs", "show", job, "--json").stdout)
    assert shown["status"] in ("canceled", "running")


def test_pictures_are_written_where_asked(anamorph, service, digit, tmp_path):
    service.train("denoising_autoencoder", "mnist5k", "tiny-denoiser", TINY)
    service.train("vae", "mnist5k", "tiny-vae", TINY)

    assert anamorph("denoise", "tiny-denoiser", str(digit), "-o", "clean.png").returncode == 0
    assert Image.open(tmp_path / "clean.png").size == (28, 28)
    assert anamorph("sample", "tiny-vae", "-n", "4", "--seed", "7", "-o", "grid.png").returncode == 0
    assert min(Image.open(tmp_path / "grid.png").size) >= 56


def test_attack_tells_what_the_model_says_before_and_after(anamorph, service, digit, tmp_path):
    service.train("classifier", "mnist5k", "tiny-classifier", TINY)
    found = anamorph("attack", "tiny-classifier", str(digit), "--eps", "8/255", "-o", "adversarial.png", "--json")
    assert found.returncode == 0, found.stderr
    answer = json.loads(found.stdout)
    assert answer["norms"]["linf"] <= 8 / 255 + 1e-6
    assert Image.open(tmp_path / "adversarial.png").size == (28, 28)


def test_what_the_service_refuses_is_status_1_with_its_sentence(anamorph):
    found = anamorph("train", "autoencoder", "digits8", "--set", "imagez=5")
    assert found.returncode == 1
    assert "imagez" in found.stderr and "images" in found.stderr

    found = anamorph("sample", "no-such-model", "--json")
    assert found.returncode == 1
    assert json.loads(found.stdout)["code"] == "not-found"


def test_wrong_usage_is_status_2(anamorph):
    assert anamorph("denoise", "model", "no-such-file.png").returncode == 2
    assert anamorph("train", "vae", "digits8", "--set", "novalue").returncode == 2


def test_nothing_at_the_address_is_status_3_with_a_remedy(anamorph):
    found = anamorph("jobs", "ls", url="http://127.0.0.1:9")
    assert found.returncode == 3
    assert "anamorph up" in found.stderr


def test_doctor_finds_the_running_service_well(anamorph, service):
    found = anamorph("doctor", "--data", str(service.data), "--json", url=None)
    findings = {finding["check"]: finding for finding in json.loads(found.stdout)}
    assert found.returncode == 0, findings
    assert service.url in findings["web"]["found"]
    assert "train" in findings["worker"]["found"]


def test_settings_on_the_command_line_are_json_or_words():
    assert config_of(["epochs=5", "noise=mask", "tied=true"]) == {"epochs": 5, "noise": "mask", "tied": True}


def test_the_demo_trains_what_is_missing_measures_and_draws(service, tmp_path, monkeypatch):
    tiny = {name: (family, TINY) for name, (family, _) in demo.TRAININGS.items()}
    monkeypatch.setattr(demo, "TRAININGS", tiny)
    client = Client(service.url)

    models = demo.train_models(client)
    demo.show(client, models, tmp_path)

    assert demo.train_models(client).keys() == models.keys()  # the second time at once
    for name in ("denoised.png", "samples.png", "attack.png"):
        assert Image.open(tmp_path / name).size[0] > 600
    assert Image.open(tmp_path / "noisy.png").size == Image.open(tmp_path / "digit.png").size == (28, 28)
