"""Folders with the code of their model, opened in a process without mixln."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import torch
from models_tools import as_given, generate, logits_of, pixels, token_ids
from safetensors.torch import save_file
from transformers import AutoModelForSequenceClassification

from mixln.exchange import save_self_contained
from mixln.models import PlacedPreTrainedModel
from mixln.placement.registry import MODIFIERS, SCHEMES


def write_case(folder: Path, model: PlacedPreTrainedModel, without: str = "") -> None:
    """Save a model with its code, and what it computes; `without`: a scheme that is not to come along.

    In the end the model's weights are others.
    """
    inputs = token_ids() if model.can_generate() else pixels()
    save_self_contained(model, folder / "model")
    with torch.no_grad():
        hidden: Any = model.base_model(**as_given(inputs))
    expected = {"inputs": inputs, "logits": logits_of(model, inputs), "hidden": hidden.last_hidden_state}
    if model.can_generate():
        classifier: Any = AutoModelForSequenceClassification.from_pretrained(
            folder / "model", num_labels=1, pad_token_id=0
        ).eval()
        expected["score"] = classifier.score.weight.detach()
        expected["rewards"] = logits_of(classifier, inputs)
        expected["text"] = generate(model, inputs, max_new_tokens=6, use_cache=True)
    save_file({key: tensor.contiguous() for key, tensor in expected.items()}, folder / "expected.safetensors")
    weights = {key: tensor.sum().item() for key, tensor in model.initialize(3).named_parameters()}
    registered = [[scheme for scheme in SCHEMES if scheme != without], list(MODIFIERS)]
    (folder / "drawn.json").write_text(json.dumps({"weights": weights, "registered": registered}))


def open_without_mixln(cases: Path, work: Path) -> dict[str, str]:
    """Open all cases in one process of an environment without mixln, and return what went wrong with each.

    The environment is a folder with a link to everything that is installed here but mixln (and no `.pth` file, through
    which an editable install is found), on the path of a python that looks nowhere else (-S: no site-packages). The
    program itself asserts that mixln is not to be found, and that nothing of it was loaded.
    """
    installed = work / "installed"
    installed.mkdir(parents=True)
    for place in dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib")):
        for path in Path(place).iterdir():
            if "mixln" not in path.name and path.suffix != ".pth" and not (installed / path.name).exists():
                (installed / path.name).symlink_to(path)
    program = Path(__file__).with_name("opened_without_mixln.py")
    own = shutil.copy(program, work / "program.py")
    finished = subprocess.run(
        [sys.executable, "-S", own, str(cases)],
        cwd=work,
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHON"))},
            "PYTHONPATH": str(installed),
            "HF_HOME": str(work / "home"),
            "HF_MODULES_CACHE": str(work / "modules"),
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    result = json.loads(finished.stdout.splitlines()[-1])
    assert result["mixln_is_absent"]
    assert result["loaded"] == []
    return result["cases"]
