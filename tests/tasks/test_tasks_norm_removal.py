"""Removing norms on the training engine: what is trained, killed, resumed, rolled back and refused."""

from __future__ import annotations

import json
import math
import shutil
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

import mixln
from mixln.data import PreparedData
from mixln.errors import InputError
from mixln.models.load import load_causal_lm
from mixln.models.placed import PlacedPreTrainedModel
from mixln.placement import Placement, list_schemes
from mixln.studies.remove_norm import REPORT_FILE, RemoveNorm, removal_folder
from mixln.tasks import TextTrainingConfig, validation_loss
from mixln.tasks.export import export_checkpoint, find_checkpoint
from mixln.tasks.norm_removal.config import NormRemovalConfig
from mixln.tasks.norm_removal.frozen_norm import FIRST_POSITION, ORDINARY
from mixln.tasks.norm_removal.install import check_norms_removable, find_frozen_norms
from mixln.tasks.norm_removal.removal import RemovalCallback
from mixln.tasks.norm_removal.task import NormRemoval, add_auxiliary_loss
from mixln.tasks.validation import ValidationLoss
from mixln.training import Callback, TrainingDivergedError, TrainingInterrupted, read_metrics, train
from mixln.training.run import TrainingRun
from mixln.training.saved_checkpoint import checkpoint_step, list_checkpoints

SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.05}
CONFIG = NormRemovalConfig(steps=24, batch_size=4, sequence_length=32, max_validation_tokens=1000, learning_rate=1e-3)


def save(architecture: str, data: PreparedData, folder: Path, placement: str | None = None) -> Path:
    """A small model in the tokens of the data: transformers' own, or with a placement this library's."""
    torch.manual_seed(0)
    vocabulary: dict[str, Any] = {"vocab_size": len(data.tokenizer), "bos_token_id": None, "eos_token_id": None}
    if architecture == "gpt2":
        dropout: dict[str, Any] = {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}
        model: Any = GPT2LMHeadModel(GPT2Config(**SIZES, **vocabulary, **dropout))
    elif architecture == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**SIZES, **vocabulary, intermediate_size=48, num_key_value_heads=2))
    else:
        model = LlamaForCausalLM(LlamaConfig(**SIZES, **vocabulary, intermediate_size=48, tie_word_embeddings=True))
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:  # a gain of 1 and a bias of 0 would hide what is left out
            torch.nn.init.normal_(parameter, 1.0 if name.endswith("weight") else 0.0, 0.2)
    if placement is not None:
        model, _ = mixln.apply_placement(model, placement, seed=0)
    model.save_pretrained(folder)
    data.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def gpt2(data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("gpt2", data, tmp_path_factory.mktemp("models") / "gpt2")


def work_on(source: Path, corpus: Path, out: Path, config: NormRemovalConfig = CONFIG, **control: Any) -> Any:
    """All that `mixln remove-norm` does."""
    with RemoveNorm(str(source), config, str(corpus), out) as work:
        work.prepare(out.parent / "cache", lambda _: None)
        work.measure_original()
        work.remove(control.get("report_step"))
        if control.get("with_control", True):
            work.train_control()
        report = work.report()
        work.write(report)
        return report


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "qwen2", "llama lns"])
def test_a_stock_or_placed_model_loses_its_norms(
    architecture: str, data: PreparedData, corpus: Path, tmp_path: Path
) -> None:
    name, _, placement = architecture.partition(" ")
    source = save(name, data, tmp_path / "source", placement or None)
    report = work_on(source, corpus, tmp_path / "out")
    assert [one.target for one in report.removals] == [
        *["feed_forward"] * 2,
        *["query_key"] * 2,
        *["value"] * 2,
        *("final", "end_of_text", "first_position"),
    ]
    assert report.folding_difference <= 1e-5 * report.largest_logit
    # trained, the control as the norm-free one
    assert report.loss_control < report.loss_original - 0.05
    assert report.loss_norm_free < report.loss_original
    assert json.loads((tmp_path / "out" / REPORT_FILE).read_text())["loss_norm_free"] == report.loss_norm_free
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.config.placement == "none"
    assert not any("norm" in type(module).__name__.lower() for module in model.modules())
    assert len(AutoTokenizer.from_pretrained(tmp_path / "out")) == len(data.tokenizer)
    metrics = read_metrics(removal_folder(tmp_path / "out") / "removal")
    assert metrics[-1]["validation_loss"] == pytest.approx(report.loss_norm_free, abs=1e-3)
    assert metrics[-1]["removals"] == 9


