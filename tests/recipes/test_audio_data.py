"""Sources, encoders, the recipe's affinity, and pictures of sound."""

import csv

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

import mmcon
from mmcon import cli
from mmcon.errors import DataError, InputError
from mmcon.loading.loader import ViewLoader
from mmcon.models.encoders import create_encoder
from mmcon.report.audio_sheet import write_audio_views
from mmcon.samplers.uniform import UniformSampler
from mmcon.sources.bundled.speech_prompts import speech
from mmcon.sources.factory import create_source


@pytest.fixture
def folder(tmp_path):
    """Two classes, mixed rates and channels, and a corrupt file."""
    for i in range(8):
        path = tmp_path / "recordings" / ("high" if i % 2 else "low") / f"{i}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        rate = (8_000, 16_000, 44_100)[i % 3]
        tone = np.sin(np.arange(rate) / rate * 2 * np.pi * (880 if i % 2 else 220)).astype(np.float32) * 0.3
        soundfile.write(path, np.stack([tone] * (1 + i % 2), 1), rate)
    return tmp_path / "recordings"


def test_the_bundled_speech_has_prompts_in_three_languages():
    train, test = speech("train"), speech("test")
    assert (len(train), len(test)) == (357, 84)
    assert train.categories["language"] == ("en", "es", "fr")
    assert not set(train.categories["prompt"]) & set(test.categories["prompt"])
    assert train.open([0])[0].decode().shape[0] == 1


def test_a_folder_of_mixed_files_loads_and_a_corrupt_one_is_quarantined_and_counted(folder):
    (folder / "low" / "corrupt.wav").write_bytes(b"RIFF nothing")
    source = create_source(folder, modality="audio", test_share=0.01)
    assert source.classes == ("high", "low")
    view = mmcon.create_view("audio/plain", window_seconds=0.5)
    sampler = UniformSampler(source.ids, batch_size=len(source), seed=0)
    loader = ViewLoader(source, {"audio": [view, view]}, sampler, seed=0)
    batch = next(iter(loader))
    assert batch.views["audio"][0]["log_mel"].shape == (2 * (len(source) - 1), 1, 64, 51)
    assert len(loader.failures) == 1
    assert "corrupt.wav" in next(iter(loader.failures.values()))


