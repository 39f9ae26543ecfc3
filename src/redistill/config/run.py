"""One typed tree for a run: YAML and `section.field=value` overrides in, frozen dataclasses out, strictly.

A component's dataclass stands beside the component and checks its own ranges; this file composes them and decodes.  An unknown
key, a wrong type or a value out of range is an error that names the file, the path, and the nearest name or the remedy.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from redistill.config import decode as decoding
from redistill.config.capabilities import mismatch
from redistill.config.methods import METHODS, Method, as_in_reference, method
from redistill.config.plugins import Outside, Slot
from redistill.config.schema import current_tree, schema_of_run
from redistill.config.scoring import check_choice, load_outside, metrics, metrics_of, names_in
from redistill.config.sections import DataConfig, StudentConfig, TeacherConfig
from redistill.errors import ConfigError
from redistill.evaluation.scores import EvaluationConfig
from redistill.generation.local import LocalEngineConfig
from redistill.losses.divergences import Divergence
from redistill.policies import Adaptive, Buffered, PolicyConfig, Rollouts
from redistill.records import Metric
from redistill.storage import files
from redistill.training.guards import GuardConfig
from redistill.training.objective import Objective
from redistill.training.optimiser import OptimiserConfig
from redistill.training.schedule import TrainingConfig

NAMES = {"PolicyConfig": PolicyConfig}  # what the forward references of policy nodes mean


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run: `method` gives policy and objective, which `policy` and `objective` replace as a whole where they are set.

    It has more than 12 fields because it is the root of a recipe, which has a field for each section.

    Args:
        name: What the run is called in reports and, where `out` is not set, its folder.
        method: A row of `redistill methods`.
        seed: Of everything random about training: order, coins, text, dropout, new weights.
        out: The run folder; None takes runs/NAME.
        teacher: The model to learn from; only a method without a teacher can do without.
        student: The model that learns.
        data: What is read.
        engine: What generates the student's text for training.
        placement: "auto" keeps a whole student in each process; "sharded" spreads it over the processes (FSDP2).
        policy: Which sequences the student learns from; None takes the method's.
        objective: Which terms are minimised; None takes the method's.
        optimiser: AdamW and its schedule.
        training: How long, how much at once, and what is kept.
        guards: What happens to updates and to text that look wrong.
        evaluation: How test answers are drawn.
        compat: "distillm" repeats what the baselines' reference code does and papers do not say; see docs/methods/compat.md.

    More than 12 fields: one for each section of a recipe.

    Raises:
        ConfigError: an unknown method, no teacher where one is needed, or parts that do not fit each other.
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
        if (policy.sampling is not None or policy.needs.teacher_text) and not objective.reads_sampled:
            raise ConfigError(
                "policy: generates text that no term of the objective uses; set policy to fixed, or objective.divergence to "
                "how its text is matched to the teacher"
            )
        if self.student.model == "teacher" and not isinstance(self.teacher, TeacherConfig):
            raise ConfigError(
                "student.model = 'teacher': needs a teacher whose weights are loaded here (teacher.kind local); name one, or "
                "name a student of its own"
            )
        if fault := mismatch(row, None if self.teacher is None else self.teacher.capabilities, self.engine.capabilities):
            raise ConfigError(f"{fault} (method {self.method})")
        if objective.policy_gradient is not None and not isinstance(policy, Rollouts):
            raise ConfigError("objective.policy_gradient: needs the policy rollouts, which scores what the student has written")
        if self.starts_finetuned and self.student.lora is not None and self.student.lora.export == "adapter":
            raise ConfigError(
                "student.lora.export = 'adapter': its base would be a fine-tuned start that is in this run's folders alone; "
                "set it to merged, or leave student.finetune out"
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

    def _check_layers(self, policy: Any) -> None:
        """A policy and its sources, from the outermost to the innermost."""
        outermost = policy
        while policy is not None:
            if isinstance(policy, Rollouts) and policy is not outermost:
                raise ConfigError("policy: rollouts hand out a pool of their own and are no other policy's source; unwrap them")
            if isinstance(policy, Adaptive | Buffered) and policy.capacity < self.training.batch_size:
                raise ConfigError(
                    f"policy: capacity = {policy.capacity}: must be at least training.batch_size = {self.training.batch_size}, "
                    "since a batch is drawn without replacement; raise the one or lower the other"
                )
            policy = getattr(policy, "source", None)

    def _check_placement(self) -> None:
        """What a sharded student cannot have."""
        if self.placement != "sharded":
            return
        lora = self.student.lora
        if lora is not None and (lora.quantise != "none" or lora.export == "adapter"):
            raise ConfigError("placement = 'sharded': needs lora.quantise none and lora.export merged; or use auto")
        if self.training.compile == "all":
            raise ConfigError("placement = 'sharded': cannot run with training.compile = 'all'; set it to rows, or use auto")

    @property
    def resolved_method(self) -> Method:
        """The method's row, with the reference code's habits where `compat` asks, and this run's own policy and objective."""
        row = method(self.method) if self.compat is None else as_in_reference(self.method)
        return dataclasses.replace(row, policy=self.policy or row.policy, objective=self.objective or row.objective)

    @property
    def validation_metrics(self) -> tuple[Metric, ...]:
        """What answers to validation prompts are scored by."""
        return metrics(self.evaluation.metrics)

    @property
    def test_metrics(self) -> dict[str, tuple[Metric, ...]]:
        """Test set's name -> what its answers are scored by, its primary metric first."""
        return metrics_of(self.data.tasks, self.evaluation.metrics)

    @property
    def starts_finetuned(self) -> bool:
        """Whether the student is fine-tuned before it is distilled."""
        start = method(self.method).start if self.student.start == "method" else self.student.start
        return start == "finetuned" and self.student.finetune is not None

    @property
    def folder(self) -> Path:
        """Where the run writes."""
        return Path(self.out or f"runs/{files.slug(self.name)}")  # a name leads nowhere; `out` is where its author says


