"""Lines of code of a folder, without docstrings, comments and blank lines: python -m tests.code_lines [FOLDER]."""

import ast
import io
import sys
import tokenize
from pathlib import Path

NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def code_lines(source: str) -> int:
    """Number of lines that have a token of code."""
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, Documented) and ast.get_docstring(node, clean=False) is not None:
            docstrings |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NO_CODE:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return len(lines - docstrings)


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "src")
    counts = {path: code_lines(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.py"))}
    parts: dict[str, int] = {}
    for path, count in counts.items():
        part = path.relative_to(folder).parts
        name = "/".join(part[:2]) if folder.name == "src" else part[0]
        parts[name] = parts.get(name, 0) + count
    for name, count in sorted(parts.items(), key=lambda item: -item[1]):
        print(f"{count:7,d}  {name}")
    print(f"{sum(counts.values()):7,d}  {folder}")


if __name__ == "__main__":
    main()
