"""A toy training and a toy study, and all that is made of them: no connection to anywhere, no secret in any file."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading

from pages import ROOT
from security.places import CONFIG, RUN_STUDY

STRACE = shutil.which("strace")  # sees what native code does too; the audit hook and the proxy see the rest without it
# Set by the tests, not by a user.
LEFT_OUT = {"HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "ORT_DISABLE_TELEMETRY", "NO_PROXY", "no_proxy"}
CANARIES = {
    "HF_TOKEN": "hf_CanaryAAAA1111",
    "HUGGING_FACE_HUB_TOKEN": "hf_CanaryBBBB2222",
    "WANDB_API_KEY": "CanaryCCCC3333",
    "OPENAI_API_KEY": "sk-CanaryDDDD4444",
    "ANTHROPIC_API_KEY": "sk-ant-CanaryEEEE5555",
    "AWS_ACCESS_KEY_ID": "AKIACanaryFFFF6666",
    "AWS_SECRET_ACCESS_KEY": "CanaryGGGG7777",
    "GITHUB_TOKEN": "ghp_CanaryHHHH8888",
    "DATABASE_URL": "postgres://user:CanaryIIII9999@db/x",
    "PCPO_REWARD_TOKEN": "CanaryJJJJ0000",
}


class Proxy:
    """A listener that the process would reach by its proxy settings; counts who comes."""

    def __enter__(self):
        self.door = socket.create_server(("127.0.0.1", 0))
        self.callers = 0
        self.thread = threading.Thread(target=self._listen, daemon=True)
        self.thread.start()
        self.address = f"127.0.0.1:{self.door.getsockname()[1]}"
        return self

    def _listen(self):
        while True:
            try:
                line, _ = self.door.accept()
            except OSError:
                return
            self.callers += 1
            line.close()

    def __exit__(self, *error):
        self.door.shutdown(socket.SHUT_RDWR)
        self.door.close()
        self.thread.join(10)


def test_a_toy_run_calls_nobody_and_keeps_no_secret(folders, tmp_path, measured):
    run = tmp_path / "run"
    (tmp_path / "c.yaml").write_text(CONFIG.format(model=folders["sd"], output=run), "utf-8")
    (tmp_path / "study.yaml").write_text(RUN_STUDY.format(model=folders["sd"]), "utf-8")
    tracer = [STRACE, "-f", "-qq", "-e", "trace=connect", "-o", str(tmp_path / "connects")] if STRACE else []
    with Proxy() as proxy:
        url = f"http://user:CanaryKKKK1212@{proxy.address}"
        proxies = {f"{name}_PROXY": url for name in ("HTTP", "HTTPS", "ALL")}
        environment = {name: value for name, value in os.environ.items() if name not in LEFT_OUT}
        environment |= CANARIES | proxies | {name.lower(): url for name in proxies}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "tests"), str(ROOT / "src")])
        done = subprocess.run(
            [*tracer, sys.executable, "-m", "security.toy_run", "c.yaml", str(run), "study.yaml"],
            env=environment | {"OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "hub")},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        callers = proxy.callers
    native = re.findall(r".*AF_INET.*", (tmp_path / "connects").read_text("utf-8") if tracer else "")
    dialled = json.loads(done.stdout.splitlines()[-1])["dialled"]
    assert (dialled, native, callers) == ([], [], 0)
    measured("network", connections=0, callers_at_the_proxy=callers, system_calls_traced=bool(tracer))

    secrets = [*CANARIES.values(), "CanaryKKKK1212", "Canary"]
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    texts = {str(path): path.read_bytes() for path in written} | {
        "out": done.stdout.encode(),
        "err": done.stderr.encode(),
    }
    names = {path.name for path in written}
    assert {"config.yaml", "events.jsonl", "report.html", "README.md", "manifest.json", "state.json"} <= names
    assert {"compare.html", "compare.json", "eval.json", "results.csv", "report.md", "study.yaml"} <= names
    assert any("study.yaml.kept" in path.parts and path.name == "results.json" for path in written)
    found = [(name, secret) for name, text in texts.items() for secret in secrets if secret.encode() in text]
    assert found == []
    measured("secrets", canaries=len(CANARIES) + 1, files_searched=len(written), copies=0)


def test_the_listener_would_have_noticed():
    with Proxy() as proxy, socket.create_connection(proxy.door.getsockname(), 5) as line:
        assert line.recv(1) == b""
        assert proxy.callers == 1
