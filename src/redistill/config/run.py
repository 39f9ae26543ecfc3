"""The configuration of a run, decoded from YAML and overrides.

An override has the form `section.field=value`. The settings of each component are a dataclass of the component's package. The
dataclass checks the ranges of its values. This module combines the dataclasses into a recipe. An unknown key, a wrong type or a
value out of range is an error. The error message names the file, the field and a remedy.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from redistill.config import decode as decoding
from redistill.config import parse
from redistill.config.capabilities import mismatch, sharding_fault
from redistill.config.external import check_policy_node, declared, teacher_capabilities
from redistill.config.methods import METHODS, Method, as_in_reference, method
from redistill.config.plugins import External, Slot
from redistill.config.recipes import read_recipe
from redistill.config.schema import current_tree, schema_of_run
from redistill.config.scoring import check_choice, check_forced, load_external, metrics, metrics_of, names_in
from redistill.config.sections import DataConfig, StudentConfig, TeacherConfig
from redistill.config.shown import shown
from redistill.config.staleness import staleness_fault
from redistill.contracts import EngineCapabilities, TeacherCapabilities
from redistill.errors import ConfigError
from redistill.evaluation.scores import EvaluationConfig
from redistill.generation.local import LocalEngineConfig
from redistill.generation.vllm import VllmEngineConfig
from redistill.losses.divergences import Divergence
from redistill.policies import Adaptive, Buffered, Paired, PolicyConfig, Rollouts, num_buffered
from redistill.records import Json, Metric
from redistill.storage import files
from redistill.teachers.cached import CachedTeacherConfig
from redistill.teachers.served import ServedTeacherConfig
from redistill.training.guards import GuardConfig
from redistill.training.objective import Objective
from redistill.training.optimiser import OptimiserConfig
from redistill.training.schedule import TrainingConfig
from redistill.training.trackers import TrackingConfig

NAMES = {"PolicyConfig": PolicyConfig, "Divergence": Divergence}  # annotations of components name these types as text


@dataclass(frozen=True, kw_only=True)
class Run:
    """The configuration of a run, called a recipe.

    `method` selects a policy and an objective. A `policy` or `objective` in the recipe replaces that of the method completely.
    Fields that this replacement omits have the defaults of its class, not the values of the method.

    More than 12 fields: the class is the root of a recipe and has one field for each section.

    Args:
        name: Name of the run in reports, and of its folder if `out` is not set.
        method: A method of `redistill methods`.
        seed: Seed of all random numbers in training, such as those for data order, generated text and dropout.
        out: The run folder. If None, it is runs/NAME.
        teacher: The model that the student learns from. It may be None if the method needs no teacher.
        student: The model that is trained.
        data: Training, validation and test data.
        engine: The component that generates the student's text for training.
        placement: "auto" keeps full models in each process. "sharded" splits student and teacher over the processes (FSDP2).
        policy: Selects or generates the sequences that the student learns from. If None, the method's policy is used.
        objective: The terms that are minimised. If None, the method's objective is used.
        optimiser: AdamW and its learning rate schedule.
        training: Number of updates, batch sizes, validation and checkpoints.
        guards: How the run reacts to non-finite updates, loss spikes and a collapse of the generated text.
        evaluation: How test answers are sampled and scored.
        compat: "distillm" selects the compatibility mode: methods behave as in DistiLLM's public code, which differs from the
            papers; see docs/methods/compat.md. If None, methods behave as in their papers.
        tracking: Trackers, such as TensorBoard or Weights & Biases, that receive the metrics.

    Raises:
        ConfigError: the method is unknown, a required teacher is missing, or components are incompatible.

    Example:
        >>> run = Run(name="first", method="sft", student=StudentConfig(model="openai-community/gpt2"))
        >>> run.folder.as_posix(), run.resolved_method.policy
        ('runs/first', Fixed())
        >>> Run(name="second", method="kd", student=StudentConfig(model="openai-community/gpt2"))
        Traceback (most recent call last):
            ...
        redistill.errors.ConfigError: teacher: missing; set one, or use the method sft, which needs none (method kd)
    """

    name: str
    method: str = "mgsr"
    seed: int = 10
    out: str | None = None
    teacher: TeacherConfig | CachedTeacherConfig | ServedTeacherConfig | None = None
    student: StudentConfig
    data: DataConfig = field(default_factory=DataConfig)
    engine: LocalEngineConfig | VllmEngineConfig = field(default_factory=LocalEngineConfig)
    placement: Literal["auto", "sharded"] = "auto"
    policy: PolicyConfig | None = None
    objective: Objective | None = None
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    guards: GuardConfig = field(default_factory=GuardConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    compat: Literal["distillm"] | None = None
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        row = self.resolved_method
        policy, objective = row.policy, row.objective
        check_policy_node(policy)
        if (policy.sampling is not None or policy.needs.teacher_text) and not objective.reads_sampled:
            raise ConfigError(
                "policy: generates text that no term of the objective uses; set policy to fixed, or set objective.divergence"
            )
        if self.student.model == "teacher" and not isinstance(self.teacher, TeacherConfig):
            raise ConfigError(
                "student.model = 'teacher': needs a teacher that is loaded in this process (teacher.kind local); set "
                "teacher.model, or set student.model to another model"
            )
        fault = mismatch(row, self.teacher_capabilities, self.engine_capabilities)
        if fault := fault or staleness_fault(row, self.engine, self.training.batch_size):
            raise ConfigError(f"{fault} (method {self.method})")
        if isinstance(self.engine, VllmEngineConfig) and policy.sampling is None:
            raise ConfigError(
                f"engine.kind = 'vllm': policy {decoding.kind_of(type(policy))} generates no student text; use the engine local"
            )
        if objective.policy_gradient is not None and not isinstance(policy, Rollouts):
            raise ConfigError(
                "objective.policy_gradient: needs the policy rollouts, which computes the rewards; set policy to rollouts"
            )
        if self.starts_finetuned and self.student.lora is not None and self.student.lora.export == "adapter":
            raise ConfigError(
                "student.lora.export = 'adapter': the adapter could only be loaded with the fine-tuned student, which exists "
                "only in the folders of this run; set export to merged, or remove student.finetune"
            )
        self._check_layers(policy)
        if self.placement == "sharded" and (fault := sharding_fault(self.student, self.engine, self.training)):
            raise ConfigError(f"placement = 'sharded': {fault}")
        try:
            validated, _ = self.validation_metrics, self.test_metrics
            check_forced(self.evaluation.teacher_forced, self.teacher_capabilities)
        except ConfigError as error:
            raise ConfigError(f"evaluation.{error}") from error
        check_choice(self.training.choose_by, validated, "training.choose_by", self.evaluation.teacher_forced)
        for role, node in {"teacher": self.teacher, "student": self.student}.items():
            finetune = node.finetune if isinstance(node, TeacherConfig | StudentConfig) else None
            if finetune is not None and finetune.choose_by is not None:
                check_choice(finetune.choose_by, validated, f"{role}.finetune.choose_by")

    def _check_layers(self, policy: object) -> None:
        """Raise a ConfigError for an invalid nested policy or a small replay buffer.

        The field `source` of a policy can contain another policy. This inner policy must not be `rollouts` or `paired`. A
        replay buffer must have a capacity of at least `training.batch_size` times `engine.ahead` sequences.
        """
        outermost, ahead = policy, getattr(self.engine, "ahead", 1)
        if ahead != 1 and (isinstance(policy, Rollouts) or getattr(policy, "sampling", None) is None):
            why = "generates no student text; remove engine.ahead"
            if isinstance(policy, Rollouts):
                why = "generates many answers at once; set policy.num_rollouts instead"
            kind = decoding.kind_of(type(policy))
            raise ConfigError(f"engine.ahead = {ahead}: must be 1 with the policy {kind}, which {why}")
        while policy is not None:
            if isinstance(policy, Rollouts | Paired) and policy is not outermost:
                kind = decoding.kind_of(type(policy))
                raise ConfigError(f"policy: {kind} cannot be the source of another policy; set policy.kind to {kind}")
            size, times = self.training.batch_size, "" if ahead == 1 else f" times engine.ahead = {ahead}"
            if isinstance(policy, Adaptive | Buffered) and (held := num_buffered(policy.capacity, size)) < size * ahead:
                raise ConfigError(
                    f"policy: capacity = {held}: must be at least training.batch_size = {size}{times}, "
                    "since a batch is drawn without replacement; raise capacity or lower training.batch_size"
                )
            policy = getattr(policy, "source", None)

    @property
    def teacher_capabilities(self) -> TeacherCapabilities | None:
        """The features that the teacher supports; None if there is no teacher."""
        return teacher_capabilities(self.teacher, local=isinstance(self.teacher, TeacherConfig))

    @property
    def teacher_cache(self) -> Path | None:
        """Folder of the teacher's stored hidden states; None if the teacher is not cached."""
        if isinstance(self.teacher, CachedTeacherConfig):
            return Path(self.teacher.path)
        path = self.teacher.cache if isinstance(self.teacher, TeacherConfig) else None
        return None if path is None else Path(path)

    @property
    def engine_capabilities(self) -> EngineCapabilities:
        """The features that the generation engine supports."""
        return declared(self.engine, "capabilities", EngineCapabilities, "engine")

    @property
    def resolved_method(self) -> Method:
        """The method that the run uses.

        `policy` and `objective` of the recipe replace those of the method, if they are set. If `compat` is set, the method
        follows DistiLLM's public code; otherwise, it follows the paper that introduced it.
        """
        row = method(self.method) if self.compat is None else as_in_reference(self.method)
        return dataclasses.replace(row, policy=self.policy or row.policy, objective=self.objective or row.objective)

    @property
    def validation_metrics(self) -> tuple[Metric, ...]:
        """The metrics that are computed from generated answers to validation prompts."""
        return metrics(self.evaluation.metrics)

    @property
    def test_metrics(self) -> dict[str, tuple[Metric, ...]]:
        """A mapping from the name of each test set to its metrics, the primary one first."""
        return metrics_of(self.data.tasks, self.evaluation.metrics)

    @property
    def starts_finetuned(self) -> bool:
        """True if the student is fine-tuned before it is distilled."""
        start = method(self.method).start if self.student.start == "method" else self.student.start
        return start == "finetuned" and self.student.finetune is not None

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.out or f"runs/{files.slug(self.name)}")  # `out` may be any path, but `name` is not a path


