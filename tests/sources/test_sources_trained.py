"""Each kind of source is trained from by a real run, on bundled images that are written out in its layout."""

import io
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from torchvision.io import encode_png

import mmcon
from mmcon.affinity import SameLabel
from mmcon.errors import DataError
from mmcon.loading.loader import ViewLoader
from mmcon.loading.streaming import StreamLoader
from mmcon.models.contrastive_model import ContrastiveModel
from mmcon.models.encoders import create_encoder
from mmcon.models.shared_spaces import SharedSpace
from mmcon.objective.objective import Objective
from mmcon.operations import doctor
from mmcon.samplers.uniform import UniformSampler
from mmcon.sources.base import DatasetSource, class_counts
from mmcon.sources.bundled.fashion_images import fashion
from mmcon.sources.factory import create_source, source_name
from mmcon.sources.streaming import Stream
from mmcon.training.optim import create_optimizer
from mmcon.training.run import Run, RunSettings

STEPS = 8


@pytest.fixture(scope="module")
def images():
    """Ninety of the bundled images of three classes: name, PNG bytes, label, class name, pixels."""
    source = fashion("test")
    rows = torch.cat([(source.labels == label).nonzero()[:30, 0] for label in range(3)])
    rows = rows[torch.randperm(90, generator=torch.Generator().manual_seed(0))].tolist()
    names = ["shirts", "trousers", "pullovers"]
    return [
        {
            "id": f"row-{row:04d}",
            "image": bytes(encode_png(source.values[row]).numpy().tobytes()),
            "label": int(source.labels[row]),
            "name": names[int(source.labels[row])],
            "pixels": source.values[row],
            "split": "train" if i < 60 else "val",
        }
        for i, row in enumerate(rows)
    ]


def write_folder(root, images):
    for p in images:
        place = root / p["split"] / p["name"]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{p['id']}.png").write_bytes(p["image"])
    return root


