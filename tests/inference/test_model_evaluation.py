"""`mmcon evaluate`: its files from one call, results that are kept, and one clear error for each bad input."""

import json
import os

import pytest
import torch
from evaluation_cases import labeled_features
from inference_cases import image_model, image_text_model, save_pictures
from matplotlib.figure import Figure

import mmcon
from mmcon import cli
from mmcon.errors import ConfigError, DataError, InputError, StorageError, UnknownNameError
from mmcon.evaluation import image_passes
from mmcon.evaluation.checked_splits import check_labels
from mmcon.evaluation.comparison import compare_runs
from mmcon.evaluation.evaluation_list import Evaluation, EvaluationInput
from mmcon.evaluation.knn import knn
from mmcon.inference import save_model
from mmcon.inference.model_evaluation import _open, _run, evaluate_model
from mmcon.sources.base import TensorSource
from mmcon.training import run_lock
from mmcon.views import Identity


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two classes of 15 images; a tenth, rounded up, is held out."""
    folder = tmp_path_factory.mktemp("data") / "photos"
    save_pictures(folder, 30)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory, photos):
    """A run folder with a saved model, untrained, whose settings name its data."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    image_model(folder / "model")
    (folder / "config.yaml").write_text(f"data: {photos}\nlabel_column: null\n")
    return folder


def test_one_call_writes_every_evaluation_and_the_next_keeps_them(run, photos):
    names = ["probe", "knn", "retrieval"]
    finished = list(evaluate_model(run, on=names))
    folder = run / "evaluation"
    for done in finished:
        assert (folder / f"{done.name}.txt").read_text().rstrip() == done.table
        assert (folder / f"{done.name}.png").read_bytes().startswith(b"\x89PNG")
        assert json.loads((folder / f"{done.name}.json").read_text()) == json.loads(json.dumps(done.values))
    train, test = (
        mmcon.load(run).encode_source(mmcon.create_source(photos, split=split), normalize=False)
        for split in ("train", "test")
    )
    assert finished[1].values["top1"] == knn(train, test).top1
    again = list(evaluate_model(run, on=names))
    assert [(done.table, done.cached) for done in again] == [(done.table, True) for done in finished]
    changed = evaluate_model(run, on=["retrieval", "knn"], options={"neighbors": 3})
    assert [done.cached for done in changed] == [True, False]
    result = compare_runs([run, folder])
    assert {difference.metric for difference in result.differences} == {"linear_probe", "knn"}


def test_the_command_takes_a_model_and_data_and_leaves_out_what_cannot_run(run, photos, tmp_path, capsys):
    table = tmp_path / "photos.csv"
    table.write_text("image\n" + "\n".join(str(path) for path in sorted(photos.rglob("*.png"))) + "\n")
    words = ["evaluate", run / "model", "--data", table, "--on", "all", "--output", tmp_path / "out"]
    assert cli.main([*map(str, words), "--option", "media_column=image"]) == 0
    assert "probe is left out: it needs labels in the data" in capsys.readouterr().out
    words[5:6] = ["probe"]
    assert cli.main([*map(str, words), "--option", "media_column=image"]) == 2
    assert "evaluate --on probe: expected labels in the data" in capsys.readouterr().err


