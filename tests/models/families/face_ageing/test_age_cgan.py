"""Face ageing: age groups, stages of the training, identity network, latent search, the operation age."""

import math

import numpy as np
import pytest
import torch

from models.context import StepContext
from models.data import Columns
from models.families.classifiers.classifier import Classifier
from models.families.face_ageing.age_cgan import AgeCGAN
from models.families.face_ageing.age_groups import boundaries_of, group_named, groups_of, names_of
from models.families.face_ageing.identity import identity_distance, supervised_contrastive_loss
from models.families.face_ageing.latent_search import find_latents
from models.operations.age import Age
from models.seeds import generator
from models.training.loop import Training
from models.types import ConfigError, DataError, DataSpec, InputError
from tests.models.data import dataset

SHORT = {"images": 40, "batch_size": 4, "width": 8, "latent_dim": 8}


def build(shape=(1, 16, 16), **config) -> Training:
    spec, train, validation = dataset("attributes", shape)
    torch.manual_seed(0)
    return Training(AgeCGAN.create(SHORT | config, spec), train, validation)


def served(**config) -> AgeCGAN:
    model = build(**config).family
    return model.eval().requires_grad_(False)


def ask(model, images, **params):
    operation = Age()
    asked = operation.Params(**params)
    rows = operation.rows(model, images, asked)
    return operation.result(model, rows, operation.compute(model, rows, asked), asked)


@pytest.mark.parametrize(
    ("ages", "names"),
    [
        (range(80), ("0-18", "19-29", "30-39", "40-49", "50-59", "60+")),
        (range(16, 46), ("0-18", "19-29", "30-39", "40+")),
        ([*range(19), *range(60, 70)], ("0-59", "60+")),
        (range(25), ("0-18", "19+")),
        ((1, 9, 35, 70), ("0-4", "5-29", "30-59", "60+")),
        ((0.5, 1.5), ("0", "1+")),
        ((0.25, 0.5), ("below 0.375", "0.375+")),
    ],
)
def test_default_groups_are_those_of_the_paper_that_are_not_empty(ages, names):
    found = boundaries_of(tuple(float(age) for age in sorted(ages)))
    assert names_of(found) == names
    assert groups_of(torch.tensor([float(age) for age in ages]), found).unique().tolist() == list(range(len(names)))


def test_ages_in_one_group_of_the_paper_are_split_into_equal_groups():
    ages = torch.rand(600, generator=torch.Generator().manual_seed(0)).sort().values * 10
    groups = groups_of(ages, boundaries_of(ages.tolist()))
    assert torch.bincount(groups).tolist() == pytest.approx([100] * 6, abs=2)


def test_a_dataset_of_one_age_is_refused():
    spec, _, _ = dataset("attributes")
    alone = DataSpec(spec.layout, 8, 8, 1, None, spec.columns, ages=(30.0, 30.0))
    with pytest.raises(DataError, match="same age"):
        AgeCGAN.create({}, alone)


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"boundaries": [30, 20]}, "boundaries"),
        ({"boundaries": [30, 35, 55]}, "boundaries"),
        ({"boundaries": [-1]}, "boundaries"),
        ({"condition": "labels", "boundaries": [30]}, "boundaries"),
    ],
)
def test_invalid_boundaries_are_refused(config, field):
    with pytest.raises(ConfigError) as caught:
        build(**config)
    assert caught.value.field.startswith(f"config/{field}")


def test_identities_without_repetition_are_refused_or_ignored():
    spec, train, _ = dataset("attributes")
    alone = DataSpec(spec.layout, 8, 8, 1, None, spec.columns, ages=spec.ages, identities=len(train))
    with pytest.raises(DataError, match="identities"):
        AgeCGAN.create({"identity": "labels"}, alone)
    model, other = AgeCGAN.create(SHORT, alone), build().family
    assert model.config.identity == "images" and "identity column" in model.warnings({})[0]
    assert other.config.identity == "labels" and not other.warnings({})