@pytest.mark.slow
def test_interrupted_anywhere_it_ends_as_if_nothing_had_happened(gpt2: Path, corpus: Path, tmp_path: Path) -> None:
    work_on(gpt2, corpus, tmp_path / "whole", with_control=False)
    for step in (5, 9, 16):

        def interrupt(now: int, *_: float, at: int = step) -> None:
            if now == at:
                raise KeyboardInterrupt

        with pytest.raises((KeyboardInterrupt, TrainingInterrupted)):
            work_on(gpt2, corpus, tmp_path / "cut", with_control=False, report_step=interrupt)
    report = work_on(gpt2, corpus, tmp_path / "cut", with_control=False)
    whole, cut = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert whole.keys() == cut.keys()
    assert all(torch.equal(weight, cut[name]) for name, weight in whole.items())
    assert report.loss_control is None
    losses = [
        [line["loss"] for line in read_metrics(removal_folder(tmp_path / name) / "removal")]
        for name in ("whole", "cut")
    ]
    assert losses[0] == losses[1]


def test_losses_are_those_of_what_is_saved(data: PreparedData, corpus: Path, tmp_path: Path) -> None:
    source = save("llama", data, tmp_path / "whole")
    model, _ = load_causal_lm(str(source))
    torch.nn.Module.to(model, torch.bfloat16)
    model.save_pretrained(tmp_path / "source")
    data.tokenizer.save_pretrained(tmp_path / "source")
    # trained in another precision than they are measured in, and a measurement by that is not taken for one in this
    config = replace(CONFIG, precision="bfloat16")
    with RemoveNorm(str(tmp_path / "source"), config, str(corpus), tmp_path / "out") as work:
        work.prepare(tmp_path / "cache", lambda _: None)
        work.measure_original()
        work.remove()
        report = work.report()
        work.write(report)
        written, _ = load_causal_lm(str(tmp_path / "out"))
        assert written.dtype == torch.bfloat16
        torch.nn.Module.float(written)
        size = work.recipe.evaluation_batch_size
        losses = [validation_loss(written, work._data, size, dtype).mean for dtype in (torch.bfloat16, None)]
    assert losses[0] != losses[1] == report.loss_norm_free
    assert report.folding_difference <= 1e-5 * report.largest_logit


@pytest.mark.slow
@pytest.mark.parametrize("content", [None, "", "[]", "{}"])
def test_records_that_are_lost_are_measured_again_or_named(
    content: str | None, gpt2: Path, corpus: Path, tmp_path: Path
) -> None:
    config = replace(CONFIG, steps=12)
    report = work_on(gpt2, corpus, tmp_path / "out", config, with_control=False)
    shutil.rmtree(tmp_path / "out")

    def damage(name: str) -> None:
        file = removal_folder(tmp_path / "out") / name
        file.unlink() if content is None else file.write_text(content)

    damage("original.json")
    assert work_on(gpt2, corpus, tmp_path / "out", config, with_control=False) == report
    shutil.rmtree(tmp_path / "out")
    damage("removal/task_result.json")
    with pytest.raises(InputError, match=r"task_result\.json is missing or damaged.* To make it anew.* delete "):
        work_on(gpt2, corpus, tmp_path / "out", config, with_control=False)


class SpikeAfter(RemovalCallback):
    """As if the loss spiked once, in a step when so many removals had been made."""

    has_spiked = False

    def judge_loss(self, step: int, loss: float) -> Any:
        spikes = len(self.progress.made) == 4 and not self.has_spiked
        self.has_spiked |= spikes
        return super().judge_loss(step, loss + 10 * spikes)


class Removal(NormRemoval):
    """The removal of the norms of a model of two layers, by a callback that the test looks at.

    Attributes:
        callback: of the run.
    """

    def __init__(
        self,
        folder: Path,
        recipe: TextTrainingConfig,
        data: PreparedData,
        config: NormRemovalConfig,
        callback_class: type[RemovalCallback] = RemovalCallback,
    ) -> None:
        num_layers: int = SIZES["num_hidden_layers"]
        schedule = config.removal_schedule(num_layers)
        super().__init__(folder, recipe, data, schedule, num_layers, config.spike_policy)
        self.callback = callback_class(schedule.removals(num_layers), schedule.first_step, config.spike_policy)

    def callbacks(self) -> list[Callback]:
        return [self.callback]


