"""Interpretability of any model, with norms or without: attribution, patching, entropy neurons."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mixln.interpret.attribution import LogitAttribution, direct_logit_attribution
    from mixln.interpret.entropy_neurons import EntropyNeurons
    from mixln.interpret.patching import (
        PatchingAgreement,
        PatchingEffects,
        activation_patching,
        attribution_patching,
        patching_agreement,
    )
    from mixln.interpret.prompts import PromptPair, indirect_object_prompts, induction_prompts
    from mixln.interpret.stream import Component
else:
    from mixln.lazy import lazy_names

    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "Component",
    "EntropyNeurons",
    "LogitAttribution",
    "PatchingAgreement",
    "PatchingEffects",
    "PromptPair",
    "activation_patching",
    "attribution_patching",
    "direct_logit_attribution",
    "indirect_object_prompts",
    "induction_prompts",
    "patching_agreement",
]
