from __future__ import annotations

import errno
import itertools
import json
import math
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from mixln.data import PreparedData, training_batch
from mixln.errors import InputError
from mixln.tasks import Recipe, build_model, pretrain
from mixln.tasks.language_model import as_arguments
from mixln.tasks.objective import CausalLanguageModelObjective
from mixln.training import ExecutionConfig, TrainingDivergedError, differences, read_metrics
from mixln.training.optimizer import build_optimizer, learning_rate
from mixln.training.run import accumulate_gradients, cut
from mixln.training.saved_checkpoint import DamagedCheckpointWarning, checkpoint_step, list_checkpoints

CPU = torch.device("cpu")


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_training_learns_and_leaves_a_folder_that_transformers_opens(
    recipe: Recipe, data: PreparedData, tmp_path: Path
) -> None:
    recipe = replace(recipe, steps=60, model=replace(recipe.model, placement="mix(alpha=0.25)"))
    trained = pretrain(recipe, data, tmp_path / "run")
    lines = read_metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == list(range(1, 61))
    assert lines[0]["loss"] == pytest.approx(math.log(len(data.tokenizer)), rel=0.03)
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.5
    assert lines[-1]["validation_loss"] == trained.validation.mean
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    assert model.config.placement == "mix(alpha=0.25)"
    assert_same_weights(weights(model), weights(trained.model))
    assert tokenizer.decode(tokenizer("def f(x):")["input_ids"]) == "def f(x):"


def test_tokens_are_counted_without_padding_and_document_starts(
    recipe: Recipe, data: PreparedData, tmp_path: Path
) -> None:
    trained = pretrain(recipe, data, tmp_path)
    batches = [training_batch(data.train, step, recipe.batch_size, recipe.seed) for step in range(recipe.steps)]
    predicted = sum(int((batch.targets != -100).sum()) for batch in batches)
    assert trained.train_tokens == predicted
    assert data.train.num_predicted_tokens < len(data.train) * recipe.data.sequence_length


def test_the_same_recipe_gives_the_same_weights_bit_for_bit(recipe: Recipe, data: PreparedData, tmp_path: Path) -> None:
    torch.manual_seed(1)
    first = weights(pretrain(recipe, data, tmp_path / "a").model)
    torch.manual_seed(2)
    assert_same_weights(first, weights(pretrain(recipe, data, tmp_path / "b").model))
    other = weights(pretrain(replace(recipe, seed=1), data, tmp_path / "c").model)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


@pytest.mark.parametrize("stop_after", [1, 5, 11])
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(
    recipe: Recipe, data: PreparedData, tmp_path: Path, stop_after: int
) -> None:
    whole = weights(pretrain(recipe, data, tmp_path / "whole").model)

    def interrupt(step: int, loss: float, tokens_per_second: float) -> None:
        assert loss > 0
        assert tokens_per_second > 0
        if step == stop_after:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        pretrain(recipe, data, tmp_path / "cut", interrupt)
    assert not (tmp_path / "cut" / "model").exists()
    resumed = pretrain(recipe, data, tmp_path / "cut")
    assert_same_weights(whole, weights(resumed.model))
    for name in ("loss", "validation_loss", "learning_rate", "tokens"):
        whole_values = [line.get(name) for line in read_metrics(tmp_path / "whole")]
        assert [line.get(name) for line in read_metrics(tmp_path / "cut")] == whole_values, name


def test_a_kill_between_checkpoints_repeats_only_what_came_after(
    recipe: Recipe, data: PreparedData, tmp_path: Path
) -> None:
    recipe = replace(recipe, execution=ExecutionConfig(checkpoint_every=4))
    whole = weights(pretrain(recipe, data, tmp_path / "whole").model)

    class KilledError(Exception):
        pass

    def kill(step: int, loss: float, tokens_per_second: float) -> None:
        assert math.isfinite(loss + tokens_per_second)
        if step == 7:
            raise KilledError

    with pytest.raises(KilledError):
        pretrain(recipe, data, tmp_path / "cut", kill)
    steps: list[int] = []
    resumed = pretrain(recipe, data, tmp_path / "cut", lambda step, *_: steps.append(step))
    assert steps == list(range(5, 13))
    assert_same_weights(whole, weights(resumed.model))
    assert [line["step"] for line in read_metrics(tmp_path / "cut")] == list(range(1, 13))


