"""`mmcon.load`: rows of files, arrays and texts are those of the evaluation, whatever their form, batch and workers."""

import shutil
from fnmatch import fnmatch

import numpy as np
import pytest
import torch
from inference_cases import image_model, image_text_model, save_pictures
from PIL import Image

import mmcon
from mmcon.errors import CheckpointError, DataError, InputError, check_whole
from mmcon.evaluation.features import extract_features
from mmcon.inference import UnreadableWarning, load_encoder
from mmcon.inference.embedding_parts import embed_source
from mmcon.inference.model_evaluation import evaluate_model
from mmcon.inference.search import query_modality
from mmcon.loading.loader import one_pass
from mmcon.sources.base import TensorSource


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("inference")
    image_model(path / "image")
    return path


@pytest.fixture(scope="module")
def paths(folder):
    return save_pictures(folder / "noise")


@pytest.fixture(scope="module")
def model(folder):
    return mmcon.load(folder / "image")


@pytest.fixture(scope="module")
def both(folder):
    return mmcon.load(image_text_model(folder / "both"))


def test_rows_are_those_of_the_evaluation_of_the_same_files(model, paths):
    source = mmcon.create_source(paths[0].parent.parent, modality="image", split="all", check="none")
    view = mmcon.create_view("image/plain", size=16)
    expected = extract_features(model.model, one_pass(source, {"image": [view]}))
    rows = {source.name_of(row): row for row in range(len(source))}
    order = [rows[str(path)] for path in paths]
    found = model.encode(paths, normalize=False, show_progress=False)
    assert torch.equal(found, expected.values[order])
    encoded = model.encode_source(source, normalize=False, show_progress=False)
    assert torch.equal(encoded.values, expected.values)
    assert torch.equal(encoded.index["sample"], source.ids)
    assert encoded.metadata["fingerprint"] == model.fingerprint


def test_rows_depend_neither_on_the_batch_size_nor_on_workers(model, paths):
    whole = model.encode(paths)
    torch.testing.assert_close(model.encode(paths, batch_size=2), whole, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(model.encode(paths, batch_size=2, num_workers=2), whole, atol=1e-6, rtol=1e-5)


def test_all_forms_of_an_image_have_the_same_row(model, paths):
    expected = model.encode(paths)
    images = [Image.open(path) for path in paths]
    arrays = [np.asarray(image) for image in images]
    handles = [mmcon.media.ImageHandle(path) for path in paths]
    tensors = [torch.from_numpy(array.copy()).permute(2, 0, 1) for array in arrays]
    forms = [[str(path) for path in paths], [p.read_bytes() for p in paths], images, arrays, tensors, handles]
    for form in forms:
        assert torch.equal(model.encode(form), expected), type(form[0])
    assert torch.equal(model.encode(paths[2]), model.encode(paths[2:3]))
    # Floats are not rounded to bytes on the way to the size of the views.
    for floats in ([tensor / 255 for tensor in tensors], [array / np.float32(255) for array in arrays]):
        torch.testing.assert_close(model.encode(floats), expected, atol=0.01, rtol=0)
    stack = model.encode(np.stack(arrays))
    torch.testing.assert_close(stack, expected, atol=0.01, rtol=0)
    assert torch.equal(model.encode(torch.stack(tensors)), stack)


def test_pillow_image_with_an_orientation_is_encoded_as_its_file_and_stays_unchanged(model, tmp_path):
    pixels = torch.randint(256, (40, 60, 3), generator=torch.Generator().manual_seed(1)).byte().numpy()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    image = Image.open(tmp_path / "turned.png")
    assert torch.equal(model.encode(image), model.encode(tmp_path / "turned.png"))
    assert image.size == (60, 40)


def test_gray_images_and_floats_of_one_channel_are_repeated(model):
    gray = torch.randint(256, (16, 16), generator=torch.Generator().manual_seed(2)).byte()
    expected = model.encode(gray[None].expand(3, -1, -1))
    for form in (gray.numpy(), gray[None], gray[None] / 255, gray.numpy() / 255):
        torch.testing.assert_close(model.encode(form), expected, atol=1e-6, rtol=1e-5)


def test_embeddings_of_a_space_truncated_dimensions_and_numpy(model, paths):
    embeddings = model.encode(paths, space="shared", output="numpy")
    assert isinstance(embeddings, np.ndarray)
    assert embeddings.shape == (5, 8) == (5, model.embedding_dim("image", "shared"))
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-6)
    raw = model.encode(paths, normalize=False)
    assert raw.shape[1] == model.embedding_dim("image")
    cut = model.encode(paths, truncate_dim=4)
    torch.testing.assert_close(cut, torch.nn.functional.normalize(raw[:, :4], dim=1))
    with pytest.raises(InputError, match=r"truncate_dim from 1 to 8.*got 9"):
        model.encode(paths, space="shared", truncate_dim=9)
    with pytest.raises(InputError, match=r"a space of 'image'.*'share'[\s\S]*did you mean 'shared'"):
        model.encode(paths, space="share")