def test_each_stage_changes_only_its_networks():
    training = build()
    model, seen = training.family, []
    assert model.bounds == (28, 32) and model.total == 40
    for _ in range(model.total // 4):
        before = {name: value.clone() for name, value in model.state_dict().items()}
        training.advance()
        moved = {
            name.split(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, before[name])
        }
        seen.append((model.stage, moved))
    assert [stage for stage, _ in seen] == ["gan"] * 7 + ["encoder"] + ["recognisers"] * 2
    assert all(moved == {"gan"} for stage, moved in seen if stage == "gan")
    assert seen[7][1] == {"gan", "encoder"}  # batch norm of the averaged generator is recalibrated once
    assert seen[8][1] == seen[9][1] == {"reader", "identifier"}


def test_a_short_training_has_every_stage_that_fits():
    assert build(images=12).family.bounds == (4, 8)
    assert math.isfinite(finished(build(images=4))["identity_distance_identity"])


def finished(training: Training) -> dict[str, float]:
    for _ in training.run():
        pass
    return training.finish()


def test_supervised_contrastive_loss_equals_the_formula():
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    same = -math.log(math.exp(5) / (math.exp(5) + 2))  # cosine 1 at temperature .2 against twice cosine 0
    assert supervised_contrastive_loss(features, torch.tensor([0, 1, 1, 0])).item() == pytest.approx(same, rel=1e-5)
    assert supervised_contrastive_loss(features, torch.tensor([0, 0, 1, 1])).item() > 5
    assert identity_distance(features[:2], features[2:]).tolist() == pytest.approx([1, 1])


def test_a_classifier_as_identity_network_is_not_changed():
    spec = dataset("labelled", (3, 12, 12))[0]
    teacher = Classifier.create({"images": 8, "batch_size": 4, "width": 4}, spec)
    training = build()
    training.family.init_from(teacher)
    training = Training(training.family, training.train, training.validation)
    finished(training)
    model = training.family
    assert model.config.identity == "model" and not model.warnings({})
    grey = torch.rand(2, 1, 16, 16)
    wide = torch.nn.functional.interpolate(grey, (12, 12), mode="bilinear", antialias=True).expand(-1, 3, -1, -1)
    torch.testing.assert_close(model.identity_features(grey), teacher.trunk(wide))
    again = AgeCGAN.create(model.config.model_dump(mode="json"), model.data).load_for_serving(model.serving_state())
    assert torch.equal(again.identity_features(grey), model.eval().identity_features(grey))


def test_identity_model_without_init_from_is_refused():
    with pytest.raises(ConfigError, match="identity=model") as caught:
        finished(build(identity="model"))
    assert "init_from" in caught.value.remedy


def test_latent_search_reduces_its_loss_and_rows_are_independent():
    model = served()
    for layer in model.gan.ema.module.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.weight *= 4  # so that images differ as after training
    groups = torch.tensor([0, 1, 2])
    images = model.decode(torch.randn(3, 8, generator=torch.Generator().manual_seed(1)), groups)
    apart, pixels = {}, {}
    for variant in ("z0", "pixel", "identity"):
        latents = find_latents(model, images, groups, variant, (40, 0.1)).detach()
        made = model.decode(latents, groups)
        apart[variant] = float(identity_distance(model.identity_features(images), model.identity_features(made)).mean())
        pixels[variant] = float((made - images).square().mean())
        company = torch.cat([1 - images[:1], images[1:2], images[:1]])
        assert torch.equal(find_latents(model, company, groups, variant, (40, 0.1))[1], latents[1])
    assert apart["identity"] < 0.5 * apart["z0"] and pixels["pixel"] < 0.5 * pixels["z0"]


def test_encoded_latents_have_the_norm_of_the_training_latents():
    for latent, length in (("normal", 1.0), ("sphere", 1.0), ("uniform", 3**-0.5)):
        found = served(latent=latent).encode(torch.rand(2, 1, 16, 16))
        assert found.square().mean(1).sqrt().tolist() == pytest.approx([length] * 2, rel=1e-4)


def test_one_or_all_ages_with_their_identity_distances():
    model, images = served(), torch.rand(2, 1, 16, 16)
    one = ask(model, images, to="60+", latents="z0")
    row = ask(model, images, all=True, latents="z0")
    groups = len(model.age_groups)
    assert one.images.shape == (2, 1, 16, 16) and row.images.shape == (2, 1, 16, 16 * groups)
    assert [age["to"] for age in row.facts["items"][0]["ages"]] == list(model.age_groups)
    torch.testing.assert_close(row.images[..., -16:], one.images)
    torch.testing.assert_close(row.pictures[f"age-{groups - 1}"], one.images)
    wanted = identity_distance(model.identity_features(images), model.identity_features(one.images))
    assert [item["identity_distance"] for item in one.facts["items"]] == pytest.approx(wanted.tolist(), abs=1e-5)
    assert row.facts["items"][1]["ages"][-1]["identity_distance"] == pytest.approx(wanted[1].item(), abs=1e-5)


def test_the_age_of_the_face_is_read_or_given_and_used_in_the_search():
    model, images = served(), torch.rand(1, 1, 16, 16)
    read = model.age_groups[int(model.age_logits(images).argmax())]
    assert ask(model, images, to="60+", latents="z0").facts["items"][0]["from"] == read
    other = next(name for name in model.age_groups if name != read)
    told = ask(model, images, to="60+", latents="pixel", steps=2, label=other)
    assert told.facts["items"][0]["from"] == other


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({}, "to"),
        ({"to": "soon"}, "to"),
        ({"to": "-3"}, "to"),
        ({"to": "nan"}, "to"),
        ({"to": "60+", "all": True}, "all"),
        ({"to": "60+", "label": "old"}, "label"),
    ],
)
def test_an_unknown_age_is_refused_and_the_groups_are_named(params, field):
    model = served()
    with pytest.raises(InputError) as caught:
        ask(model, torch.rand(1, 1, 16, 16), **params)
    assert caught.value.field == field
    if "all" not in params:
        assert "60+" in caught.value.detail + (caught.value.remedy or "")


