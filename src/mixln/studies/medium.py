"""What models are diagnosed on: texts or images, and what each stands between them and a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from mixln.data.measured_images import MeasuredImages
from mixln.report.diagnosis import ModelDiagnosis
from mixln.studies.companion import IMAGE_PROCESSOR, TOKENIZER, Companion
from mixln.studies.diagnose import diagnose_model
from mixln.studies.diagnose_images import diagnose_images
from mixln.studies.diagnosis_config import DiagnosisConfig
from mixln.studies.measured import Measured
from mixln.studies.measured_images import measured_images
from mixln.studies.measured_text import measured_text
from mixln.studies.stages import ReportStage


@dataclass(frozen=True)
class Medium:
    """What models are diagnosed on.

    Attributes:
        source: where it is from.
        companion: what stands between it and a model.
        prepare: `(model, tokenizer or image processor, config, report_stage)`: what is run to measure the model.
        diagnose: `(model, tokenizer or image processor, config, ...)`, with the options of `diagnose_model`.
        notes: what was left out of it.
    """

    source: str
    companion: Companion
    prepare: Callable[..., Measured]
    diagnose: Callable[..., ModelDiagnosis]
    notes: Sequence[str] = ()


def of_texts(source: str, documents: Sequence[str], notes: Sequence[str] = ()) -> Medium:
    """Texts, one document each."""

    def diagnose(model: nn.Module, tokenizer: Any, config: DiagnosisConfig, **options: Any) -> ModelDiagnosis:
        return diagnose_model(model, tokenizer, documents, config, **options)

    def prepare(model: nn.Module, tokenizer: Any, config: DiagnosisConfig, _: ReportStage | None = None) -> Measured:
        return measured_text(model, tokenizer, documents, config)

    return Medium(source, TOKENIZER, prepare, diagnose, notes)


def of_images(source: str, images: MeasuredImages) -> Medium:
    """Images, with classes or without."""

    def diagnose(model: nn.Module, image_processor: Any, config: DiagnosisConfig, **options: Any) -> ModelDiagnosis:
        return diagnose_images(model, image_processor, images, config, **options)

    def prepare(
        model: nn.Module, image_processor: Any, config: DiagnosisConfig, report_stage: ReportStage | None = None
    ) -> Measured:
        return measured_images(model, image_processor, images, config, report_stage)

    return Medium(source, IMAGE_PROCESSOR, prepare, diagnose)