def test_similarity_is_the_cosine_of_every_two_rows(model):
    a, b = torch.tensor([[3.0, 4.0]]), np.array([[6.0, 8.0], [4.0, -3.0], [-3.0, -4.0]])
    torch.testing.assert_close(model.similarity(a, b), torch.tensor([[1.0, 0.0, -1.0]]))
    with pytest.raises(InputError, match=r"one width.*\(1, 2\) and \(1, 3\)"):
        model.similarity(a, torch.ones(1, 3))


def test_unreadable_inputs_are_named_counted_and_left_out(model, paths, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(paths[0].read_bytes()[:200])
    with pytest.warns(
        UnreadableWarning, match=r"2 of 7 inputs[\s\S]*input 1: .*broken\.png[\s\S]*input 5: .*missing\.png"
    ) as caught:
        rows = model.encode([paths[0], broken, *paths[1:4], tmp_path / "missing.png", paths[4]])
    assert torch.equal(rows, model.encode(paths))
    warning = next(w.message for w in caught if isinstance(w.message, UnreadableWarning))
    assert warning.rows == [1, 5]
    assert "missing.png" in warning.reasons[5]
    with pytest.raises(DataError, match=r"broken.png"):
        model.encode(broken)


def test_texts_and_files_are_told_apart_in_a_model_of_both(both, paths):
    texts = both.encode(["a cat", "a dog"], space="shared")
    assert texts.shape == (2, 8)
    assert not torch.equal(texts[0], texts[1])
    assert torch.equal(both.encode([str(paths[0])], space="shared"), both.encode(paths[0], space="shared"))
    assert torch.equal(both.encode(str(paths[0]), modality="text"), both.encode([str(paths[0])], modality="text"))
    with pytest.raises(InputError, match=r"one modality.*1 of image, 1 of text|one modality.*1 of text, 1 of image"):
        both.encode([paths[0], "a cat"])
    with pytest.raises(InputError, match=r"a modality of the model, \['image', 'text'\]; got modality 'audio'"):
        both.encode("tone.wav", modality="audio")


def test_inputs_of_no_known_kind_are_one_error(model):
    for wrong, message in (([], "an empty list"), ({"a": 1}, "dict"), (7, "int"), ([7], "int")):
        with pytest.raises(InputError, match=f"got {message}"):
            model.encode(wrong)
    with pytest.raises(InputError, match=r"unsigned integers or floats.*int64"):
        model.encode(torch.zeros(3, 8, 8, dtype=torch.int64))
    with pytest.raises(InputError, match=r"a float image of 3 channels, or of one.*\(4, 8, 8\)"):
        model.encode(torch.zeros(4, 8, 8))


def test_folder_of_files_is_opened_as_data(model, paths):
    folder = paths[0].parent.parent
    with pytest.raises(InputError, match=r"expected files; got the folder '.*noise'[\s\S]*open_data\(model, folder\)"):
        model.encode(folder)
    encoded = model.encode_source(mmcon.inference.open_data(model, folder), show_progress=False)
    assert len(encoded) == len(paths)


def test_run_folder_leads_to_its_model_and_one_without_says_so(folder, tmp_path):
    run = tmp_path / "run"
    image_model(run / "model")
    (run / "config.yaml").write_text("seed: 0\n")
    assert (
        mmcon.load(run).fingerprint == mmcon.load(run / "model").fingerprint == mmcon.load(folder / "image").fingerprint
    )
    (tmp_path / "started").mkdir()
    (tmp_path / "started/config.yaml").write_text("seed: 0\n")
    with pytest.raises(CheckpointError, match="a run that has saved its model"):
        mmcon.load(tmp_path / "started")


def test_fingerprint_follows_the_weights_and_the_preprocessing(folder, tmp_path):
    model = mmcon.load(folder / "image")
    assert mmcon.load(image_model(tmp_path / "larger", size=20)).fingerprint != model.fingerprint
    with torch.no_grad():
        next(model.model.parameters())[0] += 1
    del model.__dict__["fingerprint"]
    assert model.fingerprint != mmcon.load(folder / "image").fingerprint


def test_model_of_images_without_preprocessing_is_loaded_with_a_warning(folder, paths, tmp_path):
    whole = mmcon.load(folder / "image")
    whole.model.save_pretrained(tmp_path / "old")
    with pytest.warns(UserWarning, match="no preprocessing.json: images are resized to 16 × 16 pixels of 3 channels"):
        old = mmcon.load(tmp_path / "old")
    assert torch.equal(old.encode(paths), whole.encode(paths))
    text = mmcon.create_encoder("text/embedding-bag", modality="text")
    mmcon.ContrastiveModel({"text": text}).save_pretrained(tmp_path / "texts")
    with pytest.raises(CheckpointError, match=r"saved with its preprocessing; got one of \['text'\]"):
        mmcon.load(tmp_path / "texts")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("preprocessing.json", '{"version": 2}', "version 1; got version 2"),
        ("preprocessing.json", '{"version": 1, "modalities": {"image": {}}}', "KeyError: 'combine'"),
        ("preprocessing.json", '{"version"', "JSONDecodeError"),
        ("config.json", '{"format": 0}', "format 1; got format 0"),
        ("config.json", '{"format": 1}', r"config.json with \['encoders'"),
        ("config.json", "[", "config.json and model.safetensors"),
        ("probe.json", '{"format": 1, "probes": {}}', "probe.safetensors"),
        ("probe.json", "{", "JSONDecodeError"),
    ],
)
def test_damaged_or_old_file_is_one_error(folder, tmp_path, name, content, message):
    broken = image_model(tmp_path / "model")
    (broken / name).write_text(content)
    with pytest.raises(CheckpointError, match=message):
        mmcon.load(broken)