def interrupt_after(last: int) -> Callable[[int, float, float], None]:
    def interrupt(step: int, *_: float) -> None:
        if step == last:
            os.kill(os.getpid(), signal.SIGINT)

    return interrupt


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_full_disk_while_writing_a_checkpoint_leaves_the_one_before(
    recipe: Recipe, data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asynchronous: bool
) -> None:
    recipe = replace(recipe, execution=ExecutionConfig(checkpoint_every=3, asynchronous_checkpoints=asynchronous))
    real_fsync, written = os.fsync, []

    def fsync(descriptor: int) -> None:
        path = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        if ".step_00000006" in path:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(path)
        real_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(InputError, match=r"No space left on device.*make room"):
        pretrain(recipe, data, tmp_path)
    monkeypatch.undo()
    assert any(".step_00000003" in path for path in written)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000003"]
    steps: list[int] = []
    pretrain(recipe, data, tmp_path, lambda step, *_: steps.append(step))
    assert steps[0] == 4


@pytest.mark.parametrize("damage", ["cut", "flipped", "missing"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
    recipe: Recipe, data: PreparedData, tmp_path: Path, damage: str
) -> None:
    recipe = replace(recipe, execution=ExecutionConfig(checkpoint_every=3))
    whole = weights(pretrain(recipe, data, tmp_path / "whole").model)
    with pytest.raises(KeyboardInterrupt):
        pretrain(recipe, data, tmp_path / "cut", interrupt_after(7))
    older, newest = list_checkpoints(tmp_path / "cut")
    assert (older.name, newest.name) == ("step_00000006", "step_00000007")
    (part,) = newest.glob("*.distcp")
    content = bytearray(part.read_bytes())
    if damage == "cut":
        part.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
        part.write_bytes(content)
    else:
        part.unlink()
    steps: list[int] = []
    with pytest.warns(DamagedCheckpointWarning, match=r"step_00000007 is damaged"):
        resumed = pretrain(recipe, data, tmp_path / "cut", lambda step, *_: steps.append(step))
    assert steps[0] == 7
    assert_same_weights(whole, weights(resumed.model))


def test_damaged_checkpoints_and_no_other_are_an_error(recipe: Recipe, data: PreparedData, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        pretrain(recipe, data, tmp_path, interrupt_after(1))
    (checkpoint,) = list_checkpoints(tmp_path)
    (checkpoint / "progress.json").write_text("{}")
    with (
        pytest.warns(DamagedCheckpointWarning),
        pytest.raises(InputError, match=r"progress\.json has changed.*no whole one.*start this run over"),
    ):
        pretrain(recipe, data, tmp_path)


def test_the_last_checkpoints_are_kept_and_every_nth(recipe: Recipe, data: PreparedData, tmp_path: Path) -> None:
    recipe = replace(recipe, execution=ExecutionConfig(checkpoint_every=1, keep_last=2, keep_every=4))
    with pytest.raises(KeyboardInterrupt):
        pretrain(recipe, data, tmp_path, interrupt_after(11))
    assert [checkpoint_step(path) for path in list_checkpoints(tmp_path)] == [4, 8, 10, 11]
    pretrain(recipe, data, tmp_path)
    assert [checkpoint_step(path) for path in list_checkpoints(tmp_path)] == [4, 8]


def test_a_folder_holds_one_recipe(recipe: Recipe, data: PreparedData, tmp_path: Path) -> None:
    pretrain(recipe, data, tmp_path)
    with pytest.raises(InputError, match=r"model\.placement was pre, is post; seed was 0, is 3"):
        pretrain(replace(recipe, seed=3, model=replace(recipe.model, placement="post")), data, tmp_path)


def test_two_processes_do_not_train_in_one_folder(recipe: Recipe, data: PreparedData, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run" / ".lock"), pytest.raises(InputError, match="another process is training in"):
        pretrain(recipe, data, tmp_path / "run")
    pretrain(recipe, data, tmp_path / "run")


def test_a_run_does_not_go_on_with_other_data(recipe: Recipe, data: PreparedData, tmp_path: Path) -> None:
    pretrain(recipe, data, tmp_path)
    with pytest.raises(InputError, match="data_fingerprint was"):
        pretrain(recipe, replace(data, fingerprint="other"), tmp_path)


def test_a_finished_run_is_not_trained_again(recipe: Recipe, data: PreparedData, tmp_path: Path) -> None:
    first = pretrain(recipe, data, tmp_path)
    steps: list[int] = []
    again = pretrain(recipe, data, tmp_path, lambda step, *_: steps.append(step))
    assert steps == []
    assert_same_weights(weights(first.model), weights(again.model))
    assert (again.validation, again.train_tokens) == (first.validation, first.train_tokens)


def test_a_model_of_unknown_origin_is_not_taken_for_this_run(
    recipe: Recipe, data: PreparedData, tmp_path: Path
) -> None:
    pretrain(recipe, data, tmp_path)
    (tmp_path / "recipe.json").unlink()
    with pytest.raises(InputError, match=r"holds model, but no recipe\.json"):
        pretrain(replace(recipe, seed=7), data, tmp_path)


@pytest.mark.parametrize("content", ["", "garbage\n"])
def test_a_finished_run_without_its_metrics_is_said_to_be_so(
    recipe: Recipe, data: PreparedData, tmp_path: Path, content: str
) -> None:
    pretrain(recipe, data, tmp_path)
    (tmp_path / "metrics.jsonl").write_text(content)
    with pytest.raises(InputError, match="metrics"):
        pretrain(recipe, data, tmp_path)


def test_divergence_in_the_last_step_leaves_no_model(recipe: Recipe, data: PreparedData, tmp_path: Path) -> None:
    reckless = replace(recipe, steps=1, optimizer=replace(recipe.optimizer, learning_rate=1e30, max_grad_norm=0.0))
    with pytest.raises(TrainingDivergedError, match="validation loss was nan in step 1"):
        pretrain(reckless, data, tmp_path)
    assert not (tmp_path / "model").exists()


def test_divergence_is_an_error_that_names_the_step(recipe: Recipe, data: PreparedData, tmp_path: Path) -> None:
    reckless = replace(recipe, optimizer=replace(recipe.optimizer, learning_rate=1e30, max_grad_norm=0.0))
    with pytest.raises(TrainingDivergedError, match=r"step \d+ .*learning rate"):
        pretrain(reckless, data, tmp_path)


def test_micro_batches_give_the_gradients_of_the_whole_batch(recipe: Recipe, data: PreparedData) -> None:
    batch = training_batch(data.train, 0, 7, 0)
    gradients: list[list[torch.Tensor]] = []
    losses: list[float] = []
    for size in (None, 1, 3):
        model = build_model(recipe, data.tokenizer).double()
        objective = CausalLanguageModelObjective(model)
        parts = cut(as_arguments(batch), size)
        losses.append(float(accumulate_gradients(objective, parts, None, batch.num_predicted_tokens)))
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for other in (1, 2):
        assert losses[other] == pytest.approx(losses[0], rel=1e-6)
        for one, two in zip(gradients[0], gradients[other], strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-7)


def test_the_first_step_is_adam_on_the_clipped_mean_loss(recipe: Recipe, data: PreparedData, tmp_path: Path) -> None:
    """One step of the loop against the same step written out by hand."""
    recipe = replace(recipe, steps=1)
    model = build_model(recipe, data.tokenizer)
    batch = training_batch(data.train, 0, recipe.batch_size, recipe.seed)
    logits = model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False).logits
    loss = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=-100)
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = torch.cat([gradient.double().flatten() for gradient in gradients]).norm()
    clip = min(1.0, recipe.optimizer.max_grad_norm / float(norm))
    expected = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        gradient = parameter.grad * clip
        # Adam's first step: both moments are bias-corrected to the gradient itself
        expected[name] = parameter.detach() - 5e-3 * gradient / (gradient.abs() + 1e-8)
    trained = pretrain(recipe, data, tmp_path)
    for name, parameter in trained.model.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-4, atol=1e-5)
    assert read_metrics(tmp_path)[0]["gradient_norm"] == pytest.approx(float(norm), rel=1e-4)


