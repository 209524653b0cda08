"""Corruptions, perturbations and outliers: against definitions, independent libraries and published constants."""

import json

import numpy as np
import pytest
import torch
from mmcon_views.image.corruptions import CORRUPTIONS
from PIL import Image
from scipy.spatial.distance import cdist
from sklearn.covariance import EmpiricalCovariance
from sklearn.metrics import accuracy_score, average_precision_score, roc_auc_score, roc_curve
from sklearn.metrics.pairwise import paired_cosine_distances
from sklearn.neighbors import NearestNeighbors

import mmcon
from mmcon.batch import Index
from mmcon.errors import ConfigError, DataError, InputError
from mmcon.evaluation import evaluation_list, outliers, perturbations
from mmcon.evaluation.classification_report import evaluate_probe
from mmcon.evaluation.corruptions import ALEXNET, CorruptionErrors, CorruptionResult, evaluate_corruptions
from mmcon.evaluation.evaluation_list import EvaluationInput, EvaluationResult
from mmcon.evaluation.features import Features, extract_features
from mmcon.evaluation.imagenet_c import ALEXNET_ERRORS, BENCHMARK, EFFECTS, published_sources
from mmcon.evaluation.probe import fit_probe
from mmcon.loading.loader import one_pass
from mmcon.random import keys
from mmcon.sources.base import Subset, TensorSource
from mmcon.views import Chain


def pixels(batch):
    return batch.views["image"][0].flatten(1)


def given(train, test, *, size=12, **settings):
    view = mmcon.create_view("image/plain", size=size)
    train_features, test_features = (extract_features(pixels, one_pass(s, {"image": [view]})) for s in (train, test))
    known = {"encode": pixels, "view": view, "modality": "image", "classes": train.classes}
    sources = {"train_source": train, "test_source": test}
    return EvaluationInput(train=train_features, test=test_features, **sources, **known, **settings)


@pytest.fixture(scope="module")
def clothes():
    def some(split, count):
        source = mmcon.create_source("samples/fashion", split=split)
        return Subset(source, (source.labels < 3).nonzero()[:count, 0])

    return some("train", 90), some("test", 40)


# --- corruptions -----------------------------------------------------------------------------------------------------


def test_the_corruptions_are_those_that_are_registered():
    assert set(EFFECTS) == set(CORRUPTIONS)
    assert len(BENCHMARK) == 15


def test_alexnets_errors_have_the_averages_by_which_other_code_normalizes():
    # The constants of the validation scripts of hendrycks/robustness and AugMix.
    averages = {
        "gaussian-noise": 0.886428, "shot-noise": 0.894468, "impulse-noise": 0.922640, "defocus-blur": 0.819880,
        "glass-blur": 0.826268, "motion-blur": 0.785948, "zoom-blur": 0.798360, "snow": 0.866816, "frost": 0.826572,
        "fog": 0.819324, "brightness": 0.564592, "contrast": 0.853204, "elastic": 0.646056, "pixelate": 0.717840,
        "jpeg": 0.606500, "speckle-noise": 0.845388, "gaussian-blur": 0.787108, "spatter": 0.717512,
        "saturate": 0.658248,
    }  # fmt: skip
    assert {name: round(sum(of) / 5, 6) for name, of in ALEXNET_ERRORS.items()} == averages


