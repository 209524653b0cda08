"""Encoders of other libraries by `load_encoder` and `mmcon.load`: their own preprocessing, their own features."""

import shutil

import numpy as np
import pytest
import torch
from inference_cases import bert_folder, save_pictures, vit_folder, wav2vec_folder
from PIL import Image

import mmcon
from mmcon.errors import DataError, InputError
from mmcon.inference import load_encoder


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return save_pictures(tmp_path_factory.mktemp("pictures"), 1, side=300)[0]


def as_images(path):
    return Image.open(path).convert("RGB")


def test_timm_by_its_name_has_the_preprocessing_of_its_configuration(path):
    import timm
    from timm.data import create_transform, resolve_model_data_config

    torch.manual_seed(0)
    model = load_encoder("timm/resnet10t", pretrained=False)
    config = resolve_model_data_config(timm.create_model("resnet10t"))
    (view,) = model.views("image")
    assert view.size == config["input_size"][1:]
    assert view.keep == config["crop_pct"]
    assert view.interpolation == config["interpolation"]
    assert model.spaces == ()
    pixels = create_transform(**config, is_training=False)(as_images(path))[None]
    with torch.no_grad():
        expected = model.model.encoders["image"].network(pixels)
    found = model.encode(path, normalize=False)
    # One resampling of bytes in place of two.
    assert torch.nn.functional.cosine_similarity(found, expected).item() > 0.99


def test_torchvision_by_its_name_has_the_preset_of_its_weights(path):
    from torchvision import models

    torch.manual_seed(0)
    model = mmcon.inference.load_encoder("resnet18", pretrained=False)
    preset = models.ResNet18_Weights.DEFAULT.transforms()
    with torch.no_grad():
        expected = model.model.encoders["image"].network(preset(as_images(path))[None])
    found = model.encode(path, normalize=False)
    assert torch.nn.functional.cosine_similarity(found, expected).item() > 0.99
    with pytest.raises(InputError, match=r"a space of 'image'; got 'shared'[\s\S]*space=None"):
        model.encode(path, space="shared")


def test_transformers_image_folder_has_the_preprocessing_of_its_processor(path, tmp_path):
    from transformers import AutoModel, ViTImageProcessor

    folder = vit_folder(tmp_path / "vit")
    model = mmcon.load(folder)
    assert model.modalities == ("image",)
    pixels = ViTImageProcessor.from_pretrained(folder)(as_images(path), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = AutoModel.from_pretrained(folder).eval()(pixel_values=pixels).last_hidden_state[:, 0]
    torch.testing.assert_close(model.encode(path, normalize=False), expected, atol=0.02, rtol=0.02)


def test_transformers_text_and_audio_folders_are_told_apart(tmp_path):
    texts = mmcon.load(bert_folder(tmp_path / "bert"))
    assert texts.modalities == ("text",)
    # The tokenizer takes 16 tokens, the model 32.
    assert texts.views("text")[0].max_tokens == 16
    assert texts.encode(["a red apple", "the dog"]).shape == (2, 16)
    sounds = mmcon.load(wav2vec_folder(tmp_path / "wav2vec"))
    assert sounds.modalities == ("audio",)
    assert sounds.preprocessing["audio"].media == {"rate_hz": 8000, "channels": 1}
    tone = np.sin(np.arange(16_000) / 16_000 * 2 * np.pi * 440).astype(np.float32)
    assert sounds.encode([(tone, 16_000), (tone[::2], 8_000)]).shape == (2, 16)
    with pytest.raises(InputError, match=r"got ndarray[\s\S]*give \(samples, rate_hz\)"):
        sounds.encode(tone)


def test_folder_of_one_word_is_opened_and_its_place_is_not_in_the_fingerprint(tmp_path, monkeypatch):
    here = mmcon.load(bert_folder(tmp_path / "bert"))
    shutil.copytree(tmp_path / "bert", tmp_path / "home" / "copy")
    monkeypatch.chdir(tmp_path / "home")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("./copy", "copy", "~/copy"):
        there = mmcon.load(name)
        assert there.fingerprint == here.fingerprint
    assert torch.equal(there.encode(["a dog"]), here.encode(["a dog"]))


@pytest.mark.slow  # the import of the peer takes seconds
def test_sentence_transformers_folder_has_its_own_pooling_and_embeddings(tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    modules = pytest.importorskip("sentence_transformers.models")
    inner = modules.Transformer(str(bert_folder(tmp_path / "bert")), max_seq_length=6)
    pooling = modules.Pooling(16, pooling_mode="cls")
    peer = sentence_transformers.SentenceTransformer(modules=[inner, pooling, modules.Normalize()], device="cpu")
    peer.save(str(tmp_path / "sentences"))
    model = mmcon.load(tmp_path / "sentences")
    texts = ["a red apple", "the dog and the apple and the dog", "dog"]
    np.testing.assert_allclose(model.encode(texts, output="numpy"), peer.encode(texts), atol=1e-5)


def test_name_without_a_network_and_folder_without_weights_are_one_error(monkeypatch, tmp_path):
    import huggingface_hub

    def refuse(*_, **__):
        raise ConnectionError("cannot connect to the hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(DataError, match=r"load_encoder\('owner/name'\).*no network: cannot connect"):
        load_encoder("owner/name")
    folder = vit_folder(tmp_path / "vit")
    (folder / "model.safetensors").unlink()
    with pytest.raises(DataError, match="a model that can be read"):
        mmcon.load(folder)
