"""Sections of a recipe on the teacher, the student, the data and fine-tuning.

Other packages define the other sections.
"""

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from redistill.config.scoring import named_tasks
from redistill.contracts import TeacherCapabilities
from redistill.data.columns import check_columns
from redistill.data.sources import Source
from redistill.data.tasks import Task
from redistill.data.tokenize import TokenizeConfig
from redistill.errors import ConfigError
from redistill.models.initialise import InitialiseConfig
from redistill.models.load import ModelConfig
from redistill.models.lora import LoraConfig
from redistill.models.offload import Offload
from redistill.teachers.forms import Form, Full
from redistill.teachers.local import LOCAL as LOCAL_TEACHER
from redistill.training.lengths import check_length


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Supervised fine-tuning of a model before the run, on the run's own data.

    The fine-tuning is a separate training, called a stage, with its own run folder. It uses no setting of the sections
    `training` and `optimiser` except `training.precision`. Runs that differ in other settings of `training` and `optimiser`
    can therefore have the same teacher and initial student. A finished stage is not trained again.

    Args:
        updates: Number of updates, or of epochs in the form "3 epochs"; >= 1.
        learning_rate: Initial learning rate of the cosine schedule, > 0.
        batch_size: Sequences per update over all processes, >= 1.
        micro_batch_size: Maximum number of sequences in one forward and backward pass, >= 1; see `training.micro_batch_size`.
        evaluate_every: Number of updates between validations, or of epochs in the form "1 epoch"; >= 0. If 0, the model is
            validated only before the first update and after the last one.
        seed: Seed of data order and dropout. If None, a student has the seed of the run, and a teacher has the seed 10. Runs
            with different seeds can then share one teacher.
        choose_by: The score that chooses the best checkpoint; see `training.choose_by`. If None, it is rouge_l for a teacher,
            and cross_entropy for a student.
        lora: Adapters that are trained instead of all weights, and merged into the weights at the end. If None, a student has
            the adapters `student.lora`, and all weights of a teacher are trained.
        out: Run folder of the stage. If None, it is `OUT-teacher` for a teacher and `OUT-start` for a student. OUT is the run
            folder of the recipe.

    Raises:
        ConfigError: a value is out of range.

    Example:
        >>> FinetuneConfig(updates="3 epochs").learning_rate
        5e-05
        >>> FinetuneConfig(updates="3 hours")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        redistill.errors.ConfigError: updates = '3 hours':...
    """

    updates: int | str = 500
    learning_rate: float = 5e-5
    batch_size: int = 8
    micro_batch_size: int | None = None
    evaluate_every: int | str = "1 epoch"
    seed: int | None = None
    choose_by: str | None = None
    lora: LoraConfig | None = None
    out: str | None = None

    def __post_init__(self) -> None:
        check_length("updates", self.updates, 1)
        check_length("evaluate_every", self.evaluate_every, 0)
        for name in ("batch_size", "micro_batch_size"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)}: must be >= 1")
        if not 0 < self.learning_rate < math.inf:
            raise ConfigError(f"learning_rate = {self.learning_rate}: must be > 0 and finite")


@dataclass(frozen=True, kw_only=True)
class TeacherConfig(ModelConfig):
    """A teacher that is loaded in this process.

    The arguments of `ModelConfig`, such as `model` and `dtype`, select the model.

    Args:
        finetune: Fine-tuning of the teacher before the run. If None, the model is used unchanged.
        cache: Folder of the teacher's stored hidden states. The first run creates the folder, as `redistill cache-teacher`
            does. Training then reads the folder and does not load the model. If None, the model is loaded.
        cache_dtype: dtype of the stored states: "float32", "bfloat16" or "float16". With "auto", they are stored in the
            dtype in which the teacher computes them, so that nothing is rounded.
        cache_new_text: Whether the teacher model is loaded in addition to the cache. The model then computes the hidden states
            of text that the cache lacks, such as text of the student. If the policy has a replay buffer, these states are
            stored in the folder `teacher-states` of the run and reused. Requires `cache`; `cache_form` must be "full".
        cache_form: What the cache contains. "full": the teacher's hidden states, from which all logits are computed.
            "top_k": the teacher's most probable classes (token ids), and the total probability of all other classes.
            "sampled": classes that were sampled from the teacher's distributions.
        quantise: "nf4" or "int8" stores the weights of the linear layers in 4 or 8 bits. If None, they are not quantised.
        offload: "cpu" keeps the layers in the machine's memory, and "disk" in files of the run folder. Each layer is copied to
            the GPU when it computes. If None, the whole teacher is on the GPU. `redistill cache-teacher` ignores this setting.

    Raises:
        ConfigError: `model` is empty; the dtype is unknown; `cache` is empty; `cache_dtype` is set, but `cache_form` is not
            "full"; `cache_new_text` is set, but `cache` is not set or `cache_form` is not "full"; `quantise` is set, but the
            teacher is a GGUF file or has an adapter; or both `quantise` and `offload` are set.

    Example:
        >>> TeacherConfig(model="openai-community/gpt2-large", dtype="bfloat16").capabilities.full_vocabulary
        True
    """

    kind: ClassVar[str] = "local"

    finetune: FinetuneConfig | None = None
    cache: str | None = None
    cache_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    cache_new_text: bool = False
    cache_form: Form = field(default_factory=Full)
    quantise: Literal["nf4", "int8"] | None = None
    offload: Offload | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.quantise is not None and (self.adapter is not None or self.model.endswith(".gguf")):
            raise ConfigError(
                f"quantise = {self.quantise!r}: cannot be combined with an adapter or a GGUF file; remove quantise, or save "
                "the teacher with save_pretrained first"
            )
        if self.quantise is not None and self.offload is not None:
            raise ConfigError(
                f"offload = {self.offload!r}: cannot be combined with quantise = {self.quantise!r}; remove one of them"
            )
        if self.cache is not None and not self.cache.strip():
            raise ConfigError("cache = '': must be a folder, or null to load the model")
        if not isinstance(self.cache_form, Full) and self.cache_dtype != "auto":
            raise ConfigError(
                f"cache_dtype = {self.cache_dtype!r}: is the dtype of hidden states, which cache_form {self.cache_form.kind} "
                "does not store; remove cache_dtype, or set cache_form to full"
            )
        if self.cache_new_text and (self.cache is None or not isinstance(self.cache_form, Full)):
            raise ConfigError(
                "cache_new_text = True: needs cache (a folder) and cache_form full; set both, or remove cache_new_text"
            )

    @property
    def is_loaded(self) -> bool:
        """Whether the teacher model is loaded for training.

        False for a cached teacher, unless `cache_new_text` is set.
        """
        return self.cache is None or self.cache_new_text

    @property
    def capabilities(self) -> TeacherCapabilities:
        """The features of the teacher.

        A teacher whose model is not loaded has only the features of its cache.
        """
        return LOCAL_TEACHER if self.is_loaded else self.cache_form.capabilities


@dataclass(frozen=True, kw_only=True)
class StudentConfig(ModelConfig):
    """The student, which is the model that is trained.

    Args:
        model: With "teacher", the student is a copy of those layers of the teacher that `initialise` selects. Any other value
            is a hub name, a folder or a GGUF file.
        initialise: The layers of `model` that the student keeps. If None, the student keeps all layers.
        finetune: Fine-tuning of the student before distillation (the "init" checkpoint of the literature). If None, the student
            is not fine-tuned.
        start: The initial student. "base" is `model` without the fine-tuning `finetune`. "finetuned" is `model` after this
            fine-tuning; it requires `finetune`. "method" selects the value that the method defines: "base" for sft, kd, seqkd
            and draft, and "finetuned" for redistill's other methods. With "method", `finetune` may be omitted; the initial
            student is then `model`.
        lora: Adapters that are trained instead of the student's weights. If None, all weights are trained.

    Raises:
        ConfigError: `model` is "teacher" and `initialise` is missing; `start` is "finetuned" and `finetune` is missing; or a
            value of `lora.quantise` or `lora.export` cannot be combined with `initialise`, with `adapter` or with a GGUF file.

    Example:
        >>> StudentConfig(initialise=InitialiseConfig(layers=8)).model
        'teacher'
        >>> StudentConfig()  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        redistill.errors.ConfigError: initialise: missing; choose layers of the teacher (layers:...
    """

    model: str = "teacher"
    initialise: InitialiseConfig | None = None
    finetune: FinetuneConfig | None = None
    start: Literal["method", "base", "finetuned"] = "method"
    lora: LoraConfig | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model == "teacher" and self.initialise is None:
            raise ConfigError("initialise: missing; choose layers of the teacher (layers: 8), or set model to another model")
        is_changed = self.initialise is not None or self.adapter is not None or self.model.endswith(".gguf")
        if self.lora is not None and is_changed and (self.lora.quantise != "none" or self.lora.export == "adapter"):
            setting = "quantise" if self.lora.quantise != "none" else "export"
            raise ConfigError(
                f"lora.{setting} = {getattr(self.lora, setting)!r}: cannot be combined with initialise, "
                f"adapter or a GGUF file; remove lora.{setting}, or use a model without these"
            )
        if self.start == "finetuned" and self.finetune is None:
            raise ConfigError("start = 'finetuned': needs finetune; set it, such as {updates: 3 epochs, learning_rate: 5e-4}")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Training, validation and test data.

    Args:
        train: Files, folders or hub names. The training set is the concatenation of their rows. Each entry is a text, or a
            mapping with the same fields as `data.validation`.
        validation: A file, folder or hub name. If None, the first `validation_rows` usable rows of the training set are used
            for validation instead of training. Validation needs rows with answers.
        validation_rows: Number of rows used for validation, >= 1.
        tests: Maps the name of each test set to its source. If the source is null, the data set is read from the hub.
            `redistill methods` lists the known test sets. `module:NAME` is an external test set. Any other name defines a new
            test set, which needs a file.
        columns: Maps keys of rows (prompt, completion, instruction, input, output, messages, conversations, system,
            history, tools) to columns with other names, as in `{prompt: question, completion: answer}`. This mapping
            applies to all sources that have no `columns` of their own. A row without any of these columns is read
            unchanged.
        max_train_rows: Maximum number of training rows, >= 1; the first rows are used. If None, all rows are used.
        corpus: Plain text for the pre-training term of the objective: files (.txt, or .jsonl with a "text" key) or hub names.
            If empty, the term is disabled.
        max_bad_rows: Maximum number of unusable rows in one file or hub data set, >= 0; a larger number is an error. Unusable
            rows are listed in rejected.jsonl.
        spans: Phrase extractor of the span loss: "simple", or the name or folder of a spaCy pipeline. With "auto", it is the
            English spaCy pipeline if that pipeline is installed, and otherwise "simple".
        tokens: Length limits, prompt template, and which answers of a conversation are training targets (all or the last).

    Raises:
        ConfigError: `train` is empty, the name of a test set is not a valid file name, or a number is out of range.

    Example:
        >>> [task.name for task in DataConfig(tests={"dolly": None}).tasks]
        ['dolly']
        >>> DataConfig(max_train_rows=0)
        Traceback (most recent call last):
            ...
        redistill.errors.ConfigError: max_train_rows = 0: must be >= 1, or null to use all
    """

    train: tuple[str | Source, ...] = ("databricks/databricks-dolly-15k",)
    validation: str | Source | None = None
    validation_rows: int = 100
    tests: dict[str, str | Source | None] = field(default_factory=dict)
    columns: dict[str, str] = field(default_factory=dict)
    max_train_rows: int | None = None
    corpus: tuple[str, ...] = ()
    max_bad_rows: int = 100
    spans: str = "auto"
    tokens: TokenizeConfig = field(default_factory=TokenizeConfig)

    def __post_init__(self) -> None:
        if not self.train:
            raise ConfigError("train: empty; name at least one file or hub data set")
        if self.validation_rows < 1:
            raise ConfigError(
                f"validation_rows = {self.validation_rows}: must be >= 1; the validation score chooses the best checkpoint"
            )
        if self.max_train_rows is not None and self.max_train_rows < 1:
            raise ConfigError(f"max_train_rows = {self.max_train_rows}: must be >= 1, or null to use all")
        if self.max_bad_rows < 0:
            raise ConfigError(f"max_bad_rows = {self.max_bad_rows}: must be >= 0")
        check_columns(self.columns)
        _ = self.tasks  # checks the names

    @property
    def tasks(self) -> dict[Task, Source | None]:
        """A mapping from each test set of `tests` to its source.

        If the source is None, the test set is read from the hub.
        """
        return {task: None if path is None else self.source(path) for task, path in named_tasks(self.tests).items()}

    def source(self, given: str | Source) -> Source:
        """Return the `Source` of a path or hub name that a recipe contains.

        If `given` sets no columns, the result has the columns of this section.
        """
        return Source.of(given, self.columns)

    @property
    def sources(self) -> tuple[tuple[Source, str], ...]:
        """The sources of training and validation rows, each with its default split.

        The default split is read if the source names no split.
        """
        held_out = [] if self.validation is None else [(self.source(self.validation), "validation")]
        return (*((self.source(given), "train") for given in self.train), *held_out)