def test_mean_corruption_errors_are_those_of_the_definition():
    def result(clean, factor, reference=ALEXNET):
        errors = {effect: {s: factor * e for s, e in of.items()} for effect, of in ALEXNET.errors.items()}
        return CorruptionResult(CorruptionErrors("m", clean, errors), None, reference, 10, True)

    assert result(ALEXNET.clean, 1.0).mean_corruption_error() == pytest.approx(1)
    assert result(ALEXNET.clean, 1.0).mean_corruption_error(relative=True) == pytest.approx(1)
    half = result(0.2, 0.5)
    assert half.mean_corruption_error() == pytest.approx(0.5)
    # Σ_s (E_s - clean) over that of AlexNet, by corruption, then the mean over the fifteen.
    expected = [(0.5 * sum(ALEXNET_ERRORS[e]) - 5 * 0.2) / (sum(ALEXNET_ERRORS[e]) - 5 * 0.43478) for e in BENCHMARK]
    assert half.mean_corruption_error(relative=True) == pytest.approx(sum(expected) / 15)
    # ResNet-50 has an error of 1 - .6802 on brightness: CE 56.64, as published with the same table.
    bright = CorruptionErrors("r", 0.24, {"brightness": dict.fromkeys(range(1, 6), 1 - 0.6802)})
    one = CorruptionResult(bright, None, ALEXNET, 10, True)
    assert 100 * one.corruption_error("brightness") == pytest.approx(56.64, abs=0.005)
    assert one.mean_corruption_error() is None  # fourteen corruptions are missing
    assert result(0.2, 0.5, reference=None).mean_corruption_error() is None


def test_means_that_were_not_measured_are_none():
    extra = CorruptionResult(CorruptionErrors("m", 0.1, {"saturate": {1: 0.5}}), None, ALEXNET, 10, False)
    assert "mean error –, clean 0.100" in extra.table()
    assert json.loads(json.dumps(extra.to_json(), allow_nan=False))["mean_error"] is None
    strongest = CorruptionErrors("m", 0.1, {effect: {5: 0.5} for effect in BENCHMARK})
    assert CorruptionResult(strongest, None, ALEXNET, 10, False).mean_corruption_error() is None


def test_one_probe_serves_all_evaluations(clothes, monkeypatch):
    fits = []
    monkeypatch.setattr(evaluation_list, "fit_probe", lambda *a, **o: fits.append(a) or fit_probe(*a, **o))
    few = {"effects": ["contrast"], "severities": [1], "perturbations": ["noise"], "perturbation_steps": 1}
    at = given(*clothes, options=few)
    error = 1 - evaluate_probe(at).classification.top1
    assert evaluate_corruptions(at).model.clean == pytest.approx(error)
    perturbations.evaluate_perturbations(at)
    assert len(fits) == 1


def test_corruptions_are_drawn_by_key_on_any_images(clothes, tmp_path):
    train, test = clothes
    chosen = {"effects": ("contrast", "speckle-noise"), "severities": (1, 5)}
    found = evaluate_corruptions(given(train, test, options=chosen))
    # By hand: the probe of clean pixels on the images after the view, for each sample alone.
    at = given(train, test)
    probe = fit_probe(at.train)
    for effect, severity in (("contrast", 5), ("speckle-noise", 1)):
        corruption = mmcon.create_view("image/corruption", effect=effect, severity=severity)
        view, predicted = Chain(at.view, (effect, corruption)), []
        for row in range(len(test)):
            image = view(test.open([row]), keys(seed=0, sample=test.ids[[row]]))
            predicted.append(int(probe.logits(image.flatten(1)).argmax()))
        error = float((torch.tensor(predicted) != test.labels).double().mean())
        assert found.model.errors[effect][severity] == pytest.approx(error)
    assert found.mean == pytest.approx(sum(found.model.errors["contrast"].values()) / 2)  # speckle noise is extra
    assert found.interval.low <= found.mean <= found.interval.high
    again = evaluate_corruptions(given(train, test, options=chosen, batch_size=7))
    assert again.model.errors == found.model.errors
    # As the reference of itself.
    (tmp_path / "corruptions.json").write_text(json.dumps(found.to_json()))
    options = chosen | {"corruption_reference": str(tmp_path / "corruptions.json")}
    itself = evaluate_corruptions(given(train, test, options=options))
    assert itself.corruption_error("contrast") == pytest.approx(1)
    assert "not the images of ImageNet-C" in itself.table()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"effects": ("fogg",)}, "fogg"),
        ({"severities": (6,)}, "6"),
        ({"corruption_reference": "nowhere.json"}, "nowhere.json"),
        ({"corruption_reference": 3}, "3: FileNotFoundError"),
        ({"imagenet_c": 3}, "unpack the archives"),
        ({"imagenet_c": "nowhere"}, "unpack the archives"),
    ],
)
def test_bad_settings_of_corruptions_are_refused_before_any_pass(clothes, options, message):
    with pytest.raises((ConfigError, DataError), match=message):
        evaluate_corruptions(given(*clothes, options=options))


