"""What CI must run is not skipped in silence; its programs are stand-ins here."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

CI = Path(__file__).parents[1] / ".ci" / "run"
NO_BROWSER = "SKIPPED [4] tests/test_pages.py:137: no browser: install Debian's packages"
PROGRAMS = {
    "make": """\
mkdir -p "$VENV/bin"
for program in pip python; do cp "$STAND_INS/nothing" "$VENV/bin/$program"; done
echo "$TESTS_SAY" """,
    "apt-get": "exit 100",
    "nothing": "",
}


@pytest.mark.parametrize(
    ("said", "code", "told"),
    [("1 passed", 0, ""), (NO_BROWSER, 1, "browser tests were not run")],
)
def test_without_a_browser_ci_fails_and_says_why(tmp_path, said, code, told):
    stand_ins = tmp_path / "stand-ins"
    stand_ins.mkdir()
    for name, script in PROGRAMS.items():
        (stand_ins / name).write_text(f"#!/bin/sh\n{script}\n")
        (stand_ins / name).chmod(0o755)
    for name in ("sh", "bash", "cat", "cp", "dirname", "grep", "mkdir", "mktemp", "rm", "tee"):
        (stand_ins / name).symlink_to(shutil.which(name))
    env = {**os.environ, "PATH": str(stand_ins), "STAND_INS": str(stand_ins), "TESTS_SAY": said}
    done = subprocess.run([CI], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert told in done.stderr