def test_the_command_prints_json_and_lists_the_evaluations(run, capsys):
    assert cli.main(["evaluate", str(run), "--on", "knn", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)["knn"]
    assert values["samples"] == sum(row["samples"] for row in values["by_class"].values())
    assert cli.main(["evaluate", str(run), "--on", "list"]) == 0
    assert "few-labels " in capsys.readouterr().out


def test_features_of_texts_that_changed_or_of_another_column_are_replaced(tmp_path):
    model = mmcon.load(image_text_model(tmp_path / "both"))

    def features(text, *columns):
        rows = [f"{i},{text} {i},other {i}" for i in range(12)]
        (tmp_path / "t.csv").write_text("\n".join(["id,name,title", *rows]))
        options = {"id_column": "id", "text_columns": columns, "test_share": 0.5}
        opened, _ = _open(model, str(tmp_path / "t.csv"), [], tmp_path / "out", "text", [], [], options, "cpu")
        found = opened.features("test")
        return found.values.clone(), found.metadata["data"]

    first, data = features("a cat", "name")
    changed, other = features("a dog", "name")
    assert not torch.equal(changed, first)
    assert other != data
    assert torch.equal(features("a cat", "name")[0], first)
    assert features("a cat", "name", "title")[1] not in (data, other)


def test_data_in_other_files_get_the_views_and_their_combination_of_the_features(tmp_path):
    model = mmcon.load(image_model(tmp_path / "model")).model
    data = TensorSource(torch.randint(256, (8, 3, 16, 16), dtype=torch.uint8), labels=[0, 1] * 4, classes=("a", "b"))
    views = [mmcon.create_view("image/plain", size=size) for size in (16, 12)]
    saved = save_model(model, tmp_path / "two", views={"image": views}, source=data)
    save_pictures(tmp_path / "photos", 20)
    opened, _ = _open(mmcon.load(saved), str(tmp_path / "photos"), [], tmp_path / "out", None, [], [], {}, "cpu")
    own = opened.features("test")
    found = opened.given(own, own, seed=0).features(opened.test)
    torch.testing.assert_close(found.values, own.values)


class Result:
    """A result without content, whose methods may be replaced."""

    def __init__(self, **methods):
        self.table, self.to_json, self.plot = lambda: "table", dict, Figure
        vars(self).update(methods)


def own_evaluation(tmp_path, result):
    """An evaluation with a result, and what it may read."""
    features = labeled_features(4, 0)
    source = labeled([0, 1], ["a", "b"])
    given = EvaluationInput(
        train=features, test=features, train_source=source, test_source=source, encode=torch.nn.Identity(),
        view=Identity(), modality="image", options={"frost_photos": str(tmp_path / "frost")},
    )  # fmt: skip
    evaluation = Evaluation("own", "inference_cases:none", "nothing", options=("frost_photos",))
    object.__setattr__(evaluation, "run", lambda _: result)
    return evaluation, given


def test_a_result_is_computed_again_when_the_files_of_an_option_change(tmp_path):
    evaluation, given = own_evaluation(tmp_path, Result())
    (tmp_path / "frost").mkdir()
    cached = []
    for name in ("a", "a", "b", "b"):
        (tmp_path / "frost" / name).touch(exist_ok=True)
        os.utime(tmp_path / "frost" / name, (1, 1))
        cached.append(_run(evaluation, given, tmp_path).cached)
    assert cached == [False, True, False, True]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (InputError("probe", expected="luck", got="none"), "expected luck"),
        (RuntimeError("no luck"), "RuntimeError: no luck"),  # such as of a library; its traceback is logged
    ],
)
def test_an_evaluation_that_fails_does_not_end_the_others(run, monkeypatch, caplog, error, message):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("mmcon.evaluation.evaluation_list.fit_probe", fail)
    failed, done = evaluate_model(run, on=["probe", "knn"], seed=5)
    assert message in failed.error
    assert (done.name, done.error) == ("knn", "")
    assert [record.exc_info[1] for record in caplog.records] == [error] * isinstance(error, RuntimeError)


@pytest.mark.parametrize("method", ["to_json", "table", "plot"])
def test_an_error_of_a_library_in_a_result_is_that_of_its_evaluation(tmp_path, method):
    def fail():
        raise RuntimeError("no fonts")

    done = _run(*own_evaluation(tmp_path, Result(**{method: fail})), tmp_path)
    assert done.error == "RuntimeError: no fonts"
    assert not (tmp_path / "own.json").exists()


def test_a_folder_that_cannot_be_written_to_ends_all_evaluations(tmp_path):
    with pytest.raises(StorageError, match=r"own\.txt"):
        _run(*own_evaluation(tmp_path, Result()), tmp_path / "gone")


