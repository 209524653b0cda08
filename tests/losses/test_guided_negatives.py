"""GIST: which negatives a guide drops, by columns and by tensors; and the loss of sentence-transformers."""

import pytest
import torch
from loss_cases import draw, unit

from mmcon.affinity import GuidedNegatives, SameSample
from mmcon.batch import Index
from mmcon.errors import InputError
from mmcon.losses import weighted_supcon
from mmcon.objective.objective import Block, Objective
from mmcon.testing import check_affinity

N = 9


def kept_by_hand(anchors, candidates, positive, margin, relative):
    """Whether each candidate is at most as similar as the least similar positive, minus the margin."""
    cosines = torch.nn.functional.normalize(anchors, dim=1) @ torch.nn.functional.normalize(candidates, dim=1).T
    limits = cosines.masked_fill(~positive, 2.0).amin(1)
    limits = limits - margin * (limits.abs() if relative else 1)
    return (cosines <= limits[:, None]).to(torch.get_default_dtype())


@pytest.mark.parametrize(("margin", "relative"), [(0.0, False), (0.2, False), (0.4, True)])
def test_a_negative_is_dropped_where_the_guide_finds_it_more_similar(margin, relative):
    anchors, candidates = draw(N, 4).float(), draw(N + 3, 4, seed=1).float()
    samples, others = torch.arange(N) % 4, torch.arange(N + 3) % 5  # the candidates of sample 4 are no positives
    positives = SameSample(samples, others)
    weights = GuidedNegatives(anchors, candidates, positives=positives, margin=margin, relative=relative)
    negative = ~positives.dense().bool()
    expected = kept_by_hand(anchors, candidates, ~negative, margin, relative)
    assert torch.equal(weights.dense()[negative], expected[negative])
    assert 0 < weights.dense()[negative].mean() < 1
    check_affinity(weights)


def test_equal_features_drop_nothing_without_a_margin_and_all_with_one():
    """Features by sample: the views of a sample are equal, and their cosines differ from 1 by rounding only."""
    features = draw(3, 50).float().repeat(2, 1)
    samples = torch.arange(3).repeat(2)
    keep = GuidedNegatives(features, positives=SameSample(samples))
    assert bool(keep.dense().all())
    drop = GuidedNegatives(torch.ones(6, 50), positives=SameSample(samples), margin=0.01)
    assert not drop.dense().any()


def test_columns_of_two_modalities_by_block():
    """Texts and images have features of the guide under names of their own."""
    tables = {
        name: Index({"sample": torch.arange(N), column: draw(N, 4, seed=seed)})
        for name, column, seed in (("image", "by_image", 0), ("text", "by_text", 1))
    }
    rows = {"image": unit(N, 3), "text": unit(N, 3, seed=1)}
    guide = GuidedNegatives("by_image", "by_text")
    objective = Objective(
        affinity=SameSample(), temperature=0.2, blocks=[Block("image", "text", negative_weights=guide)]
    )
    own = SameSample(torch.arange(N), torch.arange(N))
    v = kept_by_hand(tables["image"]["by_image"], tables["text"]["by_text"], own.dense().bool(), 0.0, False)
    expected = weighted_supcon(rows["image"], rows["text"], own, temperature=0.2, negative_weights=v)
    torch.testing.assert_close(objective({"joint": rows}, tables), expected)


def test_bad_features_and_margins_are_refused():
    with pytest.raises(InputError, match=r"a finite margin >= 0; got -0\.1"):
        GuidedNegatives(margin=-0.1)
    with pytest.raises(InputError, match=r"floats `n m`; got torch\.int64 of shape"):
        GuidedNegatives(torch.arange(4), positives=SameSample(torch.arange(4)))
    with pytest.raises(InputError, match="positives and features of"):
        GuidedNegatives(torch.eye(4), positives=SameSample(torch.arange(3)))


class Rows(torch.nn.Module):
    """In place of a sentence encoder: the rows themselves, with the tokenizer that the loss asks for."""

    max_seq_length = 8

    def __init__(self, tokenizer):
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, features):
        return {"sentence_embedding": features[self.column]}


@pytest.mark.slow
@pytest.mark.parametrize(("margin", "relative"), [(0.0, False), (0.3, True)])
def test_value_and_gradient_are_those_of_sentence_transformers(margin, relative):
    from sentence_transformers.sentence_transformer.losses import GISTEmbedLoss
    from transformers import BertTokenizerFast

    tokenizer = BertTokenizerFast(vocab={word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a"])})
    model, guide = Rows(tokenizer), Rows(tokenizer)
    model.column, guide.column = "rows", "guide"
    strategy = "relative" if relative else "absolute"
    theirs = GISTEmbedLoss(
        model, guide, temperature=0.05, margin_strategy=strategy, margin=margin, contrast_positives=False
    )
    leaves = draw(N, 5).requires_grad_(), draw(N, 5, seed=1).requires_grad_()
    anchor, positive = (torch.nn.functional.normalize(rows, dim=1) for rows in leaves)
    of_anchor, noise = draw(N, 4, seed=2), draw(N, 4, seed=3)
    of_positive = of_anchor + noise
    columns = [{"rows": leaves[0], "guide": of_anchor}, {"rows": leaves[1], "guide": of_positive}]

    # Candidates: the positives, then the anchors, of which an anchor is not its own.
    samples, numbers = torch.arange(N), torch.cat([torch.arange(N), torch.arange(N) + N])
    pairs = SameSample(samples, numbers)
    weights = GuidedNegatives(
        of_anchor, torch.cat([of_positive, of_anchor]), positives=pairs, margin=margin, relative=relative
    )
    ours = weighted_supcon(
        anchor, torch.cat([positive, anchor]), pairs,
        temperature=0.05, self_index=samples + N, negative_weights=weights,
    )  # fmt: skip
    dropped = 1 - float(weights.dense().mean())
    assert 0.1 < dropped < 0.9
    expected = theirs(columns, torch.zeros(0))
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)
    gradients = [torch.autograd.grad(loss, leaves) for loss in (ours, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)
