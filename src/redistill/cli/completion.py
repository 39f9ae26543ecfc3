"""The command `redistill completion`, and completions of the command line.

argcomplete prints a shell script. Whenever the user presses Tab, the script calls `redistill` with the environment variable
_ARGCOMPLETE. The names of recipes and fields are read from files of the package, so that no completion imports torch.
"""

import argparse
import json
import os
from collections.abc import Iterable, Iterator, Mapping

from redistill.cli.options import Group, add_command, add_json
from redistill.cli.output import print_json, print_lines
from redistill.records import Json

SHELLS = ("bash", "zsh", "fish")


def add_completion(group: Group) -> None:
    """Add the command `completion` to a group of commands."""
    parser = add_command(group, "completion", completion, "redistill completion bash")
    text = 'bash, zsh or fish; for bash, add to ~/.bashrc: eval "$(redistill completion bash)"'
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help=text)
    add_json(parser)


def completion(options: argparse.Namespace) -> None:
    """Print a script that completes commands in a shell."""
    import argcomplete

    script = argcomplete.shellcode(["redistill"], shell=options.shell).strip("\n")
    if options.json:
        print_json(options, {"shell": options.shell, "script": script})
    else:
        print_lines(script)


def complete(parser: argparse.ArgumentParser) -> None:
    """If a shell requests completions of the current word, print them and exit.

    Args:
        parser: The parser of `redistill`.
    """
    if "_ARGCOMPLETE" not in os.environ:
        return
    import argcomplete

    for each in parsers(parser):
        for action in each._actions:
            found = {"recipe": recipes, "overrides": overrides, "method": methods}.get(action.dest)
            if found is not None:
                action.completer = found  # type: ignore[attr-defined]  # the attribute that argcomplete reads
    argcomplete.autocomplete(parser)


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Yield a parser and the parsers of its commands, at every depth."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                yield from parsers(each)


def recipes(prefix: str, parsed_args: argparse.Namespace, **_: object) -> list[str]:
    """Return the names of recipes and the YAML files that begin with a prefix.

    Args:
        prefix: The current word, as typed so far.
        parsed_args: The options so far.  For the command `sweep`, only recipes of sweeps are returned; otherwise, only
            recipes of runs.
    """
    from argcomplete.completers import FilesCompleter

    from redistill.config.recipes import packaged_recipes

    kind = "sweep" if hasattr(parsed_args, "jobs") else "run"
    names = [name for name, recipe in packaged_recipes().items() if recipe.kind == kind]
    return [*names, *FilesCompleter(("yaml", "yml", "json"))(prefix)]


def methods(prefix: str, **_: object) -> list[str]:
    """Return the names of the methods; `prefix` is the current word."""
    found = _schema()["properties"]
    return _words(found.get("method") if isinstance(found, Mapping) else None)


def overrides(prefix: str, **_: object) -> list[str]:
    """Return the settings `section.field=value` that begin with a prefix.

    Before the character =, the names of fields are completed.  After it, values are completed if the schema lists them.

    Args:
        prefix: The current word, as typed so far.
    """
    fields = dict(_fields(_schema(), ""))
    name, equals, _value = prefix.partition("=")
    if equals:
        return [f"{name}={word}" for word in _words(fields.get(name))]
    return [f"{name}=" for name in fields]


def _schema() -> Mapping[str, Json]:
    from redistill.config.recipes import SCHEMA_FILES
    from redistill.storage.packaged import packaged

    found: Mapping[str, Json] = json.loads((packaged("recipes") / SCHEMA_FILES["run"]).read_text(encoding="utf-8"))
    return found


def _fields(whole: Mapping[str, Json], path: str, name: str | None = None) -> Iterator[tuple[str, Json]]:
    """Yield the dotted path and the schema of each section and field."""
    definitions = whole["$defs"]
    assert isinstance(definitions, Mapping)
    node = whole if name is None else definitions[name]
    assert isinstance(node, Mapping)
    properties = node["properties"]
    assert isinstance(properties, Mapping)
    for key, schema in properties.items():
        sections = list(dict.fromkeys(_references(schema)))
        if sections and path.count(".") < 2:
            for section in sections:
                yield from _fields(whole, f"{path}{key}.", section)
        yield f"{path}{key}", schema


def _references(schema: Json) -> Iterator[str]:
    """Yield the names of the definitions to which a schema refers."""
    if isinstance(schema, Mapping):
        if isinstance(target := schema.get("$ref"), str):
            yield target.rpartition("/")[2]
        for key in ("then", "allOf", "anyOf"):
            yield from _references(schema.get(key))
    elif isinstance(schema, list):
        for each in schema:
            yield from _references(each)


def _words(schema: Json) -> list[str]:
    """Return the values that a schema lists."""
    if isinstance(schema, list):
        return [word for each in schema for word in _words(each)]
    if not isinstance(schema, Mapping):
        return []
    if schema.get("type") == "boolean":
        return ["true", "false"]
    listed = schema.get("enum")
    own = ["null" if value is None else str(value) for value in listed] if isinstance(listed, Iterable) else []
    return list(dict.fromkeys([*own, *_words(schema.get("anyOf")), *_words(schema.get("allOf")), *_words(schema.get("then"))]))
