"""A whole small use of the library in a process of its own, under a socket hook: a run, a study, and all made of them.

python -m security.toy_run CONFIG RUN STUDY prints what was dialled as JSON. There is no HF_HUB_OFFLINE, as with users.
"""

from __future__ import annotations

import json
import sys

from security.worker import note

DIALLED: list[str] = []
sys.addaudithook(lambda event, arguments: note(event, arguments, [], DIALLED) if event != "open" else None)


def main(config: str, run: str, study: str) -> None:
    """Use the library as a user would, then say who was called."""
    from pcpo.cli.main import app

    one, done = ["-n", "1", "--steps", "1"], f"{study}.done"
    for words in (
        ["train", config, "--quiet"],
        ["report", run],
        ["sample", run, "-p", "red", *one, "-o", f"{run}/pictures"],
        ["export", run, "-o", f"{run}/exported"],
        ["eval", run, *one, "--prompts", "common50", "--quiet", "-o", f"{run}/eval.json"],
        ["compare", run, f"{run}@1", *one, "--limit", "2", "--quiet", "-o", f"{run}/compared"],
        ["study", "run", study, "-o", done, "--quiet"],
        ["study", "status", done],
        ["study", "report", done],
        ["study", "archive", done, f"{study}.kept"],
    ):
        app(words, standalone_mode=False)
    print(json.dumps({"dialled": DIALLED}))


if __name__ == "__main__":
    main(*sys.argv[1:])
