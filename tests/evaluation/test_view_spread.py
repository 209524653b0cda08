"""The spread of views, on cases whose figures follow by hand."""

import math

import pytest
import torch

import mmcon
from mmcon import cli
from mmcon.errors import InputError
from mmcon.evaluation.view_spread import measure_spread, plot_spread, score_view
from mmcon.models.encoders import create_encoder
from mmcon.registry import create_view


def test_orthogonal_samples_with_equal_views():
    # Four samples on four axes: views coincide (0), samples are at squared distance 2, all recognized. At temperature T
    # the loss is log(1 + 3 e^{−1/T}).
    features = torch.eye(4)[:, None].expand(4, 2, 4)
    spread = measure_spread(features, torch.tensor([0, 0, 1, 1]), temperature=0.5)
    assert math.isclose(spread.within_sample, 0, abs_tol=1e-12)
    assert spread.within_class == spread.between_classes == 2
    assert math.isclose(spread.infonce_bound_nats, math.log(4) - math.log(1 + 3 * math.exp(-2)), abs_tol=1e-9)
    assert spread.recognition_rate == 1


def test_equal_features_share_no_information():
    spread = measure_spread(torch.ones(5, 2, 3))
    assert math.isclose(spread.infonce_bound_nats, 0, abs_tol=1e-9)
    assert spread.within_class is None


def test_stronger_views_spread_further():
    g = torch.Generator().manual_seed(0)
    x = torch.nn.functional.interpolate(torch.rand(24, 3, 5, 5, generator=g), (32, 32), mode="bilinear")
    ids, labels = torch.arange(24), torch.arange(24) % 3
    spreads = {
        name: score_view(create_view(name, size=24), x, ids=ids, labels=labels)
        for name in ("image/plain", "image/simclr")
    }
    assert math.isclose(spreads["image/plain"].within_sample, 0, abs_tol=1e-6)
    assert spreads["image/simclr"].within_sample > 0.1
    assert spreads["image/simclr"].infonce_bound_nats < spreads["image/plain"].infonce_bound_nats
    assert "InfoNCE bound" in spreads["image/simclr"].table()
    assert len(plot_spread(spreads).axes[0].get_yticklabels()) == 2


def test_one_sample_is_refused():
    with pytest.raises(InputError, match="two samples"):
        measure_spread(torch.ones(1, 2, 3))


def test_the_command_scores_views_in_pixels_and_in_an_encoder(tmp_path, capsys):
    model = mmcon.ContrastiveModel(
        {"image": create_encoder("mmcon/resnet-tiny", image_size=28, in_channels=1)},
        {"shared": mmcon.SharedSpace(dim=8)},
    )
    model.save_pretrained(tmp_path / "model")
    words = ["views", "score", "image/plain", "image/simclr", "--samples", "32", "--output", str(tmp_path / "s.png")]
    tables = []
    for more in ([], ["--encoder", str(tmp_path / "model")], ["--option", "strength=0.1"]):
        assert cli.main([*words, *more]) == 0
        out = capsys.readouterr().out
        assert out.startswith("| | image/plain | image/simclr |")
        assert (tmp_path / "s.png").stat().st_size > 1000
        tables.append(out)
    assert len(set(tables)) == 3
    for wrong, told in (
        (["views", "score"], "views to score"),
        (["views", "score", "audio/gain"], "views of images"),
        (["views", "score", "image/plain", "--samples", "1"], "two samples or more"),
        (["views", "score", "image/plain", "--option", "strenght=1"], "strenght"),
        (["views", "score", "image/plian"], "image/plain"),
    ):
        assert cli.main(wrong) == 2
        assert told in capsys.readouterr().err