SLOTS = (
    Slot("divergence", get_args(Divergence), needs=("__call__",), has_laws=True),
    Slot("policy", get_args(PolicyConfig), needs=("bind", "sampling", "needs"), has_laws=True),
    Slot("teacher", (TeacherConfig,), needs=("capabilities", "build")),
    Slot("engine", (LocalEngineConfig,), needs=("capabilities", "build")),
)


def load_config(path: Path, overrides: Iterable[str] = (), allow_code: Iterable[str] = ()) -> Run:
    """The run that a YAML file (or a run.json) describes, with `section.field=value` overrides on top.

    Args:
        path: The file.
        overrides: Settings to change, each as `section.field=value`.
        allow_code: Modules whose code may run where the file names a part of them, as `my_module:MyDivergence`.

    Raises:
        ConfigError: the file is missing, not YAML or of a later schema, or anything in it is unknown, mistyped or out of range.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; give the path of a recipe, such as recipes/smollm2-dolly.yaml") from error
    tree = decoding.parse_yaml(text, str(path))
    if path.suffix == ".json" and "config" in tree:
        schema_of_run(tree, str(path))
        tree = tree["config"]
        if not isinstance(tree, dict):
            raise ConfigError(f"{path}: config = {tree!r}: must be a mapping; give the run.json of a run, or a recipe")
    if "rows" in tree:
        raise ConfigError(
            f"{path}: rows: this is a sweep, and one run is asked for; give it to `redistill sweep`, "
            "or estimate one of its runs with `redistill estimate --row LABEL`"
        )
    return override_run(tree, overrides, str(path), allow_code)


def override_run(tree: Mapping[str, Any], overrides: Iterable[str], source: str, allow_code: Iterable[str] = ()) -> Run:
    """The run of a tree with `section.field=value` overrides on top; `source` stands at the front of error lines."""
    allow_code = tuple(allow_code)
    overrides = list(overrides)
    inner = [override for override in overrides if override.startswith(("policy.", "objective."))]
    tree = decoding.apply_overrides(tree, [override for override in overrides if override not in inner], source)
    blocks = _with_method_blocks(tree, inner, _row(tree, source, Outside.of(allow_code)))
    return decode_run(decoding.apply_overrides(blocks, inner, source), source, allow_code)


def _with_method_blocks(tree: dict[str, Any], inner: Iterable[str], row: Method | None) -> dict[str, Any]:
    """The tree with the method's own `policy` or `objective` where one is about to be changed and the recipe has none.

    Without this, `objective.span.squared=true` would replace the whole objective of the method by defaults.
    """
    touched = {override.partition(".")[0] for override in inner}
    blocks = {} if row is None else {name: block for name, block in decoding.encode(row, NAMES).items() if name in touched}
    return {**tree, **{name: block for name, block in blocks.items() if tree.get(name) is None}}


def decode_run(tree: Mapping[str, Any], source: str, allow_code: Iterable[str] = ()) -> Run:
    """A Run out of plain dicts, lists and scalars; `source` stands at the front of error lines.

    What a method sets of the optimiser stands where the tree says nothing.  The tree may carry a schema number.
    """
    tree = current_tree(tree, source)
    outside = Outside.of(allow_code, *SLOTS)
    row, optimiser = _row(tree, source, outside), tree.get("optimiser", {})
    if row is not None and isinstance(optimiser, dict):
        tree = {**tree, "optimiser": {**row.optimiser, **optimiser}}
    try:
        load_outside(names_in(tree), outside)
        return decoding.decode(Run, tree, NAMES, outside)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error


def _row(tree: Mapping[str, Any], source: str, outside: Outside) -> Method | None:
    """The tree's method, its module imported where it is from outside; None where there is none, as decoding will say."""
    name = str(tree.get("method", Run.method))
    if ":" not in name:
        return None if name not in METHODS else as_in_reference(name) if tree.get("compat") else METHODS[name]
    try:
        found = outside.load(name)
    except ConfigError as error:
        raise ConfigError(f"{source}: method = {decoding.told(name)}: {error}") from error
    return found if isinstance(found, Method) else None


def encode_run(run: Run) -> dict[str, Any]:
    """The run as plain dicts, lists and scalars; `decode_run` of them gives an equal run.

    A part from outside the package is written as `module:Name`, and read again where that module is allowed.
    """
    return decoding.encode(run, NAMES)


def up_to_date(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The tree of a stored run with the fields that came later at their defaults; as it is where it is no run any more."""
    try:
        return encode_run(decode_run(tree, "a stored run"))
    except ConfigError:
        return dict(tree)


def without_places(tree: Any) -> Any:
    """The tree of a run without the folders that it and its stages write to, which may be moved."""
    if not isinstance(tree, Mapping):
        return tree
    return {name: without_places(item) for name, item in tree.items() if name != "out"}
