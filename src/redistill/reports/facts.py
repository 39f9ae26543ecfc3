"""Sentences about a run: its cost, its corrections, and what DAC-KL kept."""

from collections.abc import Sequence

from redistill.records import Json
from redistill.reports.costs import Cost, method_cost
from redistill.reports.folders import RunFolder, at, mapping, number
from redistill.reports.lineup import Entry, Lineup
from redistill.reports.logs import Line, RunLog
from redistill.reports.pages import counted, fixed, large, percent
from redistill.reports.settings import different_settings
from redistill.reports.statistics import mean
from redistill.reports.thinning import MAX_ITEMS, Curve, Spaced
from redistill.reports.verdict import listed

MIN_RECOVERED = 0.1
"""Limit of a collapse if the recipe does not set `guards.min_recovered`."""
MAX_TARGET_ONLY = 0.9
"""Limit of a collapse for logs without `recovered`: the fraction of tokens for which only the arg max is kept."""
LAST = 0.1
"""Fraction of the updates at the end of a run that is averaged."""
MAX_NAMED = 6


def lineup_of(runs: Sequence[RunFolder], labels: Sequence[str]) -> Lineup:
    """Return the runs of a report as a comparison.

    Args:
        runs: The run, followed by one or more baselines.  The first baseline is the baseline of the comparison, as in the rest
            of the report.
        labels: Label of each run.
    """
    entries = [Entry(label=label, seed=0, run=run) for run, label in zip(runs, labels, strict=True)]
    return Lineup(name=labels[0], entries=entries, baseline=labels[1], left_out=())


def cost_of(run: RunFolder) -> Cost:
    """Return the training cost of a run.

    The cost includes the fine-tuning of the student before the distillation.
    """
    return method_cost([Entry(label="", seed=0, run=run)])


def cost_sentence(run: RunFolder, baseline: RunFolder | None, versus: str | None) -> str:
    """Return a sentence about updates, tokens, seconds and peak memory of a run.

    Args:
        run: The run.
        baseline: The run whose time is compared; None if there is none.
        versus: Label of the baseline.
    """
    found = cost_of(run).figures
    if found["seconds"] is None:
        return "The run has not recorded what its training cost (run.json: cost)."
    parts = [counted(f"{found['seconds']:,.0f}", "second")]
    for name, noun in (("updates", "update"), ("trained_tokens", "trained token"), ("generated_tokens", "generated token")):
        parts += [] if found[name] is None else [counted(large(found[name]), noun)]
    parts += [] if found["peak_bytes"] is None else [f"a peak memory of {large(found['peak_bytes'], 'G')}B"]
    other = None if baseline is None else cost_of(baseline).figures["seconds"]
    ratio = f", {found['seconds'] / other:.1f} times the time of {versus}" if other else ""
    return f"Training took {listed(parts)}{ratio}."


def scrg_sentence(log: RunLog, revisions: Spaced[Line]) -> str:
    """Return a sentence about what SCRG changed in the student's text."""
    if not revisions.count and "revised" not in log.origins:
        return "No text of the student was corrected: the run has no corrections by SCRG (revisions.jsonl)."
    shown = revisions.items(MAX_ITEMS)
    divergences, places = (
        [value for line in shown if (value := number(line.get(key))) is not None] for key in ("kl", "position")
    )
    several = f"{len(shown):,} of the {revisions.count:,}" if len(shown) < revisions.count else f"the {revisions.count:,}"
    about = (
        f"in {several} logged corrections the replaced token is on average at position {fixed(mean(places), 1)} of the answer, "
        f"with a divergence of {fixed(mean(divergences))} nats"
        if revisions.count
        else "no correction was logged"
    )
    if "revised" not in log.origins:
        return f"SCRG corrected text of the student: {about}."
    return f"SCRG corrected {percent(_mean(log.origins['revised']))} of the sampled sequences: {about}."


def dac_kl_sentence(log: RunLog, run: RunFolder) -> str:
    """Return a sentence that states whether the window of DAC-KL collapsed.

    The metric `recovered` is the kept fraction of the teacher's probability mass outside the arg max.  The window collapsed if
    the mean of `recovered` over the last tenth of the updates is below `guards.min_recovered`.  Logs of earlier versions have
    no `recovered`, or wrong values of it if the arg max is not always kept.  The window then collapsed if only the arg max is
    kept for more than 90 % of the tokens.  Without a trained network, the window cannot collapse, and the sentence only states
    what is kept.
    """
    if "kept_mass" not in log.train:
        return "The run does not use DAC-KL, so there is no window that could collapse (metrics.jsonl has no kept_mass)."
    divergence = at(run.description, "resolved", "objective", "divergence") or at(
        run.description, "config", "objective", "divergence"
    )
    ends = {name: _end(log.train[name]) for name in ("kept_mass", "recovered", "target_only") if name in log.train}
    if at(divergence, "keep_target") is False and "kept_top_mass" not in log.train:
        ends.pop("recovered", None)  # an earlier version computed it as if the arg max were always kept
    limit = number(at(run.description, "config", "guards", "min_recovered"))
    limit = MIN_RECOVERED if limit is None else limit
    has_collapsed = ends["recovered"] < limit if "recovered" in ends else ends.get("target_only", 0.0) > MAX_TARGET_ONLY
    parts = [f"{percent(ends['kept_mass'])} of the teacher's probability mass"]
    parts += [f"{percent(ends['recovered'])} of the mass outside the arg max"] if "recovered" in ends else []
    only = f"; only the arg max is kept for {percent(ends['target_only'])} of the tokens" if "target_only" in ends else ""
    verdict = "DAC-KL collapsed" if has_collapsed else "DAC-KL did not collapse"
    if not _trains_network(divergence):
        verdict = "The interval of DAC-KL is not learned and cannot collapse"
    return f"{verdict}: in the last tenth of the updates it keeps {' and '.join(parts)}{only}."


