"""How large the package and its tests are: `python tests/code_size.py`.

A code line is a line of the package that is neither blank, a comment, a docstring nor an import.
"""

import ast
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# The redesign's numbers, raised by what each later issue brought: data sets by name and conversion, splits and metrics,
# RecBole's habits, one pass over a history, recommendations, co-occurrence, distillation, steps on arrays, adaptive r,
# BERT4Rec by length and on whole histories, FEARec without Fourier transforms, ensembles and their live sessions.
LIMITS = {
    "code lines": 11_154,
    "functions": 1_083,
    "lines of the package with templates": 18_130,
    "lines of tests": 14_295,
    "lines of benchmarks": 1_840,
}
_NO_CODE = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.ENCODING, tokenize.INDENT, tokenize.DEDENT,
    tokenize.ENDMARKER,
}  # fmt: skip


def numbers(root: Path = ROOT) -> dict[str, int]:
    """The sizes by name, those of LIMITS first."""
    code = functions = short = 0
    for file in sorted((root / "recbole_sigma").rglob("*.py")):
        no_code: set[int] = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                functions += 1
                short += (node.end_lineno or 0) - node.lineno < 5
            documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            if documented and ast.get_docstring(node, clean=False) is not None:
                no_code.update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
            if isinstance(node, ast.Import | ast.ImportFrom):
                no_code.update(range(node.lineno, (node.end_lineno or 0) + 1))
        with file.open("rb") as content:
            tokens = [token for token in tokenize.tokenize(content.readline) if token.type not in _NO_CODE]
        code += len({line for token in tokens for line in range(token.start[0], token.end[0] + 1)} - no_code)
    return {
        "code lines": code,
        "functions": functions,
        "lines of the package with templates": _lines(root, "recbole_sigma/**/*.py", "recbole_sigma/**/*.j2"),
        "functions of at most 5 lines": short,
        "lines of tests": _lines(root, "tests/**/*.py"),
        "lines of benchmarks": _lines(root, "benchmarks/**/*.py"),
    }


def _lines(root: Path, *patterns: str) -> int:
    files = [file for pattern in patterns for file in root.glob(pattern)]
    return sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)


if __name__ == "__main__":
    for name, number in numbers().items():
        print(f"{number:7,}  {name}" + (f" (at most {LIMITS[name]:,})" if name in LIMITS else ""))
