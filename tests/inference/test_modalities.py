"""Recordings, clips, texts and models with an encoder for each view are encoded by the same words as images."""

import shutil

import numpy as np
import pytest
import torch
from inference_cases import bert_folder, save_pictures, vit_folder, wav2vec_folder

import mmcon
from mmcon.evaluation.features import extract_features
from mmcon.evaluation.view_rows import combine_views
from mmcon.inference import save_model
from mmcon.loading.loader import one_pass
from mmcon.sources.base import TensorSource
from mmcon.sources.text import TextSource


def test_recordings_are_resampled_to_the_rate_of_the_training(tmp_path):
    import soundfile

    torch.manual_seed(0)
    encoder = mmcon.create_encoder("mmcon/log-mel-conv", modality="audio", width=4)
    model = mmcon.ContrastiveModel({"audio": encoder}, {"shared": mmcon.SharedSpace(dim=8)})
    source = mmcon.create_source("samples/speech", split="test", rate_hz=4000)
    view = mmcon.create_view("audio/plain", window_seconds=0.5, rate_hz=4000)
    loaded = mmcon.load(save_model(model, tmp_path / "model", views={"audio": [view]}, source=source))
    assert loaded.preprocessing["audio"].media == {"rate_hz": 4000, "channels": 1}
    samples = (0.1 * np.sin(np.arange(8000) / 8000 * 2 * np.pi * 440)).astype(np.float32)
    soundfile.write(tmp_path / "tone.wav", samples, 8000, subtype="FLOAT")
    rows = loaded.encode(tmp_path / "tone.wav", space="shared")
    assert rows.shape == (1, 8)
    torch.testing.assert_close(loaded.encode((samples, 8000), space="shared"), rows)
    torch.testing.assert_close(loaded.encode((tmp_path / "tone.wav").read_bytes(), space="shared"), rows)
    few = mmcon.sources.base.Subset(source, range(6))
    expected = extract_features(loaded.model, one_pass(few, {"audio": [view]}))
    assert torch.equal(loaded.encode_source(few, normalize=False).values, expected.values)


def test_samples_with_a_rate_are_a_recording_and_frames_with_one_a_clip():
    from mmcon.inference.inputs import input_source

    media = {"image": {}, "audio": {"rate_hz": 8000}, "video": {}, "text": {}}
    assert input_source((np.zeros(80, dtype=np.float32), 8000), None, media).modality == "audio"
    assert input_source([(torch.zeros(2, 3, 8, 8).byte(), 4.0)], None, media).modality == "video"
    for images in (torch.rand(3, 8, 8), [np.zeros((8, 8), dtype=np.uint8)], torch.rand(2, 3, 8, 8)):
        assert input_source(images, None, media).modality == "image"


def test_row_of_a_clip_is_the_mean_over_its_views(tmp_path):
    torch.manual_seed(0)
    encoder = mmcon.create_encoder("mmcon/frames", modality="video", frame_encoder="mmcon/resnet-tiny", image_size=16)
    model = mmcon.ContrastiveModel({"video": encoder}, {"slow": mmcon.SharedSpace(dim=8)})
    source = mmcon.sources.base.Subset(mmcon.create_source("samples/motion", split="test"), range(2))
    view = mmcon.create_view("video/plain", views=3, size=16, frames=2, rate_hz=8)
    loaded = mmcon.load(save_model(model, tmp_path / "model", views={"video": [view] * 3}, source=source))
    features = extract_features(model, one_pass(source, {"video": [view] * 3}))
    by_clip = torch.stack([features.values[features.index["sample"] == clip].mean(0) for clip in source.ids.tolist()])
    encoded = loaded.encode_source(source, normalize=False)
    torch.testing.assert_close(encoded.values, by_clip)
    assert torch.equal(encoded.index["sample"], source.ids)
    frames = torch.randint(256, (8, 3, 20, 24), generator=torch.Generator().manual_seed(0)).byte()
    stacked = loaded.encode((frames, 8.0), space="slow")
    assert stacked.shape == (1, 8)
    torch.testing.assert_close(loaded.encode((frames.permute(0, 2, 3, 1).numpy(), 8), space="slow"), stacked)