SLOTS = (
    Slot("divergence", get_args(Divergence), needs=("__call__",), has_laws=True),
    Slot("policy", get_args(PolicyConfig), needs=("bind", "sampling", "needs"), has_laws=True),
    Slot("teacher", (TeacherConfig, CachedTeacherConfig, ServedTeacherConfig), needs=("capabilities", "build")),
    Slot("engine", (LocalEngineConfig, VllmEngineConfig), needs=("capabilities", "build")),
)


def load_config(path: Path, overrides: Iterable[str] = (), allow_code: Iterable[str] = ()) -> Run:
    r"""Read a recipe, and return the configuration of the run.

    Args:
        path: Path of the recipe: a YAML file, or the run.json that an earlier run wrote to its folder. If there is no such
            file, the name of a recipe of the package, such as `Path("smollm2-dolly")`.
        overrides: Settings to change, each as `section.field=value`.
        allow_code: Modules that may be imported for external components, such as `my_module` for `my_module:MyDivergence`.

    Returns:
        The configuration of the run. Fields that the file omits have their defaults.

    Raises:
        ConfigError: the file is missing; it is not YAML; it is a sweep; its schema number is not supported; a field is unknown;
            or a value has a wrong type or is out of range.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder) / "first.yaml"
        ...     _ = path.write_text("name: first\nmethod: sft\nstudent: {model: openai-community/gpt2}\n")
        ...     run = load_config(path, ["training.updates=50"])
        >>> run.method, run.training.updates
        ('sft', 50)
    """
    tree = parse.parse_yaml(read_recipe(path), str(path))
    if path.suffix == ".json" and "config" in tree:
        schema_of_run(tree, str(path))
        config = tree["config"]
        if not isinstance(config, dict):
            raise ConfigError(f"{path}: config = {config!r}: must be a mapping; give the run.json of a run, or a recipe")
        tree = config
    if "rows" in tree:
        raise ConfigError(
            f"{path}: rows: this is a sweep, not the recipe of a run; use `redistill sweep`, "
            "or `redistill estimate --row LABEL` for one of its runs"
        )
    try:
        parsed = list(map(parse.parse_override, overrides))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return override_run(tree, parsed, str(path), allow_code)


