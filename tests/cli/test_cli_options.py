"""All options of all commands: how they are written, read and shown."""

from __future__ import annotations

import re
import warnings
from typing import Any

import pytest

from mixln.cli import find, main
from mixln.commands import COMMANDS, is_group
from mixln.commands.arguments import find_interface
from mixln.commands.help import FIRST, describe, help_page
from mixln.commands.options import Interface, Option, choices, plain_kind
from mixln.commands.parsing import OldNameWarning, parse
from mixln.commands.spelling import CONTRADICTIONS, OLD_NAMES
from mixln.errors import InputError
from mixln.tasks.kinds import KINDS, LANGUAGE
from mixln.tasks.recipes import field_types

NAMES = [name for name in COMMANDS if not is_group(name)]
RECIPE_COMMANDS = ["train", "compare", "data prepare", "estimate"]


def command(name: str) -> Interface:
    return find_interface(name)


def written(option: Option) -> list[str]:
    """A value that the option takes, as it is written."""
    kind, words = plain_kind(option.kind), choices(option.kind)
    if option.is_flag:
        return []
    if words:
        return [words[0]]
    text = str(kind)
    return ["2"] if kind in (int, float) or "int" in text or "float" in text else ["word"]


def needed(interface: Interface) -> list[str]:
    """What a command line cannot do without."""
    found = [f"x{index}" for index, option in enumerate(interface.options) if option.positional and option.required]
    for option in interface.options:
        if option.required and not option.positional:
            found += [option.spellings[0], *written(option)]
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_option_is_written_with_dashes_and_read_with_underscores_too(name: str) -> None:
    interface = command(name)
    for option in interface.options:
        if option.positional or option.required:
            continue
        found: list[Any] = []
        for spelling in option.spellings:
            assert re.fullmatch(r"--[a-z0-9]+([.-][a-z0-9]+)*", spelling), spelling
            for form in (spelling, f"--{spelling[2:].replace('-', '_')}"):
                given = parse(interface, [*needed(interface), form, *written(option)])
                found.append(given[option])
        assert all(one == found[0] for one in found), option.spellings


@pytest.mark.parametrize("name", NAMES)
def test_no_two_options_of_a_command_are_written_alike(name: str) -> None:
    spellings = [spelling for option in command(name).options for spelling in option.spellings]
    assert len(set(spellings)) == len(spellings)


@pytest.mark.parametrize("name", NAMES)
def test_every_option_says_in_a_sentence_what_it_is_and_what_it_takes(name: str) -> None:
    for option in command(name).options:
        for everything in (True, False):
            text = describe(option, everything=everything)
            assert re.match(r"[A-Z`]", text), (option.spellings, text)
            assert text.endswith("."), (option.spellings, text)
            assert len(text) > 10, (option.spellings, text)
        assert not re.search(r"see above|of these,|[Nn]ull|default: |; ", option.help), (option.spellings, option.help)
        if not option.is_flag:
            assert re.fullmatch(r"[A-Z]+( \.\.\.)?|auto", option.metavar), (option.spellings, option.metavar)
        assert all(word in describe(option) for word in choices(option.kind))


@pytest.mark.parametrize("name", NAMES)
def test_help_fits_a_screen_and_help_all_has_everything(name: str) -> None:
    interface = command(name)
    short, long = (help_page(interface, everything=everything, columns=80) for everything in (False, True))
    assert short.count("\n") <= 40
    assert max(map(len, [*short.splitlines(), *long.splitlines()])) <= 80
    assert short.startswith(f"usage: mixln {name} ")
    for page in (short, long):
        assert f"example: mixln {name}" in page
        assert "class '" not in page
    for option in interface.options:
        shown = option.spellings[0].upper() if option.positional else option.spellings[0]
        assert re.search(rf"^  .*{re.escape(shown)}( |$)", long, re.MULTILINE), option.spellings
    wide = help_page(interface, everything=True, columns=100)
    assert 80 < max(map(len, wide.splitlines())) <= 100


def test_the_first_options_are_options() -> None:
    assert FIRST.keys() <= set(NAMES)
    for name, groups in FIRST.items():
        known = [option.spellings[0] for option in command(name).options]
        shown = [option for options in groups.values() for option in options]
        assert set(shown) <= set(known)
        assert len(set(shown)) == len(shown) <= 13


