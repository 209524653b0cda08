"""The detection recipe on few made images: it trains from a trained model, evaluates, saves, and refuses bad input."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import mmcon
from mmcon.errors import ConfigError
from mmcon.models.detection import create_detector

RECIPE = Path(__file__).parents[2] / "recipes" / "detection_transfer.py"


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location("detection_under_test", RECIPE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.mark.slow
def test_the_recipe_trains_on_a_saved_model_and_leaves_its_figures(recipe, tmp_path):
    torch.manual_seed(0)
    model = mmcon.ContrastiveModel({"image": mmcon.create_encoder("mmcon/resnet-tiny", width=8)}, {})
    views, source = {"image": [mmcon.create_view("image/plain", size=32)]}, mmcon.create_source("samples/emoji")
    saved = mmcon.inference.save_model(model, tmp_path / "model", views=views, source=source)
    settings = {"image_size": 64, "pyramid_width": 16, "train_images": 24, "batch_size": 4, "max_steps": 4}
    run = {"cpu": True, "tiny": True, "output_dir": tmp_path / "run"}
    recipe.main(recipe.Config(model=str(saved), **settings, **run))
    figures = json.loads((tmp_path / "run" / "results.json").read_text())
    assert 0 <= figures["AP"] <= figures["AP50"] <= 1
    assert (figures["images"], set(figures["ap_by_class"])) == (60, {"square", "disk", "triangle"})
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    parts = ("classifier", "box_reg", "objectness", "rpn_box_reg")
    assert lines[0]["loss"] == pytest.approx(sum(lines[0][name] for name in parts), rel=1e-3)
    # The weights load into the detector of the same settings, and the batch norms are those of the model.
    encoder = mmcon.create_encoder("mmcon/resnet-tiny", width=8)
    detector = create_detector(encoder, classes=3, image_size=64, width=16)
    detector.load_state_dict(load_file(tmp_path / "run" / "detector.safetensors"))
    for name, value in model.encoders["image"].state_dict().items():
        if "running" in name:
            assert torch.equal(encoder.state_dict()[name], value)


def test_mirrored_images_have_mirrored_boxes(recipe):
    from mmcon.batch import Index, ViewBatch
    from mmcon.sources.coco import BoxTable

    sizes, box = torch.full((40, 2), 8), torch.tensor([[1.0, 2.0, 3.0, 7.0]])
    rows = torch.arange(40)
    crowd = torch.zeros(40, dtype=torch.bool)
    table = BoxTable(box.repeat(40, 1), torch.ones(40).long(), rows, crowd, torch.ones(40), sizes, ("a",))
    images = torch.zeros(40, 3, 8, 8)
    images[:, :, 2:7, 1:3] = 1
    index = Index({"epoch": rows * 0, "sample": rows, "occurrence": rows * 0, "view": rows * 0, "row": rows})
    batch = ViewBatch({"image": (images,)}, {"image": index}, step=0)
    flipped, targets = recipe.flipped(batch, table, recipe.Config(image_size=8))
    for image, target in zip(flipped, targets, strict=True):
        x0, y0, x1, y1 = target["boxes"][0].long().tolist()
        assert image.sum() == image[:, y0:y1, x0:x1].sum() == 30
    assert 8 < sum(bool(target["boxes"][0, 0] == 5) for target in targets) < 32


def test_splits_with_other_categories_are_refused(recipe, tmp_path):
    from mmcon.sources.made_shapes import write_shapes

    write_shapes(write_shapes(tmp_path, images=4, side=32), images=4, side=32, split="val")
    content = json.loads((tmp_path / "val.json").read_text())
    content["categories"][0]["name"] = "cube"
    (tmp_path / "val.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="cube"):
        recipe.main(recipe.Config(data=str(tmp_path), output_dir=tmp_path / "run", cpu=True))
