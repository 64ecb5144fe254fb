"""`pipeline("text-generation")` from a saved folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
from ecosystem_tools import PLACEMENTS, build, grown
from transformers import pipeline

from mixln.data import PreparedData
from mixln.models import ARCHITECTURES

PROMPTS = ["The statement", "A class is a name for a"]


def check(placement: str, architecture: str, data: PreparedData, folder: Path) -> None:
    tokenizer = data.tokenizer
    model: Any = grown(build(placement, len(tokenizer), architecture))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write = cast(Any, pipeline)("text-generation", model=str(folder), device="cpu")
    found = write(PROMPTS, max_new_tokens=12, do_sample=False, return_full_text=False)
    for prompt, (answer,) in zip(PROMPTS, found, strict=True):
        inputs = tokenizer(prompt, return_tensors="pt")
        tokens = model.generate(**inputs, max_new_tokens=12, do_sample=False, pad_token_id=tokenizer.pad_token_id)
        expected = tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert expected.strip()
        assert answer["generated_text"] == expected


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_placement_writes_what_generate_writes(placement: str, data: PreparedData, tmp_path: Path) -> None:
    check(placement, "llama", data, tmp_path)


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "llama"])
def test_an_architecture_writes_what_generate_writes(architecture: str, data: PreparedData, tmp_path: Path) -> None:
    check("mix(alpha=0.5)", architecture, data, tmp_path)