def test_an_age_in_years_selects_its_group_and_classes_are_groups():
    assert group_named("65", ("0-59", "60+"), (60.0,)) == 1 and group_named("0-59", ("0-59", "60+"), (60.0,)) == 0
    model = served(condition="labels")
    assert model.age_groups == ("a", "b", "c") and model.age_group("b") == 1
    with pytest.raises(InputError, match="one of a, b, c"):
        model.age_group("65")


def test_groups_follow_the_age_of_each_image():
    training = build()
    batch = {"ages": torch.tensor([20.5, 40.0, 60.9]), "images": torch.zeros(3, 1, 16, 16)}
    bounds = training.family.config.boundaries
    assert training.family._groups(batch).tolist() == np.digitize([20.5, 40.0, 60.9], bounds).tolist()


def test_rare_ages_are_drawn_as_often_as_others():
    few = Columns(
        {"images": np.zeros((40, 1, 16, 16), np.uint8), "ages": np.array([5.0] * 36 + [70.0] * 4, np.float32)}
    )
    spec = DataSpec("attributes", 16, 16, 1, columns={"train": {"images": 40, "ages": 40}}, ages=(5.0, 70.0))
    model = AgeCGAN.create(SHORT, spec)
    model.before_training(few)
    batch = {"images": torch.arange(40.0).reshape(40, 1, 1, 1), "labels": torch.tensor([0] * 36 + [1] * 4)}
    shown = [model._balanced(batch, StepContext(0, 40, 0, 0, generator(0, step)))["labels"] for step in range(50)]
    assert torch.cat(shown).float().mean() == pytest.approx(0.5, abs=0.05)