@pytest.mark.parametrize("text", ["", '{"fingerprint": "', "null"])
def test_a_result_that_is_cut_off_is_computed_again(run, tmp_path, text):
    first, again = (next(iter(evaluate_model(run, on=["knn"], output=tmp_path))) for _ in range(2))
    assert (first.cached, again.cached) == (False, True)
    (tmp_path / "knn.json").write_text(text)
    (done,) = evaluate_model(run, on=["knn"], output=tmp_path)
    assert (done.cached, done.table) == (False, first.table)


def test_a_second_evaluation_in_a_folder_is_refused_until_the_first_ends(run, tmp_path, locked_elsewhere):
    message = r"--output: expected a folder that no other run uses; (.|\n)*process {} "
    with locked_elsewhere(tmp_path) as other, pytest.raises(ConfigError, match=message.format(other)):
        list(evaluate_model(run, on=["knn"], output=tmp_path))
    assert len(list(evaluate_model(run, on=["knn"], output=tmp_path))) == 1
    assert tmp_path.resolve() not in run_lock._handles


def test_a_killed_evaluation_goes_on_in_its_passes(run, tmp_path, monkeypatch):
    given = {"on": ["corruptions"], "output": tmp_path, "options": {"effects": ["contrast", "fog"], "severities": 1}}
    done, one_pass = [], image_passes._pass

    def until(count):
        def pass_or_die(*given):
            if len(done) == count:
                raise KeyboardInterrupt
            done.append(one_pass(*given))
            return done[-1]

        monkeypatch.setattr(image_passes, "_pass", pass_or_die)
        return list(evaluate_model(run, **given))

    with pytest.raises(KeyboardInterrupt):
        until(1)
    assert len(list((tmp_path / "unfinished" / "corruptions").rglob("*.safetensors"))) == 1
    list(evaluate_model(run, on=["probe"], output=tmp_path))  # another evaluation leaves them
    (finished,) = until(2)
    assert set(finished.values["errors"]) == {"contrast", "fog"}
    assert not (tmp_path / "unfinished" / "corruptions").exists()


def test_models_and_data_that_do_not_fit_are_named_before_any_work(run, photos, tmp_path):
    both, gray = image_text_model(tmp_path / "both"), image_model(tmp_path / "gray", channels=1)
    cases = [
        ((run,), {"on": ["prove"]}, UnknownNameError, "did you mean 'probe'"),
        ((run / "model",), {}, InputError, "expected data; got none"),
        ((run,), {"modality": "audio"}, InputError, r"a modality of the model, \['image'\]"),
        ((both, str(photos)), {}, InputError, "--modality NAME"),
        ((run, str(tmp_path)), {}, DataError, "expected"),
        ((gray, str(photos)), {"near": ["samples/emoji"]}, InputError, r"c in \[1\]"),
        ((run,), {"options": {"neighbours": 3}}, InputError, "neighbours"),
    ]
    for given, options, error, message in cases:
        with pytest.raises(error, match=message):
            list(evaluate_model(*given, output=tmp_path / "never", **options))
        assert not (tmp_path / "never").exists()


def labeled(labels, classes):
    return TensorSource(torch.zeros(len(labels), 1), labels=torch.tensor(labels), classes=classes, name="data")


def test_classes_of_two_splits_are_matched_by_name():
    train = labeled([0, 1, 2, 0], ["ant", "bee", "cat"])
    test = labeled([0, 1, 1], ["cat", "ant"])
    check_labels(train, test)
    assert test.labels.tolist() == [2, 0, 0]
    assert test.classes == train.classes
    with pytest.raises(DataError, match="1 others: dog"):
        check_labels(train, labeled([0, 1], ["ant", "dog"]))
    with pytest.raises(DataError, match="1 others: cat"):  # known by name, but without a training sample
        check_labels(labeled([0, 1], ["ant", "bee", "cat"]), labeled([2], ["ant", "bee", "cat"]))
    with pytest.raises(DataError, match="two classes or more; got one, 'ant'"):
        check_labels(labeled([0, 0], ["ant", "bee"]), labeled([0], ["ant"]))
