"""Tasks of lm-evaluation-harness as scores; whole diagnoses with them."""

from __future__ import annotations

import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats
from tiny import SHARED, tiny_llama
from torch import nn
from transformers import BertConfig, BertModel, LlamaForCausalLM, PreTrainedTokenizerBase

from mixln.data import PreparedData
from mixln.errors import InputError
from mixln.evaluation.task_scores import load_task, task_score
from mixln.measure.pruning import without_blocks
from mixln.models.anatomy import find_block_stack
from mixln.report.depth_report import shown_columns
from mixln.studies.diagnose import diagnose_model
from mixln.studies.diagnosis_config import DiagnosisConfig
from tasks import make_items, write_task

pytest.importorskip("lm_eval", reason="needs mixln[evaluation]")

NOTHING_ELSE = DiagnosisConfig(sequence_length=32, max_tokens=100, measures=(), gradient_tokens=0)
TEXT = ["the statement is the name of a class and not a value. " * 20]


@pytest.fixture(autouse=True)
def datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")


@pytest.fixture(scope="module")
def model(data: PreparedData) -> LlamaForCausalLM:
    return tiny_llama(data.tokenizer, 3)


def correct(model: nn.Module, tokenizer: PreTrainedTokenizerBase, items: list[dict[str, Any]]) -> list[float]:
    """1 for each item whose right choice is the likeliest, by the plain formula, one sequence at a time."""
    found: list[float] = []
    for item in items:
        begin = tokenizer(item["query"])["input_ids"]
        scores: list[float] = []
        for choice in item["choices"]:
            ids = tokenizer(f"{item['query']} {choice}")["input_ids"]
            assert ids[: len(begin)] == begin
            with torch.no_grad():
                logarithms = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            scores.append(sum(logarithms[place - 1, ids[place]].item() for place in range(len(begin), len(ids))))
        found.append(float(max(range(len(scores)), key=scores.__getitem__) == item["gold"]))
    return found


def test_a_task_without_each_layer_agrees_with_the_plain_formula(
    model: LlamaForCausalLM, data: PreparedData, tmp_path: Path
) -> None:
    items = make_items()
    score = task_score(data.tokenizer, "words", include_path=write_task(tmp_path / "tasks", items))
    found = diagnose_model(model, data.tokenizer, TEXT, NOTHING_ELSE, scores={"words": score})
    whole = correct(model, data.tokenizer, items)
    series = found.series["score:words"]
    assert series.values == pytest.approx([statistics.mean(whole)])
    assert (series.axis, series.unit) == ("model", "acc of words")
    stack = find_block_stack(model)
    for layer in range(3):
        with without_blocks(stack, [layer]):
            changed = correct(model, data.tokenizer, items)
        differences = [before - after for before, after in zip(whole, changed, strict=True)]
        mean, error = statistics.mean(differences), statistics.stdev(differences) / math.sqrt(len(items))
        reach = stats.t.ppf(0.975, len(items) - 1) * error
        removal = found.series["removal:words"]
        assert removal.values[layer] == pytest.approx(mean)
        assert removal.estimates[layer].interval == pytest.approx((mean - reach, mean + reach))
    assert "words" in [column.head for column in shown_columns(found)]
    assert any(sentence.startswith("words (acc of words): the whole model has") for sentence in found.findings)


def test_limits_metrics_and_batches_are_passed_on(model: LlamaForCausalLM, data: PreparedData, tmp_path: Path) -> None:
    folder = write_task(tmp_path / "tasks", make_items())
    all_items = task_score(data.tokenizer, "words", include_path=folder)(model)
    few = task_score(data.tokenizer, "words", include_path=folder, limit=7)(model)
    one_by_one = task_score(data.tokenizer, "words", include_path=folder, batch_size=1)(model)
    normed = task_score(data.tokenizer, "words", include_path=folder, metric="acc_norm")(model)
    assert isinstance(all_items, list)
    assert few == all_items[:7]
    assert one_by_one == all_items
    assert normed != all_items


def test_examples_in_the_prompt_are_the_same_for_every_model(
    model: LlamaForCausalLM, data: PreparedData, tmp_path: Path
) -> None:
    folder = write_task(tmp_path / "tasks", make_items(), num_fewshot=3, fewshot_split="test")
    score = task_score(data.tokenizer, "words", include_path=folder)
    seen: list[list[list[int]]] = []
    handle = model.register_forward_pre_hook(
        lambda _m, args, kwargs: seen[-1].extend((*args, *kwargs.values())[0].tolist()), with_kwargs=True
    )
    try:
        for _ in range(2):
            seen.append([])
            score(model)
    finally:
        handle.remove()
    assert seen[0] == seen[1]
    assert max(map(len, seen[0])) > 40


