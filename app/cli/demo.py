"""`anamorph demo`: a tour on real handwritten digits, over HTTP as any client would do it.

Starts the service, or uses the one that is running; trains three models; denoises, samples, attacks; prints results.
"""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from app.cli.client import Client
from app.cli.demo_steps import EPS, attack_digits, denoise_digits, draw_samples, save_archive
from app.cli.progress import bars, console, watch
from app.cli.serve import Data, choose
from app.cli.service_lock import CannotStart, listen_on, running
from app.cli.watchdog import Guard
from app.core.errors import NotFound
from app.core.settings import settings

DATASET = "mnist5k"
# Small enough for three trainings within two minutes on two cores; an empty config trains longer and better.
TRAININGS = {
    "demo-denoiser": ("denoising_autoencoder", {"epochs": 3}),
    "demo-vae": ("vae", {"epochs": 8}),
    "demo-classifier": ("classifier", {"epochs": 3}),
}


def demo(
    leave: Annotated[bool, typer.Option("--exit", help="Stop the service when the demo is done.")] = False,
    data: Data = None,
    output: Annotated[Path, typer.Option(help="Folder for the pictures and examples.")] = Path("demo-output"),
) -> None:
    """Train three models on handwritten digits, use them, show the results; then serve until Ctrl-C."""
    choose(ANAMORPH_DATA_DIR=data)
    began = time.monotonic()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))  # on the way out the service is stopped
    with service() as (url, started):
        console.print(f"The service is ready at [bold]{url}[/] ({time.monotonic() - began:.1f} s).")
        with Client(url) as client:
            show(client, train_models(client), output)
        console.print(f"Done in {time.monotonic() - began:.0f} s. The service is at [bold]{url}[/]")
        if started and not leave:
            console.print("It keeps running until you press Ctrl-C.")
            with suppress(KeyboardInterrupt):
                started.wait()


@contextmanager
def service() -> Iterator[tuple[str, subprocess.Popen | None]]:
    """The address of the service on the data folder. One that is not running is started, and stopped at the end."""
    if running(settings().data_dir):
        yield wait_until_ready(), None
        return
    started = subprocess.Popen(
        [sys.executable, "-m", "app.cli", "up", "--quiet", "--port", str(free_port())],
        start_new_session=True,  # a Ctrl-C is for us; we stop it in order
    )
    guard = Guard()
    guard.add(started.pid)
    try:
        yield wait_until_ready(started), started
    finally:
        with console.status("Stopping the service ..."):
            started.terminate()
            started.wait()
        guard.remove(started.pid)
        guard.close()


def free_port() -> int:
    """The configured port, or any free one if it is in use."""
    try:
        listen_on(settings().host, settings().port).close()
    except CannotStart:
        return 0
    return settings().port


def wait_until_ready(started: subprocess.Popen | None = None) -> str:
    with console.status("Starting the service ..."):
        while not (published := running(settings().data_dir) or {}).get("ready"):
            if not published if started is None else started.poll() is not None:
                raise CannotStart(f"The service did not start; its logs are in {settings().data_dir / 'logs'}.")
            time.sleep(0.1)
        return published["url"]


def train_models(client: Client) -> dict[str, dict]:
    """The demo's models by name. A model that exists, or is being trained, is not trained again."""
    jobs = {}
    for name, (family, config) in TRAININGS.items():
        try:
            model = client.get(f"/v1/models/{name}")
            if not model["ready"]:
                jobs[name] = client.get(model["links"]["job"])
        except NotFound:
            body = {"family": family, "dataset": DATASET, "name": name, "config": config, "seed": 0}
            jobs[name] = client.ask("POST", "/v1/trainings", json=body).json()
    if jobs:
        console.print(f"Training on {DATASET}: 5,000 handwritten digits of 28 x 28 pixels, a fifth of them held out.")
        with bars() as progress:
            for name, job in jobs.items():
                watch(client, job, name, progress)
    with console.status("Measuring the models ..."):
        return {name: client.measured(name) for name in TRAININGS}


def show(client: Client, models: dict[str, dict], folder: Path) -> None:
    """Uses the three models on held-out digits: pictures go to `folder`, numbers to the terminal."""
    folder.mkdir(parents=True, exist_ok=True)
    with console.status("Denoising, sampling, attacking ..."):
        denoised = denoise_digits(client, "demo-denoiser", folder / "denoised.png")
        draw_samples(client, "demo-vae", folder / "samples.png")
        accuracy = attack_digits(client, "demo-classifier", folder / "attack.png")
        save_archive(client, folder / "digits.zip")
    table = Table("measure", "value", "better", title="Measured on digits not used in training", title_justify="left")
    table.add_row("PSNR of noisy digits", f"{denoised['noisy']:.2f} dB", "higher")
    table.add_row("PSNR after denoising", f"{denoised['denoised']:.2f} dB", "higher")
    table.add_row("negative ELBO of the VAE", f"{models['demo-vae']['metrics']['nelbo']:.1f} nats", "lower")
    table.add_row("accuracy of the classifier", f"{accuracy['clean']:.1%}", "higher")
    table.add_row(f"... with random signs, ±{EPS:g} per pixel (control)", f"{accuracy['control']:.1%}", "higher")
    table.add_row(f"... under FGSM, eps {EPS:g}", f"{accuracy['attacked']:.1%}", "higher")
    console.print(table)
    pictures = ", ".join(str(folder / name) for name in ("denoised.png", "samples.png", "attack.png"))
    console.print(f"Pictures: {pictures}")
    console.print(f"Example files for the commands in README.md: {folder}/noisy.png, digit.png, digits.zip")
