"""Models without LayerNorm: removing it from a trained model, folding what is left, and what that shows."""

from mixln.normfree.attribution import LogitAttribution, direct_logit_attribution
from mixln.normfree.entropy_neurons import EntropyNeurons, entropy_neurons
from mixln.normfree.frozen_norm import FrozenScaleNorm
from mixln.normfree.install import FrozenNorms, check_removable, install_frozen_norms
from mixln.normfree.patching import (
    PatchingAgreement,
    PatchingEffects,
    activation_patching,
    attribution_patching,
    patching_agreement,
)
from mixln.normfree.prompts import PromptPair, indirect_object_prompts, induction_prompts
from mixln.normfree.stream import Component

__all__ = [
    "Component",
    "EntropyNeurons",
    "FrozenNorms",
    "FrozenScaleNorm",
    "LogitAttribution",
    "PatchingAgreement",
    "PatchingEffects",
    "PromptPair",
    "activation_patching",
    "attribution_patching",
    "check_removable",
    "direct_logit_attribution",
    "entropy_neurons",
    "indirect_object_prompts",
    "induction_prompts",
    "install_frozen_norms",
    "patching_agreement",
]
