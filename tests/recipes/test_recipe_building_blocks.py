"""Sources, losses and reports that recipes use."""

from __future__ import annotations

import pytest
import torch

import mmcon
from mmcon.affinity import SameLabel
from mmcon.batch import Index
from mmcon.errors import ConfigError, InputError
from mmcon.evaluation.cross_modal_report import class_prompts, evaluate_modalities
from mmcon.evaluation.features import Features
from mmcon.evaluation.second_stage import results_json
from mmcon.evaluation.text import evaluate_texts, taxonomy_correlation
from mmcon.losses.bilinear_similarity import BilinearSimilarity
from mmcon.sources.base import TensorSource
from mmcon.sources.few_labels import few_labels
from mmcon.sources.image_text import open_image_text_pairs
from mmcon.sources.text import TextSource
from mmcon.training.config import ImageRunConfig


def rows(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_few_labels_keeps_the_same_few_samples_of_every_class():
    source = TensorSource(torch.zeros(30, 1), labels=torch.arange(30) % 3)
    few = few_labels(source, per_class=4, seed=1)
    assert few.labels.bincount().tolist() == [4, 4, 4]
    assert torch.equal(few.ids, few_labels(source, per_class=4, seed=1).ids)
    assert not torch.equal(few.ids, few_labels(source, per_class=4, seed=2).ids)
    assert set(few_labels(source, per_class=2, seed=1).ids.tolist()) < set(few.ids.tolist())
    assert len(few_labels(source, per_class=99, seed=1)) == 30
    with pytest.raises(ConfigError, match="--label COLUMN"):
        few_labels(TensorSource(torch.zeros(4, 1)), per_class=1, seed=0)


def test_bilinear_similarity_starts_as_the_cosine():
    similarity = BilinearSimilarity(4)
    z, index = rows(6, 4), Index({"label": torch.arange(6) % 2})
    bilinear = mmcon.Objective(affinity=SameLabel(), temperature=0.1, similarity=similarity)
    cosine = mmcon.Objective(affinity=SameLabel(), temperature=0.1)
    torch.testing.assert_close(bilinear(z, index), cosine(z, index))
    bilinear(z, index).backward()
    assert float(similarity.weight.grad.abs().sum()) > 0


def test_results_have_the_first_encoder_at_the_top_and_the_others_by_name():
    found = results_json({"trained": {"knn": 1.0}, "trained, edges alone": {"knn": 0.5}, "raw pixels": {"knn": 0.2}})
    assert found == {"knn": 1.0, "trained_edges_alone": {"knn": 0.5}, "raw_pixels": {"knn": 0.2}}
    assert list(found) == ["knn", "trained_edges_alone", "raw_pixels"]


def test_prompts_are_every_class_in_every_template():
    source = TensorSource(torch.zeros(2, 1), labels=torch.tensor([0, 1]), classes=("baby-animal", "cat"))
    prompts = class_prompts(source, ("{}", "a picture of {}"), column="name")
    assert prompts is not None
    expected = ["baby animal", "a picture of baby animal", "cat", "a picture of cat"]
    assert prompts.texts == {"name": expected}
    assert prompts.labels.tolist() == [0, 0, 1, 1]
    assert class_prompts(TensorSource(torch.zeros(2, 1)), ("{}",)) is None


def test_the_taxonomy_correlation_of_features_that_are_the_taxonomy_is_high():
    labels, subgroups = torch.arange(40) // 20, torch.arange(40) // 5
    one_hot = torch.nn.functional.one_hot
    taxonomy = torch.cat([one_hot(labels), one_hot(subgroups)], 1).float()
    features = Features(taxonomy, Index({"label": labels}))
    assert taxonomy_correlation(features, subgroups) == pytest.approx(1.0)
    assert abs(taxonomy_correlation(Features(rows(40, 64), features.index), subgroups)) < 0.3


def test_metrics_of_texts_are_those_that_the_data_allow():
    words = mmcon.create_view("text/tokens", max_tokens=8)

    def lengths(batch):
        return batch.views["text"][0]["attention_mask"].float()

    source = TextSource({"en": ["a", "b b", "c c c"], "de": ["x", "y y", "z z z"]})
    found = evaluate_texts(lengths, source, source, tokens=words, device=torch.device("cpu"))
    assert set(found) == {"recall_at_1"}
    assert set(found["recall_at_1"]) == {"de"}
    with pytest.raises(InputError, match="TextSource"):
        evaluate_texts(
            lengths, source, TensorSource(torch.zeros(2, 1)), tokens=words, device=torch.device("cpu")
        )  # fmt: skip


def test_the_bundled_pairs_have_four_test_sets():
    pairs = open_image_text_pairs("samples/emoji")
    assert list(pairs.tests) == ["training pairs", "another vendor", "held out", "held out, another vendor"]
    assert pairs.tests["training pairs"] is pairs.train
    assert pairs.text == "name"
    assert set(pairs.train.ids.tolist()) == set(pairs.tests["another vendor"].ids.tolist())
    assert not set(pairs.train.ids.tolist()) & set(pairs.tests["held out"].ids.tolist())


def test_modalities_are_compared_in_pairs_and_probed_where_labeled():
    class Unchanged(torch.nn.Module):
        """A model whose features and embeddings are the views."""

        def features(self, batch):
            return {name: batch.views[name][0] for name in batch.modalities}

        def forward(self, batch):
            return {"shared": self.features(batch)}

    labels = torch.arange(20) % 2
    labeled = TensorSource(rows(20, 4) + 3 * labels[:, None], modality="first", labels=labels)
    source = mmcon.JoinedSource(labeled, TensorSource(rows(20, 4, seed=1), modality="second"))
    views = {name: [mmcon.views.Identity()] for name in ("first", "second")}
    options = {"views": views, "trained_pairs": (), "device": torch.device("cpu")}
    found, text = evaluate_modalities(Unchanged(), source, source, **options)
    assert set(found) == {"training_samples", "held_out", "linear_probe"}
    assert set(found["held_out"]) == {"first-second", "uniformity"}
    assert found["linear_probe"] == {"first": 1.0}
    assert "in training)" in text  # the pair is not among the trained ones
    assert "linear probe  first 1.000" in text


def test_the_side_of_bundled_images_is_small():
    assert ImageRunConfig(data="samples/emoji").side == 28
    assert ImageRunConfig(data="photos/").side == 224
    assert ImageRunConfig(data="photos/", image_size=64).side == 64
