"""A program, not a test: opens self-contained folders where mixln is not installed, and prints as JSON what failed.

Argument: a folder of cases, each with `model/` and `expected.safetensors` (`inputs`, `logits`, `hidden`; of a language
model also `text`, `score`, `rewards`).
"""

import importlib.util
import json
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification


def check(case: Path) -> None:
    expected = load_file(case / "expected.safetensors")
    given = as_given(expected["inputs"])
    config = AutoConfig.from_pretrained(case / "model", trust_remote_code=True)
    heads = {*config.auto_map} - {"AutoConfig", "AutoModel"}
    auto_class: Any = getattr(transformers, min(heads, key=lambda name: name.endswith("SequenceClassification")))
    model: Any = auto_class.from_pretrained(case / "model", trust_remote_code=True)
    assert type(config) is type(model.config)
    code: Any = sys.modules[type(model).__module__]
    assert code.__name__.startswith("transformers_modules.")

    assert_is(model, expected)
    if "text" in expected:
        options = {"do_sample": False, "pad_token_id": 0, "max_new_tokens": 6, "use_cache": True}
        generated = model.generate(input_ids=expected["inputs"], **options)
        assert torch.equal(generated, expected["text"]), "generated text"
        check_classifier(case, code, expected)
    stack: Any = AutoModel.from_pretrained(case / "model", trust_remote_code=True)
    with torch.no_grad():
        assert torch.equal(stack(**given).last_hidden_state, expected["hidden"]), "hidden"

    # saved again, and opened again, by way of every class that can save
    model.save_pretrained(case / "again")
    # as if it came from the hub, where references name the repository
    stack.config.auto_map = {name: f"owner/name--{found}" for name, found in stack.config.auto_map.items()}
    stack.save_pretrained(case / "again_stack")
    for name, before in (("again", "model"), ("again_stack", "model")):
        written, original = ((case / part / "config.json").read_text() for part in (name, before))
        assert json.loads(written)["auto_map"] == json.loads(original)["auto_map"]
        assert json.loads(written).get("layer_types") == json.loads(original).get("layer_types")
        files = [next((case / part).glob("*.py")) for part in (name, before)]
        assert files[0].read_bytes() == files[1].read_bytes()
    again = auto_class.from_pretrained(case / "again", trust_remote_code=True)
    assert_is(again, expected)

    # fields are checked and weights are drawn as by mixln itself
    config_class: Any = type(config)
    for wrong in ({"placement": 3}, {"embedding_std": "wide"}, {"hidden_size": "32"}, {"embedding_std": -1.0}):
        try:
            config_class(**wrong)
        except (StrictDataclassError, code.PlacementError):
            continue
        raise AssertionError(f"{wrong} was accepted")
    model.initialize(3)
    drawn = {name: tensor.sum().item() for name, tensor in model.named_parameters()}
    sums = json.loads((case / "drawn.json").read_text())
    assert drawn == sums["weights"], "drawn weights"
    assert [list(code.SCHEMES), list(code.MODIFIERS)] == sums["registered"]

    # and not without leave to run the code
    try:
        auto_class.from_pretrained(case / "model", trust_remote_code=False)
    except ValueError as error:
        refusal = str(error)
    else:
        refusal = "none"
    assert "trust_remote_code=True" in refusal


def check_classifier(case: Path, code: Any, expected: dict[str, torch.Tensor]) -> None:
    """A classifier of its stack with a new head, and what it computes with the head that mixln drew."""
    given = as_given(expected["inputs"])
    classifier: Any = AutoModelForSequenceClassification.from_pretrained(
        case / "model", trust_remote_code=True, num_labels=1, pad_token_id=0
    )
    assert type(classifier).__module__ == code.__name__
    with torch.no_grad():
        classifier.score.weight.copy_(expected["score"])
        assert torch.equal(classifier(**given).logits, expected["rewards"]), "rewards"
    classifier.save_pretrained(case / "classifier")
    again = AutoModelForSequenceClassification.from_pretrained(case / "classifier", trust_remote_code=True)
    with torch.no_grad():
        torch.testing.assert_close(again(**given).logits, expected["rewards"])


def assert_is(model: Any, expected: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        assert torch.equal(model(**as_given(expected["inputs"])).logits, expected["logits"]), "logits"


def as_given(inputs: torch.Tensor) -> dict[str, Any]:
    return {"pixel_values": inputs} if inputs.is_floating_point() else {"input_ids": inputs, "use_cache": False}


def main() -> None:
    torch.set_num_threads(1)
    found: dict[str, str] = {}
    absent = importlib.util.find_spec("mixln") is None
    for case in sorted(Path(sys.argv[1]).iterdir()):
        try:
            check(case)
        except Exception:
            found[case.name] = traceback.format_exc()
        else:
            found[case.name] = ""
    loaded = sorted(name for name in sys.modules if name.partition(".")[0] == "mixln")
    print("\n" + json.dumps({"mixln_is_absent": absent, "loaded": loaded, "cases": found}))


if __name__ == "__main__":
    main()