def test_name_on_the_hub_without_a_network_is_one_error(monkeypatch):
    import huggingface_hub

    def refuse(*_, **__):
        raise ConnectionError("cannot reach the hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(CheckpointError, match=r"a hub name that can be reached.*cannot reach the hub"):
        mmcon.load("owner/name")


def test_name_on_the_hub_brings_all_files_of_the_model_and_those_of_another_library_too(
    folder, model, paths, tmp_path, monkeypatch
):
    import huggingface_hub
    from inference_cases import vit_folder

    hub = {("owner/own", "v1"): folder / "image", ("owner/vit", None): vit_folder(tmp_path / "vit")}

    def download(name, *, revision, allow_patterns):
        local = tmp_path / "cache" / name / "-".join(sorted(allow_patterns))[:20].replace("/", "").replace("*", "")
        for file in sorted(hub[name, revision].rglob("*")):
            relative = file.relative_to(hub[name, revision])
            if file.is_file() and any(fnmatch(str(relative), pattern) for pattern in allow_patterns):
                (local / relative).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, local / relative)
        return str(local)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    own = mmcon.load("owner/own", revision="v1")
    assert torch.equal(own.encode(paths), model.encode(paths))
    assert torch.equal(mmcon.load("owner/vit").encode(paths), mmcon.load(tmp_path / "vit").encode(paths))


