"""The kinds of recipes, each with all that it has of its own: what it trains on, how that is prepared, its task.

A recipe is of the kind whose class of configuration it is. Nothing else asks what a recipe is about: a command asks the
kind. This module imports nothing heavy, so that `--help` can read it; methods import what they need.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from mixln.progress import ReportStage
from mixln.sources import check_corpus, check_images, describe_corpus, describe_images
from mixln.tasks.image_config import ImageTrainingConfig
from mixln.tasks.recipe import Recipe, steps_of_tokens

if TYPE_CHECKING:
    from mixln.training.task import Task

AnyRecipe = Recipe | ImageTrainingConfig
"""A recipe of any kind."""

Fact = tuple[str, object]


class RunData(Protocol):
    """What a run trains and validates on.

    Attributes:
        fingerprint: equal for the same data.
    """

    @property
    def fingerprint(self) -> str:
        """See there."""
        ...


@dataclass(frozen=True)
class Budget:
    """A number that sets how many steps a run has.

    Attributes:
        help: what it is, for people.
        steps: from the values of all fields and the number that was given.
    """

    help: str
    steps: Callable[[Mapping[str, Any], int], int]


class RecipeKind(ABC):
    """A kind of recipes.

    Attributes:
        name: as a recipe's file has it, in the field `kind`.
        about: what recipes of this kind train, in the plural.
        one: the same, one of them.
        config: the class of its recipes.
        short_names: names that stand for a field, on the command line and in Python.
        source: the one of them that says what is trained on.
        example: a shipped recipe of this kind.
        unit: what training counts, in the plural.
        companion: a file that checkpoints of this kind have, and of other kinds do not.
        takes_steps: whether fine-tuning and evaluation on text can follow a comparison.
        budgets: settings that are no fields and set the number of steps, by their names.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    one: ClassVar[str]
    config: ClassVar[type[AnyRecipe]]
    short_names: ClassVar[Mapping[str, str]]
    source: ClassVar[str]
    example: ClassVar[str]
    unit: ClassVar[str]
    companion: ClassVar[str]
    takes_steps: ClassVar[bool]
    budgets: ClassVar[Mapping[str, Budget]] = {}

    @abstractmethod
    def model_in_words(self, recipe: Any) -> str:
        """Return what the model is, but for its placement."""

    @abstractmethod
    def budget_in_words(self, recipe: Any) -> str:
        """Return how long the training is."""

    @abstractmethod
    def data_facts(self, recipe: Any, cache: str | Path | None) -> Iterable[Fact]:
        """Return on what a recipe trains, as facts to announce.

        Raises:
            InputError: something is on the hub, which does not answer, and is not in the cache.
        """

    @abstractmethod
    def check(self, recipe: Any) -> None:
        """Make sure that a recipe's model can be built.

        Raises:
            PlacementError, InputError: it cannot.
        """

    @abstractmethod
    def prepare(
        self,
        recipe: Any,
        cache: str | Path | None,
        report: Callable[[str], None] | None = None,
        report_stage: ReportStage | None = None,
    ) -> AbstractContextManager[Any]:
        """Prepare the data of a recipe; they are there inside a `with` block, and have the fields of `RunData`.

        Args:
            recipe: whose.
            cache: folder for what is prepared; None: the default.
            report: told one line at a time of what was found.
            report_stage: told how far it is.

        Raises:
            InputError: the data cannot be used.
        """

    @abstractmethod
    def task(self, recipe: Any, data: Any) -> Task:
        """Return the task of a recipe.

        Args:
            recipe: whose.
            data: that `prepare` gave.

        Raises:
            PlacementError, InputError: the model cannot be built.
        """

    @abstractmethod
    def positions(self, recipe: Any) -> int:
        """Return the tokens of a row."""

    @abstractmethod
    def classes_of_checkpoints(self) -> tuple[Any, Any]:
        """Return transformers' Auto classes of the model of a checkpoint, and of what makes its input."""