def override_run(
    tree: Mapping[str, object], overrides: Iterable[parse.Override], source: str, allow_code: Iterable[str] = ()
) -> Run:
    """Apply overrides to a recipe, and return the configuration of the run.

    Args:
        tree: The recipe, as dicts, lists and scalars. It is not changed.
        overrides: Settings to change.
        source: Prefix of error messages, such as the path of the file.
        allow_code: Modules that may be imported for external components.

    Raises:
        ConfigError: an override has an invalid path, or the recipe with the overrides is invalid (see `decode_run`).
    """
    allow_code = tuple(allow_code)
    inner, outer = list[parse.Override](), list[parse.Override]()
    for override in overrides:
        (inner if override.path.startswith(("policy.", "objective.")) else outer).append(override)
    tree = _with_overrides(tree, outer, source)
    if row := _row(tree, source, External.of(allow_code)):
        # Without the method's values, `objective.span.squared=true` would set all other fields of the objective to defaults.
        blocks, touched = decoding.encode(row, NAMES), {override.path.partition(".")[0] for override in inner}
        tree |= {name: blocks[name] for name in ("policy", "objective") if name in touched and tree.get(name) is None}
    return decode_run(_with_overrides(tree, inner, source), source, allow_code)


def _with_overrides(tree: Mapping[str, object], overrides: Iterable[parse.Override], source: str) -> dict[str, object]:
    try:
        return parse.apply_overrides(tree, overrides)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error