def test_the_model_and_its_tokenizer_stay_as_they_are(
    model: LlamaForCausalLM, data: PreparedData, tmp_path: Path
) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    special, state = dict(data.tokenizer.special_tokens_map), torch.random.get_rng_state()
    score = task_score(data.tokenizer, "words", include_path=write_task(tmp_path / "tasks", make_items(4)))
    score(model)
    assert data.tokenizer.special_tokens_map == special
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_metric_of_which_lower_is_better_is_negative(
    model: LlamaForCausalLM, data: PreparedData, tmp_path: Path
) -> None:
    metrics = [
        {"metric": "acc", "aggregation": "mean", "higher_is_better": False},
        {"metric": "mcc", "aggregation": "matthews_corrcoef", "higher_is_better": True},
    ]
    folder = write_task(tmp_path / "tasks", make_items(9), metric_list=metrics)
    errors = task_score(data.tokenizer, "words", include_path=folder)(model)
    assert isinstance(errors, list)
    assert set(errors) <= {-1.0, 0.0}
    one_number = task_score(data.tokenizer, load_task("words", include_path=folder, metric="mcc"))(model)
    assert isinstance(one_number, float)


def test_a_group_has_the_items_of_its_tasks(model: LlamaForCausalLM, data: PreparedData, tmp_path: Path) -> None:
    folder, items = tmp_path / "tasks", make_items(10)
    write_task(folder, items[:4], "first")
    write_task(folder, items[4:], "second")
    (folder / "both.yaml").write_text("group: both\ntask: [first, second]\n", encoding="utf-8")
    assert task_score(data.tokenizer, "both", include_path=folder)(model) == correct(model, data.tokenizer, items)


def test_wrong_tasks_are_refused(
    model: LlamaForCausalLM, data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_task(tmp_path / "tasks", make_items(4))
    with pytest.raises(InputError, match=r"no metric 'exact'. It has: acc, acc_norm"):
        load_task("words", include_path=folder, metric="exact")
    with pytest.raises(InputError, match=r"no filter 'last'. It has: none"):
        load_task("words", include_path=folder, metric="acc,last")
    with pytest.raises(InputError, match="no folder"):
        load_task("words", include_path=tmp_path / "nowhere")
    with pytest.raises(InputError, match="at least 1 item"):
        task_score(data.tokenizer, "words", include_path=folder, limit=0)
    write_task(folder, make_items(4), "broken", doc_to_text="{{query | nothing_of_this_name}}")
    with pytest.raises(InputError, match="the task broken cannot be"):
        task_score(data.tokenizer, "broken", include_path=folder)(model)
    (folder / "words.jsonl").unlink()
    with pytest.raises(InputError, match="the task words cannot be loaded"):
        load_task("words", include_path=folder)
    bert = BertModel(BertConfig(vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=1))
    (folder / "words.jsonl").write_text(json.dumps(make_items(1)[0]), encoding="utf-8")
    with pytest.raises(InputError, match="a BertModel is not one"):
        task_score(data.tokenizer, "words", include_path=folder)(bert)
    monkeypatch.setitem(sys.modules, "lm_eval.models", None)
    with pytest.raises(InputError, match=r"pip install 'mixln\[evaluation\]'"):
        load_task("words", include_path=folder)


def test_items_must_be_the_same_each_time(model: LlamaForCausalLM, data: PreparedData) -> None:
    calls: list[int] = []

    def score(_model: nn.Module) -> list[float]:
        calls.append(0)
        return [1.0] * len(calls)

    with pytest.raises(InputError, match="gave 1 numbers for the whole model and 2 without layer 1"):
        diagnose_model(model, data.tokenizer, TEXT, NOTHING_ELSE, scores={"quiz": score})


@pytest.mark.skipif(not (SHARED / "data" / "eval").is_dir(), reason="needs the ARC questions of the project's data")
def test_questions_of_arc(model: LlamaForCausalLM, data: PreparedData, tmp_path: Path) -> None:
    rows = {"test": str(SHARED / "data" / "eval" / "arc_easy.jsonl.gz")}
    fields = {"doc_to_text": "{{query}}\nAnswer:", "dataset_kwargs": {"data_files": rows}}
    folder = write_task(tmp_path / "tasks", [], "arc", **fields)
    found = task_score(data.tokenizer, "arc", include_path=folder, limit=20)(model)
    assert isinstance(found, list)
    assert len(found) == 20
    assert 0 < sum(found) < 20


@pytest.mark.skipif(not (SHARED / "data" / "mmlu").is_dir(), reason="needs the MMLU questions of the project's data")
def test_the_example_of_mmlu(model: LlamaForCausalLM, data: PreparedData, tmp_path: Path) -> None:
    example = Path(__file__).resolve().parents[2] / "examples" / "tasks" / "mmlu_file.yaml"
    text = example.read_text(encoding="utf-8").replace("mmlu.jsonl.gz", str(SHARED / "data" / "mmlu" / "test.jsonl.gz"))
    (tmp_path / "mmlu_file.yaml").write_text(text, encoding="utf-8")
    task = load_task("mmlu_file", include_path=tmp_path)
    doc = dict(next(iter(task.parts["mmlu_file"].eval_docs)))
    letters = "ABCD"
    expected = (
        f"The following is a multiple choice question (with answers) about {doc['subject'].replace('_', ' ')}.\n\n"
        f"{doc['question']}\n"
        + "".join(f"{letter}. {doc[f'choice{n}']}\n" for n, letter in enumerate(letters))
        + "Answer:"
    )
    items = [{"query": expected, "choices": list(letters), "gold": int(doc["answer"])}]
    assert task_score(data.tokenizer, task, limit=1)(model) == correct(model, data.tokenizer, items)
