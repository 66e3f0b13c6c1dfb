"""Files in a study's folder that another runner, or a stranger, has left: an error of ours, or passed over."""

from __future__ import annotations

from contextlib import suppress

import pytest

from pcpo.errors import PCPOError
from pcpo.study.report import write_study_report
from pcpo.study.runner import open_study
from pcpo.study.status import describe
from security.places import STUDY
from security.spoilt import JSONS

CONTENTS = {name: made for name, made in JSONS.items() if isinstance(made, bytes)} | {
    "some-keys": b'{"iterations_done": 99}',
    "wrong-count": b'{"iterations_done": "x"}',
    "wrong-heartbeat": b'{"machine": 1, "heartbeat": "x"}',
    "huge-heartbeat": b'{"machine": 1, "heartbeat": 1' + b"0" * 400 + b"}",
    "torn-line": b'{"type": "iteration", "iteration": x, \n',
    "huge-line": b'{"type": "iteration", "iteration": ' + b"9" * 6000 + b", \n",
}
FILES = ("cells/{cell}/results.json", "cells/{cell}/events.jsonl", "claims/{cell}.0.json", "failures/{cell}.json")


@pytest.mark.parametrize("file", FILES)
def test_only_our_errors_escape(tmp_path, file, measured):
    pytest.importorskip("matplotlib")
    (tmp_path / "study.yaml").write_text(STUDY.format(model="emoji-sd"), "utf-8")
    path = tmp_path / file.format(cell=open_study(tmp_path)[1][0].name)
    path.parent.mkdir(parents=True)
    for content in CONTENTS.values():
        path.write_bytes(content)
        for command in (describe, write_study_report):
            with suppress(PCPOError):
                command(tmp_path)
    measured("study_folder", files=len(FILES) * len(CONTENTS), other_errors=0)
