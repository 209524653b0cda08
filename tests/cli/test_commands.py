"""What all commands have in common: a first screen, help with examples that parse, exit codes, and completion."""

import importlib
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from mmcon import cli

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))
cli_page = importlib.import_module("cli_page")
sys.path.pop(0)
COMMANDS = cli_page.commands()


@pytest.mark.parametrize("name", COMMANDS)
def test_help_ends_with_an_example_that_parses(name):
    parser = COMMANDS[name]
    example = cli_page.example_of(parser)
    assert example
    assert parser.format_help().rstrip().endswith(f"example:\n  {example}")
    if not example.startswith("eval "):
        words = shlex.split(example.partition(" && ")[0])
        assert " ".join(words).startswith(name)
        assert callable(cli.create_parser().parse_args(words[1:]).run)


def test_the_page_lists_every_command():
    assert cli_page.PAGE.read_text() == cli_page.page(), "run `python tools/cli_page.py` after a change of commands"


def test_without_arguments_the_command_says_what_to_do_first(capsys):
    assert cli.main([]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith("  mmcon ")]
    assert lines[0].startswith("mmcon train imagenet_supcon --tiny")
    for line in lines[:-1]:
        words = shlex.split(line.partition("   ")[0])
        assert callable(cli.create_parser().parse_args(words[1:]).run), line


def test_the_exit_status_tells_invalid_input_from_an_interruption(capsys, monkeypatch):
    assert cli.main(["train"]) == 2
    assert "mmcon train: expected the name of a recipe; got none" in capsys.readouterr().err
    with pytest.raises(SystemExit) as wrong:
        cli.main(["trian"])
    assert wrong.value.code == 2

    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("mmcon.cli.recipe._list", interrupt)
    assert cli.main(["recipe", "list"]) == 130
    assert capsys.readouterr().err.endswith("interrupted\n")


@pytest.mark.parametrize("words", [["train"], ["recipe", "run"]])
def test_both_names_of_training_start_the_recipe_with_its_flags(monkeypatch, words):
    started = []
    monkeypatch.setattr("os.execv", lambda program, arguments: started.extend(arguments[1:]))
    cli.main([*words, "imagenet_supcon", "--data", "photos", "--cpu"])
    assert [Path(started[0]).name, *started[1:]] == ["imagenet_supcon.py", "--data", "photos", "--cpu"]
    started.clear()
    cli.main([*words, "--processes", "2", "mine.py", "--seed", "1"])
    assert started[-3:] == ["mine.py", "--seed", "1"]
    assert "--num_processes" in started


def test_bash_completes_commands_flags_and_choices(tmp_path, capsys):
    assert cli.main(["completion", "bash"]) == 0
    script = tmp_path / "mmcon.bash"
    script.write_text(capsys.readouterr().out)
    (tmp_path / "photo.jpg").touch()
    for line, completed in (
        ("mmcon trai", "train"),
        ("mmcon train --pro", "--processes"),
        ("mmcon completion z", "zsh"),
        ("mmcon doctor --data pho", "photo.jpg"),
    ):
        words = line.split()
        program = (
            f"source {script}; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _shtab_mmcon; echo ${{COMPREPLY[@]}}"
        )
        run = subprocess.run(["bash", "-c", program], capture_output=True, text=True, cwd=tmp_path)
        assert run.stdout.split() == [completed], run.stderr


@pytest.mark.parametrize(("shell", "mark"), [("zsh", "#compdef mmcon"), ("fish", "complete -c mmcon")])
def test_other_shells_have_a_script_too(capsys, shell, mark):
    assert cli.main(["completion", shell]) == 0
    assert mark in capsys.readouterr().out
