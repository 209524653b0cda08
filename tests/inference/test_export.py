"""Exports: each is loaded back by the library that it is for, and has the features of the model."""

import copy
import json

import numpy as np
import pytest
import torch
from inference_cases import (
    bert_folder,
    image_model,
    image_text_model,
    save_pictures,
    vit_folder,
    wav2vec_folder,
    whisper_folder,
)
from safetensors.torch import load_file
from torch.utils.data import default_collate

import mmcon
from mmcon import cli
from mmcon.errors import CheckpointError, DataError, InputError, UnknownNameError
from mmcon.inference import export_model, save_model
from mmcon.inference.export import formats_of
from mmcon.models.contrastive_model import ContrastiveModel
from mmcon.sources.base import TensorSource


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return save_pictures(tmp_path_factory.mktemp("pictures"), 3, side=40)


def saved(folder, name, *, size=32, channels=3, **options):
    """A saved model whose encoder has a name, and weights of its own in batch norms too."""
    torch.manual_seed(0)
    encoder = mmcon.create_encoder(name, image_size=size, in_channels=channels, **options)
    for buffer in encoder.buffers():
        if buffer.is_floating_point() and buffer.dim() == 1:
            buffer.uniform_(0.5, 1.5)
    model = mmcon.ContrastiveModel({"image": encoder}, {"shared": mmcon.SharedSpace(dim=8)})
    view = mmcon.create_view("image/center-crop", size=size, keep=0.8, interpolation="bicubic")
    source = TensorSource(torch.zeros(1, channels, size, size, dtype=torch.uint8))
    return mmcon.load(save_model(model, folder, views={"image": [view]}, source=source))


def check_loaded_back(model, folder, inputs):
    """`mmcon.load` of an export has its preprocessing and its features."""
    again = mmcon.load(folder)
    (modality,) = again.modalities
    if modality != "text":  # the folder of a tokenizer has another name
        assert again.preprocessing[modality].views == model.preprocessing[modality].views
    found, expected = (m.encode(inputs, show_progress=False, normalize=False) for m in (again, model))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_torchvision_loads_the_weights_strictly(tmp_path, pictures):
    from torchvision.models import get_model

    model = saved(tmp_path / "model", "resnet18", small_images=False)
    made = export_model(model, "torchvision", tmp_path / "out")
    assert made.difference < 1e-5
    assert {"README.md", "config.json", "model.safetensors", "preprocessing.json"} == {f.name for f in made.files}
    network = get_model("resnet18").eval()
    network.set_submodule("fc", torch.nn.Identity())
    network.load_state_dict(load_file(tmp_path / "out" / "model.safetensors"), strict=True)
    about = json.loads((tmp_path / "out" / "config.json").read_text())
    encoder, images = model.model.encoders["image"], torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(about[name])[:, None, None] for name in ("image_mean", "image_std"))
    torch.testing.assert_close(network((images - mean) / std), encoder(images), atol=1e-5, rtol=1e-4)
    check_loaded_back(model, tmp_path / "out", pictures)
    (tmp_path / "out" / "config.json").write_text(json.dumps({"library": "torchvision", "name": "resnet18"}))
    with pytest.raises(DataError, match="a complete export to torchvision"):
        mmcon.load(tmp_path / "out")


@pytest.mark.parametrize(("name", "channels"), [("timm/resnet10t", 3), ("timm/test_vit", 1)])
def test_timm_loads_the_folder_with_the_data_configuration(tmp_path, pictures, name, channels):
    import timm
    from timm.data import resolve_model_data_config

    model = saved(tmp_path / "model", name, size=64, channels=channels, small_images=False)
    export_model(model, "timm", tmp_path / "out")
    network = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    data = resolve_model_data_config(network)
    assert data["input_size"] == (channels, 64, 64)
    assert (data["crop_pct"], data["interpolation"]) == (0.8, "bicubic")
    encoder, images = model.model.encoders["image"], torch.rand(2, channels, 64, 64)
    mean, std = (torch.tensor(data[name])[:, None, None] for name in ("mean", "std"))
    torch.testing.assert_close(network((images - mean) / std), encoder(images), atol=1e-5, rtol=1e-4)
    check_loaded_back(model, tmp_path / "out", pictures)


def test_transformers_loads_images_texts_and_sounds_completely(tmp_path, pictures):
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    model = saved(tmp_path / "image", str(vit_folder(tmp_path / "vit")), size=16)
    export_model(model, "transformers", tmp_path / "images")
    loaded, info = AutoModel.from_pretrained(tmp_path / "images", add_pooling_layer=False, output_loading_info=True)
    assert not any(info.values())
    processor = AutoImageProcessor.from_pretrained(tmp_path / "images")
    assert (processor.crop_size["height"], processor.size["shortest_edge"], processor.resample) == (16, 20, 3)
    encoder, images = model.model.encoders["image"], torch.rand(2, 3, 16, 16)
    states = loaded.eval()(pixel_values=(images - encoder.mean) / encoder.std).last_hidden_state
    torch.testing.assert_close(states[:, 0], encoder(images), atol=1e-5, rtol=1e-4)
    check_loaded_back(model, tmp_path / "images", pictures)

    texts = mmcon.load(bert_folder(tmp_path / "bert"))
    export_model(texts, "transformers", tmp_path / "texts")
    assert AutoTokenizer.from_pretrained(tmp_path / "texts").tokenize("a red apple") == ["a", "red", "apple"]
    check_loaded_back(texts, tmp_path / "texts", ["a red apple", "dog"])

    sounds = mmcon.load(wav2vec_folder(tmp_path / "wav2vec"))
    export_model(sounds, "transformers", tmp_path / "sounds")
    tone = np.sin(np.arange(8000) / 8000 * 2 * np.pi * 440).astype(np.float32)
    check_loaded_back(sounds, tmp_path / "sounds", [(tone, 8000)])