def test_weight_decay_spares_norms(recipe: Recipe, data: PreparedData) -> None:
    recipe = replace(recipe, optimizer=replace(recipe.optimizer, name="adamw", weight_decay=0.1))
    decayed, spared = build_optimizer(recipe.optimizer, build_model(recipe, data.tokenizer)).param_groups
    assert decayed["weight_decay"] == 0.1
    assert {p.ndim for p in decayed["params"]} == {2}
    assert spared["weight_decay"] == 0.0
    assert {p.ndim for p in spared["params"]} == {1}


def test_schedule_is_linear_warmup_then_cosine_to_a_tenth(recipe: Recipe) -> None:
    recipe = replace(recipe, steps=100)
    rates = [learning_rate(recipe.optimizer, recipe.steps, step) for step in range(1, 101)]
    assert rates[:10] == pytest.approx([5e-3 * step / 10 for step in range(1, 11)])
    assert rates[54] == pytest.approx(5e-3 * (0.1 + 0.9 / 2))
    assert rates[-1] == pytest.approx(5e-4)
    assert all(after < before for before, after in itertools.pairwise(rates[9:]))


def test_bfloat16_trains_with_float32_weights(recipe: Recipe, data: PreparedData, tmp_path: Path) -> None:
    trained = pretrain(replace(recipe, precision="bfloat16", steps=30), data, tmp_path)
    assert {p.dtype for p in trained.model.parameters()} == {torch.float32}
    lines = read_metrics(tmp_path)
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.3


def test_metrics_cut_short_by_a_kill_are_read_up_to_the_last_whole_line(tmp_path: Path) -> None:
    whole = json.dumps({"step": 1, "loss": 2.0}) + "\n"
    (tmp_path / "metrics.jsonl").write_text(whole + '{"step": 2, "lo')
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 2.0}]


def test_differences_name_nested_values() -> None:
    assert list(differences({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "c": 2})) == ["a.b was 1, is 3"]