@pytest.mark.parametrize("name", RECIPE_COMMANDS)
def test_every_field_of_a_recipe_is_an_option(name: str) -> None:
    fields = {option.field for option in command(name).options if option.parameter == "recipe"}
    left_out = {"model.placement"} if name == "compare" else set()
    kinds = [LANGUAGE] if name == "data prepare" else KINDS.values()
    every = {field for kind in kinds for field in (*kind.budgets, *field_types(kind.config))}
    assert fields == {"", *every} - left_out


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        ("train --execution.trackers wandb tensorboard", "execution.trackers", ("wandb", "tensorboard")),
        ("train --execution.trackers [wandb,tensorboard]", "execution.trackers", ("wandb", "tensorboard")),
        ("train --trackers []", "execution.trackers", ()),
        ("diagnose m --run-lengths 2 4", "run_lengths", (2, 4)),
        ("diagnose m --run-lengths [2,4]", "run_lengths", (2, 4)),
        ("diagnose --run_lengths [2,4] -- m", "run_lengths", (2, 4)),
        ("compare --seeds 0 1 2", "seeds", [0, 1, 2]),
        ("compare --learning-rates 1e-3 .002", "learning_rates", [1e-3, 2e-3]),
        ("train --tokens 1.5B", "tokens", 1_500_000_000),
        ("train --steps=20k", "steps", 20_000),
        ("diagnose m --max-tokens 1M", "max_tokens", 1_000_000),
        ("train --lr 3e-4", "optimizer.learning_rate", 3e-4),
        ("train --learning-rate 3e-4", "optimizer.learning_rate", 3e-4),
        ("train --optimizer.learning_rate 3e-4", "optimizer.learning_rate", 3e-4),
        ("train --hidden-size 64", "model.hidden_size", 64),
        ("train --micro-batch-size null", "micro_batch_size", None),
        ("train --model.tie-word-embeddings", "model.tie_word_embeddings", True),
        ("train --model.tie_word_embeddings true", "model.tie_word_embeddings", True),
        ("train --execution.asynchronous-checkpoints false", "execution.asynchronous_checkpoints", False),
        ("diagnose --fresh-gradients m", "fresh_gradients", True),
        ("train --placement none", "model.placement", "none"),
        ("train --tokenizer null --data.vocab-size 300", "data.vocab_size", 300),
        ("prune m out --layers 2 --any false", "layers", "2"),
        ("prune m out --heal --drop 1", "heal", ""),
        ("prune m out --drop 1 --heal books.txt", "heal", "books.txt"),
    ],
)
def test_values_as_people_write_them(words: str, name: str, value: object) -> None:
    found = find(words.split())
    assert not isinstance(found, str)
    given = {option.name: (option, text) for option, text in parse(*found).items()}
    option, text = given[name]
    assert (text if text == option.const else option.read(text)) == value


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train --stpes 5", "has no option --stpes. Did you mean '--steps'?"),
        ("train --model.num-layers 5", "Did you mean '--model.num-hidden-layers'?"),
        ("diagnose m --wihtout swap", "Did you mean '--without'?"),
        ("trian", "there is no subcommand 'trian'. Did you mean 'train'?"),
        ("data prepar", "Did you mean 'prepare'?"),
        ("--verison", "Did you mean '--version'?"),
        ("--steps 5 train", "Write the options of a command after its name"),
        ("train --steps 1.5", "--steps must be a whole number, not '1.5'"),
        ("train --steps 1e-1", "--steps must be a whole number"),
        ("train --steps 0", "--steps must be more than 0, not 0"),
        ("train --lr fast", "--learning-rate must be a number, not 'fast'"),
        ("train --precision bfloat", "must be one of auto, float32, bfloat16, not 'bfloat'. Did you mean 'bfloat16'?"),
        ("train --lr 1 --learning-rate 2", "--lr and --learning-rate are the same option"),
        ("train --steps", "--steps: expected one argument"),
        ("train --tie-word-embeddings=maybe", "must be true or false, not 'maybe'"),
        ("train now", "`mixln train` does not take 'now'"),
        ("prune m", "are required: OUT"),
        ("diagnose m --only swap --without swap", "swap is in --only and in --without"),
        ("train --device tpu --steps 1", "--device tpu: this machine has no such device. It has: cpu"),
    ],
)
def test_what_is_wrong_is_said_with_the_option(
    words: str, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words.split()) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.out == ""


@pytest.mark.parametrize("name", NAMES)
def test_options_that_contradict_each_other_are_refused_with_the_reason(name: str) -> None:
    interface = command(name)
    known = {option.spellings[0]: option for option in interface.options}
    pairs = [*CONTRADICTIONS[""], *CONTRADICTIONS.get(name, ())]
    for one, other, reason in pairs:
        if one not in known or other not in known:
            assert (one, other, reason) in CONTRADICTIONS[""], "a contradiction of this command names its options"
            continue
        words = needed(interface)
        for option in (known[one], known[other]):
            (value,) = written(option) or ["true"]
            words.append(value if option.positional else f"{option.spellings[0]}={value}")
        with pytest.raises(InputError, match=f"{one} and {other} contradict each other: {re.escape(reason)}"):
            parse(interface, words)


@pytest.mark.parametrize("name", NAMES)
def test_old_names_work_with_a_warning(name: str) -> None:
    interface = command(name)
    known = {spelling: option for option in interface.options for spelling in option.spellings}
    for old, new in {**OLD_NAMES[""], **OLD_NAMES.get(name, {})}.items():
        if old in known or new not in known:
            assert old in OLD_NAMES[""], "an old name of this command has a new one"
            continue
        option = known[new]
        with pytest.warns(OldNameWarning, match=f"{old} is now written {new}"):
            given = parse(interface, [*needed(interface), old, *written(option)])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert given == parse(interface, [*needed(interface), new, *written(option)])


def test_a_warning_on_an_old_name_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schemes", "mix", "--layers", "4"]) == 0
    error = capsys.readouterr().err
    assert error == "mixln: --layers is now written --num-layers. The old name will not work in the next version\n"


def test_one_thing_has_one_name_everywhere() -> None:
    """A text, rows, a selection of layers: no command has another name for it."""
    names = {name: {option.spellings[0] for option in command(name).options} for name in NAMES}
    everywhere = {option for options in names.values() for option in options}
    assert not everywhere & {"--corpus", "--window", "--dtype", "--validation-corpus"}
    assert [name for name, options in names.items() if "--layers" in options] == ["prune"]
    for name in ("train", "compare", "diagnose", "prune", "remove-norm"):
        assert {"--text", "--sequence-length", "--device"} <= names[name]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_every_command_and_option(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab", reason="needs mixln[completion]")
    assert main(["--completion", shell]) == 0
    script = capsys.readouterr().out
    for name in NAMES:
        assert name.rpartition(" ")[2] in script
    for option in command("train").options:
        assert any(spelling.lstrip("-") in script for spelling in option.spellings)
    assert "bfloat16" in script


def test_another_shell_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--completion", "bsh"]) == 2
    assert "Did you mean 'bash'? Valid: bash, zsh, fish" in capsys.readouterr().err