def test_view_that_was_not_built_by_name_is_refused(folder, tmp_path):
    from mmcon.errors import ConfigError
    from mmcon.inference import save_model

    model = mmcon.load(folder / "image").model
    source = TensorSource(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
    with pytest.raises(ConfigError, match=r"views that mmcon.create_view built.*Identity"):
        save_model(model, tmp_path / "m", views={"image": [mmcon.views.Identity()]}, source=source)
    with pytest.raises(ConfigError, match=r"views of \['image'\]; got none of \['image'\]"):
        save_model(model, tmp_path / "m", views={}, source=source)


@pytest.mark.parametrize("value", [1.5, 2.0, "2", None, True, -1, torch.tensor(2.0), torch.tensor([1, 2])])
def test_whole_numbers_are_told_from_others(value):
    with pytest.raises(InputError, match=r"encode: expected num_workers as a whole number from 0 on; got .*"):
        check_whole("encode", "num_workers", value, least=0)
    assert check_whole("encode", "num_workers", np.int32(2), least=0) == check_whole("", "", torch.tensor(2), least=1)


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"num_workers": -1}, {"num_workers": True}])
def test_numbers_of_things_are_whole(model, paths, tmp_path, wrong):
    ((name, value),) = wrong.items()
    message = rf"{name} as a whole number from \d on; got {value!r}"
    with pytest.raises(InputError, match=message):
        model.encode(paths[:1], **wrong)
    with pytest.raises(InputError, match=message):  # before any row is left out
        embed_source(model, model.source_of(paths[:1]), tmp_path / "e.parquet", **wrong)
    wrong = {name.removeprefix("num_"): value}
    with pytest.raises(InputError, match=message):
        next(evaluate_model(model, "samples/fashion", **wrong))
    with pytest.raises(InputError, match=message.removeprefix("num_")):
        next(one_pass(model.source_of(paths[:1]), {"image": model.views("image")}, **wrong))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("runs/gone", r"no folder 'gone' in .*runs.*known are first"),
        ("runs/frist", r"did you mean 'first'"),
        ("runs/first/model.txt", "the file runs/first/model.txt.*give its folder"),
        ("runs/a/b", r"no folder runs/a"),
        ("./gone", "no folder 'gone'"),
        ("/nowhere/at/all", "no folder /nowhere/at"),
        ("~/not/there", "no folder .*/not"),
    ],
)
def test_mistyped_path_is_not_sought_on_the_hub(tmp_path, monkeypatch, name, message):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", None, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "first").mkdir(parents=True)
    (tmp_path / "runs" / "first" / "model.txt").touch()
    with pytest.raises(CheckpointError, match="(?s)expected the folder of a model; got .*" + message):
        mmcon.load(name)
    with pytest.raises(CheckpointError, match="(?s)expected the folder of a model; got .*" + message):
        mmcon.ContrastiveModel.from_pretrained(name)
    with pytest.raises(InputError, match="(?s)expected the folder of a model; got .*" + message):
        load_encoder(name)


def test_model_of_texts_does_not_take_the_name_of_a_file_as_the_text(tmp_path, monkeypatch):
    from inference_cases import bert_folder

    model = mmcon.load(bert_folder(tmp_path / "bert"))
    (tmp_path / "red.jpg").touch()
    monkeypatch.chdir(tmp_path)
    assert len(model.encode(["red apple", "bert", "gone.jpg"])) == 3  # a folder may be called as a text is
    with pytest.raises(InputError, match=r"(?s)expected texts.*got the file 'red\.jpg' of 'image'"):
        model.encode(["red apple", "red.jpg"])
    assert torch.equal(model.encode("red.jpg", modality="text"), model.encode("red.jpg", modality="text"))
    assert query_modality(model, "bert") == query_modality(model, "gone.jpg") == "text"
    (tmp_path / "notes.txt").touch()
    for query in ("red.jpg", "notes.txt"):
        with pytest.raises(
            InputError, match=r"(?s)expected a query of \['text'\]; got '.*--modality text takes the name"
        ):
            query_modality(model, query)
