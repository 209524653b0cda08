"""Classes with probabilities: by the probe that training left, and by texts."""

import pytest
import torch
from inference_cases import image_model, image_text_model, save_pictures

import mmcon
from mmcon.errors import InputError
from mmcon.evaluation.calibrated_probe import fit_calibrated_probe
from mmcon.inference import UnreadableWarning


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("classify")


@pytest.fixture(scope="module")
def paths(folder):
    return save_pictures(folder / "noise", 12)


@pytest.fixture(scope="module")
def model(folder, paths):
    where = image_model(folder / "model")
    source = mmcon.create_source(folder / "noise", split="all", check="none")
    features = mmcon.load(where).encode_source(source, normalize=False)
    fit_calibrated_probe(features, source.classes, l2=0.01).save(where, "image")
    return mmcon.load(where)


def test_probe_that_training_left_classifies_files(model, paths):
    assert model.classes == ("a", "b")
    found = model.classify(paths)
    assert found.labels == [path.parent.name for path in paths]  # those that it was fitted to
    torch.testing.assert_close(found.probabilities.sum(1), torch.ones(12))
    assert found.names == tuple(map(str, paths))
    assert found.ids.tolist() == [*range(12)]
    first = found.top(2)[0]
    assert [name for name, _ in first] in (["a", "b"], ["b", "a"])
    assert first[0][1] == pytest.approx(found.probabilities[0].max().item())
    assert found.to_json()[0]["class"] == found.labels[0]
    assert len(found.top(9)[0]) == 2
    # Rows of features, not of unit length, whatever the batch.
    assert torch.allclose(model.classify(paths, batch_size=5).probabilities, found.probabilities, atol=1e-5)


def test_inputs_that_cannot_be_read_have_no_prediction_and_the_others_keep_their_names(model, paths, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.warns(UnreadableWarning, match=r"1 of 3 inputs.*\n  input 1: .*broken\.png"):
        found = model.classify([paths[0], tmp_path / "broken.png", paths[1]])
    assert found.names == (str(paths[0]), str(paths[1]))
    assert found.ids.tolist() == [0, 2]


def test_model_that_is_saved_again_has_no_probe_of_its_old_weights(folder, paths):
    where = image_model(folder / "again")
    features = mmcon.load(where).encode_source(mmcon.create_source(folder / "noise", split="all"), normalize=False)
    fit_calibrated_probe(features, ("a", "b"), l2=0.01).save(where, "image")
    assert mmcon.load(image_model(where)).classes is None


def test_model_without_a_probe_and_without_texts_says_what_it_has(folder, paths):
    bare = mmcon.load(image_model(folder / "bare"))
    assert bare.classes is None
    with pytest.raises(InputError, match=r"a model with a probe of 'image'; got probes of \[\]"):
        bare.classify(paths)
    with pytest.raises(InputError, match="a space of texts and 'image'"):
        bare.classify(paths, classes=["cat", "dog"])


def test_zero_shot_probabilities_are_those_of_mean_prompts(folder, paths):
    both = mmcon.load(image_text_model(folder / "both"))
    images = both.encode(paths, space="shared")
    templates = ("{}", "a photo of {}")
    prototypes = []
    for name in ("red cat", "big dog"):
        prompts = both.encode([template.format(name) for template in templates], space="shared")
        prototypes.append(torch.nn.functional.normalize(prompts.mean(0), dim=0))
    expected = torch.softmax(images @ torch.stack(prototypes).T / 0.05, 1)
    found = both.classify(paths, classes=["red cat", "big dog"], templates=templates, temperature=0.05)
    torch.testing.assert_close(found.probabilities, expected)
    assert found.classes == ("red cat", "big dog")
    by_name = both.classify(
        paths, classes={"cat": ["red cat"], "dog": ["big dog"]}, templates=templates, temperature=0.05
    )
    torch.testing.assert_close(by_name.probabilities, expected)
    assert by_name.classes == ("cat", "dog")
    assert len(both.classify(paths, classes=["red cat", "big dog"], templates=["{}, {}", "{} {0}"])) == 12
    for wrong in ({"classes": ["cat"]}, {"classes": ["cat", "dog"], "templates": ["a photo"]},
                  {"classes": ["cat", "dog"], "temperature": 0.0}):  # fmt: skip
        with pytest.raises(InputError, match=r"two classes or more.*templates with \{\}"):
            both.classify(paths, **wrong)


def test_temperature_of_the_training_is_that_of_zero_shot(folder, paths):
    from mmcon.affinity import SameSample
    from mmcon.inference import save_model

    both = mmcon.load(image_text_model(folder / "tempered"))
    objective = mmcon.Objective(affinity=SameSample(), temperature=0.2)
    views = {name: both.views(name) for name in both.modalities}
    source = mmcon.create_source("samples/emoji-pairs", split="test", modality=("image", "text"))
    again = mmcon.load(save_model(both.model, folder / "again", views=views, source=source, objective=objective))
    assert again.temperature == pytest.approx(0.2)
    chosen = {"classes": ["red cat", "big dog"]}
    expected = both.classify(paths, **chosen, temperature=0.2).probabilities
    assert torch.equal(again.classify(paths, **chosen).probabilities, expected)
