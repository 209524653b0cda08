"""Parity with published implementations, each under its own conventions, and errors of bad input."""

import math

import pytest
import torch
from loss_cases import D, draw, unit
from pytorch_metric_learning.losses import NTXentLoss
from pytorch_metric_learning.losses import SupConLoss as TheirSupCon

from mmcon.affinity import Dense, LabelKernel, SameLabel, TimeKernel
from mmcon.errors import ConfigError, InputError
from mmcon.losses import HardNegatives, LossSettings, SupConLoss, explain_backend, presets, weighted_supcon
from mmcon.operations.memory_budget import peak_bytes
from mmcon.portable_math import one_thread

LABELS = torch.tensor([0, 0, 1, 1, 2, 3])


def published_supcon(features, labels, temperature, base_temperature):
    """SupContrast's formula: view-major rows as given, anchors without positives counted as 0."""
    b, v = features.shape[:2]
    rows = [features[i, view] for view in range(v) for i in range(b)]
    y = [int(labels[i]) for _ in range(v) for i in range(b)]
    losses = []
    for i, z in enumerate(rows):
        total = sum(math.exp(float(z @ rows[k]) / temperature) for k in range(len(rows)) if k != i)
        positives = [j for j in range(len(rows)) if j != i and y[j] == y[i]]
        log_p = [float(z @ rows[j]) / temperature - math.log(total) for j in positives]
        losses.append(-(temperature / base_temperature) * sum(log_p) / max(len(positives), 1))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("backend", ["dense", "tiled"])
def test_supcontrast(views, backend):
    features = unit(6, views, 8)
    ours = SupConLoss(temperature=0.07, normalize=False, reduction="all", backend=backend)(features, LABELS)
    theirs = published_supcon(features, LABELS, 0.07, base_temperature=0.07)
    torch.testing.assert_close(float(ours), theirs, rtol=1e-12, atol=1e-12)


def test_supcontrast_times_the_temperature():
    features = unit(6, 2, 8)
    rows = features.transpose(0, 1).flatten(0, 1)
    ours = weighted_supcon(rows, None, **presets.supcon_out(labels=LABELS.repeat(2), as_published=True))
    assert float(ours) == pytest.approx(published_supcon(features, LABELS, 0.1, base_temperature=1.0), rel=1e-12)


@pytest.mark.parametrize("backend", ["dense", "tiled"])
def test_pytorch_metric_learning_supcon(backend):
    rows = draw(12, 8)
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 2, 3, 4, 4, 5, 6])
    theirs = TheirSupCon(temperature=0.1)(rows, labels)
    ours = SupConLoss(temperature=0.1, backend=backend)(rows[:, None], labels)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_pytorch_metric_learning_ntxent_is_a_mean_over_pairs():
    rows, labels = draw(12, 8), torch.tensor([0, 0, 1, 1, 2, 2, 2, 3, 3, 4, 4, 4])
    theirs = NTXentLoss(temperature=0.1)(rows, labels)
    pairs = SameLabel(labels).row_sums(torch.arange(12))[0].sum()
    z = torch.nn.functional.normalize(rows, dim=1)
    settings = {"denominator": "one", "row_normalize": False, "reduction": "sum"}
    ours = weighted_supcon(z, None, SameLabel(labels), temperature=0.1, **settings) / pairs
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_clip_is_cross_entropy_over_the_other_modality():
    image, text = unit(6, 8), unit(6, 8, seed=1)
    ours = weighted_supcon(image, text, torch.eye(6, dtype=D), temperature=0.1)
    theirs = torch.nn.functional.cross_entropy(image @ text.T / 0.1, torch.arange(6))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_without_labels_views_of_a_sample_are_positives():
    features = unit(5, 2, 8)
    alone = SupConLoss()(features)
    torch.testing.assert_close(alone, SupConLoss()(features, torch.arange(5)))
    torch.testing.assert_close(alone, SupConLoss()(features, mask=torch.eye(5)))


def test_an_asymmetric_graded_mask_may_be_given():
    features, mask = unit(5, 2, 8), torch.rand(5, 5, generator=torch.Generator().manual_seed(0), dtype=D)
    dense, tiled = (SupConLoss(backend=backend)(features, mask=mask) for backend in ("dense", "tiled"))
    expected = weighted_supcon(
        features.transpose(0, 1).flatten(0, 1), None, mask.repeat(2, 2), temperature=0.1, backend="dense"
    )
    torch.testing.assert_close(dense, expected)
    torch.testing.assert_close(tiled, expected)


@pytest.mark.parametrize("kind", ["labels", "sincere", "time"])
def test_memory_grows_linearly(kind):
    def peak(n):
        z, labels = unit(n, 8).float().requires_grad_(), torch.arange(n) % 7
        seconds = torch.linspace(0, 9, n)
        affinity = SameLabel(labels) if kind != "time" else TimeKernel(seconds, group=labels, width_seconds=1.0)
        denominator = "one" if kind == "sincere" else "all"

        def step():
            loss = weighted_supcon(z, None, affinity, temperature=0.1, denominator=denominator, backend="tiled")
            loss.backward()

        with one_thread():  # each thread has sums and gradients of its own
            return peak_bytes(step)

    # Tiles are the same at every size, so twice the rows may add a kilobyte and a half a row: embeddings of width 8,
    # their gradient, and a few numbers a row. A 4096 × 4096 matrix of float32 would add 48 MiB.
    middle, large = peak(2048), peak(4096)
    assert large - middle <= 1536 * 2048, (middle, large)
    assert large <= 24 * 2**20


