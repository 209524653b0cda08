"""Text views: laws for all of them, and what each promises."""

from __future__ import annotations

import pickle

import pytest
import torch

from mmcon.errors import DataError, InputError
from mmcon.loading.loader import ViewLoader
from mmcon.media.text import TextHandle
from mmcon.random import keys
from mmcon.registry import create_view
from mmcon.samplers.fixed_order import FixedOrderSampler
from mmcon.sources.bundled.emoji_concepts import emoji_names
from mmcon.sources.labels import encode_labels
from mmcon.sources.text import TextSource
from mmcon.testing import check_view
from mmcon.views import Chain

LONG = " ".join(f"word{i}" for i in range(300))
TEXTS = [
    TextHandle(("The quick brown fox jumps over the lazy dog", "Der schnelle braune Fuchs"), ("en", "de")),
    TextHandle(("Apples are red and sweet in autumn", "Äpfel sind rot"), ("en", "de")),
    TextHandle((LONG, "lang"), ("en", "de")),
    TextHandle(("one", "eins"), ("en", "de")),
]
TABLE = keys(seed=3, sample=[1, 2, 3, 4])


@pytest.mark.parametrize(
    "view",
    [
        create_view("text/word-delete"),
        create_view("text/word-swap"),
        create_view("text/case-noise"),
        create_view("text/typos"),
        create_view("text/column", column="de"),
        create_view("text/any-column"),
        create_view("text/declutr", role="anchor", shortest=3, longest=40),
        create_view("text/declutr", role="positive", shortest=3, longest=40),
        Chain(),
    ],
    ids=lambda view: view.name,
)
def test_views_of_strings_keep_the_laws(view):
    check_view(Chain(view, create_view("text/tokens", max_tokens=24)), TEXTS)


@pytest.mark.parametrize(
    "view", [create_view("text/token-dropout"), create_view("text/span-mask", mask_id=4)], ids=lambda view: view.name
)
def test_views_of_tokens_keep_the_laws(view):
    check_view(Chain(create_view("text/tokens", max_tokens=24), view), TEXTS)


def words(view, table=TABLE, texts=TEXTS):
    return [text.value.split() for text in view(texts, table)]


def test_deletion_keeps_order_and_at_least_a_word():
    many = keys(seed=0, sample=list(range(300)))
    out = words(create_view("text/word-delete", share=0.3), many, [TEXTS[0]] * 300)
    original = TEXTS[0].value.split()
    assert all(kept and kept == [w for w in original if w in kept] for kept in out)
    assert sum(map(len, out)) / (300 * len(original)) == pytest.approx(0.7, abs=0.03)
    alone = words(create_view("text/word-delete", share=0.99), many, [TEXTS[1]] * 300)
    assert min(map(len, alone)) == 1


def test_swaps_keep_the_words_and_change_their_order():
    out = words(create_view("text/word-swap"))
    assert [sorted(w) for w in out] == [sorted(t.value.split()) for t in TEXTS]
    assert out[0] != TEXTS[0].value.split()
    assert out[3] == ["one"]


def test_case_noise_changes_nothing_but_case():
    out = create_view("text/case-noise", share=0.9)(TEXTS, TABLE)
    assert [t.value.lower() for t in out] == [" ".join(t.value.split()).lower() for t in TEXTS]
    assert out[2].value != TEXTS[2].value


def test_typos_leave_the_ends_of_words_alone():
    out = words(create_view("text/typos", share=0.3))
    for changed, text in zip(out, TEXTS, strict=True):
        assert [w[0] for w in changed] == [w[0] for w in text.value.split()]
    assert out[2] != TEXTS[2].value.split()


def test_declutr_spans_are_long_anchors_and_short_positives_nearby():
    n = 2000
    texts = [TEXTS[2]] * n
    table = keys(seed=1, sample=list(range(n)))
    second = keys(seed=1, sample=list(range(n)), view=1)
    anchors = words(create_view("text/declutr", role="anchor", shortest=20, longest=120), table, texts)
    positives = words(create_view("text/declutr", role="positive", shortest=20, longest=120), second, texts)
    # Means of Beta(4, 2) and Beta(2, 4) are 2/3 and 1/3 of the way from 20 to 120.
    assert sum(map(len, anchors)) / n == pytest.approx(20 + 100 * 2 / 3, abs=2)
    assert sum(map(len, positives)) / n == pytest.approx(20 + 100 / 3, abs=2)
    for anchor, positive in zip(anchors, positives, strict=True):
        start, end = int(anchor[0][4:]), int(anchor[-1][4:]) + 1
        first, last = int(positive[0][4:]), int(positive[-1][4:]) + 1
        assert first <= end
        assert last >= start
    assert words(create_view("text/declutr", role="anchor"), TABLE[3], [TEXTS[3]]) == [["one"]]