def test_transformers_loads_the_encoder_of_whisper_without_its_decoder(tmp_path):
    from transformers import AutoFeatureExtractor
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    model = mmcon.inference.load_encoder(whisper_folder(tmp_path / "whisper"), window_seconds=2.0)
    export_model(model, "transformers", tmp_path / "out")
    assert "model = WhisperEncoder.from_pretrained" in (tmp_path / "out" / "README.md").read_text()
    network, info = WhisperEncoder.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    tone = np.sin(np.arange(32_000) / 16_000 * 2 * np.pi * 440).astype(np.float32)
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path / "out")
    heard = extractor(tone, sampling_rate=16_000, return_tensors="pt").input_features
    expected = model.encode((tone, 16_000), normalize=False)
    torch.testing.assert_close(network.eval()(heard).last_hidden_state.mean(1), expected, atol=1e-5, rtol=1e-4)
    check_loaded_back(model, tmp_path / "out", [(tone, 16_000)])


@pytest.mark.slow  # the import of the peer takes seconds
def test_sentence_transformers_has_the_same_embeddings(tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    model = mmcon.load(bert_folder(tmp_path / "bert"))
    made = export_model(model, "sentence-transformers", tmp_path / "out")
    assert made.difference < 1e-5
    peer = sentence_transformers.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    texts = ["a red apple", "the dog and the apple and the dog", "dog"]
    np.testing.assert_allclose(peer.encode(texts), model.encode(texts, output="numpy"), atol=1e-5)
    check_loaded_back(model, tmp_path / "out", texts)


@pytest.mark.slow  # the exporters take seconds
@pytest.mark.filterwarnings("ignore:The given buffer is not writable")  # of torch.export.load
def test_onnx_and_torch_export_have_the_embeddings_for_any_batch_size(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    model = mmcon.load(image_text_model(tmp_path / "model"))
    images = torch.randint(256, (5, 3, 16, 16), dtype=torch.uint8)
    views = images.float() / 255
    made = export_model(model, "onnx", tmp_path / "onnx", modality="image", space="shared")
    assert made.difference < 1e-5
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "model.onnx")
    assert [(i.name, i.shape) for i in session.get_inputs()] == [("views", ["batch", 3, 16, 16])]
    expected = model.encode(images, modality="image", space="shared", show_progress=False)
    for rows in (1, 5):
        (found,) = session.run(None, {"views": views[:rows].numpy()})
        np.testing.assert_allclose(found, expected[:rows], atol=1e-5)

    check_program(mmcon.load(tmp_path / "onnx"), model, images, "image", space="shared")
    (tmp_path / "onnx" / "model.onnx").unlink()
    with pytest.raises(CheckpointError, match=r"one program \*.onnx; got 0 in an export to onnx"):
        mmcon.load(tmp_path / "onnx")

    file = tmp_path / "words.pt2"  # beside other files, none of which changes
    made = export_model(model, "torch-export", file, modality="text", normalize=False)
    assert made.files == (file,)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "onnx", "words.pt2"]
    program = torch.export.load(file).module()
    texts = ["a cat", "a dog", "a", "two cats", "no"]
    view = mmcon.create_view("text/tokens", vocabulary=64, max_tokens=8)
    tokens = default_collate(view(texts, mmcon.keys(seed=0, epoch=0, sample=torch.arange(5), view=0)))
    expected = model.encode(texts, modality="text", normalize=False, show_progress=False)
    for rows in (1, 5):
        found = program({name: ids[:rows] for name, ids in tokens.items()})
        torch.testing.assert_close(found, expected[:rows], atol=1e-5, rtol=1e-4)
    with pytest.raises(CheckpointError, match=r"torch may run code[\s\S]*trusted=True\) for a file of someone"):
        mmcon.load(file)
    check_program(mmcon.load(file, trusted=True), model, texts, "text", normalize=False)


