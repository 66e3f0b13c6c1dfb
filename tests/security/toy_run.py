"""A whole small use of the library in a process of its own: import, train, report, sample, export, under a socket hook.

python -m security.toy_run CONFIG RUN: prints what was dialled as JSON. There is no HF_HUB_OFFLINE, as with a user.
"""

from __future__ import annotations

import json
import sys

from security.worker import note

DIALLED: list[str] = []
sys.addaudithook(lambda event, arguments: note(event, arguments, [], DIALLED) if event != "open" else None)


def main(config: str, run: str) -> None:
    """Use the library as a user would, then say who was called."""
    from pcpo.cli.main import app

    for words in (
        ["train", config, "--quiet"],
        ["report", run],
        ["sample", run, "-p", "red", "-n", "1", "--steps", "1", "-o", f"{run}/pictures"],
        ["export", run, "-o", f"{run}/exported"],
        ["eval", run, "-n", "1", "--steps", "1", "--prompts", "common50", "--quiet"],
    ):
        app(words, standalone_mode=False)
    print(json.dumps({"dialled": DIALLED}))


if __name__ == "__main__":
    main(*sys.argv[1:])