def published(root, effects=("gaussian_noise", "jpeg_compression"), classes=("n02", "n01")):
    for effect in effects:
        for severity in range(1, 6):
            for number, name in enumerate(classes):
                folder = root / effect / str(severity) / name
                folder.mkdir(parents=True)
                for i in range(2):
                    value = 40 + 150 * number + i + severity
                    Image.new("RGB", (16, 16), (value, value, value)).save(folder / f"{i}.png")
    return root


def test_the_published_folder_is_read_with_the_labels_of_the_training_data(tmp_path):
    images = torch.tensor([40, 45, 190, 195], dtype=torch.uint8)[:, None, None, None].expand(4, 3, 16, 16)
    # In the training data n02 is the first class, though its name is the last in the alphabet.
    train = TensorSource(images.repeat(5, 1, 1, 1), labels=torch.tensor([0, 0, 1, 1] * 5), classes=("n02", "n01"))
    root = published(tmp_path / "C" / "digital")
    (tmp_path / "C" / "noise").mkdir()
    (root / "gaussian_noise").rename(tmp_path / "C" / "noise" / "gaussian_noise")
    found = evaluate_corruptions(given(train, train, options={"imagenet_c": str(tmp_path / "C")}))
    assert set(found.model.errors) == {"gaussian-noise", "jpeg"}
    assert all(error == 0 for of in found.model.errors.values() for error in of.values())
    assert found.reference is ALEXNET
    assert "ImageNet-C: mean error 0.000" in found.table()
    with pytest.raises(DataError, match="n02"):
        list(published_sources(tmp_path / "C", ["n01", "n03"]))
    (tmp_path / "C" / "noise" / "gaussian_noise" / "3").rename(tmp_path / "three")
    with pytest.raises(DataError, match="gaussian_noise/3"):
        published_sources(tmp_path / "C", ["n01", "n02"])


# --- perturbations ---------------------------------------------------------------------------------------------------


def test_a_path_begins_at_the_image_and_moves_it_by_the_amount():
    x = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    table = keys(seed=0, sample=range(6))
    for kind in perturbations.LARGEST:
        assert torch.equal(mmcon.create_view("image/perturbation", kind=kind, amount=0.0)(x, table), x)
    turned = mmcon.create_view("image/perturbation", kind="rotation", amount=90.0)(x, table)
    quarter = [torch.rot90(x, turns, (2, 3)) for turns in (1, 3)]
    for row in range(6):
        assert any(torch.allclose(turned[row], of[row], atol=1e-5) for of in quarter)
    bright = mmcon.create_view("image/perturbation", kind="brightness", amount=0.2)(x, table)
    signs = [float((bright[row] - x[row])[x[row].sub(0.5).abs() < 0.2].mean()) for row in range(6)]
    assert all(abs(abs(sign) - 0.2) < 1e-5 for sign in signs)
    assert {sign > 0 for sign in signs} == {True, False}
    # A ramp along both axes moves by as many pixels as the amount has, in its direction.
    down, across = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    ramp = torch.stack([down, across, down]).expand(6, 3, 16, 16) / 20
    shifted = mmcon.create_view("image/perturbation", kind="translation", amount=0.125)(ramp, table)
    moved = ((ramp - shifted) * 20)[:, :2, 4:12, 4:12].mean((2, 3))
    assert torch.allclose(moved.norm(dim=1), torch.full((6,), 2.0), atol=1e-4)
    zoomed = mmcon.create_view("image/perturbation", kind="scale", amount=0.25)(ramp, table)
    slopes = (zoomed[:, 0, 10, 8] - zoomed[:, 0, 6, 8]) / (ramp[:, 0, 10, 8] - ramp[:, 0, 6, 8])
    assert all(min(abs(slope - 0.8), abs(slope - 1.25)) < 1e-4 for slope in slopes.tolist())
    small, large = (mmcon.create_view("image/perturbation", kind="noise", amount=a)(x, table) for a in (0.01, 0.02))
    inside = (large > 0) & (large < 1)
    assert torch.allclose((large - x)[inside], 2 * (small - x)[inside], atol=1e-6)
    with pytest.raises(InputError, match="amount"):
        mmcon.create_view("image/perturbation", amount=-0.1)


