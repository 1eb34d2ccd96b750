"""Typical mistakes and what the client reads: status, code, pointer, detail and remedy. Other tests pin no wording."""

import pytest

from app.core.jobs import state
from app.core.store.database import transaction
from tests.app.conftest import add_dataset, add_model, png

pytestmark = pytest.mark.anyio
JOB = "01900000-0000-7000-8000-000000000000"
GIF, HEIC = b"GIF89a" + b"0" * 32, b"\0\0\0\x18ftypheic" + b"0" * 32
TRAINING = {"family": "vae", "dataset": "squares"}


def json(body, **headers):
    return {"json": body, "headers": headers}


def raw(body, media="", **headers):
    return {"content": body, "headers": ({"Content-Type": media} if media else {}) | headers}


# fmt: off
CASES = [
    ("POST", "/v1/trainings", raw(b'{"family": "vae", "dataset": "squares"}'), 422, "invalid-request", "",
     "The body is not read as JSON. Add the header Content-Type: application/json.", None),
    ("POST", "/v1/trainings", raw(b'{"family": "vae",', "application/json"), 422, "invalid-request", "",
     "Invalid JSON: Expecting property name enclosed in double quotes at character 17.", None),
    ("POST", "/v1/trainings", json([1, 2]), 422, "invalid-request", "",
     "The body must be a JSON object; you sent a list of 2 items.", None),
    ("POST", "/v1/trainings", json(TRAINING | {"latent_dim": 8}), 422, "invalid-request", "/latent_dim",
     'Unknown field "latent_dim". Put it into config.', None),
    ("POST", "/v1/trainings", json(TRAINING | {"datset": "x"}), 422, "invalid-request", "/datset",
     'Unknown field "datset". Did you mean dataset?', None),
    ("POST", "/v1/trainings", json(TRAINING | {"config": {"lr": 0.1}}), 422, "invalid-config", "/config/lr",
     'Unknown setting "lr". Did you mean learning_rate?', None),
    ("POST", "/v1/trainings", json(TRAINING | {"config": {"latent_dim": "32"}}),
     422, "invalid-config", "/config/latent_dim",
     'latent_dim must be a whole number between 1 and 4096; you sent "32".', None),
    ("POST", "/v1/trainings", json(TRAINING | {"config": {"latent_dim": 5000}}),
     422, "invalid-config", "/config/latent_dim",
     "latent_dim must be between 1 and 4096; you sent 5000.", None),
    ("POST", "/v1/trainings", json(TRAINING | {"config": {"body": "rnn"}}), 422, "invalid-config", "/config/body",
     'body must be one of "mlp" or "conv"; you sent "rnn".', None),
    ("POST", "/v1/trainings", json(TRAINING | {"family": "VAE"}), 422, "invalid-config", "/family",
     'Unknown family "VAE".', "Did you mean vae?"),
    ("POST", "/v1/trainings", json(TRAINING | {"dataset": "sqares"}), 404, "not-found", "/dataset",
     'Dataset "sqares" was not found.', "Did you mean squares?"),
    ("POST", "/v1/trainings", json(TRAINING | {"family": "classifier", "dataset": "plain"}),
     422, "invalid-dataset", "/dataset",
     "This family needs labels; dataset plain has images.",
     "Upload a dataset with a folder for each class, or a labels.csv with a column label."),
    ("POST", "/v1/trainings", json(TRAINING | {"name": "My Model"}), 422, "invalid-request", "/name",
     "name must be 1 to 64 letters, digits, '.', '_' or '-', beginning with a letter or a digit; you "
     'sent "My Model".',
     None),
    ("POST", "/v1/trainings", json(TRAINING | {"seed": -1}), 422, "invalid-request", "/seed",
     "seed must be at least 0 and below 9223372036854775808; you sent -1.", None),
    ("GET", "/v1/models/demo-vae/samples?n=5000", {}, 422, "invalid-request", "n",
     "n must be between 1 and 1024; you sent 5000.", None),
    ("GET", "/v1/models/demo-vae/samples?N=5", {}, 422, "invalid-request", "N",
     'Unknown setting "N". Did you mean n?', None),
    ("GET", "/v1/models/demo-vae/samples?n=1024", {}, 422, "invalid-request", None,
     "The answer would have 1024 images; the maximum is 256.",
     "Ask for fewer images, or send 'Prefer: respond-async' to make the request a job."),
    ("GET", "/v1/models/demo-va/samples", {}, 404, "not-found", None,
     "Model demo-va was not found.", "Did you mean demo-vae?"),
    ("GET", "/v1/models/new-vae/samples", {}, 409, "model-not-ready", None,
     "Model new-vae is not ready: job 01900000-0000-7000-8000-000000000000 is queued or running.",
     "Retry when /v1/jobs/01900000-0000-7000-8000-000000000000 has succeeded."),
    ("GET", "/v1/models/digits/samples", {}, 409, "unsupported-operation", None,
     "digits is a model of family classifier, which does not support samples.", "It supports: classify, attack."),
    ("GET", "/v1/models/demo-vae/denoise", {}, 405, "method-not-allowed", None,
     "This path does not support GET.", "Use POST."),
    ("GET", "/v1/model", {}, 404, "not-found", None,
     "Unknown path.", "Did you mean /v1/models? See /docs for all paths."),
    ("GET", "/v1/models/demo-vae/sample", {}, 404, "not-found", None,
     "Unknown path.", "Did you mean /v1/models/demo-vae/samples? See /docs for all paths."),
    ("POST", "/v1/models/demo-vae/denoise", raw(GIF, "image/png"), 422, "invalid-image", "images/0",
     "Unsupported image format (GIF).", "Send PNG, JPEG or WebP."),
    ("POST", "/v1/models/demo-vae/denoise", raw(GIF, "image/gif"), 415, "unsupported-media", None,
     "Unsupported image format (GIF).",
     "Send image/png, image/jpeg, image/webp, multipart/form-data, application/zip, application/json "
     "or application/x-npy."),
    ("POST", "/v1/models/demo-vae/denoise", raw(HEIC), 422, "invalid-image", "images/0",
     "Unsupported image format (HEIC).", "Send PNG, JPEG or WebP."),
    ("POST", "/v1/models/demo-vae/denoise", raw(png().replace(b"\r\n", b""), "application/x-www-form-urlencoded"),
     422, "invalid-image", "images/0",
     "The PNG file was changed on the way: its line breaks are missing.",
     "With curl, use --data-binary @x.png in place of -d @x.png."),
    ("POST", "/v1/models/demo-vae/denoise", raw(b""), 422, "invalid-request", "images",
     "The request has no images.",
     'Send an image as the body, form fields named image, or JSON {"image": "<base64>"}.'),
    ("POST", "/v1/models/demo-vae/denoise", json({"image": "no base64!"}), 422, "invalid-request", "/image",
     "The text is not base64.", "Encode the bytes of the file."),
    ("POST", "/v1/models/demo-vae/denoise", {"files": {"file": png()}}, 422, "invalid-request", "image",
     'Unknown file field "file".', "Name the form field image: -F image=@x.png."),
    ("POST", "/v1/models/demo-vae/denoise", raw(png(), "image/png", Accept="text/html"), 406, "not-acceptable", None,
     "The header Accept allows no media type of the answer.",
     "Accept one of: image/png, image/webp, application/zip, application/x-npy, application/json."),
    ("POST", "/v1/models/demo-vae/decode", json({"latents": [[1, "a"]]}), 422, "invalid-request", "latents",
     "latents must be a list of codes, each a list of numbers of the same length.",
     'Send {"latents": [[0.1, -0.3, ...], ...]}.'),
    ("POST", "/v1/models/digits/attack?method=PGD", raw(png()), 422, "invalid-request", "method",
     'Unknown method "PGD". Choose one of: fgsm, pgd.', "Did you mean pgd?"),
    ("POST", "/v1/models/digits/attack?method=fgsm&strength=1", raw(png()), 422, "invalid-request", "strength",
     'Unknown setting "strength". Did you mean eps?', None),
    ("POST", "/v1/models/digits/attack?method=fgsm&eps=2", raw(png()), 422, "invalid-request", "eps",
     'eps must be a number between 0 and 1 or text such as "8/255"; you sent 2.0.', None),
    ("POST", "/v1/models/demo-vae/denoise", raw(png(), Origin="https://elsewhere.example"), 403, "cross-site", None,
     "Cross-site request refused: the request comes from a page of another site.",
     "Send it from a page of this service or from a program that is no browser, or add the origin of the page to "
     "ANAMORPH_ALLOWED_ORIGINS."),
    ("POST", "/v1/datasets?name=squares", raw(b"PK", "application/zip"), 409, "conflict", "name",
     "A dataset named squares exists already.", "Choose another name, or delete it."),
    ("POST", "/v1/datasets?name=mine", {"files": {"file": b"PK"}}, 415, "unsupported-media", None,
     "The body is not a zip or npz file.",
     "Send the file as the body: curl --data-binary @images.zip -H 'Content-Type: application/zip' ..."),
    ("POST", "/v1/datasets?name=My Data", raw(b"PK", "application/zip"), 422, "invalid-request", "name",
     "name must be 1 to 64 letters, digits, '.', '_' or '-', beginning with a letter or a digit; you "
     'sent "My Data".',
     None),
    ("POST", "/v1/datasets?name=mine&layot=plain", raw(b"PK", "application/zip"), 422, "invalid-request", "layot",
     'Unknown query parameter "layot".', "Did you mean layout?"),
    ("POST", "/v1/datasets", raw(b"PK", "application/zip"), 422, "invalid-request", "name",
     "name is required.", "POST /v1/datasets?name=digits"),
    ("PUT", "/v1/models/mine", {"files": {"file": b"PK\x03\x04", "card": (None, "{}")}}, 415, "unsupported-media", None,
     "The file is a pickle or a zip of pickles, which can run code; such files are not read.",
     "Save the weights with safetensors.torch.save_file, or export the model as ONNX."),
    ("PUT", "/v1/models/mine", {"files": {"file": b"\x08onnx", "card": (None, '{"classes": ["a"]}')}},
     422, "invalid-request", "card/classes",
     'Unknown field "classes". Did you mean labels?', None),
    ("GET", "/v1/jobs/abc", {}, 404, "not-found", None,
     'Job "abc" was not found.', "GET /v1/jobs lists the jobs."),
    ("GET", "/v1/jobs?limit=1000", {}, 422, "invalid-request", "limit",
     "limit must be between 1 and 100; you sent 1000.", None),
    ("GET", "/v1/jobs?status=done", {}, 422, "invalid-request", "status",
     'status must be one of "queued", "running", "succeeded", "failed" or "canceled"; you sent "done".', None),
    ("POST", f"/v1/jobs/{JOB}/resume", {}, 409, "conflict", None,
     "The job is queued; only a failed or canceled job can be resumed.", None),
    ("GET", "/v1/families/vea", {}, 404, "not-found", None,
     'Unknown family "vea".', "Did you mean vae?"),
    ("GET", "/v1/errors", {}, 404, "not-found", None,
     "Unknown path.", "See /docs for all paths."),
]
# fmt: on


@pytest.fixture(autouse=True)
def content(app):
    add_model("demo-vae")
    add_model("digits", "classifier")
    add_dataset("squares")
    add_dataset("plain", layout="plain")
    with transaction() as conn:
        spec = {"name": "new-vae", "family": "vae", "dataset": "squares"}
        state.accept(conn, tenant="local", kind="training", spec=spec, job_id=JOB)


@pytest.mark.parametrize("method, path, request_, status, code, pointer, detail, remedy", CASES)
async def test_a_mistake_is_answered_in_plain_words(
    client, method, path, request_, status, code, pointer, detail, remedy
):
    answer = await client.request(method, path, **request_)
    problem = answer.json()
    pointers = [fault["pointer"] for fault in problem.get("errors", [])]
    assert (answer.status_code, problem["code"], pointers) == (status, code, [] if pointer is None else [pointer])
    assert (problem["detail"], problem.get("remedy")) == (detail, remedy)