def test_row_of_two_encoders_is_both_side_by_side(tmp_path):
    torch.manual_seed(0)
    encoders = [mmcon.create_encoder("mmcon/resnet-tiny", image_size=16, in_channels=c, width=8) for c in (1, 2)]
    model = mmcon.ContrastiveModel({"image": encoders}, {"shared": mmcon.SharedSpace(dim=8)})
    plain = mmcon.create_view("image/plain", size=16)
    channels = [mmcon.create_view("image/color-channels", space="lab", channels=c) for c in ("luminance", "chroma")]
    views = [mmcon.Chain(plain, own) for own in channels]
    paths = save_pictures(tmp_path / "noise", 3)
    source = mmcon.create_source(tmp_path / "noise", split="all", check="none")
    loaded = mmcon.load(save_model(model, tmp_path / "model", views={"image": views}, source=source))
    features = extract_features(model, one_pass(source, {"image": views}))
    sides = [features.take(features.index["view"] == view).normalized() for view in (0, 1)]
    encoded = loaded.encode_source(source, normalize=False)
    torch.testing.assert_close(encoded.values, torch.cat(sides, 1))
    assert loaded.embedding_dim("image") == encoded.values.shape[1] == 64
    torch.testing.assert_close(loaded.encode(paths).norm(dim=1), torch.ones(3))


def test_samples_without_all_views_have_no_row():
    from mmcon.batch import Index
    from mmcon.evaluation.features import Features

    index = Index({"sample": torch.tensor([7, 8, 9, 7, 9]), "view": torch.tensor([0, 0, 0, 1, 1])})
    features = Features(torch.tensor([[1.0], [2.0], [3.0], [5.0], [9.0]]), index)
    combined = combine_views(features, views=2, how="mean")
    assert combined.values.tolist() == [[3.0], [6.0]]
    assert combined.index["sample"].tolist() == [7, 9]


@pytest.mark.parametrize("modality", ["text", "image", "audio"])
def test_model_on_a_transformers_encoder_needs_its_original_folder_no_more(modality, tmp_path):
    make = {"text": bert_folder, "image": vit_folder, "audio": wav2vec_folder}[modality]
    original = make(tmp_path / "original")
    if modality == "text":
        source, view = TextSource(["a dog", "the apple"]), mmcon.create_view("text/tokens", tokenizer=str(original))
        options, item = {"path": str(original)}, "the red dog"
        name = "text/transformer"
    elif modality == "image":
        source, view = TensorSource(torch.zeros(1, 3, 16, 16).byte()), mmcon.create_view("image/plain", size=16)
        name, options, item = str(original), {}, torch.rand(3, 16, 16)
    else:
        source = mmcon.create_source("samples/speech", split="test", rate_hz=8000)
        view = mmcon.create_view("audio/crop", position="center", rate_hz=8000, window_seconds=0.3)
        name, options = str(original), {"rate_hz": 8000}
        item = torch.sin(torch.arange(4000) / 5), 8000
    encoder = mmcon.create_encoder(name, modality=modality, pretrained=True, **options)
    model = mmcon.ContrastiveModel({modality: encoder}, {"shared": mmcon.SharedSpace(dim=8)})
    folder = save_model(model, tmp_path / "model", views={modality: [view]}, source=source)
    expected = mmcon.load(folder).encode(item, space="shared")
    shutil.rmtree(original)
    moved = folder.rename(tmp_path / "moved")
    again = mmcon.load(moved)
    assert torch.equal(again.encode(item, space="shared"), expected)
    # It can be saved again from there.
    twice = save_model(again.model, tmp_path / "twice", views={modality: again.views(modality)}, source=source)
    shutil.rmtree(moved)
    assert torch.equal(mmcon.load(twice).encode(item, space="shared"), expected)
