"""Saving a model together with the code that it needs."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from mixln.models.stock_refusal import lies_in_a_folder
from mixln.placement import PlacedBlock


class ModelWithItsCode(PreTrainedModel):
    """A model that can be saved so that it opens where this library is not installed."""

    def save_pretrained(
        self,
        save_directory: Any,
        is_main_process: bool = True,
        *args: Any,
        self_contained: bool = False,
        **kwargs: Any,
    ) -> None:
        """Save a model as `transformers.PreTrainedModel.save_pretrained` does, on request with the code that it needs.

        Args:
            save_directory: folder to write.
            is_main_process: whether this process is the one that writes.
            *args: as in transformers.
            self_contained: also write a python file and a reference to it, so that Auto classes open the folder with
                `trust_remote_code=True` where this library is not installed. A model that was opened in this way is
                always saved so.
            **kwargs: as in transformers.

        Raises:
            ValueError: the code cannot be put into one file, the error says why; or the placement in the config is not
                the one that the blocks were built with.
        """
        config: Any = self.config
        self._check_placement(config)
        if lies_in_a_folder(type(self)):
            # what came from the hub refers to it, also for the classes that transformers does not write anew
            config.auto_map = {name: found.split("--")[-1] for name, found in getattr(config, "auto_map", {}).items()}
            super().save_pretrained(save_directory, is_main_process, *args, **kwargs)
            return
        if not self_contained:
            super().save_pretrained(save_directory, is_main_process, *args, **kwargs)
            return
        if kwargs.get("push_to_hub"):
            raise ValueError(
                "self_contained=True does not go with push_to_hub=True: save, then upload the folder (hf upload)"
            )
        # by its name, since the generator does not go into what it writes
        generator = importlib.import_module("mixln.exchange.self_contained")
        file = generator.modelling_file(config)
        config.auto_map = file.auto_map
        try:
            super().save_pretrained(save_directory, is_main_process, *args, **kwargs)
        finally:
            del config.auto_map
        if self.should_save_on_this_rank(is_main_process):
            (Path(save_directory) / file.name).write_text(file.text, encoding="utf-8")

    def _check_placement(self, config: Any) -> None:
        blocks = [module for module in self.modules() if isinstance(module, PlacedBlock)]
        for block, plan in zip(blocks, config.stack_plan.blocks, strict=False):
            if replace(block.plan, init={}) != replace(plan, init={}):
                raise ValueError(
                    f"the config says placement {config.placement!r}, but the model was built with another: what is "
                    "saved would compute something else. Use mixln.apply_placement instead of changing the config"
                )