class _Language(RecipeKind):
    """Language models, pretrained on text."""

    name = "language"
    about = "language models"
    one = "a language model"
    config = Recipe
    short_names: ClassVar[Mapping[str, str]] = {
        "text": "data.corpus",
        "validation_text": "data.validation_corpus",
        "text_field": "data.text_field",
        "tokenizer": "data.tokenizer",
        "sequence_length": "data.sequence_length",
        "placement": "model.placement",
        "architecture": "model.architecture",
        "embedding_std": "model.embedding_std",
        "learning_rate": "optimizer.learning_rate",
    }
    source = "text"
    example = "nano"
    unit = "tokens"
    companion = "tokenizer_config.json"
    takes_steps = True
    budgets: ClassVar[Mapping[str, Budget]] = {
        "tokens": Budget(
            "Token slots to train on. They set the number of steps.",
            lambda values, tokens: steps_of_tokens(
                tokens, values["batch_size"], values["data.sequence_length"], "tokens"
            ),
        )
    }

    def model_in_words(self, recipe: Recipe) -> str:
        model = recipe.model
        return f"{model.architecture}, {model.num_hidden_layers} layers, hidden size {model.hidden_size}"

    def budget_in_words(self, recipe: Recipe) -> str:
        slots = recipe.last_step * recipe.tokens_per_step
        return f"{recipe.last_step:,} of {recipe.batch_size} x {recipe.data.sequence_length} tokens ({slots:,})"

    def data_facts(self, recipe: Recipe, cache: str | Path | None) -> Iterable[Fact]:
        from mixln.hub import require_access

        data = recipe.data
        if data.tokenizer:
            require_access(data.tokenizer, "tokenizer")
        for corpus in filter(None, (data.corpus, data.validation_corpus)):
            yield "data", describe_corpus(corpus)
            if data.max_tokens is not None:  # without, what can be read of the hub has no end, as is told where it is
                check_corpus(corpus, Path(cache or Path.home() / ".cache" / "mixln") / "data")

    def check(self, recipe: Recipe) -> None:
        from mixln.tasks.build import check_model

        check_model(recipe)

    def prepare(
        self,
        recipe: Recipe,
        cache: str | Path | None,
        report: Callable[[str], None] | None = None,
        report_stage: ReportStage | None = None,
    ) -> AbstractContextManager[Any]:
        from mixln.data.prepare import prepare_data

        return nullcontext(prepare_data(recipe.data, cache, report, report_stage=report_stage))

    def task(self, recipe: Recipe, data: Any) -> Task:
        from mixln.tasks.pretraining import Pretraining

        return Pretraining(recipe, data)

    def positions(self, recipe: Recipe) -> int:
        return recipe.data.sequence_length

    def classes_of_checkpoints(self) -> tuple[Any, Any]:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        return AutoModelForCausalLM, AutoTokenizer


class _Images(RecipeKind):
    """Classifiers of images."""

    name = "images"
    about = "classifiers of images"
    one = "a classifier of images"
    config = ImageTrainingConfig
    short_names: ClassVar[Mapping[str, str]] = {
        "images": "data.source",
        "placement": "model.placement",
        "embedding_std": "model.embedding_std",
        "learning_rate": "optimizer.learning_rate",
    }
    source = "images"
    example = "vit-nano-cifar"
    unit = "images"
    companion = "preprocessor_config.json"
    takes_steps = False

    def model_in_words(self, recipe: ImageTrainingConfig) -> str:
        model = recipe.model
        return (
            f"vit, {model.num_hidden_layers} layers, hidden size {model.hidden_size}, {model.image_size} x "
            f"{model.image_size} pixels in patches of {model.patch_size} x {model.patch_size}"
        )

    def budget_in_words(self, recipe: ImageTrainingConfig) -> str:
        steps = recipe.last_step
        return f"{steps:,} of {recipe.batch_size} images ({steps * recipe.batch_size:,})"

    def data_facts(self, recipe: ImageTrainingConfig, cache: str | Path | None) -> Iterable[Fact]:
        del cache
        check_images(recipe.data.source)
        yield "data", describe_images(recipe.data.source)

    def check(self, recipe: ImageTrainingConfig) -> None:
        from mixln.tasks.image_classification import check_image_model

        check_image_model(recipe)

    def prepare(
        self,
        recipe: ImageTrainingConfig,
        cache: str | Path | None,
        report: Callable[[str], None] | None = None,
        report_stage: ReportStage | None = None,
    ) -> AbstractContextManager[Any]:
        from mixln.tasks.prepared_images import PreparedImages

        del cache
        images = PreparedImages(recipe, report_stage)
        if report is not None:
            report(images.summary)
        return images

    def task(self, recipe: ImageTrainingConfig, data: Any) -> Task:
        from mixln.tasks.image_classification import ImageClassification

        return ImageClassification(recipe, data)

    def positions(self, recipe: ImageTrainingConfig) -> int:
        return recipe.model.positions

    def classes_of_checkpoints(self) -> tuple[Any, Any]:
        from transformers import AutoImageProcessor, AutoModelForImageClassification

        return AutoModelForImageClassification, AutoImageProcessor


LANGUAGE, IMAGES = _Language(), _Images()

KINDS: Mapping[str, RecipeKind] = {kind.name: kind for kind in (LANGUAGE, IMAGES)}
"""All kinds by their names; that of a file that names none comes first."""


def kind_of(recipe: Any) -> RecipeKind:
    """Return the kind of a recipe, or of a class of recipes."""
    found = recipe if isinstance(recipe, type) else type(recipe)
    return next(kind for kind in KINDS.values() if issubclass(found, kind.config))
