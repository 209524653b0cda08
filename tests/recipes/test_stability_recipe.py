"""The sweep: which runs there are, that the search is the same for all methods and holds out, and that it goes on."""

import importlib.util
import json
import shutil
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from mmcon.errors import ConfigError

RECIPE = Path(__file__).parents[2] / "recipes" / "stability.py"


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location("stability_under_test", RECIPE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def trained(recipe, monkeypatch):
    """The runs that were asked for; each has a figure at once, the higher the nearer the rate is to .004."""
    jobs = []

    def train(job, folder, keep):
        jobs.append(job)
        top1 = 0.9 - abs((job["flags"]["learning_rate"] or 0.004) - 0.004)
        return {**job, "linear_probe": top1, "knn": 0.5, "linear_stage": 0.6, "seconds": 1.0}

    monkeypatch.setattr(recipe, "train", train)
    return jobs


def test_methods_are_the_objectives_of_the_reference_recipe(recipe):
    assert set(recipe.OBJECTIVES) < set(recipe.METHODS)
    assert {"supcon", "simclr", "cross-entropy", "supcon-in", "cross-entropy-cutmix"} <= set(recipe.METHODS)
    settings = [flags for points in recipe.STUDIES.values() for flags in points.values()]
    for flags in [*settings, *recipe.METHODS.values()]:
        recipe.reference.Config(**{name: value for name, value in flags.items() if name != "rate_factor"})
    for view in recipe.VIEWS.values():
        recipe.reference.make_view(recipe.reference.Config(), view)


def test_every_method_has_the_same_search_and_the_best_rate_is_used(recipe, trained, tmp_path):
    settings = {"studies": ("temperature", "order"), "methods": ("supcon", "triplet"), "points": 2, "repeats": 2}
    config = recipe.Config(**settings, output_dir=tmp_path / "sweep", batch_size=recipe.reference.Config.batch_size)
    recipe.main(config)
    search = [job for job in trained if job["search"]]
    assert [job["method"] for job in search] == ["supcon"] * 3 + ["triplet"] * 3
    rates = [job["flags"]["learning_rate"] for job in search]
    assert rates == pytest.approx([0.0012, 0.004, 0.012] * 2)
    # Triplet has no temperature. Two orders and two temperatures, two seeds.
    seeds = [job["flags"]["seed"] for job in trained if not job["search"]]
    assert seeds == sorted(seeds)  # a sweep that is ended early has every point
    others = [job["method"] for job in trained if not job["search"]]
    assert (others.count("supcon"), others.count("triplet")) == (8, 4)
    assert {job["flags"]["learning_rate"] for job in trained if not job["search"]} == {0.004}
    lines = [json.loads(line) for line in (tmp_path / "sweep" / "runs.jsonl").read_text().splitlines()]
    assert len({line["run"] for line in lines}) == len(lines) == len(trained) == 18
    results = json.loads((tmp_path / "sweep" / "results.json").read_text())
    assert set(results["studies"]["temperature"]) == {"supcon"}
    assert "3 learning rates a method" in (tmp_path / "sweep" / "table.txt").read_text()
    assert all((tmp_path / "sweep" / f"{name}.png").exists() for name in ("temperature", "order"))


def test_a_sweep_goes_on_and_tries_failed_runs_again(recipe, trained, tmp_path, monkeypatch):
    settings = {"studies": ("order",), "methods": ("supcon",), "repeats": 1, "rates": (1.0,)}
    folder = tmp_path / "sweep"
    recipe.main(recipe.Config(**settings, output_dir=folder))
    assert [job["flags"]["sampler"] for job in trained] == ["uniform", "fixed-order"]
    with pytest.raises(ConfigError, match="--resume"):
        recipe.main(recipe.Config(**settings, output_dir=folder))
    first = json.loads((folder / "runs.jsonl").read_text().splitlines()[0])
    with (folder / "runs.jsonl").open("a") as file:
        file.write(json.dumps({"run": first["run"], "error": "the disk was full"}) + "\n")
    recipe.main(recipe.Config(**settings, output_dir=folder, resume=True))
    assert [job["flags"]["sampler"] for job in trained[2:]] == ["uniform"]


def test_the_search_holds_out_a_fifth_of_the_training_images(recipe, tmp_path):
    (train, test), (kept, held) = (
        kind(tiny=True).open_splits(tmp_path / "quarantine.jsonl", tiny_step=100)
        for kind in (recipe.reference.Config, recipe.Searched)
    )
    assert sorted([*kept.ids.tolist(), *held.ids.tolist()]) == sorted(train.ids.tolist())
    assert not set(held.ids.tolist()) & set(test.ids.tolist())
    assert 0.1 < len(held) / len(train) < 0.3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"studies": ("temprature",)}, "temperature"),
        ({"methods": ("simcrl",)}, "simclr"),
        ({"repeats": 0}, "1 or more"),
    ],
)
def test_unknown_names_are_refused_before_the_work(recipe, settings, message):
    with pytest.raises(ConfigError, match=message):
        recipe.main(recipe.Config(**settings))


