"""Text encoders on a tiny model that is made here: pooling, lengths, packing, saving, export."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmcon.errors import DataError, InputError
from mmcon.models.contrastive_model import ContrastiveModel
from mmcon.models.encoders import create_encoder
from mmcon.models.export import export_sentence_transformers
from mmcon.models.text import POOLINGS, pool_tokens
from mmcon.random import keys
from mmcon.registry import create_view
from mmcon.views import collate

TEXTS = ["a red apple", "a dog", "the red dog and the apple and a dog", "apple", "dog and dog"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A BERT of two layers with a vocabulary of a few words."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    path = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "apple", "dog", "the", "and"]
    (path / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    tokenizer = BertTokenizerFast(vocab={word: i for i, word in enumerate(words)})
    tokenizer.save_pretrained(path)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertModel(config)
    for i, parameter in enumerate(model.parameters()):
        if parameter.dim() > 1:  # far from the tiny weights of an untrained model, so that mistakes show
            parameter.data = keys(seed=i).normal("weights", std=0.3, shape=parameter.shape)[0].float()
    model.save_pretrained(path)
    return path


def tokens(folder, max_tokens=12, texts=TEXTS):
    view = create_view("text/tokens", tokenizer=str(folder), max_tokens=max_tokens)
    return collate(view(texts, keys(sample=list(range(len(texts))))))


def encoder(folder, **options):
    made = create_encoder("text/transformer", modality="text", path=str(folder), pretrained=True, **options)
    return made.eval()


def test_pooling_by_hand():
    states = torch.tensor([[[1.0], [2.0], [4.0]], [[3.0], [5.0], [9.0]]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    assert pool_tokens(states, mask, "mean").flatten().tolist() == pytest.approx([7 / 3, 4])
    assert pool_tokens(states, mask, "cls").flatten().tolist() == [1, 3]
    assert pool_tokens(states, mask, "last").flatten().tolist() == [4, 5]
    # (1·1 + 2·2 + 3·4) / 6 and (1·3 + 2·5) / 3
    assert pool_tokens(states, mask, "weighted").flatten().tolist() == pytest.approx([17 / 6, 13 / 3])


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("options", [{"buckets": 3}, {"padding_free": True}], ids=["buckets", "packed"])
def test_padding_and_packing_change_nothing(folder, pooling, options):
    batch = tokens(folder)
    with torch.no_grad():
        plain = encoder(folder, pooling=pooling)(batch)
        other = encoder(folder, pooling=pooling, **options)(batch)
        one_by_one = [encoder(folder, pooling=pooling)({k: v[i : i + 1] for k, v in batch.items()}) for i in range(5)]
    assert plain.shape == (5, 16)
    assert torch.allclose(other, plain, atol=1e-5)
    assert torch.allclose(torch.cat(one_by_one), plain, atol=1e-5)
    assert float((plain[0] - plain[1]).abs().max()) > 0.01


def test_packing_obeys_dropped_tokens_and_gives_gradients(folder):
    batch = tokens(folder)
    batch["attention_mask"][2, 2:5] = 0
    plain, packed = encoder(folder), encoder(folder, padding_free=True)
    for model in (plain, packed):
        model(batch).square().sum().backward()
    a, b = (
        dict(m.named_parameters())["model.encoder.layer.0.attention.self.query.weight"].grad for m in (plain, packed)
    )
    assert float(a.abs().max()) > 1e-3
    assert torch.allclose(a, b, atol=1e-4)


def test_texts_over_the_length_are_refused_with_the_fix(folder):
    with pytest.raises(InputError, match="max_tokens=32"):
        encoder(folder)(tokens(folder, max_tokens=64, texts=["dog " * 60]))


def test_dropout_makes_two_views_of_one_text(folder):
    model = encoder(folder, dropout=0.3).train()
    batch = {name: column[:1].repeat(2, 1) for name, column in tokens(folder).items()}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, second = model(batch)
    assert not torch.allclose(first, second)


def test_the_embedding_bag_learns_nothing_from_padding():
    model = create_encoder("text/embedding-bag", modality="text", feature_dim=8).eval()
    view = create_view("text/tokens", max_tokens=40)
    batch = collate(view(TEXTS, keys(sample=list(range(5)))))
    wide = {name: torch.nn.functional.pad(column, (0, 9)) for name, column in batch.items()}
    assert torch.allclose(model(batch), model(wide), atol=1e-6)


def test_a_model_is_made_again_from_its_folder(folder, tmp_path):
    model = ContrastiveModel({"text": encoder(folder)}).eval()
    again = ContrastiveModel.from_pretrained(model.save_pretrained(tmp_path / "model")).eval()
    with torch.no_grad():
        assert torch.equal(again.features(tokens(folder), "text"), model.features(tokens(folder), "text"))


def test_unknown_paths_and_poolings_are_refused(folder):
    with pytest.raises(DataError, match="local folder"):
        create_encoder("text/transformer", modality="text", path="/no/such/model")
    with pytest.raises(InputError, match="weighted"):
        encoder(folder, pooling="max")


def test_the_export_has_the_layout(folder, tmp_path):
    from transformers import AutoModel, AutoTokenizer

    out = export_sentence_transformers(
        encoder(folder, pooling="cls"), AutoTokenizer.from_pretrained(folder), tmp_path, max_tokens=16
    )
    names = {str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()}
    assert {"modules.json", "sentence_bert_config.json", "1_Pooling/config.json", "config.json"} <= names
    assert AutoModel.from_pretrained(out).config.hidden_size == 16
    with pytest.raises(InputError, match="text/transformer"):
        export_sentence_transformers(create_encoder("text/embedding-bag", modality="text"), None, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.filterwarnings("default")
def test_sentence_transformers_loads_the_export_and_agrees(folder, tmp_path, pooling):
    from sentence_transformers import SentenceTransformer
    from transformers import AutoTokenizer

    ours = encoder(folder, pooling=pooling)
    out = export_sentence_transformers(ours, AutoTokenizer.from_pretrained(folder), tmp_path, max_tokens=12)
    theirs = torch.tensor(SentenceTransformer(str(out), device="cpu").encode(TEXTS))
    with torch.no_grad():
        expected = torch.nn.functional.normalize(ours(tokens(folder)), dim=1)
    assert torch.allclose(theirs, expected, atol=1e-5)
