"""What the source must not use: code from data, unsafe unpickling and YAML, shells, archives, guessable names.

Names are followed through imports, so `from torch import load as l` is seen for what it is.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass

MODULES = {
    "pickle", "cPickle", "_pickle", "cloudpickle", "dill", "jsonpickle", "joblib", "marshal", "shelve", "pty",
    "commands", "xmlrpc", "telnetlib",
}  # fmt: skip
NAMES = {
    "eval", "exec", "compile", "__import__", "builtins.eval", "builtins.exec", "builtins.compile",
    "torch.load", "torch.save", "torch.jit.load", "torch.hub.load", "torch.package", "torch.serialization.load",
    "torch.serialization.save",
    "yaml.load", "yaml.load_all", "yaml.full_load", "yaml.full_load_all", "yaml.unsafe_load", "yaml.unsafe_load_all",
    "yaml.Loader", "yaml.FullLoader", "yaml.UnsafeLoader", "yaml.CLoader", "yaml.CFullLoader", "yaml.CUnsafeLoader",
    "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput",
    "asyncio.create_subprocess_shell", "tempfile.mktemp", "shutil.unpack_archive", "pandas.read_pickle",
}  # fmt: skip
PREFIXES = ("os.exec", "os.spawn", "os.posix_spawn")
METHODS = {"extractall", "mktemp", "unsafe_load", "find_class"}  # whatever they are called on
KEYWORDS = {
    "shell": False, "trust_remote_code": False, "allow_pickle": False, "weights_only": True, "use_safetensors": True,
    "safe_serialization": True, "verify": True,
}  # fmt: skip
"""Keyword -> the only value it may be given."""


@dataclass(frozen=True, order=True)
class Finding:
    """A line of source and what is wrong with it."""

    line: int
    what: str


def scan(source: str) -> list[Finding]:
    """Everything in a module that must not be there."""
    scanner = _Scanner()
    scanner.visit(ast.parse(source))
    return sorted(set(scanner.found))


class _Scanner(ast.NodeVisitor):
    def __init__(self) -> None:
        self.found: list[Finding] = []
        self.alias: dict[str, str] = {}  # local name -> what it was imported from

    def visit_Import(self, node: ast.Import) -> None:
        for item in node.names:
            local = item.asname or item.name.partition(".")[0]
            self.alias[local] = item.name if item.asname else local
            self._check(item.name, node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for item in node.names:
            name = f"{node.module or ''}.{item.name}"
            self.alias[item.asname or item.name] = name
            self._check(name, node)
            if item.name == "*" and any(known.startswith(f"{node.module}.") for known in NAMES):
                self._report(name, node)

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load):  # a field or a variable may have such a name
            self._check(self.alias.get(node.id, node.id), node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self._check(self._dotted(node), node)
        if node.attr in METHODS:
            self._report(node.attr, node)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        for keyword in node.keywords:
            value = keyword.value.value if isinstance(keyword.value, ast.Constant) else ...
            if keyword.arg in KEYWORDS and value is not KEYWORDS[keyword.arg]:
                self._report(f"{keyword.arg}={ast.unparse(keyword.value)}", node)
        self._check_by_name(node)
        self.generic_visit(node)

    def _check_by_name(self, node: ast.Call) -> None:
        """getattr(torch, "load"), import_module("pickle")."""
        words = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        called = self._dotted(node.func)
        if called in ("getattr", "builtins.getattr") and words:
            self._check(f"{self._dotted(node.args[0])}.{words[0]}", node)
        if called in ("importlib.import_module", "__import__") and words:
            self._check(words[0], node)

    def _dotted(self, node: ast.AST) -> str:
        """The full name of a chain of attributes; '?' stands for what is not a name."""
        if isinstance(node, ast.Name):
            return self.alias.get(node.id, node.id)
        return f"{self._dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else "?"

    def _check(self, name: str, node: ast.AST) -> None:
        if name.partition(".")[0] in MODULES or name in NAMES or name.startswith(PREFIXES):
            self._report(name, node)

    def _report(self, what: str, node: ast.AST) -> None:
        self.found.append(Finding(getattr(node, "lineno", 0), what))
