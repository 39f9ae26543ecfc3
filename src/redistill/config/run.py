"""The configuration of a run, decoded from YAML and overrides.

An override has the form `section.field=value`. The dataclass of a component is defined beside the component and checks its own
ranges; this module composes them. An unknown key, a wrong type or a value out of range is an error that names the file, the
path, and the nearest name or the remedy.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from redistill.config import decode as decoding
from redistill.config.capabilities import mismatch
from redistill.config.external import check_policy_node, declared, teacher_capabilities
from redistill.config.methods import METHODS, Method, as_in_reference, method
from redistill.config.plugins import External, Slot
from redistill.config.schema import current_tree, schema_of_run
from redistill.config.scoring import check_choice, load_external, metrics, metrics_of, names_in
from redistill.config.sections import DataConfig, StudentConfig, TeacherConfig
from redistill.contracts import EngineCapabilities, TeacherCapabilities
from redistill.errors import ConfigError
from redistill.evaluation.scores import EvaluationConfig
from redistill.generation.local import LocalEngineConfig
from redistill.losses.divergences import Divergence
from redistill.policies import Adaptive, Buffered, PolicyConfig, Rollouts
from redistill.records import Json, Metric
from redistill.storage import files
from redistill.training.guards import GuardConfig
from redistill.training.objective import Objective
from redistill.training.optimiser import OptimiserConfig
from redistill.training.schedule import TrainingConfig

NAMES = {"PolicyConfig": PolicyConfig}  # forward references of policy nodes


@dataclass(frozen=True, kw_only=True)
class Run:
    """A recipe, the configuration of a run.

    `method` sets policy and objective; `policy` and `objective`, if set, replace those of the method as a whole.

    More than 12 fields: it is the root of a recipe and has one field for each section.

    Args:
        name: Name of the run in reports, and of its folder if `out` is not set.
        method: A method of `redistill methods`.
        seed: Seed of training: data order, choice of sources, generated text, dropout, new weights.
        out: The run folder; None is runs/NAME.
        teacher: The model to learn from; may be None for a method without a teacher.
        student: The model that is trained.
        data: Training, validation and test data.
        engine: The component that generates the student's text for training.
        placement: "auto" keeps the full student in each process; "sharded" shards it over the processes (FSDP2).
        policy: The sequences that the student learns from; None takes the method's policy.
        objective: The terms that are minimised; None takes the method's objective.
        optimiser: AdamW and its schedule.
        training: Number of updates, batch sizes, validation and checkpoints.
        guards: Handling of faulty updates and of collapsed text.
        evaluation: How test answers are sampled and scored.
        compat: "distillm" selects the compatibility mode: behaviour of the baselines' reference code that differs from their
            papers; see docs/methods/compat.md.

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
    teacher: TeacherConfig | None = None
    student: StudentConfig
    data: DataConfig = field(default_factory=DataConfig)
    engine: LocalEngineConfig = field(default_factory=LocalEngineConfig)
    placement: Literal["auto", "sharded"] = "auto"
    policy: PolicyConfig | None = None
    objective: Objective | None = None
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    guards: GuardConfig = field(default_factory=GuardConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    compat: Literal["distillm"] | None = None

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
                "student.model = 'teacher': needs a teacher whose weights are loaded here (teacher.kind local); set one, or "
                "set student.model to another model"
            )
        if fault := mismatch(row, self.teacher_capabilities, self.engine_capabilities):
            raise ConfigError(f"{fault} (method {self.method})")
        if objective.policy_gradient is not None and not isinstance(policy, Rollouts):
            raise ConfigError(
                "objective.policy_gradient: needs the policy rollouts, which computes the rewards; set policy to rollouts"
            )
        if self.starts_finetuned and self.student.lora is not None and self.student.lora.export == "adapter":
            raise ConfigError(
                "student.lora.export = 'adapter': the base of the adapter would be a fine-tuned model that exists only in the "
                "folders of this run; set it to merged, or remove student.finetune"
            )
        self._check_layers(policy)
        self._check_placement()
        try:
            validated, _ = self.validation_metrics, self.test_metrics
        except ConfigError as error:
            raise ConfigError(f"evaluation.{error}") from error
        check_choice(self.training.choose_by, validated, "training.choose_by")
        for role, node in {"teacher": self.teacher, "student": self.student}.items():
            finetune = node.finetune if isinstance(node, TeacherConfig | StudentConfig) else None
            if finetune is not None and finetune.choose_by is not None:
                check_choice(finetune.choose_by, validated, f"{role}.finetune.choose_by")

    def _check_layers(self, policy: object) -> None:
        """Check the order and the buffer sizes of a policy and its nested sources."""
        outermost = policy
        while policy is not None:
            if isinstance(policy, Rollouts) and policy is not outermost:
                raise ConfigError(
                    "policy: rollouts cannot be the source of another policy; use rollouts as the outermost policy"
                )
            if isinstance(policy, Adaptive | Buffered) and policy.capacity < self.training.batch_size:
                raise ConfigError(
                    f"policy: capacity = {policy.capacity}: must be at least training.batch_size = {self.training.batch_size}, "
                    "since a batch is drawn without replacement; raise capacity or lower training.batch_size"
                )
            policy = getattr(policy, "source", None)

    def _check_placement(self) -> None:
        """Reject settings that a sharded student does not support."""
        if self.placement != "sharded":
            return
        lora = self.student.lora
        if lora is not None and (lora.quantise != "none" or lora.export == "adapter"):
            raise ConfigError(
                "placement = 'sharded': needs lora.quantise = 'none' and lora.export = 'merged'; set them, or use auto"
            )
        if self.training.compile == "all":
            raise ConfigError("placement = 'sharded': cannot run with training.compile = 'all'; set it to rows, or use auto")

    @property
    def teacher_capabilities(self) -> TeacherCapabilities | None:
        """Capabilities of the teacher; None without a teacher."""
        return teacher_capabilities(self.teacher, local=isinstance(self.teacher, TeacherConfig))

    @property
    def engine_capabilities(self) -> EngineCapabilities:
        """Capabilities of the engine."""
        return declared(self.engine, "capabilities", EngineCapabilities, "engine")

    @property
    def resolved_method(self) -> Method:
        """The run's method, with the policy and objective that the recipe sets.

        The method is in compatibility mode if `compat` is set.
        """
        row = method(self.method) if self.compat is None else as_in_reference(self.method)
        return dataclasses.replace(row, policy=self.policy or row.policy, objective=self.objective or row.objective)

    @property
    def validation_metrics(self) -> tuple[Metric, ...]:
        """The metrics of answers to validation prompts."""
        return metrics(self.evaluation.metrics)

    @property
    def test_metrics(self) -> dict[str, tuple[Metric, ...]]:
        """Mapping of the name of each test set to its metrics, the primary metric first."""
        return metrics_of(self.data.tasks, self.evaluation.metrics)

    @property
    def starts_finetuned(self) -> bool:
        """True if the student is fine-tuned before it is distilled."""
        start = method(self.method).start if self.student.start == "method" else self.student.start
        return start == "finetuned" and self.student.finetune is not None

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.out or f"runs/{files.slug(self.name)}")  # `name` is no path, but `out` may be any path