def test_a_manifest_keeps_prompts_on_one_side(folder, tmp_path):
    table = tmp_path / "calls.csv"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["audio", "label", "prompt", "language"])
        writer.writeheader()
        for i, path in enumerate(sorted(folder.rglob("*.wav"))):
            writer.writerow({"audio": path, "label": path.parent.name, "prompt": i // 2, "language": "ab"[i % 2]})
    train, test = (create_source(table, modality="audio", split=split, test_share=0.5) for split in ("train", "test"))
    assert len(train) + len(test) == 8
    assert not set(train.categories["prompt"]) & set(test.categories["prompt"])
    with pytest.raises(DataError, match="media column"):
        create_source(table, modality="audio", media_column="file")
    with pytest.raises(DataError, match="a folder"):
        create_source("folder/audio", path=tmp_path / "nowhere")
    assert len(create_source(folder, modality="audio")) <= 8


def test_our_encoder_does_not_hear_padding():
    encoder = create_encoder("mmcon/log-mel-conv", modality="audio").eval()
    x = torch.randn(2, 1, 64, 160, generator=torch.Generator().manual_seed(0))
    length = torch.tensor([160, 64])
    features = encoder({"log_mel": x, "length": length})
    assert features.shape == (2, encoder.feature_dim)
    x[1, ..., 112:] = 9.0  # beyond the real frames and what a convolution sees of them
    torch.testing.assert_close(encoder({"log_mel": x, "length": length}), features)
    with pytest.raises(InputError, match="audio/log-mel"):
        encoder({"log_mel": x[:, :, :32], "length": length})


TINY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


CONVOLUTIONS = {
    "conv_dim": (16, 16),
    "conv_kernel": (10, 8),
    "conv_stride": (5, 8),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}


def save(kind, folder):
    """A tiny model with its feature extractor; "wav2vec2-group" is as the first published ones, without masks."""
    import transformers as t

    of_waveforms = {
        "wav2vec2": t.Wav2Vec2Config,
        "wav2vec2-group": t.Wav2Vec2Config,
        "hubert": t.HubertConfig,
        "wavlm": t.WavLMConfig,
    }
    if kind in of_waveforms:
        norm = "group" if kind == "wav2vec2-group" else "layer"
        config = of_waveforms[kind](**TINY, **CONVOLUTIONS, feat_extract_norm=norm)
        extractor = t.Wav2Vec2FeatureExtractor()
    elif kind == "ast":
        config = t.ASTConfig(**TINY, max_length=128, num_mel_bins=64)
        extractor = t.ASTFeatureExtractor(num_mel_bins=64, max_length=128)
    else:
        config = t.WhisperConfig(
            d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
            encoder_ffn_dim=32, decoder_ffn_dim=32, vocab_size=100, pad_token_id=0, bos_token_id=1, eos_token_id=2,
            decoder_start_token_id=1,
        )  # fmt: skip
        extractor = t.WhisperFeatureExtractor()
    t.AutoModel.from_config(config).save_pretrained(folder)
    extractor.save_pretrained(folder)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wav2vec2", "wav2vec2-group", "hubert", "wavlm", "ast", "whisper"])
@pytest.mark.filterwarnings("ignore")
def test_transformers_models_from_a_folder(kind, tmp_path):
    save(kind, tmp_path)
    encoder = create_encoder(str(tmp_path), modality="audio", pretrained=True).eval()
    signal = torch.randn(2, 1, 8_000, generator=torch.Generator().manual_seed(0)) * 0.1
    views = {"signal": signal, "length": torch.tensor([8_000, 4_000])}
    features = encoder(views)
    assert features.shape == (2, 32)
    # Group norm is over the whole row, padding too, so those models hear it, as they did when they were published.
    tolerance = 0.2 if kind == "wav2vec2-group" else 5e-3
    alone = encoder({"signal": signal[1:, :, :4_000], "length": torch.tensor([4_000])})
    torch.testing.assert_close(features[1:], alone, atol=tolerance, rtol=tolerance)
    click = encoder({"signal": signal[:1, :, :100], "length": torch.tensor([100])})  # shorter than a window of theirs
    assert bool(torch.isfinite(click).all())
    assert bool(click.any())
    with pytest.raises(InputError, match="16000 Hz"):
        create_encoder(str(tmp_path), modality="audio", rate_hz=8_000)
    with pytest.raises(InputError, match="waveforms"):
        encoder({"log_mel": signal})


def test_views_as_a_picture_and_wav_files(tmp_path):
    view = mmcon.create_view("audio/speech", rate_hz=8_000, window_seconds=1.0)
    files = write_audio_views(view, speech("test"), tmp_path, rows=(0, 1), views=2)
    assert [f.name for f in files] == ["views.png", *(f"row{r}_view{v}.wav" for v in (0, 1) for r in (0, 1))]
    samples, rate = soundfile.read(files[1])
    assert rate == 8_000
    assert 0 < len(samples) <= 8_000


@pytest.mark.parametrize("name", ["audio/speech", "audio/gain"])
def test_the_command_draws_spectrograms_and_writes_what_can_be_heard(name, tmp_path, capsys):
    path = tmp_path / "tone.wav"
    soundfile.write(path, np.sin(np.arange(32_000) * 0.3) * 0.3, 16_000)
    sheet = tmp_path / "sheet.png"
    assert cli.main(["show", name, "--input", str(path), "--views", "2", "--output", str(sheet)]) == 0
    assert "2 views" in capsys.readouterr().out
    with Image.open(sheet) as picture:
        assert picture.size[0] > 500
    first, second = (soundfile.read(tmp_path / f"sheet-view{i}.wav") for i in (0, 1))
    assert first[1] == 16_000
    assert not np.array_equal(first[0], second[0])
    np.testing.assert_allclose(soundfile.read(tmp_path / "sheet-recording.wav")[0], soundfile.read(path)[0], atol=1e-4)
    again = tmp_path / "again.png"
    assert cli.main(["show", "--replay", str(sheet.with_suffix(".json")), "--output", str(again)]) == 0
    np.testing.assert_array_equal(soundfile.read(tmp_path / "again-view0.wav")[0], first[0])


def test_the_command_names_a_file_that_is_no_sound(tmp_path, capsys):
    (tmp_path / "no.wav").write_bytes(b"not a sound" * 9)
    assert cli.main(["show", "audio/speech", "--input", str(tmp_path / "no.wav")]) == 2
    assert "no.wav" in capsys.readouterr().err