@pytest.mark.slow
def test_a_run_that_fails_is_a_line_and_a_run_that_ends_leaves_its_figures(recipe, tmp_path):
    sweep = recipe.Sweep(recipe.Config(tiny=True, cpu=True, max_steps=1, batch_size=32), tmp_path)
    job = sweep.job("supcon", {}, 0, factor=1.0, search=False)
    jobs = [job, {**job, "flags": {**job["flags"], "encoder": "resnet51"}}]
    good, bad = (recipe.train(job, tmp_path / str(i), False) for i, job in enumerate(jobs))
    assert 0 < good["linear_probe"] < 1
    assert "resnet50" in bad["error"]
    assert not (tmp_path / "0" / "checkpoints").exists()


def test_a_search_without_a_run_that_ends_is_refused_and_one_failed_rate_is_not(recipe, trained, tmp_path, monkeypatch):
    """Without a figure no rate is the best, and the first would train every point of the sweep."""
    settings = {"studies": ("order",), "methods": ("supcon",), "repeats": 1}
    good = recipe.train

    def failing(rates):
        def train(job, folder, keep):
            failed = job["flags"]["learning_rate"] in rates
            return {**job, "error": "the disk was full"} if failed else good(job, folder, keep)

        return train

    found = recipe.Sweep(recipe.Config(**settings, output_dir=tmp_path), tmp_path)
    rates = [job["flags"]["learning_rate"] for job in found.search_jobs()]
    monkeypatch.setattr(recipe, "train", failing(rates))
    with pytest.raises(ConfigError, match=r"search of supcon[\s\S]*the disk was full[\s\S]*--resume"):
        recipe.main(recipe.Config(**settings, output_dir=tmp_path / "none"))
    assert all("error" in json.loads(line) for line in (tmp_path / "none" / "runs.jsonl").read_text().splitlines())
    trained.clear()
    monkeypatch.setattr(recipe, "train", failing(rates[1:2]))  # the default rate, which would be the best
    recipe.main(recipe.Config(**settings, output_dir=tmp_path / "some"))
    (rate,) = {job["flags"]["learning_rate"] for job in trained if not job["search"]}
    assert rate == pytest.approx(0.0012)


def test_a_second_sweep_in_a_folder_is_refused_and_damaged_lines_are_told(
    recipe, trained, tmp_path, capsys, locked_elsewhere
):
    settings = {"studies": ("order",), "methods": ("supcon",), "repeats": 1, "rates": (1.0,)}
    config = recipe.Config(**settings, output_dir=tmp_path, resume=True)
    with locked_elsewhere(tmp_path), pytest.raises(ConfigError, match="no other run uses"):
        recipe.main(config)
    recipe.main(config)
    count = len(trained)
    text = (tmp_path / "runs.jsonl").read_text()
    (tmp_path / "runs.jsonl").write_text(text[:-20])
    recipe.main(config)
    assert len(trained) == count + 1
    assert "1 damaged line(s), whose runs are made again" in capsys.readouterr().out


def test_a_run_whose_process_is_killed_is_a_failed_run_and_the_sweep_goes_on(recipe, trained, tmp_path, monkeypatch):
    def calls(function, arguments, *, processes):
        assert processes == 2
        for number, (name, given) in enumerate(arguments.items()):
            yield name, function(*given) if number else BrokenProcessPool("ended abruptly")

    monkeypatch.setattr(recipe, "calls_in_processes", calls)
    settings = {"studies": ("order",), "methods": ("supcon",), "repeats": 1, "rates": (1.0,), "processes": 2}
    recipe.main(recipe.Config(**settings, output_dir=tmp_path))
    failed, good = map(json.loads, (tmp_path / "runs.jsonl").read_text().splitlines())
    assert "ended abruptly" in failed["error"]
    assert (failed["method"], failed["flags"]["sampler"], good["flags"]["sampler"]) == (
        "supcon", "uniform", "fixed-order",
    )  # fmt: skip
    assert "error" not in good


def test_a_copy_uses_the_reference_recipe_of_the_package(tmp_path):
    """`mmcon recipe copy stability` copies this one alone."""
    copy = shutil.copy(RECIPE, tmp_path)
    spec = importlib.util.spec_from_file_location("stability_copy", copy)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    del sys.modules[spec.name]
    assert Path(module.reference.__file__) == RECIPE.with_name("imagenet_supcon.py")