SLOTS = (
    Slot("divergence", get_args(Divergence), needs=("__call__",), has_laws=True),
    Slot("policy", get_args(PolicyConfig), needs=("bind", "sampling", "needs"), has_laws=True),
    Slot("teacher", (TeacherConfig,), needs=("capabilities", "build")),
    Slot("engine", (LocalEngineConfig,), needs=("capabilities", "build")),
)


def load_config(path: Path, overrides: Iterable[str] = (), allow_code: Iterable[str] = ()) -> Run:
    r"""Load a recipe or the run.json of a run.

    Args:
        path: The file.
        overrides: Settings to change, each as `section.field=value`.
        allow_code: Modules that may be imported for external components, such as `my_module:MyDivergence`.

    Returns:
        The run, with all defaults.

    Raises:
        ConfigError: the file is missing, is not YAML or has a later schema, or a field is unknown, of a wrong type or out of
            range.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder) / "first.yaml"
        ...     _ = path.write_text("name: first\nmethod: sft\nstudent: {model: openai-community/gpt2}\n")
        ...     run = load_config(path, ["training.updates=50"])
        >>> run.method, run.training.updates
        ('sft', 50)
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; give the path of a recipe, such as recipes/smollm2-dolly.yaml") from error
    tree = decoding.parse_yaml(text, str(path))
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
        parsed = list(map(decoding.parse_override, overrides))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return override_run(tree, parsed, str(path), allow_code)


def override_run(
    tree: Mapping[str, object], overrides: Iterable[decoding.Override], source: str, allow_code: Iterable[str] = ()
) -> Run:
    """Apply overrides to a recipe, and decode it to a run.

    Args:
        tree: The recipe.
        overrides: Settings to change.
        source: Prefix of error messages.
        allow_code: As for `load_config`.

    Raises:
        ConfigError: as for `load_config`.
    """
    allow_code = tuple(allow_code)
    inner, outer = list[decoding.Override](), list[decoding.Override]()
    for override in overrides:
        (inner if override.path.startswith(("policy.", "objective.")) else outer).append(override)
    tree = _with_overrides(tree, outer, source)
    if row := _row(tree, source, External.of(allow_code)):
        # Otherwise `objective.span.squared=true` would replace the whole objective of the method by defaults.
        blocks, touched = decoding.encode(row, NAMES), {override.path.partition(".")[0] for override in inner}
        tree |= {name: blocks[name] for name in ("policy", "objective") if name in touched and tree.get(name) is None}
    return decode_run(_with_overrides(tree, inner, source), source, allow_code)


def _with_overrides(tree: Mapping[str, object], overrides: Iterable[decoding.Override], source: str) -> dict[str, object]:
    try:
        return decoding.apply_overrides(tree, overrides)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error


def decode_run(tree: Mapping[str, object], source: str, allow_code: Iterable[str] = ()) -> Run:
    """Decode a run from dicts, lists and scalars.

    If the tree lacks a field of `optimiser`, the default of the method is used. The tree may have a schema number.

    Args:
        tree: The recipe.
        source: Prefix of error messages.
        allow_code: As for `load_config`.

    Raises:
        ConfigError: a field is unknown, of a wrong type or out of range, or an external component is not allowed.
    """
    tree = current_tree(tree, source)
    external = External.of(allow_code, *SLOTS)
    row, optimiser = _row(tree, source, external), tree.get("optimiser", {})
    if row is not None and isinstance(optimiser, dict):
        tree = {**tree, "optimiser": {**row.optimiser, **optimiser}}
    try:
        load_external(names_in(tree), external)
        return decoding.decode(Run, tree, NAMES, external)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error


def _row(tree: Mapping[str, object], source: str, external: External) -> Method | None:
    """Return the method that a recipe names, and import it if it is external.

    Returns None for an unknown method, which decoding rejects.
    """
    name = str(tree.get("method", Run.method))
    if ":" not in name:
        return None if name not in METHODS else as_in_reference(name) if tree.get("compat") else METHODS[name]
    try:
        found = external.load(name)
    except ConfigError as error:
        raise ConfigError(f"{source}: method = {decoding.shown(name)}: {error}") from error
    return found if isinstance(found, Method) else None


def encode_run(run: Run) -> dict[str, Json]:
    """Encode a run as dicts, lists and scalars; `decode_run` returns an equal run.

    An external component is encoded as `module:Name`.  To decode the run, the module must be allowed.
    """
    return decoding.encode(run, NAMES)


def up_to_date(tree: Mapping[str, Json]) -> dict[str, Json]:
    """Add the fields that are newer than a stored run to its tree, with defaults.

    A tree that cannot be decoded is returned unchanged.
    """
    try:
        return encode_run(decode_run(tree, "stored run"))
    except ConfigError:
        return dict(tree)


def without_output_folders(tree: Mapping[str, Json]) -> dict[str, Json]:
    """Remove the paths of output folders from a run's tree: folders may be moved."""
    kept = {name: item for name, item in tree.items() if name != "out"}
    return {name: without_output_folders(item) if isinstance(item, Mapping) else item for name, item in kept.items()}
