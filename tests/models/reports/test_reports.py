"""Reports against answers known beforehand: codes that are their own classes, images that stand out."""

import numpy as np
import pytest
import torch
from torch import nn

from models.capabilities import Decodes, Encodes
from models.data import Columns
from models.evaluation import clustering, deep_clustering
from models.evaluation.anomaly import Familiar, Measured, heat, pca_basis
from models.evaluation.clustering import SHRINKAGE, STARTS, Clustering
from models.family import Family
from models.registry import reports
from models.reports.anomaly import AnomalyReport, detection_quality
from models.reports.cluster import ClusterReport, label_facts
from models.reports.core.base import Subject
from models.types import DataError, DataSpec, ReportArtefact

SIZE = 8


class Halves(Encodes, Decodes, Family):
    """Encodes an image as the means of its left and right half, and decodes flat halves: exact on flat halves only."""

    name = "halves"
    summary = "for tests"
    latent_dim = 2

    def __init__(self, config, data):
        super().__init__(config, data)
        self.scale = nn.Parameter(torch.ones(1))

    def optimisers(self):
        return {}

    def step(self, batch, optimisers, context):
        return {}

    def encode(self, images):
        return torch.stack([images[..., : SIZE // 2].mean((1, 2, 3)), images[..., SIZE // 2 :].mean((1, 2, 3))], 1)

    def decode(self, latents):
        halves = latents.repeat_interleave(SIZE // 2, 1)  # (b, width)
        return halves[:, None, None, :].expand(-1, 1, SIZE, -1)


def flat_halves(labels: np.ndarray, seed: int = 0) -> np.ndarray:
    """Class k shows brightness 40 + 60 k on the left and 220 - 60 k on the right, give or take a little."""
    noise = np.random.default_rng(seed).integers(-5, 6, (len(labels), 2))
    halves = np.stack([40 + 60 * labels, 220 - 60 * labels], 1) + noise
    return np.repeat(halves, SIZE // 2, 1)[:, None, None, :].repeat(SIZE, 2).astype(np.uint8)


def subject(images: np.ndarray, labels: np.ndarray, home: np.ndarray | None = None) -> Subject:
    columns = Columns({"images": images, "labels": labels})
    rows = {"images": len(images), "labels": len(images)}
    data = DataSpec("labelled", SIZE, SIZE, 1, ("0", "1", "2"), {"train": rows, "validation": rows})
    model = Halves.create({}, data).eval()
    known = Columns({"images": home, "labels": np.zeros(len(home), np.int64)}) if home is not None else columns
    return Subject(model, data, columns, columns, known, seed=0)


def finish(report, who: Subject, **params):
    run = report().run(who, report.Params(**params))
    done = 0
    with torch.no_grad():
        while True:
            try:
                step = next(run)
            except StopIteration as end:
                return end.value
            assert done <= step.done <= step.total
            done = step.done


@pytest.mark.parametrize("method", ["spectral", "kmeans", "gmm"])
def test_separated_classes_are_recovered_as_clusters(method):
    labels = np.arange(90) % 3
    result = finish(ClusterReport, subject(flat_halves(labels), labels), method=method)
    assert result.facts["accuracy"] == result.facts["nmi"] == pytest.approx(1) == result.facts["ari"]
    assert result.facts["accuracy_one_cluster"] == pytest.approx(1 / 3)
    assert result.facts["silhouette"] > 0.8
    assert sorted(row["label"] for row in result.tables["clusters"]) == ["0", "1", "2"]
    assert result.pictures["clusters"].shape[1:] == (1, SIZE, SIZE)


def test_more_clusters_than_images_are_refused_by_name():
    labels = np.arange(6) % 3
    with pytest.raises(DataError, match="7 clusters need more than 7 images") as caught:
        finish(ClusterReport, subject(flat_halves(labels), labels), clusters=7)
    assert caught.value.field == "params/clusters"


def test_constant_images_have_no_silhouette_and_do_not_fail():
    images = np.full((30, 1, SIZE, SIZE), 128, np.uint8)
    result = finish(ClusterReport, subject(images, np.arange(30) % 3))
    assert result.facts["silhouette"] is None and "collapsed" in result.notes[0]
    assert result.tables["clusters"] == [{"cluster": 0, "images": 30, "label": "0", "share": pytest.approx(1 / 3)}]
    result = finish(AnomalyReport, subject(images, np.arange(30) % 3))
    assert result.facts["above_0.95"] == 0 and all(row["score"] == 0 for row in result.tables["most_unusual"])


def test_images_with_large_errors_rank_first():
    labels = np.array([0] * 57 + [1] * 3)
    images = flat_halves(labels)
    images[57:] = np.random.default_rng(1).integers(0, 256, (3, 1, SIZE, SIZE))
    result = finish(AnomalyReport, subject(images, labels, home=flat_halves(np.zeros(200, int), 5)), normal=["0"])
    assert {row["index"] for row in result.tables["most_unusual"][:3]} == {57, 58, 59}
    assert result.facts["model_auroc"] == 1
    assert {"pca_auroc", "knn_auroc", "model_ap"} <= result.facts.keys()
    assert sum(result.curves[0].series["this dataset"]) == pytest.approx(1)


def test_normal_must_leave_something_to_find():
    labels = np.zeros(20, int)
    with pytest.raises(DataError, match="both kinds are needed"):
        finish(AnomalyReport, subject(flat_halves(labels), labels), normal=["0"])


def test_the_basis_of_pca_spans_flat_data_and_survives_constant_data():
    known = torch.randn(50, 1, 1, 2) @ torch.randn(2, 6)
    basis = pca_basis(known, 2)
    rest = known.flatten(1) - basis[0]
    assert (rest - rest @ basis[1:].T @ basis[1:]).abs().max() < 1e-5
    assert torch.isfinite(pca_basis(torch.ones(9, 1, 2, 2), 3)).all()


def measured_rows(count: int, dims: int, seed: int, spread: float = 1.0) -> Measured:
    draws = torch.Generator().manual_seed(seed)
    codes, errors = spread * torch.randn(count, dims, generator=draws), torch.rand(count, generator=draws)
    return Measured(codes, errors, torch.rand(count, generator=draws))


def test_normal_data_has_mean_score_zero_and_gives_the_thresholds():
    home = measured_rows(400, 3, 0)
    familiar = Familiar(home)
    scores = familiar.scores(Measured(home.codes[:1], home.errors.mean()[None], home.pca_errors.max()[None]))
    assert scores["model"].item() == pytest.approx(0, abs=1e-6) and scores["pca"] > 1.5
    assert {name: float(values.mean()) for name, values in familiar.sorted_scores.items()} == pytest.approx(
        dict.fromkeys(("score", "model", "knn", "pca"), 0), abs=1e-6
    )
    assert set(familiar.thresholds("model")) == {"0.95", "0.99"}
    above = (familiar.sorted_scores["score"] > familiar.threshold(0.95)).double().mean()
    assert above == pytest.approx(0.05, abs=0.01)
    far = familiar.scores(Measured(home.codes[:1] + 100, home.errors[:1], home.pca_errors[:1]))
    assert far["knn"] > 10 and far["score"] > 10
    assert familiar.standing(torch.tensor([-99.0, 99.0])).tolist() == [0, 1]


def test_score_finds_what_either_of_its_parts_finds():
    """Anomalies of one kind have large errors at usual codes, those of the other unusual codes and small errors."""
    home, known = measured_rows(400, 3, 0), torch.randn(800, 3, generator=torch.Generator().manual_seed(1))
    familiar, new = Familiar(home, known), measured_rows(200, 3, 2)
    errors, codes = new.errors.clone(), new.codes.clone()
    errors[:20], codes[20:40] = 4.0, codes[20:40] + 6
    scores = familiar.scores(Measured(codes, errors, new.pca_errors))
    truth = np.arange(200) < 40
    quality = {name: detection_quality(scores[name], truth)["auroc"] for name in ("score", "model", "knn")}
    assert quality["score"] > 0.97 > max(quality["model"], quality["knn"])


def test_inactive_units_do_not_drown_the_distance_of_codes():
    home, far = measured_rows(200, 2, 0), measured_rows(200, 2, 1, spread=3.0)
    noise = [1e-3 * torch.randn(200, 62, generator=torch.Generator().manual_seed(seed)) for seed in (2, 3)]
    pairs = zip((home, far), noise, strict=True)
    home, far = (Measured(torch.cat([m.codes, extra], 1), m.errors, m.pca_errors) for m, extra in pairs)
    assert (Familiar(home).scores(far)["knn"] > 2).double().mean() > 0.4


def test_false_alarms_hold_and_their_interval_narrows_with_the_number_of_normal_images():
    widths = []
    for count in (50, 500):
        rates = []
        for seed in range(60):
            familiar = Familiar(measured_rows(count, 2, seed), measured_rows(300, 2, 1000).codes)
            scores = familiar.scores(measured_rows(300, 2, 5000 + seed))["score"]
            rates.append(float((scores > familiar.threshold(0.95)).double().mean()))
        low, high = familiar.false_alarms(0.95)
        widths.append(high - low)
        assert np.mean(rates) == pytest.approx(0.05, abs=0.012)
        assert np.mean([low - 0.02 <= rate <= high + 0.02 for rate in rates]) > 0.9
    assert widths[1] < widths[0] / 2


def test_heat_map_is_black_for_equal_and_white_for_opposite_pixels():
    images = torch.zeros(1, 1, 2, 2)
    drawn = torch.tensor([[[[0.0, 1.0], [0.0, 0.0]]]])
    assert heat(images, drawn)[0, :, 0].T.tolist() == [[0, 0, 0], [1, 1, 1]]


def test_near_duplicates_and_outliers_are_found():
    labels = np.arange(60) % 3
    draws = np.random.default_rng(3).integers(0, 256, (60, 2))
    images = np.repeat(draws, SIZE // 2, 1)[:, None, None, :].repeat(SIZE, 2).astype(np.uint8)
    images[:50] //= 2
    images[7] = images[31]
    images[40] = 255
    result = finish(AnomalyReport, subject(images, labels), split="train")
    twins = [(row["index"], row["other_index"]) for row in result.tables["near_duplicates"]]
    assert twins[0] == (7, 31) and result.tables["near_duplicates"][0]["pixels"] == 0
    assert 40 in [row["index"] for row in result.tables["outliers"][:4]]
    assert result.pictures["heat_maps"].shape == (3 * 16, 3, SIZE, SIZE)
    whole = finish(AnomalyReport, subject(images, labels), split="all")
    assert whole.facts["images"] == 120 and whole.facts["near_duplicates_across_splits"] >= 50  # both sides are equal


@pytest.mark.parametrize("method", ["kmeans", "gmm"])
def test_clustering_assigns_new_codes_as_scikit_learn_does(method):
    from sklearn.cluster import KMeans
    from sklearn.mixture import GaussianMixture

    draws = torch.Generator().manual_seed(0)
    codes = torch.randn(300, 4, generator=draws) + 6 * torch.randint(0, 3, (300, 1), generator=draws)
    result = Clustering.fit(codes[:200], 3, method, seed=5)
    points = result.points(codes).double().numpy()
    shrinkage = SHRINKAGE * points[:200].var(0).mean()
    kinds = {"kmeans": KMeans(3, n_init=10, random_state=5)}
    kinds["gmm"] = GaussianMixture(3, reg_covar=shrinkage, n_init=STARTS, random_state=5)
    library = kinds[method].fit(points[:200])
    groups, distances, belong = result.assign(codes)
    assert groups.tolist() == library.predict(points).tolist()
    if method == "gmm":
        assert belong.numpy() == pytest.approx(library.predict_proba(points), abs=1e-4)
    again = Clustering.unpack(result.pack({}))
    assert torch.equal(again.assign(codes)[1], distances)


@pytest.mark.parametrize("method", ["spectral", "kmeans", "gmm"])
def test_inactive_units_do_not_change_the_clusters(method):
    """A VAE gives inactive units codes of almost no variance, which standardising would blow up to full weight."""
    draws = torch.Generator().manual_seed(0)
    truth = torch.arange(300) % 3
    codes = torch.randn(300, 2, generator=draws) + 4 * torch.tensor([[0.0, 0], [1, 0], [0, 1]])[truth]
    noisy = torch.cat([codes, 0.01 * torch.randn(300, 30, generator=draws)], 1)
    found = Clustering.fit(noisy, 3, method, seed=0).assign(noisy)[0]
    assert label_facts(truth.numpy(), found.numpy())["accuracy"] > 0.9
    assert Clustering.fit(noisy, 3, method, seed=0).axes.shape == (2, 32)


def test_spectral_clusters_follow_the_shape_of_the_data_and_assign_new_codes():
    """Two rings: no centre and no Gaussian separates them."""
    draws = torch.Generator().manual_seed(0)
    angle, truth = 6.28 * torch.rand(600, generator=draws), torch.arange(600) % 2
    codes = torch.stack([angle.cos(), angle.sin()], 1) * (1 + 2 * truth)[:, None]
    codes += 0.05 * torch.randn(codes.shape, generator=draws)
    accuracy = {}
    for method in ("spectral", "kmeans"):
        result = Clustering.fit(codes[:400], 2, method, seed=0)
        accuracy[method] = label_facts(truth[400:].numpy(), result.assign(codes[400:])[0].numpy())["accuracy"]
    assert accuracy["spectral"] == 1 and accuracy["kmeans"] < 0.8


def test_spectral_clustering_keeps_the_clusters_of_its_own_codes(monkeypatch):
    codes = torch.randn(120, 3, generator=torch.Generator().manual_seed(1))
    result = Clustering.fit(codes, 4, "spectral", seed=0)
    assert torch.equal(Clustering.unpack(result.pack({})).assign(codes)[0], result.groups)
    monkeypatch.setattr(clustering, "MAX_GRAPH", 60)
    assert Clustering.fit(codes, 4, "spectral", seed=0).reference.shape == (60, 3)


@pytest.mark.parametrize("method", ["kmeans", "gmm"])
def test_clusters_of_an_earlier_release_still_assign(method):
    """Their codes were divided by each unit's spread, and covariances were diagonal."""
    draws = torch.Generator().manual_seed(0)
    mean, spread, centres = torch.randn(3, generator=draws), torch.rand(3) + 0.1, torch.randn(4, 3, generator=draws)
    variances = torch.rand(4, 3, generator=draws) + 0.1 if method == "gmm" else torch.ones(4, 3)
    shares, codes = torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.randn(20, 3, generator=draws)
    if method == "kmeans":
        shares = torch.full((4,), 0.25)
    tensors = {"mean": mean, "spread": spread, "centres": centres, "variances": variances, "shares": shares}
    old = ReportArtefact(tensors | {"reach": torch.ones(4)}, {"method": method, "clusters": []})
    gaps = ((codes - mean) / spread)[:, None] - centres
    logs = -0.5 * (gaps.square() / variances + variances.log()).sum(2) + shares.log()
    groups, distances, probabilities = Clustering.unpack(old).assign(codes)
    assert torch.equal(groups, logs.argmax(1))
    assert torch.allclose(probabilities, logs.softmax(1), atol=1e-5)
    assert torch.allclose(distances, gaps.square().sum(2).sqrt()[torch.arange(20), groups], atol=1e-5)


def test_deep_clusters_are_reported_and_assign_codes_by_vote(monkeypatch):
    monkeypatch.setattr(deep_clustering, "SHOWN", 600)
    monkeypatch.setattr(deep_clustering, "LEAST_SHOWN", 600)
    labels = np.arange(90) % 3
    who = subject(flat_halves(labels), labels)
    before = {name: tensor.clone() for name, tensor in who.model.state_dict().items()}
    results = [finish(ClusterReport, who, method="deep") for _ in range(2)]
    assert results[0].facts["accuracy"] > 0.9 and results[0].facts["method"] == "deep"
    assert results[0].facts == results[1].facts  # reproducible
    assert all(torch.equal(tensor, before[name]) for name, tensor in who.model.state_dict().items())
    stored = Clustering.unpack(results[0].fitted)
    codes = who.model.encode(who.validation.rows(torch.arange(90), ["images"])["images"])
    assert torch.equal(stored.assign(codes)[0], stored.groups)


def test_a_dataset_of_another_size_is_refused_with_the_remedy():
    who = subject(flat_halves(np.arange(9) % 3), np.arange(9) % 3)
    other = DataSpec("labelled", 16, 16, 3, None, who.data.columns)
    with pytest.raises(DataError, match="3x16x16") as caught:
        ClusterReport.check(who.model, other)
    assert "image_size=8x8&channels=1" in caught.value.remedy


def test_every_report_has_a_summary_and_descriptions():
    assert {"anomaly", "cluster"} <= reports().keys()
    for report in reports().values():
        assert report.summary.endswith(".") and report.needs and report.Params.model_json_schema()
