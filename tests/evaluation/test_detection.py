"""Average precision against torchmetrics and a worked example; COCO files that are wrong; a detector that learns."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.ops import roi_align

import mmcon
from mmcon.errors import DataError, InputError
from mmcon.evaluation.detection import evaluate_detections
from mmcon.loading.loader import one_pass
from mmcon.models.detection import create_detector
from mmcon.sources.coco import BoxTable, open_boxes
from mmcon.sources.made_shapes import LEAST_VISIBLE, write_shapes


def table(boxes, labels, image, crowd=None, side=200, classes=("a", "b")):
    boxes = torch.tensor(boxes, dtype=torch.float32).view(-1, 4)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    crowd = torch.zeros(len(boxes), dtype=torch.bool) if crowd is None else torch.tensor(crowd)
    sizes = torch.full((max(image) + 1, 2), side)
    return BoxTable(boxes, torch.tensor(labels), torch.tensor(image), crowd, area, sizes, classes)


def found(boxes, labels, scores):
    return {"boxes": torch.tensor(boxes, dtype=torch.float32).view(-1, 4), "labels": torch.tensor(labels),
            "scores": torch.tensor(scores)}  # fmt: skip


def test_a_worked_example():
    truth = table([[0, 0, 50, 50], [100, 100, 150, 150]], [1, 1], [0, 0])
    # The best box is right at IoU 1, the second is wrong: precision 1 up to a recall of 1/2, then 0. Of 101 recalls 0,
    # .01, …, 1, those up to .5 are reached: 51.
    result = evaluate_detections({0: found([[0, 0, 50, 50], [0, 60, 50, 90]], [1, 1], [0.9, 0.8])}, truth)
    assert result.figures["AP"] == pytest.approx(51 / 101)
    assert result.by_class == {"a": pytest.approx(51 / 101)}  # the other class has no true box
    assert (result.images, result.boxes, result.found) == (1, 2, 2)
    assert "AP 0.505" in result.table()
    assert json.loads(json.dumps(result.to_json()))["true_boxes"] == 2
    assert len(result.plot().axes) == 1
    assert evaluate_detections({0: found([], [], [])}, truth).figures["AP"] == 0
    with pytest.raises(InputError, match="true boxes"):
        evaluate_detections({0: found([], [], [])}, table([[0, 0, 9, 9]], [1], [0], crowd=[True]))


def test_the_figures_agree_with_torchmetrics():
    from torchmetrics.detection import MeanAveragePrecision

    draws = mmcon.keys(seed=0, sample=range(12)).child("boxes")
    bounds = ("corner", 0.0, 120.0), ("side", 8.0, 80.0)
    corner, side = (draws.uniform(name, low, high, shape=(5, 2)) for name, low, high in bounds)
    boxes = torch.cat([corner, corner + side], 2).float()
    labels = draws.integers("label", 1, 3, shape=(5,))
    moved = boxes + draws.uniform("move", -3.5, 3.5, shape=(5, 4)).float()
    scores = draws.uniform("score", shape=(5,)).float()
    crowd = draws.uniform("crowd", shape=(5,)) < 0.2
    rows = [row for row in range(12) for _ in range(5)]
    truth = table(boxes.reshape(-1, 4).tolist(), labels.flatten().tolist(), rows, crowd.flatten().tolist())
    own = {row: {"boxes": moved[row], "labels": labels[row], "scores": scores[row]} for row in range(12)}
    result = evaluate_detections(own, truth)
    # Its own thresholds are in float32, and a recall of exactly 7/10 is above .7 then.
    thresholds = {
        "iou_thresholds": np.linspace(0.5, 0.95, 10).tolist(),
        "rec_thresholds": np.linspace(0, 1, 101).tolist(),
    }
    metric = MeanAveragePrecision(class_metrics=True, **thresholds)
    theirs = [{"boxes": boxes[i], "labels": labels[i], "iscrowd": crowd[i].long()} for i in range(12)]
    metric.update([own[row] for row in range(12)], theirs)
    expected = metric.compute()
    names = {"AP": "map", "AP50": "map_50", "AP75": "map_75", "AP_small": "map_small", "AP_medium": "map_medium",
             "AR_100": "mar_100"}  # fmt: skip
    assert {name: result.figures[name] for name in names} == {
        name: pytest.approx(float(expected[other]), abs=1e-6) for name, other in names.items()
    }
    assert list(result.by_class.values()) == pytest.approx(expected["map_per_class"].tolist(), abs=1e-6)
    assert 0.1 < result.figures["AP"] < 0.9


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    return write_shapes(write_shapes(folder, images=160, side=64), images=40, side=64, split="val")


def test_made_shapes_are_those_of_their_annotations(shapes):
    source, boxes = open_boxes(shapes, split="test")
    again = write_shapes(shapes.parent / "again", images=3, side=64, split="val") / "val" / "00002.png"
    assert again.read_bytes() == (shapes / "val" / "00002.png").read_bytes()
    assert len(source) == 40
    assert boxes.classes == ("square", "disk", "triangle")
    assert set(boxes.labels.tolist()) == {1, 2, 3}
    pixels = source.open([0])[0].decode().float()
    for x0, y0, x1, y1 in boxes.boxes[boxes.of_image(0)].long().tolist():
        inside, beyond = pixels[:, y0:y1, x0:x1], pixels[:, max(0, y0 - 9) : y1 + 9, max(0, x0 - 9) : x1 + 9]
        assert inside.shape[1] > 4
        # Shapes have one color; around them is noise.
        middle = inside[:, inside.shape[1] // 2, inside.shape[2] // 2]
        share = ((inside - middle[:, None, None]).abs().amax(0) < 1).float().mean()
        assert share > 0.4 * LEAST_VISIBLE
        assert share > ((beyond - middle[:, None, None]).abs().amax(0) < 1).float().mean()


def test_targets_are_stretched_with_their_image_and_back():
    truth = table([[10, 20, 30, 60], [0, 0, 9, 9]], [2, 1], [0, 0], crowd=[False, True])
    sizes = torch.tensor([[100, 50]])  # height, width
    truth = BoxTable(truth.boxes, truth.labels, truth.image, truth.crowd, truth.area, sizes, truth.classes)
    (target,) = truth.targets(torch.tensor([0]), size=200)
    assert target["boxes"].tolist() == [[40, 40, 120, 120]]
    assert target["labels"].tolist() == [2]
    assert truth.to_pixels(0, target["boxes"], size=200).tolist() == [[10, 20, 30, 60]]


def small_file(folder, **changes):
    """A COCO file of one image, with changes to its entries."""
    (folder / "train").mkdir(exist_ok=True)
    Image.new("RGB", (20, 10)).save(folder / "train" / "a.png")
    box = {"id": 7, "image_id": 1, "category_id": 3, "bbox": [1, 1, 5, 5], **changes.get("box", {})}
    image = {"id": 1, "file_name": "a.png", "width": 20, "height": 10, **changes.get("image", {})}
    content = {"images": [image], "annotations": [box], "categories": [{"id": 3, "name": "cat"}]}
    content |= changes.get("content", {})
    (folder / "train.json").write_text(changes.get("text") or json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": "{"}, "JSON"),
        ({"content": {"annotations": []}}, "none of them empty"),
        ({"content": {"images": {}}}, "lists of images"),
        ({"box": {"image_id": 9}}, "image_id among the 1.*annotation 7"),
        ({"box": {"category_id": "dog"}}, "category_id among the 1.*'dog'"),
        ({"box": {"bbox": [1, 1, 5]}}, "four numbers"),
        ({"box": {"bbox": [1, 1, None, 5]}}, "four numbers"),
        ({"box": {"bbox": [1, 1, 0, 5]}}, "with an area.*annotation 7"),
        ({"box": {"bbox": [1, 1, 40, 5]}}, "inside of their image"),
        ({"image": {"width": 10, "height": 20}}, "20 × 10.*10 × 20"),
        ({"image": {"file_name": "b.png"}}, "1 of 1 missing, such as 'b.png'"),
        ({"content": {"categories": [{"id": 3, "name": "a"}, {"id": 3, "name": "b"}]}}, "id 3 repeated"),
        ({"content": {"categories": [{"id": 3}]}}, "'name' in every such entry"),
        ({"box": {"image_id": [1]}}, r"a number or a text as 'image_id'; got \[1\]"),
        ({"box": {"category_id": {"id": 3}}}, "a number or a text as 'category_id'"),
        ({"image": {"id": [1]}}, "a number or a text as 'id'"),
        ({"box": {"area": "x"}}, "areas as numbers.*'x'"),
        ({"box": {"area": [4]}}, "areas as numbers"),
    ],
)
def test_a_wrong_file_is_one_clear_error(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        open_boxes(small_file(tmp_path, **changes))


def test_a_right_file_opens_and_a_missing_split_is_named(tmp_path):
    source, boxes = open_boxes(small_file(tmp_path))
    assert (len(source), boxes.boxes.tolist(), boxes.labels.tolist()) == (1, [[1, 1, 6, 6]], [1])
    with pytest.raises(DataError, match=r"split 'test'.*train\.json"):
        open_boxes(tmp_path, split="test")
    with pytest.raises(DataError, match="no such folder"):
        open_boxes(tmp_path / "nowhere")


class Patches(torch.nn.Module):
    """An encoder with maps of stride 14 and 28, which are no powers of two."""

    in_channels = 3

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Conv2d(3, 4, 14, 14), torch.nn.Conv2d(4, 8, 2, 2)

    def feature_maps(self, images):
        first = self.first(images)
        return [first, self.second(first)]


def test_regions_of_a_detector_are_cut_at_the_strides_of_its_maps():
    detector = create_detector(Patches(), classes=2, image_size=112, width=8)
    regions = detector.roi_heads.box_roi_pool
    draws = mmcon.keys(seed=0, sample=[0])
    maps = {"0": draws.uniform("fine", shape=(8, 8, 8)).float(), "1": draws.uniform("coarse", shape=(8, 4, 4)).float()}
    # The coarser map is for boxes of 448 pixels and more (224 is the fourth level from stride 1 on).
    small, large = [14.0, 28.0, 44.0, 70.0], [0.0, 0.0, 450.0, 450.0]
    found = regions(maps, [torch.tensor([small, large])], [(112, 112)])
    assert list(regions.scales) == [1 / 14, 1 / 28]
    for cut, name, box, stride in zip(found, maps, (small, large), (14, 28), strict=True):
        expected = roi_align(maps[name], [torch.tensor([box])], 7, 1 / stride, sampling_ratio=2)[0]
        torch.testing.assert_close(cut, expected)


@pytest.mark.slow
def test_a_detector_learns_boxes_but_not_those_of_other_images(shapes):
    """AP on held-out images: of the true boxes far above those of shuffled images, and above a detector untrained."""
    (train, boxes), (test, truth) = open_boxes(shapes), open_boxes(shapes, split="test")
    views = {"image": [mmcon.create_view("image/resize", size=64, stretch=True)]}
    batches = list(one_pass(train, views, batch_size=8))
    few = {"rpn_pre_nms_top_n_train": 100, "rpn_post_nms_top_n_train": 40, "box_batch_size_per_image": 16,
           "rpn_post_nms_top_n_test": 30, "box_detections_per_img": 10}  # fmt: skip

    def average_precision(epochs, shift):
        torch.manual_seed(0)
        encoder = mmcon.create_encoder("mmcon/resnet-tiny", width=16, image_size=64)
        detector = create_detector(encoder, classes=3, image_size=64, width=32, **few)
        optimizer = torch.optim.AdamW(detector.parameters(), lr=2e-3)
        for _ in range(epochs):
            for batch in batches:
                rows = (batch.index["image"]["row"] + shift) % len(train)
                losses = detector([*batch.views["image"][0]], boxes.targets(rows, size=64))
                optimizer.zero_grad()
                sum(losses.values()).backward()
                optimizer.step()
        detector.eval()
        with torch.no_grad():
            predicted = {}
            for batch in one_pass(test, views, batch_size=8):
                rows = batch.index["image"]["row"].tolist()
                predicted |= dict(zip(rows, detector([*batch.views["image"][0]]), strict=True))
        return evaluate_detections(predicted, truth).figures["AP50"]

    learned, shuffled, untrained = average_precision(8, 0), average_precision(2, 1), average_precision(0, 0)
    print(f"AP50 {learned:.3f}, of shuffled images {shuffled:.3f}, untrained {untrained:.3f}")
    assert learned > 0.2
    assert max(shuffled, untrained) < 0.05