def test_auto_says_why():
    small = explain_backend(unit(8, 4), None, SameLabel(torch.arange(8)), temperature=0.1)
    large = explain_backend(unit(1000, 4), None, SameLabel(torch.arange(1000)), temperature=0.1)
    assert small.backend == "dense"
    assert "few enough" in small.reason
    assert large.backend == "tiled"
    assert "each pair once" in large.reason


def test_tiles_refuse_a_second_derivative_and_the_reference_gives_it():
    z, labels = unit(6, 4).requires_grad_(), torch.arange(6) // 2
    for denominator in ("all", "one"):
        settings = {"temperature": 0.5, "denominator": denominator}
        loss = weighted_supcon(z, None, SameLabel(labels), **settings, backend="tiled")
        with pytest.raises(InputError, match="create_graph=True with backend 'tiled'"):
            torch.autograd.grad(loss, z, create_graph=True)
    loss = weighted_supcon(z, None, SameLabel(labels), temperature=0.5, backend="dense")
    (first,) = torch.autograd.grad(loss, z, create_graph=True)
    first.square().sum().backward()
    assert torch.isfinite(z.grad).all()


def test_a_hidden_parameter_of_a_similarity_is_refused_by_tiles():
    w = torch.eye(4, dtype=D, requires_grad=True)
    labels = SameLabel(torch.arange(6) // 2)
    with pytest.raises(InputError, match="closes over tensors"):
        weighted_supcon(unit(6, 4), None, labels, temperature=0.5, similarity=lambda a, c: a @ w @ c.T, backend="tiled")


Z, Y = unit(6, 4), torch.arange(6) // 2
BAD = {
    "anchors `a d`": lambda: weighted_supcon(Z[None], None, SameLabel(Y), temperature=0.1),
    "torch.int64 of shape": lambda: weighted_supcon(torch.ones(6, 4).long(), None, SameLabel(Y), temperature=0.1),
    "one width": lambda: weighted_supcon(Z, Z[:, :3], SameLabel(Y), temperature=0.1),
    "6 anchors and 6 candidates": lambda: weighted_supcon(Z, None, SameLabel(Y[:4]), temperature=0.1),
    "temperature above 0": lambda: weighted_supcon(Z, None, SameLabel(Y), temperature=0.0),
    "shape \\(2,\\)": lambda: weighted_supcon(Z, None, SameLabel(Y), temperature=torch.ones(2)),
    "one device": lambda: weighted_supcon(Z, None, SameLabel(Y.to("meta")), temperature=0.1),
    "form one of out, in": lambda: weighted_supcon(Z, None, SameLabel(Y), temperature=0.1, form="outer"),
    "form='out'": lambda: weighted_supcon(Z, None, SameLabel(Y), temperature=0.1, form="in", denominator="one"),
    "self_index of 6": lambda: weighted_supcon(Z, Z.clone(), SameLabel(Y), temperature=0.1, self_index=Y + 9),
    "give the kernel a floor": lambda: weighted_supcon(
        Z, None, LabelKernel(Y.double(), width=1.0), temperature=0.1, denominator="one"
    ),
    "each positive has its own": lambda: weighted_supcon(
        Z, None, SameLabel(Y), temperature=0.1, negative_weights=HardNegatives(0.0, 0.1)
    ),
    "a positive for every anchor": lambda: weighted_supcon(
        Z, None, SameLabel(torch.arange(6)), temperature=0.1, no_positives="error"
    ),
    "features `b v d`, or `b d`": lambda: SupConLoss()(Z[0]),
    "expected positives; got one view a sample": lambda: SupConLoss()(Z),
    "6 labels, one a sample": lambda: SupConLoss()(Z[:, None], Y[:3]),
    "labels or a mask": lambda: SupConLoss()(Z[:, None], Y, torch.ones(6, 6)),
    "a mask `b b`": lambda: SupConLoss()(Z[:, None], mask=torch.ones(5, 5)),
    "concentration >= 0": lambda: HardNegatives(-1.0),
    "backend one of": lambda: weighted_supcon(Z, None, SameLabel(Y), temperature=0.1, backend="tile"),
}


@pytest.mark.parametrize("message", list(BAD))
def test_bad_input_gets_one_clear_error(message):
    with pytest.raises(InputError, match=message):
        BAD[message]()


UNKNOWN_OPTIONS = {
    "LossSettings(.|\n)*'forms'(.|\n)*did you mean 'form'": lambda: LossSettings(forms="out"),
    "supcon_out(.|\n)*'label'(.|\n)*did you mean 'labels'": lambda: presets.supcon_out(label=Y),
    "LossSettings(.|\n)*'scales'": lambda: explain_backend(Z, None, SameLabel(Y), temperature=0.1, scales="none"),
}


@pytest.mark.parametrize("message", list(UNKNOWN_OPTIONS))
def test_an_unknown_option_gets_the_nearest_name(message):
    with pytest.raises(ConfigError, match=message):
        UNKNOWN_OPTIONS[message]()


def test_float_classes_and_negative_weights_are_refused():
    with pytest.raises(InputError, match="integers"):
        SupConLoss()(Z[:, None], Y.double())
    with pytest.raises(InputError, match="finite weights >= 0"):
        weighted_supcon(Z, None, Dense(-torch.ones(6, 6)), temperature=0.1)