def _trains_network(divergence: Json) -> bool:
    """Return whether DAC-KL has a trained network; True if the run has not recorded this."""
    is_fixed = any(at(divergence, name) is not None for name in ("fixed_interval", "fixed_top"))
    return not is_fixed and at(divergence, "gate") != "none"


def changes_sentence(lineup: Lineup | None) -> str:
    """Return a sentence about what differs between a run and its baselines.

    The sentence names method, policy, divergence and span loss of each run where they differ.  It also states how many settings
    differ.

    Args:
        lineup: The run and its baselines; None without baselines.
    """
    if lineup is None:
        return "No baseline was given, so no settings are compared; `redistill report RUN --baseline RUN` compares two runs."
    number_of_settings = len(different_settings(lineup))
    described = {entry.label: _training_parts(entry.run) for entry in lineup.entries}
    names = [name for name in next(iter(described.values())) if len({parts[name] for parts in described.values()}) > 1]
    if not names and not number_of_settings:
        return f"The recipes of {listed(lineup.labels)} have the same settings."
    differ = (
        f"{counted(str(number_of_settings), 'setting')} of the recipes {'differs' if number_of_settings == 1 else 'differ'}"
    )
    if not names:
        return f"Method, policy, divergence and span loss of {listed(lineup.labels)} are the same; {differ}."
    texts = []
    for label, parts in described.items():
        known, unknown = [name for name in names if parts[name]], [name for name in names if not parts[name]]
        if unknown and "method" not in known:  # an unknown part is that of the method, which must then be named
            known = ["method", *known]
        of_method = f" (with the {listed(unknown)} of this method)" if unknown else ""
        texts.append(f"{label} uses {listed([parts[name] for name in known])}{of_method}")
    return f"{'; '.join(texts)}; {differ}."


def _training_parts(run: RunFolder) -> dict[str, str]:
    """Return method, policy, divergence and span loss of a run in words.

    A component that run.json does not record is "".  For example, earlier versions did not record the policy that a method
    sets.
    """
    config, method = run.description.get("config"), run.description.get("method")
    policy, objective = (at(run.description, "resolved", name) or at(config, name) for name in ("policy", "objective"))
    parts = {"method": f"the method {method}", "policy": _policy(policy) if policy else "", "divergence": "", "span loss": ""}
    if objective:
        divergence = at(objective, "divergence")
        parts["divergence"] = f"the divergence {_words(divergence)}" if divergence else "no divergence"
        parts["span loss"] = f"{'a' if number(at(objective, 'span_weight')) else 'no'} span loss"
    return parts


def _policy(policy: Json) -> str:
    """Return the kind of a policy, with the kinds of its sources."""
    kinds = [_words(policy)]
    while (policy := at(policy, "source")) and len(kinds) < MAX_NAMED:
        kinds.append(_words(policy))
    return f"the policy {kinds[0]}" + (f" (of {' '.join(kinds[1:])} text)" if kinds[1:] else "")


def _words(node: Json) -> str:
    """Return the kind of a component in words, such as "forward KL"."""
    kind = str(at(node, "kind"))
    return "DAC-KL" if kind == "dac_kl" else kind.replace("_", " ").replace("kl", "KL")


def command_of(run: RunFolder) -> str:
    """Return the command that started a run; "" if it is not recorded."""
    command = run.description.get("command")
    return " ".join(map(str, command)) if isinstance(command, list) else str(command or "")


def repeat_sentence(run: RunFolder) -> str:
    """Return a sentence with the command that repeats a run.

    The sentence also names the version and the commit of redistill, if they are recorded.
    """
    command, commit = command_of(run), run.description.get("commit")
    if not command:
        return "The run has not recorded its command (run.json: command)."
    version = mapping(run.description.get("versions")).get("redistill")
    needs = [*([f"redistill {version}"] if version else []), *([f"commit {str(commit)[:12]}"] if commit else [])]
    needed = f" with {', '.join(needs)}" if needs else ""
    return f"To repeat the run{needed}: {command}"


def _mean(curve: Curve) -> float:
    bins = curve.bins()
    return float((bins.counts * bins.means).sum() / bins.counts.sum())


def _end(curve: Curve) -> float:
    """Return the mean value of a curve over the last tenth of the updates."""
    bins = curve.bins()
    is_last = bins.steps >= bins.steps[0] + (1 - LAST) * (bins.steps[-1] - bins.steps[0])
    return float((bins.counts * bins.means)[is_last].sum() / bins.counts[is_last].sum())