def test_columns_are_views_and_any_column_takes_all_of_them():
    assert words(create_view("text/column", column="de"))[3] == ["eins"]
    many = create_view("text/any-column")([TEXTS[3]] * 100, keys(sample=list(range(100))))
    assert {t.value for t in many} == {"one", "eins"}
    with pytest.raises(DataError, match=r"\['en', 'de'\]"):
        create_view("text/column", column="fr")(TEXTS, TABLE)


def test_token_views_spare_the_ends_and_the_padding():
    tokens = {"input_ids": torch.arange(1, 41).view(2, 20), "attention_mask": torch.ones(2, 20, dtype=torch.int64)}
    tokens["attention_mask"][1, 12:] = 0
    many = {name: column.repeat(200, 1) for name, column in tokens.items()}
    table = keys(sample=list(range(400)))
    dropped = create_view("text/token-dropout", share=0.25)(many, table)["attention_mask"]
    assert bool((dropped[::2, [0, 19]] == 1).all() and (dropped[1::2, [0, 11]] == 1).all())
    assert float(1 - dropped[::2, 1:19].double().mean()) == pytest.approx(0.25, abs=0.03)
    masked = create_view("text/span-mask", mask_id=0, share=0.3)(many, table)["input_ids"] == 0
    assert masked[::2].sum(1).unique().tolist() == [5]  # .3 of 18
    assert masked[1::2].sum(1).unique().tolist() == [3]  # .3 of 10
    assert not bool(masked[1::2, 11:].any())
    edges = masked.long().diff(dim=1).abs().sum(1)
    assert edges.unique().tolist() == [2]


def test_tokens_are_padded_cut_and_stable():
    view = create_view("text/tokens", max_tokens=16)
    tokens = view(TEXTS, TABLE)
    assert {t["input_ids"].shape for t in tokens} == {(16,)}
    assert tokens[3]["attention_mask"].tolist() == [1, 1, 1, 1] + [0] * 12  # <one>, <on, one, ne>
    assert tokens[2]["attention_mask"].sum() == 16
    assert int(tokens[3]["input_ids"][0]) == int(
        pickle.loads(pickle.dumps(view))(TEXTS[3:], TABLE[3])[0]["input_ids"][0]
    )


def test_bad_texts_are_refused_with_the_row():
    with pytest.raises(DataError, match="row 1"):
        TextSource(["fine", "  "])
    with pytest.raises(DataError, match="row 0"):
        TextSource([" ", "fine"])
    with pytest.raises(DataError, match="one length"):
        TextSource({"en": ["a"], "de": ["b", "c"]})
    with pytest.raises(DataError, match="1 samples without one"):
        encode_labels("labels", ["a", None])
    with pytest.raises(DataError, match=r"\['int', 'str'\]"):
        encode_labels("labels", ["a", 1])
    with pytest.raises(DataError, match="not empty"):
        create_view("text/tokens")([TextHandle((" ",))], TABLE[0])
    with pytest.raises(DataError, match="tokenizer='words'"):
        create_view("text/tokens", tokenizer="/no/such/folder")(TEXTS, TABLE)
    with pytest.raises(InputError, match="0 <= share < 1"):
        create_view("text/typos", share=1.5)


def test_emoji_names_go_through_the_loader_the_same_for_any_number_of_processes():
    source = emoji_names("test")
    assert source.classes[0] == "Activities"
    assert set(source.texts) == {"en", "de", "fr", "es", "ja", "ar"}
    view = Chain(create_view("text/any-column"), create_view("text/typos"), create_view("text/tokens", max_tokens=12))
    sampler = FixedOrderSampler(source.labels, batch_size=8, seed=0)
    whole = next(iter(ViewLoader(source, {"text": [view, view]}, sampler, seed=0)))
    part = next(iter(ViewLoader(source, {"text": [view, view]}, sampler, seed=0, rank=1, world_size=2)))
    ids = whole.views["text"][0]["input_ids"].view(2, 8, -1)[:, 4:]
    assert torch.equal(part.views["text"][0]["input_ids"].view(2, 4, -1), ids)
    assert not torch.equal(ids[0], ids[1])
    assert whole.index["text"]["label"].tolist() == source.labels[sampler.batch(0).indices].repeat(2).tolist()