@pytest.mark.slow
@pytest.mark.parametrize("action", ["wait", "roll_back", "stop"])
def test_a_spike_in_training(action: Any, gpt2: Path, corpus: Path, data: PreparedData, tmp_path: Path) -> None:
    config = replace(CONFIG, on_spike=action, steps=40, first_step=3)
    recipe = config.recipe(str(corpus), str(gpt2), 64)
    task = Removal(gpt2, recipe, data, config, SpikeAfter)
    if action == "stop":
        with pytest.raises(TrainingDivergedError, match=r"the loss rose to .* before the query key norm of layer 2"):
            train(task, tmp_path)
        assert list_checkpoints(tmp_path)
        assert not (tmp_path / "model").exists()
        # another policy goes on from there
        task = Removal(gpt2, recipe, data, replace(config, on_spike="wait"))
    with pytest.warns(UserWarning, match="going back to step") if action == "roll_back" else nullcontext():
        train(task, tmp_path)
    assert task.callback.is_complete
    pace = [later - earlier for earlier, later in pairwise(task.callback.progress.made)]
    planned = [removal.gap for removal in config.removal_schedule(2).removals(2)][:-1]
    # however often a step was made, the metrics have it once
    assert [line["step"] for line in read_metrics(tmp_path)] == list(range(1, 41))
    if action == "roll_back":
        assert task.callback.progress.num_roll_backs == 1
        assert pace[4:] == [2 * gap for gap in planned[4:]]
    else:
        # the policy of the second run of "stop" waits as well, for the spike is what the checkpoint ends with
        assert task.callback.progress.waited_steps == 1
        assert sum(pace) == sum(planned) + 1


class SpikeLate(RemovalCallback):
    """As if the loss spiked once, long after the last removal."""

    has_spiked = False

    def judge_loss(self, step: int, loss: float) -> Any:
        spikes = step == 55 and not self.has_spiked
        self.has_spiked |= spikes
        return super().judge_loss(step, loss + 10 * spikes)


@pytest.mark.slow
def test_a_spike_long_after_a_removal_goes_back_to_before_it(
    gpt2: Path, corpus: Path, data: PreparedData, tmp_path: Path
) -> None:
    config = replace(CONFIG, on_spike="roll_back", steps=60, first_step=3)
    recipe = config.recipe(str(corpus), str(gpt2), 64)
    task = Removal(gpt2, recipe, data, config, SpikeLate)
    last = config.removal_schedule(2).last_step(2)
    assert 55 - last > 2 * recipe.checkpoint_every * recipe.execution.keep_last
    with pytest.warns(UserWarning, match=f"first position was removed .step {last}.: going back to step {last - 1}"):
        train(task, tmp_path)
    assert task.callback.progress.num_roll_backs == 1
    assert task.callback.is_complete
    assert task.callback.progress.made[-1] > last


@pytest.mark.slow
def test_without_a_checkpoint_to_go_back_to_a_run_stops_with_all_that_it_has(
    gpt2: Path, corpus: Path, data: PreparedData, tmp_path: Path
) -> None:
    config = replace(CONFIG, on_spike="stop", steps=60, first_step=3)
    last = config.removal_schedule(2).last_step(2)
    recipe = config.recipe(str(corpus), str(gpt2), 64)
    task = Removal(gpt2, recipe, data, config, SpikeLate)
    with pytest.raises(TrainingDivergedError, match="Another policy on spikes"):
        train(task, tmp_path)
    task = Removal(gpt2, recipe, data, replace(config, on_spike="roll_back"), SpikeAgain)
    with pytest.raises(TrainingDivergedError, match=f"no checkpoint of step {last - 1} or earlier is left"):
        train(task, tmp_path)
    assert max(checkpoint_step(path) for path in list_checkpoints(tmp_path)) == 57


class SpikeAgain(RemovalCallback):
    """As if the loss were a spike from step 57 on."""

    def judge_loss(self, step: int, loss: float) -> Any:
        return super().judge_loss(step, loss + 10 * (step >= 57))


class PoisonAfter(RemovalCallback):
    """The fourth removal, when it is first made, spoils the model for two steps, or until it is taken back."""

    spoiled_steps = 0

    def before_step(self, step: int) -> None:
        super().before_step(step)
        assert self.norms is not None
        sigma = self.norms.norms["query_key", 1].sigma
        if len(self.progress.made) == 4 and self.spoiled_steps < 2:
            self.spoiled_steps += 1
            self._sigma = sigma.clone() if self.spoiled_steps == 1 else self._sigma
            sigma.fill_(torch.nan)
        elif len(self.progress.made) == 4 and sigma.isnan().any():
            sigma.copy_(self._sigma)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the training loss was nan")
