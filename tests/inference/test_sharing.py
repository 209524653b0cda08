"""Sharing: upload to a stand-in of the hub, download by revision, the card, and one error for what cannot be."""

import json
import shutil

import pytest
import torch
import yaml
from hub_server import TOKEN, Hub, serve
from huggingface_hub import ModelCard, constants
from inference_cases import image_model, save_pictures

import mmcon
from mmcon import cli
from mmcon.errors import CheckpointError, DataError, InputError
from mmcon.evaluation.calibrated_probe import fit_calibrated_probe
from mmcon.inference import export_model, push_to_hub
from mmcon.inference.any_data import open_data
from mmcon.inference.model_card import _without_folders, model_card


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub of this test, with an empty cache; a token is known."""
    hub = Hub()
    with serve(hub) as address:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield hub


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run whose model has a probe."""
    folder = tmp_path_factory.mktemp("runs") / "photos"
    pictures = folder.parent / "pictures"
    save_pictures(pictures)
    model = mmcon.load(image_model(folder / "model"))
    features = model.encode_source(open_data(model, pictures), normalize=False, show_progress=False)
    fit_calibrated_probe(features, ("a", "b"), l2=1e-6).save(folder / "model", "image")
    config = {"objective": "supcon", "temperature": 0.1, "data": "samples/fashion", "epochs": 30, "seed": 3}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    results = {"linear_probe": {"top1": 0.8125, "top5": 1.0}, "linear_probe_top1_interval": [0.75, 0.875]}
    results |= {"random_encoder": {"linear_probe_top1": 0.5}, "warnings": ["few <b>held-out</b> samples"]}
    (folder / "results.json").write_text(json.dumps(results))
    program = ["/opt/secret/bin/python", "imagenet_supcon.py", "--data", "/home/someone/photos", "--note", "a | b"]
    view = {"modality": "image", "views": [0, 1], "made by": "Chain(crop=RandomResizedCrop(size=(28, 28)))"}
    about = {"program": program, "seed": 3, "source": "1000 samples of samples/fashion (train)", "views": [view]}
    (folder / "run.json").write_text(json.dumps(about | {"world_size": 1, "versions": {"torch": "2.11.0"}}))
    return folder


def test_a_pushed_run_is_loaded_by_its_revision_with_its_probe(hub, run, tmp_path):
    commit = push_to_hub(run, "someone/photos", license="apache-2.0")
    card = ModelCard(hub.files("someone/photos", "main")[1]["README.md"].decode())
    assert (card.data.license, card.data.library_name) == ("apache-2.0", "mmcon")
    assert "# photos\n\nAn encoder of images, trained" in card.text
    assert 'mmcon.load("someone/photos")' in card.text
    own, other = mmcon.load(run), mmcon.load(image_model(tmp_path / "other", channels=1))
    other.push_to_hub("someone/photos")
    assert mmcon.load("someone/photos").fingerprint == other.fingerprint
    shared = mmcon.load("someone/photos", revision=commit.oid)
    assert shared.fingerprint == own.fingerprint
    assert shared.classes == ("a", "b")
    pictures = sorted((run.parent / "pictures").rglob("*.png"))
    torch.testing.assert_close(*(m.encode(pictures, show_progress=False) for m in (shared, own)))
    # The copy of a model without its run keeps the card that it came with.
    shared.save_pretrained(tmp_path / "copy")
    assert ModelCard.load(tmp_path / "copy" / "README.md").data.license == "apache-2.0"


def test_the_command_pushes_an_export_which_mmcon_and_timm_load(hub, tmp_path, capsys):
    import timm

    model = mmcon.inference.load_encoder("timm/test_resnet", pretrained=False)
    export_model(model, "timm", tmp_path / "out")
    words = ["push", str(tmp_path / "out"), "someone/tiny", "--license", "mit", "--json"]
    assert cli.main(words) == 0
    told = json.loads(capsys.readouterr().out)
    again = mmcon.load("someone/tiny", revision=told["revision"])
    images = torch.rand(2, 3, 160, 160)
    expected = model.encode(images, normalize=False, show_progress=False)
    torch.testing.assert_close(again.encode(images, normalize=False, show_progress=False), expected)
    network = timm.create_model("hf-hub:someone/tiny", pretrained=True)
    assert network.num_classes == 0
    assert ModelCard(hub.files("someone/tiny", "main")[1]["README.md"].decode()).data.license == "mit"