def test_flips_are_counted_along_the_path_or_from_the_clean_image():
    # Two samples: the first is predicted 0 1 0 0, the second stays.
    predictions = torch.tensor([[0, 2], [1, 2], [0, 2], [0, 2]])
    cosines = torch.tensor([[0.0, 1.0]] * 3)
    along = perturbations.stability((1.0, 2.0, 3.0), predictions, cosines)
    assert along.flip_probability.value == pytest.approx(2 / 6)
    assert along.changed == (0.5, 0.0, 0.0)
    assert along.cosine == pytest.approx((0.5, 0.5, 0.5))
    from_clean = perturbations.stability((1.0, 2.0, 3.0), predictions, cosines, ordered=False)
    assert from_clean.flip_probability.value == pytest.approx(1 / 6)


def test_cosines_and_changed_predictions_are_scikit_learns(clothes):
    at = given(*clothes, options={"perturbations": "rotation", "perturbation_steps": 1})
    found = perturbations.evaluate_perturbations(at).kinds["rotation"]
    turned = at.features(
        at.test_source,
        Chain(at.view, ("rotation", mmcon.create_view("image/perturbation", kind="rotation", amount=15.0))),
    )
    pairs = [features.values.double().numpy() for features in (at.test, turned)]
    assert found.cosine[0] == pytest.approx(1 - paired_cosine_distances(*pairs).mean())
    predicted = [at.probe.evaluate(features).predicted for features in (at.test, turned)]
    assert found.changed[0] == pytest.approx(1 - accuracy_score(*predicted))
    assert found.flip_probability.value == found.changed[0]


def test_stability_of_a_probe_falls_with_the_amount(clothes):
    options = {"perturbations": ("translation", "noise"), "perturbation_steps": 2}
    found = perturbations.evaluate_perturbations(given(*clothes, options=options))
    for kind in found.kinds.values():
        assert len(kind.amounts) == 2
        assert 1 > kind.cosine[0] > kind.cosine[1]
    assert found.mean_flip_probability == found.to_json()["mean_flip_probability"]
    with pytest.raises(ConfigError, match="translate"):
        perturbations.evaluate_perturbations(given(*clothes, options={"perturbations": ("translate",)}))


# --- outliers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_separation_agrees_with_scikit_learn_also_with_ties(seed):
    rng = np.random.default_rng(seed)
    ordinary, others = rng.normal(0, 1, 83).round(seed), rng.normal(0.7, 1, 41).round(seed)
    found = outliers.separation(torch.from_numpy(ordinary), torch.from_numpy(others))
    truth, scores = np.r_[np.zeros(83), np.ones(41)], np.r_[ordinary, others]
    assert found.auroc == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
    assert found.aupr == pytest.approx(average_precision_score(truth, scores), abs=1e-12)
    # Ordinary samples are the positives of FPR at 95 % TPR, by minus the score.
    false, true, _ = roc_curve(1 - truth, -scores, drop_intermediate=False)
    assert found.fpr95 == pytest.approx(false[np.nonzero(true >= 0.95)[0][0]], abs=1e-12)
    with pytest.raises(InputError, match="NaN"):
        outliers.separation(torch.tensor([0.0, float("nan")]), torch.ones(2))


