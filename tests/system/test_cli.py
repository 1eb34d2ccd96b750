"""The `anamorph` command against a running service: what it prints, what it writes, how it exits."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from app.cli import demo, demo_steps
from app.cli.client import Client
from app.cli.commands import config_of

ROOT = Path(__file__).parents[2]


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
def picture(digit, tmp_path) -> Path:
    path = tmp_path / "digit.png"
    path.write_bytes(digit)
    return path


def size(picture: Path) -> tuple[int, int]:
    with Image.open(picture) as image:
        return image.size


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


def test_pictures_are_written_where_asked(anamorph, picture, tmp_path):
    assert anamorph("denoise", "demo-denoiser", str(picture), "-o", "clean.png").returncode == 0
    assert size(tmp_path / "clean.png") == (28, 28)
    assert anamorph("sample", "demo-vae", "-n", "4", "--seed", "7", "-o", "grid.png").returncode == 0
    assert min(size(tmp_path / "grid.png")) >= 56


def test_attack_tells_what_the_model_says_before_and_after(anamorph, picture, tmp_path):
    found = anamorph("attack", "demo-classifier", str(picture), "--eps", "8/255", "-o", "adversarial.png", "--json")
    assert found.returncode == 0, found.stderr
    answer = json.loads(found.stdout)
    assert answer["norms"]["linf"] <= 8 / 255 + 1e-6
    assert size(tmp_path / "adversarial.png") == (28, 28)


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


def test_the_demo_finds_its_models_measures_and_draws(service, demo_models, tmp_path, capsys):
    with Client(service.url) as client:
        assert demo.train_models(client).keys() == demo_models.keys()
        demo.show(client, demo_models, tmp_path)

    assert "under FGSM" in capsys.readouterr().err
    for name in ("denoised.png", "samples.png", "attack.png"):
        assert size(tmp_path / name)[0] > 600
    assert size(tmp_path / "noisy.png") == size(tmp_path / "digit.png") == (28, 28)
    assert len({name.split("/")[0] for name in zipfile.ZipFile(tmp_path / "digits.zip").namelist()}) == 10


def test_fgsm_turns_the_digit_that_the_demo_leaves_for_the_readme(service, demo_models, tmp_path):
    with Client(service.url) as client:
        demo_steps.attack_digits(client, "demo-classifier", tmp_path / "attack.png")
        digit = (tmp_path / "digit.png").read_bytes()
        headers = {"Content-Type": "image/png", "Accept": "application/json"}
        path, query = "/v1/models/demo-classifier/attack", {"method": "fgsm", "eps": "0.2", "control": "true"}
        answer = client.ask("POST", path, content=digit, params=query, headers=headers).json()
    assert not answer["initially_wrong"]
    assert answer["success"] and answer["adversarial"]["label"] != answer["clean"]["label"]


def test_the_demo_trains_a_model_that_is_missing(service, demo_models, monkeypatch):
    short = {"demo-missing": ("autoencoder", {"images": 128, "batch_size": 64})}
    monkeypatch.setattr(demo, "TRAININGS", short)
    monkeypatch.setattr(demo, "DATASET", "digits8")
    with Client(service.url) as client:
        assert demo.train_models(client)["demo-missing"]["ready"]
