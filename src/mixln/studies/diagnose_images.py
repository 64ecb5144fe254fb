"""Every measure of a model of images, put together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn
from transformers.image_processing_utils import BaseImageProcessor

from mixln.data.measured_images import MeasuredImages
from mixln.report.diagnosis import ModelDiagnosis
from mixln.signatures import checked_arguments
from mixln.studies.diagnose import diagnose_batches
from mixln.studies.diagnosis_config import DiagnosisConfig
from mixln.studies.measured_images import config_of_images, measured_images
from mixln.studies.stages import ReportStage


@checked_arguments
def diagnose_images(
    model: nn.Module,
    image_processor: BaseImageProcessor,
    images: MeasuredImages,
    config: DiagnosisConfig | None = None,
    *,
    name: str = "",
    report_stage: ReportStage | None = None,
    **options: Any,
) -> ModelDiagnosis:
    """Find out which layers of a model of images earn their place.

    Args:
        model: a Hugging Face model that takes images: of a classifier loss and accuracy are measured, of any other that
            gives `last_hidden_state` the pooled embedding.
        image_processor: of the model.
        images: as `mixln.data.measured_images.read_measured_images` finds them. A classifier knows each of their
            classes by its name; for any other model they need none.
        config: how to measure.
        name: of the model, for the report; by default what it was loaded from.
        report_stage: progress.
        **options: `autocast_dtype`, `scores`, `keep` and `folder`, as `mixln.studies.diagnose.diagnose_model`.

    Raises:
        InputError: the config makes no sense, the blocks are not found, or as `measured_images`.
    """
    config = config or DiagnosisConfig()
    measured = measured_images(model, image_processor, images, config, report_stage)
    found = diagnose_batches(
        model,
        measured.batches,
        measured.performance,
        config_of_images(config),
        name=name or str(getattr(getattr(model, "config", None), "name_or_path", "") or type(model).__name__),
        report_stage=report_stage,
        **options,
    )
    return replace(found, notes=[*measured.notes, *found.notes])