def features(n, shift=0.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(n, 6, generator=generator) @ torch.randn(6, 6, generator=torch.Generator().manual_seed(9))
    labels = torch.arange(n) % 3
    return Features(values + shift + labels[:, None], Index({"sample": torch.arange(n), "label": labels}))


def test_scores_agree_with_scikit_learn_and_scipy():
    train, test = features(200), features(30, seed=1)
    probe = fit_probe(train)
    found = {name: score(test).numpy() for name, score in outliers.outlier_scores(train, probe, neighbors=5).items()}
    logits = probe.logits(test.values).double().numpy()
    np.testing.assert_allclose(found["energy"], -np.log(np.exp(logits).sum(1)), rtol=1e-6)
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(found["max-softmax"], -shares.max(1), rtol=1e-6)

    def ridged(matrix):
        return np.linalg.inv(matrix + outliers.SHRINKAGE * np.trace(matrix) / len(matrix) * np.eye(len(matrix)))

    values, labels = train.values.double().numpy(), train.labels.numpy()
    means = np.stack([values[labels == k].mean(0) for k in range(3)])
    pooled = EmpiricalCovariance(assume_centered=True).fit(values - means[labels]).covariance_
    distances = cdist(test.values.double().numpy(), means, "mahalanobis", VI=ridged(pooled)) ** 2
    np.testing.assert_allclose(found["mahalanobis"], distances.min(1), rtol=1e-6)
    unit = train.normalized().double().numpy()
    spread = EmpiricalCovariance().fit(unit)
    apart = test.normalized().double().numpy() - spread.location_
    density = np.einsum("nd,de,ne->n", apart, ridged(spread.covariance_), apart)
    np.testing.assert_allclose(found["density"], density, rtol=1e-5)
    nearest = NearestNeighbors(n_neighbors=5, metric="cosine").fit(unit).kneighbors(test.normalized().numpy())[0]
    np.testing.assert_allclose(found["neighbors"], nearest[:, -1] - 1, atol=1e-5)


def test_far_data_are_told_apart_better_than_near_data(clothes):
    train, test = clothes
    others = mmcon.create_source("samples/fashion", split="test")
    near = Subset(others, (others.labels == 4).nonzero()[:30, 0])
    noise = torch.randint(0, 256, (30, 1, 28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    far = TensorSource(noise)
    found = outliers.evaluate_outliers(given(train, test, near={"coats": near}, far={"noise": far}))
    assert found.separations["noise"]["neighbors"].auroc == 1
    assert found.separations["noise"]["neighbors"].fpr95 == 0
    assert found.separations["coats"]["neighbors"].auroc < 1
    assert set(found.scores) == {"max-softmax", "energy", "mahalanobis", "neighbors", "density"}
    assert "near: coats, 30 samples" in found.table()
    unlabeled = TensorSource(train.open(range(len(train))))
    alone = outliers.evaluate_outliers(given(unlabeled, test, far={"noise": far}))
    assert set(alone.scores) == {"neighbors", "density"}
    colored = TensorSource(noise.expand(-1, 3, -1, -1))
    with pytest.raises(ConfigError, match=r"gray images.*\['color'\]"):
        outliers.evaluate_outliers(given(train, test, near={"coats": near}, far={"color": colored}))
    with pytest.raises(ConfigError, match="--near or --far"):
        outliers.evaluate_outliers(given(train, test))


def test_results_are_a_table_plain_values_and_a_picture(clothes):
    train, test = clothes
    noise = TensorSource(torch.zeros(20, 1, 28, 28, dtype=torch.uint8))
    few = {"effects": ("fog",), "perturbations": ("noise",), "perturbation_steps": 1, "corruption_reference": "alexnet"}
    at = given(train, test, far={"black": noise}, options=few)
    for evaluate in (evaluate_corruptions, perturbations.evaluate_perturbations, outliers.evaluate_outliers):
        result = evaluate(at)
        assert isinstance(result, EvaluationResult)
        json.dumps(result.to_json(), allow_nan=False)
        assert len(result.table().splitlines()) > 2
        assert result.plot().axes