def write_shards(root, images):
    root.mkdir()
    for split in ("train", "val"):
        with tarfile.open(root / f"{split}-000.tar", "w") as archive:
            for p in (p for p in images if p["split"] == split):
                for suffix, data in (("png", p["image"]), ("cls", str(p["label"]).encode())):
                    member = tarfile.TarInfo(f"{p['id']}.{suffix}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    return root


def write_tables(root, images):
    (root / "data").mkdir(parents=True)
    features = {"id": {"_type": "Value", "dtype": "string"}, "image": {"_type": "Image"}}
    features["label"] = {"_type": "ClassLabel", "names": ["shirts", "trousers", "pullovers"]}
    for split, name in (("train", "train"), ("val", "validation")):
        rows = [
            {"id": p["id"], "image": {"bytes": p["image"], "path": None}, "label": p["label"]}
            for p in images
            if p["split"] == split
        ]
        about = {"huggingface": json.dumps({"info": {"features": features}})}
        table = pa.Table.from_pylist(rows).replace_schema_metadata(about)
        parquet.write_table(table, root / "data" / f"{name}-00000-of-00001.parquet", row_group_size=16)
    return root


def write_manifest(root, images, suffix):
    write_folder(root, images)
    rows = [
        {"file": f"{p['split']}/{p['name']}/{p['id']}.png", "class": p["name"], "split": p["split"]} for p in images
    ]
    path = root / f"list.{suffix}"
    if suffix == "csv":
        path.write_text("\n".join(["file,class,split", *(",".join(row.values()) for row in rows)]) + "\n")
    elif suffix == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        parquet.write_table(pa.Table.from_pylist(rows), path)
    return path


def write(kind, root, images):
    if kind in ("csv", "jsonl", "parquet"):
        return write_manifest(root, images, kind)
    return {"folder": write_folder, "shards": write_shards, "tables": write_tables}[kind](root, images)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def views():
    return {"image": [mmcon.create_view("image/random-resized-crop", size=28)] * 2}


def losses(folder, loader, resume=False, max_steps=None):
    """The losses of a run of a few steps of SupCon, as its log has them."""
    settings = RunSettings(epochs=STEPS // len(loader), max_steps=max_steps, log_every=1, checkpoint_every=2)
    run = Run(folder, seed=0, settings=settings, cpu=True, resume=resume)
    model = ContrastiveModel(
        {"image": create_encoder("mmcon/resnet-tiny", width=8)}, {"shared": SharedSpace(dim=16, head="linear")}
    )
    objective = Objective(affinity=SameLabel(), temperature=0.5)
    trained = run.prepare(model, create_optimizer(model, "adamw", learning_rate=3e-3), objective=objective)
    for batch in run.batches(loader):
        run.step(objective(trained(batch), batch))
    run.close()
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


KINDS = {
    "folder": "folder/image",
    "shards": "shards/image",
    "tables": "hub/image",
    "csv": "table/image",
    "jsonl": "table/image",
    "parquet": "table/image",
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_source_is_trained_from(kind, tmp_path, images):
    path = write(kind, tmp_path / "data", images)
    assert source_name(str(path)) == KINDS[kind]
    train, test = (create_source(path, split=split) for split in ("train", "test"))
    assert (len(train), len(test)) == (60, 30)
    assert sorted(class_counts(train).tolist()) == sorted(
        sum(p["label"] == c and p["split"] == "train" for p in images) for c in range(3)
    )
    seen = losses(
        tmp_path / "run", ViewLoader(train, views(), UniformSampler(train.ids, batch_size=60, seed=0), seed=0)
    )
    assert len(seen) == STEPS
    assert seen[-1] < seen[0] - 0.05


def test_a_torch_dataset_is_trained_from(tmp_path, images):
    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return len(images)

        def __getitem__(self, i):
            return images[i]["pixels"], images[i]["label"]

    source = DatasetSource(Rows(), labels=torch.tensor([p["label"] for p in images]))
    # The images are grey, which the encoder repeats to colour.
    loader = ViewLoader(source, views(), UniformSampler(source.ids, batch_size=90, seed=0), seed=0)
    seen = losses(tmp_path / "run", loader)
    assert seen[-1] < seen[0] - 0.05


@pytest.mark.parametrize("kind", ["tables", "shards"])
def test_a_stream_is_trained_from_and_resumed(kind, tmp_path, images):
    path = write(kind, tmp_path / "data", images)

    def loader():
        if kind == "tables":
            stream = Stream.from_hub(path, split="train")
        else:
            files = {"train": [str(path / "train-000.tar")]}
            stream = Stream.from_hub("webdataset", data_files=files, media_column="png", label_column="cls")
        return StreamLoader(stream, views(), batch_size=30, steps_per_epoch=2, seed=0, buffer=40)

    whole = losses(tmp_path / "whole", loader())
    assert len(whole) == STEPS
    assert sum(whole[-2:]) < sum(whole[:2]) - 0.05
    losses(tmp_path / "parts", loader(), max_steps=3)
    assert losses(tmp_path / "parts", loader(), resume=True) == whole


def test_folders_of_videos_and_sounds_find_their_sources(tmp_path):
    for name, suffix in (("clips", "mp4"), ("sounds", "wav"), ("photos", "jpg")):
        (tmp_path / name / "a").mkdir(parents=True)
        for i in range(3):
            (tmp_path / name / "a" / f"{i}.{suffix}").write_bytes(b"")
        (tmp_path / name / "notes.txt").write_text("x")
    kinds = {name: source_name(str(tmp_path / name)) for name in ("clips", "sounds", "photos")}
    assert kinds == {"clips": "folder/video", "sounds": "folder/audio", "photos": "folder/image"}
    with pytest.raises(DataError, match=r"clips|0\.mp4"):
        create_source(tmp_path / "clips")


@pytest.mark.parametrize("kind", ["folder", "shards", "tables"])
def test_the_doctor_knows_the_usual_layouts(kind, tmp_path, images):
    path = write(kind, tmp_path / "data", images)
    found = {finding.subject: finding for finding in doctor.data(str(path))}
    assert {f.level for f in found.values()} == {"good"}, [str(f) for f in found.values()]
    assert "30 samples" in found["held-out split"].message
    assert "3 classes" in found["classes"].message
    assert found["image files"].message.startswith("0 of 60")


def test_the_doctor_names_rows_that_are_in_both_parts(tmp_path, images):
    rows = [{"id": p["id"], "image": p["image"], "label": p["label"], "split": p["split"]} for p in images]
    rows += [{**row, "split": "val"} for row in rows[:4]]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "all.parquet")
    found = {finding.subject: finding for finding in doctor.data(str(tmp_path / "all.parquet"))}
    assert found["held-out split"].level == "bad"
    assert "4 of which are training samples too" in found["held-out split"].message
