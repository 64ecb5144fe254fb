"""Small multiple-choice tasks in files, for lm-evaluation-harness."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import yaml

WORDS = ["the", "this", "that", "statement", "class", "function", "name", "value", "object", "and", "or", "not"]


def make_items(count: int = 40) -> list[dict[str, Any]]:
    draw = random.Random(0)

    def words(number: int) -> str:
        return " ".join(draw.choices(WORDS, k=number))

    return [
        {
            "query": words(draw.randint(3, 12)),
            "choices": [words(draw.randint(1, 4)) for _ in range(3)],
            "gold": number % 3,
        }
        for number in range(count)
    ]


def write_task(folder: Path, items: list[dict[str, Any]], name: str = "words", **fields: Any) -> Path:
    folder.mkdir(exist_ok=True)
    rows = folder / f"{name}.jsonl"
    rows.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(rows)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{query}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "gold",
        **fields,
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    return folder