@pytest.mark.parametrize("action", ["wait", "roll_back", "stop"])
def test_a_loss_that_is_no_number_is_a_spike_too(
    action: Any, gpt2: Path, corpus: Path, data: PreparedData, tmp_path: Path
) -> None:
    config = replace(CONFIG, on_spike=action, steps=40, first_step=3, final_gap=1, end_of_text_gap=1)
    recipe = config.recipe(str(corpus), str(gpt2), 64)
    task = Removal(gpt2, recipe, data, config, PoisonAfter)
    if action == "stop":
        with pytest.raises(TrainingDivergedError, match=r"the loss rose to nan .* Another policy on spikes"):
            train(task, tmp_path)
        return
    train(task, tmp_path)
    assert task.callback.is_complete
    assert task.callback.progress.num_roll_backs == (2 if action == "roll_back" else 0)
    lost = [line["step"] for line in read_metrics(tmp_path) if line["loss"] is None]
    assert len(lost) == (2 if action == "wait" else 0)


@pytest.mark.slow
def test_steps_that_end_too_early_lose_nothing(
    gpt2: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RemovalCallback, "_is_spike", lambda self, _: len(self.progress.made) == 4)
    with pytest.raises(InputError, match=r"the steps are over, and 4 of 9 removals are made: spikes held removals up"):
        work_on(gpt2, corpus, tmp_path / "out")
    # what is kept is no model yet: its frozen norms would be lost
    checkpoint = find_checkpoint(removal_folder(tmp_path / "out") / "removal")
    with pytest.raises(
        InputError, match=r"holds transformer.h.0.ln_1.average_std: it is of a run that changes its model"
    ):
        export_checkpoint(checkpoint, tmp_path / "exported")
    assert len(read_metrics(removal_folder(tmp_path / "out") / "removal")) == CONFIG.steps
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_validation_loss_that_is_no_number_is_a_spike_too(
    gpt2: Path, corpus: Path, data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(CONFIG, on_spike="roll_back", steps=40, first_step=3, evaluate_every=1)
    recipe = config.recipe(str(corpus), str(gpt2), 64)
    task = Removal(gpt2, recipe, data, config)
    measure = TrainingRun.validate

    def validate(run: TrainingRun) -> Any:
        # when the fourth norm has gone, and has not been put off
        spoilt = len(task.callback.progress.made) == 4 and not task.callback.progress.num_roll_backs
        return ValidationLoss(math.inf, 1) if spoilt else measure(run)

    monkeypatch.setattr(TrainingRun, "validate", validate)
    with pytest.warns(UserWarning, match="the loss rose to inf .* going back to step"):
        train(task, tmp_path)
    assert task.callback.progress.num_roll_backs == 1
    assert task.callback.is_complete


@pytest.mark.slow
def test_runs_of_other_settings_are_told_of_before_any_training(gpt2: Path, corpus: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, steps=12)
    work_on(gpt2, corpus, tmp_path / "out", config)
    shutil.rmtree(tmp_path / "out")
    runs = removal_folder(tmp_path / "out")
    shutil.rmtree(runs / "removal")
    with RemoveNorm(str(gpt2), replace(config, steps=14), str(corpus), tmp_path / "out") as work:
        work.prepare(tmp_path / "cache", lambda _: None)
        work.check_runs(with_control=False)
        with pytest.raises(InputError, match=r"control holds a run of another recipe \(.*steps was 12, is 14"):
            work.check_runs(with_control=True)
    assert not (runs / "removal").exists()


@pytest.mark.slow
def test_removing_again_after_a_failure_begins_with_all_norms(gpt2: Path, corpus: Path, tmp_path: Path) -> None:
    def fail(step: int, *_: float) -> None:
        if step == 9:
            raise RuntimeError("the screen is gone")

    with RemoveNorm(str(gpt2), CONFIG, str(corpus), tmp_path / "out") as work:
        work.prepare(tmp_path / "cache", lambda _: None)
        work.measure_original()
        with pytest.raises(RuntimeError, match="the screen is gone"):
            work.remove(fail)
        work.remove()
        assert len(work.report().removals) == 9


def test_auxiliary_loss_is_the_formulas(gpt2: Path, data: PreparedData, corpus: Path) -> None:
    recipe = CONFIG.recipe(str(corpus), str(gpt2), 32)
    task = Removal(gpt2, recipe, data, CONFIG)
    model = task.build().train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    assert isinstance(model, PlacedPreTrainedModel)
    batch = data.train.batch(range(2))
    norms = find_frozen_norms(model)
    plain = task.objective(model, torch.device("cpu"), compiled=False).batch_loss(batch)
    seen: list[torch.Tensor] = []
    model.base_model.get_submodule("ln_f").register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    objective = task.objective(model, torch.device("cpu"), compiled=False)
    add_auxiliary_loss(objective, norms.norms["final", None], 0.3)
    seen.clear()
    found = objective.batch_loss(batch)
    hidden_states = seen[-1]
    std = (hidden_states.var(-1, correction=0) + 1e-5).sqrt()
    ids = norms.classes.ids
    assert ids is not None
    assert (ids == FIRST_POSITION).sum() >= 2
    target = std[ids == ORDINARY].mean()
    extra = 0.3 * ((std - target.detach()) ** 2).sum()
    # only the gradient has it: metrics and spikes are about the next-token loss
    torch.testing.assert_close(found, plain)
    embedding = model.get_parameter("transformer.wte.weight")
    gradients = [torch.autograd.grad(loss, embedding, retain_graph=True)[0] for loss in (found, plain, extra)]
    torch.testing.assert_close(gradients[0], gradients[1] + gradients[2])
    assert gradients[2].abs().max() > 1e-3
    objective.eval()
    with torch.no_grad():
        torch.testing.assert_close(objective.batch_loss(batch), plain.detach())


REFUSED = {
    "post": "norms on the residual path",
    "mix(alpha=0.5)": "norms on the residual path",
    "none": "has no norms: there is nothing to remove",
    "sandwich": "behind sublayers",
    "peri": "on the embedding",
    "pre+qk_norm": "on queries, keys or values",
    "groupnorm(groups=4)": "grouped norms, which have no one scale",
    "pre+dyt": "dyt norms, which have no one scale",
}


@pytest.mark.parametrize("placement", REFUSED)
def test_models_whose_norms_cannot_go_are_refused(
    placement: str, data: PreparedData, corpus: Path, tmp_path: Path
) -> None:
    source = save("llama", data, tmp_path / "source", placement)
    with pytest.raises(InputError, match=REFUSED[placement]):
        RemoveNorm(str(source), CONFIG, str(corpus), tmp_path / "out")


@pytest.mark.parametrize("name", list_schemes())
def test_every_scheme_is_either_taken_or_refused_with_a_reason(name: str) -> None:
    plan = Placement.parse(name).plan(4)
    if name in ("pre", "lns"):
        check_norms_removable(plan, name)
        return
    with pytest.raises(InputError, match=f"^placement {name} "):
        check_norms_removable(plan, name)


def test_other_bad_input_is_refused(
    gpt2: Path, corpus: Path, data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = CONFIG.recipe(str(corpus), str(gpt2), 32)
    sharded = replace(recipe, execution=replace(recipe.execution, strategy="fsdp"))
    with pytest.raises(InputError, match=r"use execution\.strategy ddp"):
        Removal(gpt2, sharded, data, CONFIG)
    with pytest.raises(InputError, match=r"\. names no new folder"):
        RemoveNorm(str(gpt2), CONFIG, str(corpus), Path())
    monkeypatch.setenv("WORLD_SIZE", "2")
    with (
        pytest.raises(InputError, match="start it without torchrun"),
        RemoveNorm(str(gpt2), CONFIG, str(corpus), tmp_path / "out"),
    ):
        pass
    monkeypatch.delenv("WORLD_SIZE")
    with pytest.raises(InputError, match="an impossible schedule"):
        RemoveNorm(str(gpt2), replace(CONFIG, steps=5), str(corpus), tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    with pytest.raises(InputError, match="full"):
        RemoveNorm(str(gpt2), CONFIG, str(corpus), tmp_path / "full")
    (tmp_path / "empty.txt").write_text("")
    with (
        RemoveNorm(str(gpt2), CONFIG, str(tmp_path / "empty.txt"), tmp_path / "out") as work,
        pytest.raises(InputError, match="empty"),
    ):
        work.prepare(tmp_path / "cache", lambda _: None)
    with RemoveNorm(str(gpt2), CONFIG, str(corpus), tmp_path / "out"):
        other = RemoveNorm(str(gpt2), CONFIG, str(corpus), tmp_path / "out")
        with pytest.raises(InputError, match="another process works in"):
            other.__enter__()
    for _ in range(2):  # whether it failed or was done before
        with other:
            pass