def decode_run(tree: Mapping[str, object], source: str, allow_code: Iterable[str] = ()) -> Run:
    """Convert a recipe from dicts, lists and scalars to the configuration of a run.

    A field that the recipe omits has the default of the method, or else the default of its section.

    Args:
        tree: The recipe. The optional key "schema" has the version of the recipe's format (the schema number).
        source: Prefix of error messages, such as the path of the file.
        allow_code: Modules that may be imported for external components.

    Raises:
        ConfigError: the schema number is not supported; a field is unknown; a value has a wrong type or is out of range; or an
            external component is not allowed.
    """
    tree = current_tree(tree, source)
    external = External.of(allow_code, *SLOTS)
    if row := _row(tree, source, external):
        tree = row.with_defaults(tree)
    try:
        load_external(names_in(tree), external)
        return decoding.decode(Run, tree, NAMES, external)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error


def _row(tree: Mapping[str, object], source: str, external: External) -> Method | None:
    """Return the method that a recipe names, or None if there is no such method.

    The module of an external method is imported. This function accepts an unknown method: `decode_run` raises the
    ConfigError later, when the `Run` is created.
    """
    name = str(tree.get("method", Run.method))
    if ":" not in name:
        return None if name not in METHODS else as_in_reference(name) if tree.get("compat") else METHODS[name]
    try:
        found = external.load(name)
    except ConfigError as error:
        raise ConfigError(f"{source}: method = {shown(name)}: {error}") from error
    return found if isinstance(found, Method) else None


def with_template_date(run: Run, date: object) -> Run:
    """Return a run with a date for its chat template.

    The run is returned unchanged if the recipe sets a date, or if `date` is not a text.
    """
    tokens = run.data.tokens
    if tokens.template_date is not None or not isinstance(date, str):
        return run
    data = dataclasses.replace(run.data, tokens=dataclasses.replace(tokens, template_date=date))
    return dataclasses.replace(run, data=data)


def encode_run(run: Run) -> dict[str, Json]:
    """Convert a run's configuration to dicts, lists and scalars, with secrets masked.

    If no secret was masked, `decode_run` converts the result back to an equal `Run`. An external component is encoded as
    `module:Name`; to decode it, `decode_run` needs the name of the module in `allow_code`.
    """
    return decoding.encode(run, NAMES)


def up_to_date(tree: Mapping[str, Json]) -> dict[str, Json]:
    """Return the configuration of a stored run, with defaults for missing fields.

    A configuration that an earlier version of redistill stored lacks the fields that were added later. `tree` is the stored
    configuration, as in run.json. If `tree` cannot be decoded, the result is an unchanged copy.
    """
    try:
        return encode_run(decode_run(tree, "stored run"))
    except ConfigError:
        return dict(tree)


def without_outputs(tree: Mapping[str, Json]) -> dict[str, Json]:
    """Return a copy of a configuration without the fields that do not affect training.

    These are the fields `out`, `tracking`, `measure` and `decodings` (sampling settings for additional test answers).
    """
    kept = {name: item for name, item in tree.items() if name not in ("out", "tracking", "decodings", "measure")}
    return {name: without_outputs(item) if isinstance(item, Mapping) else item for name, item in kept.items()}


def without_length(tree: Mapping[str, Json]) -> dict[str, Json]:
    """Return a copy of a configuration without `training.updates`.

    A finished run continues if this number is raised.
    """
    training = tree.get("training")
    if not isinstance(training, Mapping):
        return dict(tree)
    return {**tree, "training": {name: value for name, value in training.items() if name != "updates"}}
