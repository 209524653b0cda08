"""Small untrained models of each modality, saved with their preprocessing, and files to encode."""

import torch

import mmcon
from mmcon.evaluation.features import Features
from mmcon.evaluation.view_rows import combine_views
from mmcon.inference import save_model
from mmcon.sources.base import Subset, TensorSource
from mmcon.sources.text import TextSource

TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def image_model(folder, *, size=16, channels=3, classes=None):
    """A saved model of images; the folder."""
    torch.manual_seed(0)
    encoder = mmcon.create_encoder("mmcon/resnet-tiny", image_size=size, in_channels=channels, width=8)
    model = mmcon.ContrastiveModel({"image": encoder}, {"shared": mmcon.SharedSpace(dim=8)})
    source = TensorSource(torch.zeros(1, channels, size, size, dtype=torch.uint8))
    view = mmcon.create_view("image/plain", size=size)
    return save_model(model, folder, views={"image": [view]}, source=source)


def image_text_model(folder, *, size=16):
    """A saved model of images and texts in one space; the folder."""
    torch.manual_seed(0)
    encoders = {
        "image": mmcon.create_encoder("mmcon/resnet-tiny", image_size=size, width=8),
        "text": mmcon.create_encoder("text/embedding-bag", modality="text", vocabulary=64, feature_dim=16),
    }
    model = mmcon.ContrastiveModel(encoders, {"shared": mmcon.SharedSpace(dim=8)})
    images = TensorSource(torch.zeros(2, 3, size, size, dtype=torch.uint8))
    texts = TextSource({"name": ["a cat", "a dog"]})
    texts.ids = images.ids
    choose = mmcon.create_view("any/instance", random=False), mmcon.create_view("text/column", column="name")
    tokens = mmcon.create_view("text/tokens", vocabulary=64, max_tokens=8)
    views = {"image": [mmcon.create_view("image/plain", size=size)], "text": [mmcon.Chain(*choose, tokens)]}
    return save_model(model, folder, views=views, source=mmcon.JoinedSource(images, texts))


def save_pictures(folder, n=5, *, side=24):
    """PNG files of noise, in folders of two classes; their paths."""
    from PIL import Image

    for label in "ab":
        (folder / label).mkdir(parents=True, exist_ok=True)
    pixels = torch.randint(256, (n, side, side + 6, 3), generator=torch.Generator().manual_seed(0)).byte().numpy()
    paths = [folder / "ab"[i % 2] / f"{i}.png" for i in range(n)]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image).save(path)
    return paths


def bert_folder(folder):
    """A tiny BERT with its tokenizer, as transformers saves it; the folder."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "apple", "dog", "the", "and"]
    BertTokenizerFast(vocab={word: i for i, word in enumerate(words)}, model_max_length=16).save_pretrained(folder)
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=32, **TINY)).save_pretrained(folder)
    return folder


def vit_folder(folder):
    """A tiny ViT with its image processor, as transformers saves it; the folder."""
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    torch.manual_seed(0)
    ViTModel(ViTConfig(image_size=16, patch_size=8, **TINY)).save_pretrained(folder)
    size = {"height": 16, "width": 16}
    ViTImageProcessor(image_mean=[0.1] * 3, image_std=[0.3] * 3, size=size, resample=3).save_pretrained(folder)
    return folder


def wav2vec_folder(folder):
    """A tiny wav2vec 2.0 with its feature extractor, as transformers saves it; the folder."""
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

    torch.manual_seed(0)
    layers = {"conv_dim": (8, 8), "conv_stride": (160, 2), "conv_kernel": (400, 2), "num_feat_extract_layers": 2}
    groups = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    config = Wav2Vec2Config(**TINY, **layers, **groups, feat_extract_norm="layer", do_stable_layer_norm=True)
    Wav2Vec2Model(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(sampling_rate=8000, return_attention_mask=True).save_pretrained(folder)
    return folder


def whisper_folder(folder):
    """A tiny Whisper that hears two seconds, with its feature extractor, as transformers saves it; the folder."""
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

    torch.manual_seed(0)
    config = WhisperConfig(
        d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=32, decoder_ffn_dim=32, vocab_size=100, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=1, max_source_positions=100, num_mel_bins=16,
    )  # fmt: skip
    WhisperModel(config).save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=16, chunk_length=2).save_pretrained(folder)
    return folder


def check_saved_model(run, source, name="trained_encoder"):
    """Check that the model of a run encodes the held-out samples as its evaluation did; the loaded model.

    Args:
        run: the run folder.
        source: the held-out split, or more.
        name: of the features in the run folder.
    """
    model, features = mmcon.load(run), Features.load(run / "features" / f"{name}-test.safetensors")
    (modality,) = model.modalities
    own = model.preprocessing[modality]
    expected = combine_views(features, views=len(own.views), how=own.combine)
    rows = torch.isin(source.ids, expected.index["sample"]).nonzero()[:, 0]
    found = model.encode_source(Subset(source, rows), normalize=False, show_progress=False)
    order = (expected.index["sample"] == found.index["sample"][:, None]).int().argmax(1)
    assert len(found) == len(expected)
    torch.testing.assert_close(found.values, expected.values[order], atol=1e-5, rtol=1e-4)
    return model