def check_program(program, model, inputs, modality, **options):
    """A loaded program has the rows of its model, by the same preprocessing, and refuses what it cannot do."""
    assert (program.modalities, set(program.spaces)) == ((modality,), {*options.values()} & {"shared"})
    expected = model.encode(inputs, modality=modality, show_progress=False, **options)
    found = program.encode(inputs, batch_size=2, show_progress=False, **options)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    lengths = {"normalize": options.get("normalize", True)}  # without a space: what the program returns
    torch.testing.assert_close(program.encode(inputs, show_progress=False, **lengths), found)
    assert program.fingerprint not in ("", model.fingerprint)
    refused = [
        lambda: program.encode(inputs, space="another"),
        lambda: program.save_pretrained("nowhere"),
        lambda: export_model(program, "onnx", "nowhere"),
        lambda: copy.deepcopy(program.model),
        lambda: program.model.encoders[modality](inputs),
        lambda: program.classify(inputs),
    ]
    if "space" in options:  # the rows have length one
        refused.append(lambda: program.encode(inputs, normalize=False))
    for call in refused:
        with pytest.raises(InputError):
            call()


def test_a_format_that_does_not_fit_is_refused_with_those_that_do(tmp_path):
    model = mmcon.load(image_model(tmp_path / "model"))
    with pytest.raises(
        InputError, match=r"'mmcon/resnet-tiny': onnx, torch-export; got 'timm'\.\s+Fix: .* --encoder timm/"
    ):
        export_model(model, "timm", tmp_path / "out")
    with pytest.raises(UnknownNameError, match="did you mean 'onnx'"):
        export_model(model, "onx", tmp_path / "out")
    small = saved(tmp_path / "small", "resnet18")
    assert formats_of(small, "image") == ("onnx", "torch-export")  # a stem of its own
    with pytest.raises(InputError, match=r"first layers for small images, .* --image-size above 64, or --pretrained"):
        export_model(small, "torchvision", tmp_path / "out")
    with pytest.raises(InputError, match=r"got 'timm'\.\s+Fix: choose onnx$"):
        export_model(small, "timm", tmp_path / "out")
    plain = saved(tmp_path / "plain", "resnet18", small_images=False)
    with pytest.raises(InputError, match="choose onnx or torch-export"):
        export_model(plain, "torchvision", tmp_path / "out", space="shared")
    texts = mmcon.load(bert_folder(tmp_path / "bert"))
    assert formats_of(texts, "text") == ("transformers", "sentence-transformers", "onnx", "torch-export")
    sounds = mmcon.load(wav2vec_folder(tmp_path / "wav2vec"))
    assert formats_of(sounds, "audio") == ("transformers",)
    assert not (tmp_path / "out").exists()


def test_other_files_are_not_overwritten(tmp_path):
    model = mmcon.load(bert_folder(tmp_path / "bert"))
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "README.md").write_text("mine")
    (tmp_path / "project" / "mine.pt2").write_text("mine")
    refused = {
        ("project", "transformers"): "a new folder, or that of an earlier export",
        ("project", "torch-export"): "a new folder, or that of an earlier export",
        ("project/mine.pt2", "torch-export"): "a new file, or an earlier export to torch-export",
        ("project/new.pt2", "torch-export"): r"a folder, for the tokenizer[\s\S]*project/new",  # it is a folder beside
    }
    for (output, format), message in refused.items():
        with pytest.raises(InputError, match=message):
            export_model(model, format, tmp_path / output)
    assert {path.name: path.read_text() for path in (tmp_path / "project").iterdir()} == {
        "README.md": "mine", "mine.pt2": "mine"
    }  # fmt: skip
    for _ in range(2):  # an earlier export in the format is replaced
        export_model(model, "transformers", tmp_path / "new")


def test_weights_that_the_library_does_not_have_are_refused_with_their_names(tmp_path):
    model = saved(tmp_path / "model", "resnet18", small_images=False)
    model.model.encoders["image"].network.layer1[0].conv1.adapter = torch.nn.Linear(2, 2)
    with pytest.raises(InputError, match=r"layer1.0.conv1.adapter.weight: not in the model[\s\S]*merge_lora"):
        export_model(model, "torchvision", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_saved_copy_is_the_same_model(tmp_path):
    texts = mmcon.load(bert_folder(tmp_path / "bert"))
    texts.save_pretrained(tmp_path / "copy")
    again = type(texts).from_pretrained(tmp_path / "copy")
    assert isinstance(again.model, ContrastiveModel)
    torch.testing.assert_close(again.encode(["a red apple"]), texts.encode(["a red apple"]))
    both = mmcon.load(image_text_model(tmp_path / "both"))
    both.save_pretrained(tmp_path / "both again")
    assert mmcon.load(tmp_path / "both again").fingerprint == both.fingerprint


def test_the_command_exports_and_says_what_differs(tmp_path, capsys):
    folder = bert_folder(tmp_path / "bert")
    words = ["export", str(folder), "--format", "transformers", "--output", str(tmp_path / "out")]
    assert cli.main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["difference"] < 1e-5
    assert str(tmp_path / "out" / "config.json") in told["files"]
    assert cli.main(words) == 0
    assert "loaded back, it differs from the model by 0.0e+00 of the largest value" in capsys.readouterr().out
    assert cli.main([*words[:3], "timm", *words[4:]]) == 2
    assert "transformers, sentence-transformers, onnx, torch-export; got 'timm'" in capsys.readouterr().err
