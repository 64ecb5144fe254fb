"""Interpretability of any model, with norms or without: attribution, patching, entropy neurons."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mixln.interpret.attribution import LogitAttribution as LogitAttribution
    from mixln.interpret.attribution import direct_logit_attribution as direct_logit_attribution
    from mixln.interpret.patching import activation_patching as activation_patching
    from mixln.interpret.patching import attribution_patching as attribution_patching
    from mixln.interpret.patching import patching_agreement as patching_agreement
    from mixln.interpret.prompts import PromptPair as PromptPair
    from mixln.interpret.prompts import indirect_object_prompts as indirect_object_prompts
    from mixln.interpret.prompts import induction_prompts as induction_prompts
else:
    from mixln.lazy import lazy_names

    __getattr__, __dir__ = lazy_names(__name__)