def test_what_cannot_be_reached_is_one_error(hub, run, monkeypatch):
    with pytest.raises(CheckpointError, match=r"no model 'someone/none' that this token may read"):
        mmcon.load("someone/none")
    hub.repositories["someone/photos"] = [("0" * 40, {})]
    with pytest.raises(CheckpointError, match=r"no revision 'v9' of 'someone/photos'"):
        mmcon.load("someone/photos", revision="v9")
    with pytest.raises(InputError, match=r"a name such as owner/photos; got 'a/b/c'"):
        push_to_hub(run, "a/b/c")
    monkeypatch.setenv("HF_TOKEN", "another")
    with pytest.raises(
        DataError, match=r"push_to_hub\('someone/new'\)[\s\S]*a token that may write[\s\S]*401[\s\S]*hf auth"
    ):
        push_to_hub(run, "someone/new")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"push_to_hub\('someone/new'\)[\s\S]*no network"):
        push_to_hub(run, "someone/new")
    with pytest.raises(CheckpointError, match="no network"):
        mmcon.load("someone/none")


def test_the_card_has_data_settings_views_figures_and_how_to_repeat_them(run):
    card = model_card(mmcon.load(run), license="mit")
    metadata = yaml.safe_load(card.content.split("---\n")[1])
    assert metadata["tags"] == ["mmcon", "contrastive-learning", "image"]
    (result,) = [r for r in card.data.eval_results if r.metric_type == "linear_probe_top-1"]
    assert (result.dataset_name, result.metric_value) == ("samples/fashion", 0.8125)
    for text in (
        "# photos",
        'model = mmcon.load("owner/name")',
        "| license of samples/fashion | MIT (Zalando SE, 2017)",
        "| objective | supcon |",
        "| views of image | `Chain(crop=RandomResizedCrop(size=(28, 28)))` |",
        "| linear probe top-1 | 0.812 (0.750 to 0.875) | 0.500 |",
        "- few &lt;b>held-out&lt;/b> samples",
        "python imagenet_supcon.py --data photos --note 'a | b'",
        "| seed | 3 |",
        "| torch | 2.11.0 |",
        "| probe of image | 2 classes |",
    ):
        assert text in card.text, text
    assert "someone" not in card.content
    assert "secret" not in card.content


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("read from file:///home/someone/photos/a.jpg", "read from a.jpg"),
        ("file://server/home/someone/a.jpg", "a.jpg"),
        (r"Crop(path='C:\\Users\\Some One\\a.jpg')", "Crop(path='a.jpg')"),
        (r"--data=C:\Users\someone\photos", "--data=photos"),
        (r"\\server\someone\photos", "photos"),
        ("Crop(path=PosixPath('/home/some one/my photos/a b.jpg'))", "Crop(path=PosixPath('a b.jpg'))"),
        ("/home/some one/photos, and ~someone/clips", "photos, and clips"),
        # What is no path from the root stays.
        ("someone/photos: 3 of 4, 1/2 and/or https://host/a/b", "someone/photos: 3 of 4, 1/2 and/or https://host/a/b"),
    ],
)
def test_folders_of_the_machine_are_not_on_the_card(text, shown):
    assert _without_folders(text) == shown


def test_only_data_of_the_hub_are_named_as_such(run, tmp_path):
    """A folder `someone/photos` of the machine that trained the model looks like a name of the hub."""
    run = shutil.copytree(run, tmp_path / "photos")
    about, config = json.loads((run / "run.json").read_text()), (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("samples/fashion", "someone/photos"))
    card = model_card(mmcon.load(run))
    assert card.data.datasets is None
    assert {of.dataset_name for of in card.data.eval_results} == {"photos"}
    about["source"] = "someone/photos (train): 9 image samples\n  data set of the hub: someone/photos"
    (run / "run.json").write_text(json.dumps(about))
    card = model_card(mmcon.load(run))
    assert card.data.datasets == ["someone/photos"]
    assert {of.dataset_name for of in card.data.eval_results} == {"someone/photos"}


def test_a_source_of_the_hub_says_so(monkeypatch, tmp_path):
    import datasets

    rows = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [0, 1, 0]})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.DatasetDict({"train": rows}))
    monkeypatch.chdir(tmp_path)
    note = "data set of the hub: someone/texts"
    assert note in mmcon.create_source("someone/texts", modality="text").describe()
    (tmp_path / "someone" / "texts").mkdir(parents=True)
    rows.to_parquet("someone/texts/train.parquet")
    assert note not in mmcon.create_source("someone/texts", modality="text").describe()


def test_the_card_of_a_model_without_its_run_says_so(tmp_path):
    card = model_card(mmcon.load(image_model(tmp_path / "tiny")))
    assert "without the run folder" in card.text
    assert card.data.eval_results is None
    foreign = model_card(mmcon.inference.load_encoder("timm/test_resnet", pretrained=False))
    assert "contrastive" not in foreign.content
