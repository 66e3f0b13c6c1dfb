"""The source runs nothing that comes from data. The one thing that runs is the reward code that a user names."""

from __future__ import annotations

import pytest

from pages import ROOT
from security.scan import scan

FOLDERS = ("src", "recipes", "examples", "benchmarks", "tools")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
# file -> names that it may use, each once. EfficientNet's weights are published as a pickle only: the recipe checks the
# file's SHA-256, then admits tensors only.
EXCEPTIONS = {"recipes/efficientnet_lite0.py": ["torch.load"]}

BAD = {
    "import pickle": "pickle",
    "import pickle as p\np.loads(b'')": "pickle",
    "from pickle import loads": "pickle.loads",
    "from pickle import loads as safe\nsafe(b'')": "pickle.loads",
    "import torch\ntorch.load('x')": "torch.load",
    "import torch as t\nread = t.load": "torch.load",
    "from torch import load as read\nread('x')": "torch.load",
    "from torch import save": "torch.save",
    "import torch\ngetattr(torch, 'load')('x')": "torch.load",
    "import torch\ntorch.load('x', weights_only=False)": "weights_only=False",
    "import torch.serialization as s\ns.load('x')": "torch.serialization.load",
    "eval('1')": "eval",
    "from builtins import exec as run\nrun('1')": "builtins.exec",
    "run = exec": "exec",
    "compile('1', '', 'eval')": "compile",
    "__import__('os')": "__import__",
    "import importlib\nimportlib.import_module('pickle')": "pickle",
    "import yaml\nyaml.load('x', Loader=yaml.SafeLoader)": "yaml.load",
    "from yaml import load": "yaml.load",
    "import yaml\nclass L(yaml.FullLoader): pass": "yaml.FullLoader",
    "from yaml import *": "yaml.*",
    "import os\nos.system('x')": "os.system",
    "from os import system as go": "os.system",
    "import os\nos.execvp('x', [])": "os.execvp",
    "import subprocess\nsubprocess.run('x', shell=True)": "shell=True",
    "import subprocess\nflag = True\nsubprocess.run('x', shell=flag)": "shell=flag",
    "from subprocess import getoutput": "subprocess.getoutput",
    "import tarfile\ntarfile.open('x').extractall()": "extractall",
    "import shutil\nshutil.unpack_archive('x')": "shutil.unpack_archive",
    "import tempfile\ntempfile.mktemp()": "tempfile.mktemp",
    "from tempfile import mktemp": "tempfile.mktemp",
    "import numpy as np\nnp.load('x', allow_pickle=True)": "allow_pickle=True",
    "AutoModel.from_pretrained('x', trust_remote_code=True)": "trust_remote_code=True",
    "def f():\n    from marshal import loads\n    return loads": "marshal.loads",
}
GOOD = (
    "model.eval()",
    "import re\nre.compile('x')",
    "import yaml\nyaml.safe_load('x')\nclass L(yaml.SafeLoader): pass",
    "import json\njson.load(open('x'))",
    "from safetensors.torch import load_file\nload_file('x')",
    "import subprocess\nsubprocess.run(['x'], shell=False)",
    "import numpy as np\nnp.load('x', allow_pickle=False)",
    "reward.load('x')",
    "class Settings:\n    compile: bool = False",
)


@pytest.mark.parametrize("snippet", BAD)
def test_the_scanner_sees(snippet):
    assert BAD[snippet] in [found.what for found in scan(snippet)]


@pytest.mark.parametrize("snippet", GOOD)
def test_the_scanner_lets_pass(snippet):
    assert scan(snippet) == []


def test_the_source_has_nothing_of_it(measured):
    found = {str(path.relative_to(ROOT)): scan(path.read_text("utf-8")) for path in FILES}
    excepted = {name: [finding.what for finding in findings] for name, findings in found.items() if findings}
    assert excepted == EXCEPTIONS
    measured("source", files=len(FILES), findings=0, exceptions=len(EXCEPTIONS), bad_snippets_seen=len(BAD))
