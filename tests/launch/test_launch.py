"""The scripts in launch/: what they would do, and what they do to stand-ins for the cloud."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "golden"
SOURCED = {"common.sh", "tpu.sh", "settings.example.sh"}
SCRIPTS = sorted(p.name for p in (ROOT / "launch").glob("*.sh") if p.name not in SOURCED)

# What golden/NAME.txt holds the dry run of.
CASES = {
    "setup_project": "setup_project.sh",
    "tpu_create": "tpu_create.sh",
    "tpu_status": "tpu_status.sh",
    "tpu_status_wait": "tpu_status.sh --wait",
    "tpu_sync": "tpu_sync.sh",
    "tpu_sync_commit": "tpu_sync.sh --commit v1.0",
    "tpu_install": "tpu_install.sh",
    "tpu_run": """tpu_run.sh own --config own --config.data.polarity.neutral="('calm',)" """,
    "tpu_logs": "tpu_logs.sh 3",
    "tpu_stop": "tpu_stop.sh",
    "tpu_resume": "tpu_resume.sh --delete meld --config meld",
    "tpu_fetch": "tpu_fetch.sh meld",
    "tpu_delete": "tpu_delete.sh",
    "tpu_delete_yes": "tpu_delete.sh --yes",
    "delete_store": "delete_store.sh --yes",
    "check_costs": "check_costs.sh",
    "worker_mount_bucket": "worker.sh mount gs://a-bucket",
    "worker_mount_nfs": "worker.sh mount 10.0.0.2:/share",
    "worker_install": "worker.sh install",
    "worker_start": "worker.sh start python -m erc_jax.main --config 'a b'",
    "worker_state": "worker.sh state",
    "worker_stop": "worker.sh stop",
    "slurm": "slurm.sh meld --config meld",
    "docker_run": "docker_run.sh meld --config meld",
    "docker_run_cuda": "docker_run.sh --cuda meld --config meld",
    "keep_running": "keep_running.sh --restarts 3 --exit-file code python -m erc_jax.main 'a b'",
}
NFS = {"tpu_create", "tpu_fetch", "check_costs"}  # again, with a file server as STORE

# Notes how it was called and answers as the test's `answers` has it.
STUB = """#!/usr/bin/env bash
printf '%s\\n' "$(printf '%q ' "${0##*/}" "$@")" >> "$CALLS"
source "$ANSWERS"
"""


@pytest.fixture
def bench(tmp_path):
    """A copy of launch/ in a checkout of its own, with stubs for all that reaches out."""
    bench = Bench(tmp_path)
    yield bench
    for process in bench.started:  # by a test that failed
        process.kill()


class Bench:
    def __init__(self, folder: Path):
        self.root = folder / "checkout"
        shutil.copytree(
            ROOT / "launch",
            self.root / "launch",
            ignore=lambda *_: {"settings.sh", "erc_jax.bundle"},
        )
        self.started: list[subprocess.Popen[bytes]] = []
        self.calls_file = folder / "calls"
        self.answers = folder / "answers"
        self.answers.write_text(":")
        self.home = folder / "home"
        self.home.mkdir()
        self.bin = folder / "bin"
        self.bin.mkdir()
        for name in ("gcloud git docker sudo curl ssh sbatch srun squeue scontrol").split():
            self.program(name, STUB)
        self.env = {
            "PATH": f"{self.bin}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(self.home),
            "CALLS": str(self.calls_file),
            "ANSWERS": str(self.answers),
            "ERC_JAX_POLL": "0",
            "ERC_JAX_SETTINGS": "launch/settings.example.sh",
        }

    def program(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def run(self, line: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Runs a command line of bash in the checkout."""
        return subprocess.run(
            ["bash", "-c", line],
            cwd=self.root,
            env={**self.env, **env},
            capture_output=True,
            text=True,
            timeout=60,
        )

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """Starts a command in the checkout; it is not waited for."""
        pipe = subprocess.PIPE
        # Where the tests run in the background SIGINT is ignored, and bash cannot trap it then.
        command = ("env", "--default-signal=INT", *command)
        process = subprocess.Popen(command, cwd=self.root, env=self.env, stdout=pipe, stderr=pipe)
        self.started.append(process)
        return process

    def dry(self, line: str, **env: str) -> str:
        """What the script prints in a dry run, during which nothing may be called."""
        done = self.run(f"launch/{line}", ERC_JAX_DRY_RUN="1", **env)
        assert done.returncode == 0, done.stderr
        assert self.calls() == [], "a dry run reached out"
        return done.stdout

    def calls(self) -> list[list[str]]:
        """How the stubs were called since the last time."""
        if not self.calls_file.exists():
            return []
        text = self.calls_file.read_text()
        self.calls_file.unlink()
        return [shlex.split(line) for line in text.splitlines()]


def other_settings(bench, **changes):
    """Settings like the example's, but for some; None leaves one out."""
    text = (bench.root / "launch/settings.example.sh").read_text()
    for name, value in changes.items():
        new = "" if value is None else f"{name}={value}"
        text, found = re.subn(rf"^{name}=.*$", new, text, flags=re.M)
        assert found
    (bench.root / "launch/settings.sh").write_text(text)
    return {"ERC_JAX_SETTINGS": ""}


@pytest.mark.parametrize("name", [*CASES, *(f"{name}_nfs" for name in sorted(NFS))])
def test_dry_run(bench, name):
    env = {}
    case = name.removesuffix("_nfs") if name.removesuffix("_nfs") in NFS else name
    if case != name:
        env = other_settings(bench, STORE="10.0.0.2:/share", SPOT="no")
    printed = bench.dry(CASES[case], **env)
    assert bench.run(f"bash -n <<< {shlex.quote(printed)}").returncode == 0
    printed = printed.replace(str(bench.home), "/home/me")
    printed = printed.replace(f"--user {os.getuid()}:{os.getgid()}", "--user 1000:1000")
    printed = re.sub(r"chown \S+", "chown me", printed)
    file = GOLDEN / f"{name}.txt"
    if os.environ.get("ERC_JAX_RENEW_GOLDEN"):
        file.write_text(printed)
    assert printed == (file.read_text() if file.exists() else ""), (
        f"launch/{CASES[case]} would do something else than {file.relative_to(ROOT)} says. If that "
        "is meant: ERC_JAX_RENEW_GOLDEN=1 pytest tests/launch, then look at git diff."
    )


def test_no_golden_file_is_left_over():
    assert {p.stem for p in GOLDEN.glob("*.txt")} == {*CASES, *(f"{name}_nfs" for name in NFS)}


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("gcloud"), reason="needs gcloud, but no account")
def test_gcloud_itself_would_take_the_commands(tmp_path):
    lines = {line for file in GOLDEN.glob("*.txt") for line in file.read_text().splitlines()}
    commands = [line for line in sorted(lines) if line.startswith("gcloud ")]
    (tmp_path / "commands.json").write_text(json.dumps([{"command_string": c} for c in commands]))
    settings = {
        "CLOUDSDK_CONFIG": str(tmp_path / "config"),  # nobody's account
        "CLOUDSDK_CORE_CHECK_GCE_METADATA": "false",
        "CLOUDSDK_CORE_DISABLE_PROMPTS": "true",
        "CLOUDSDK_CORE_DISABLE_USAGE_REPORTING": "true",
        "CLOUDSDK_COMPONENT_MANAGER_DISABLE_UPDATE_CHECK": "true",
    }
    done = subprocess.run(
        f"gcloud meta lint-gcloud-commands --commands-file={tmp_path}/commands.json",
        shell=True,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
    )
    if not done.stdout.startswith("["):
        pytest.skip(f"this gcloud cannot check commands: {done.stderr[:200]}")
    answers = json.loads(done.stdout)
    assert len(answers) == len(commands) > 20
    wrong = [(a["command_string"], a["error_message"]) for a in answers if not a["success"]]
    assert wrong == []


# What the stubs answer, so that a real run takes the path that the dry run assumes.
ASSUMED = """
case "$*" in
  *"projects describe"*) echo 123456789012 ;;
  "rev-parse --verify "*) echo "$3" ;;
  *"queued-resources list --project"*) echo ACTIVE ;;
  *"tpu-vm list --project"*) echo READY ;;
  *"worker.sh state"*) echo running ;;
esac
"""


@pytest.mark.parametrize(
    "case", [c for c in CASES if not c.startswith(("worker", "slurm", "keep", "tpu_resume"))]
)
def test_a_real_run_shows_and_does_what_the_dry_run_printed(bench, case):
    bench.answers.write_text(ASSUMED)
    printed = bench.dry(CASES[case])
    commands = [line for line in printed.splitlines() if not line.startswith("#")]

    assert bench.run("\n".join(commands)).returncode == 0
    pasted = bench.calls()
    done = bench.run(f"launch/{CASES[case]}")
    assert done.returncode == 0, done.stderr
    assert bench.calls() == pasted != []
    assert [line[2:] for line in done.stderr.splitlines() if line.startswith("+ ")] == commands


# A cloud where a TPU that is asked for is there at once. The file `plan` holds, line by line,
# what happens when the state of the run is asked for: PREEMPT, or what the workers answer. Asking
# for the state of the request fails as often as `failures` has lines.
CLOUD = """
[[ ${0##*/} == gcloud ]] || { if [[ $1 == rev-parse ]]; then echo abc123; fi; return; }
command=
for word; do
  case $word in --command=*) command=${word#--command=} ;; esac
done
case "$*" in
  *"queued-resources list"*)
    [[ ! -s $CLOUD/failures ]] || { sed -i 1d "$CLOUD/failures"; exit 1; }
    cat "$CLOUD/request" 2> /dev/null || true
    ;;
  *"tpu-vm list"*) echo READY ;;
  *"queued-resources create"*) echo ACTIVE > "$CLOUD/request" ;;
  *"queued-resources delete"*) rm "$CLOUD/request" ;;
  *"worker.sh state"*)
    next=$(head -1 "$CLOUD/plan")
    sed -i 1d "$CLOUD/plan"
    case $next in
      PREEMPT) echo SUSPENDED > "$CLOUD/request"; exit 255 ;;
      "") echo 99 ;; # past the end of the plan
      *) printf '%s\\n' $next ;;
    esac
    ;;
  *install*) [[ ! -e $CLOUD/broken ]] ;;
esac
"""


def resume(bench, *plan, options="--delete"):
    """Runs tpu_resume.sh while the plan happens; returns its exit code and what it did."""
    cloud = bench.home / "cloud"
    cloud.mkdir(exist_ok=True)
    (cloud / "plan").write_text("".join(f"{line}\n" for line in plan))
    bench.answers.write_text(CLOUD)
    done = bench.run(f"launch/tpu_resume.sh {options} meld --config meld", CLOUD=str(cloud))
    assert not (cloud / "plan").read_text(), f"stopped looking too early: {done.stderr}"
    words = {
        "queued-resources create": "create",
        "queued-resources delete": "delete",
        "git clone": "sync",
        "worker.sh install": "install",
        "worker.sh start": "start",
        "worker.sh stop": "stop",
    }
    lines = [" ".join(call) for call in bench.calls()]
    deeds = [word for line in lines for text, word in words.items() if text in line]
    assert not any("checkout" in line and "--detach abc123" not in line for line in lines)
    return done, deeds


def test_resume_sees_a_run_through_a_preemption(bench):
    done, deeds = resume(bench, "none none", "running running", "PREEMPT", "none none", "0 0")
    assert done.returncode == 0, done.stderr
    first = ["create", "sync", "install", "start"]
    assert deeds == [*first, "delete", *first, "delete"]


def test_resume_goes_on_after_75_without_installing_anew(bench):
    done, deeds = resume(bench, "none none", "75 75", "running 75", "0 0", options="")
    assert done.returncode == 0
    assert deeds == ["create", "sync", "install", "start", "start"]
    assert "launch/tpu_delete.sh" in done.stderr  # that it goes on costing


@pytest.mark.parametrize("code", [1, 2, 134])
def test_resume_ends_with_the_code_of_a_run_that_is_not_to_be_started_again(bench, code):
    done, deeds = resume(bench, "none none", "running running", f"{code} {code}")
    assert done.returncode == code
    assert deeds == ["create", "sync", "install", "start", "delete"]


def test_resume_stops_the_workers_that_wait_for_one_that_failed(bench):
    done, deeds = resume(bench, "none none", f"running {1}", "75 1", options="")
    assert done.returncode == 1
    assert deeds == ["create", "sync", "install", "start", "stop"]


def test_resume_gives_up_what_fails_again_and_again(bench):
    (bench.home / "cloud").mkdir()
    (bench.home / "cloud/broken").touch()
    done, deeds = resume(bench, *["none none"] * 5)
    assert done.returncode == 1
    assert "failed 5 times in a row" in done.stderr
    assert deeds == ["create", *["sync", "install"] * 5, "delete"]


def test_resume_does_not_take_a_failed_question_for_a_missing_tpu(bench):
    cloud = bench.home / "cloud"
    cloud.mkdir()
    (cloud / "request").write_text("ACTIVE\n")
    (cloud / "failures").write_text("\n" * 7)
    done, deeds = resume(bench, "running running", "0 0", options="")
    assert (done.returncode, deeds) == (0, [])
    assert not (cloud / "failures").read_text()


def test_check_costs_fails_if_something_is_left(bench):
    bench.answers.write_text('[[ $* != *"disks list"* ]] || echo a-disk')
    done = bench.run("launch/check_costs.sh")
    assert done.returncode == 1
    assert done.stdout == "disks:\na-disk\n"


def test_sync_refuses_what_is_not_committed(bench):
    bench.answers.write_text('[[ $1 != status ]] || echo " M erc_jax/train.py"')
    for script in ("tpu_sync.sh", "tpu_resume.sh meld"):
        done = bench.run(f"launch/{script}")
        assert done.returncode == 2
        assert "not committed" in done.stderr
        assert "erc_jax/train.py" in done.stderr
        assert [call[0] for call in bench.calls()] == ["git"]
    assert bench.run("launch/tpu_sync.sh --commit HEAD").returncode == 0


# A training run that takes until it is told to stop.
TRAINING = """#!/usr/bin/env bash
trap 'echo saved; exit 75' TERM
echo "$@"
for i in {1..400}; do sleep 0.05; done
"""


def wait_for(condition):
    limit = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.02)


def test_sync_run_status_stop_on_two_workers(bench):
    """With real git and real processes; only the connection to the workers is a stand-in."""
    workers = [bench.home / f"worker{i}" for i in range(2)]
    for worker in workers:
        python = worker / "erc_jax/venv/bin/python"
        python.parent.mkdir(parents=True)
        python.write_text(TRAINING)
        python.chmod(0o755)
    bench.answers.write_text(
        r"""
        for word; do
          [[ $word != --command=* ]] || command=${word#--command=}
        done
        case "$*" in
          *"queued-resources list"*) echo ACTIVE ;;
          *"tpu-vm list"*) echo READY ;;
          *" scp "*) for worker in "$HOME"/worker?; do cp "$5" "$worker/${6#*:}"; done ;;
          *" ssh "*)
            status=0
            for worker in "$HOME"/worker?; do
              (cd "$worker" && HOME=$worker bash -c "$command") || status=$?
            done
            exit "$status"
            ;;
        esac
        """
    )
    (bench.bin / "git").unlink()
    done = bench.run(
        "git init --quiet && git add --all && git -c user.name=me -c user.email=me@example.org "
        "commit --quiet --message=first && git rev-parse HEAD && launch/tpu_sync.sh",
        GIT_CONFIG_GLOBAL="/dev/null",
    )
    assert done.returncode == 0, done.stderr
    head = done.stdout.split()[0]
    for worker in workers:
        source = worker / "erc_jax/source"
        assert (source / "launch/worker.sh").exists()
        assert bench.run(f"git -C {source} rev-parse HEAD").stdout.strip() == head

    states = "launch/tpu_status.sh 2>&1 | grep 'The run on'"
    assert bench.run(states).stdout == "The run on the workers: none, none.\n"
    start = """launch/tpu_run.sh own --config own --config.data.polarity.neutral="('calm',)" """
    done = bench.run(start)  # returns, although the run goes on and its output is not ours
    assert done.returncode == 0, done.stderr
    assert bench.run(states).stdout == "The run on the workers: running, running.\n"
    done = bench.run(start)
    assert done.returncode == 2
    assert "a run is going on here" in done.stderr

    logs = [worker / "erc_jax/run/log" for worker in workers]
    flags = "--workdir /mnt/erc_jax/runs/own --distributed auto --config own"
    said = f"-m erc_jax.main {flags} --config.data.polarity.neutral=('calm',)"
    wait_for(lambda: all(said in log.read_text() for log in logs))
    done = bench.run("launch/tpu_stop.sh")
    assert done.stdout == "75\n75\n"
    assert all(log.read_text().endswith("saved\n") for log in logs)
    assert bench.run(states).stdout == "The run on the workers: 75, 75.\n"


def counting(bench, body):
    """A child that counts its starts in the file n, with the number in $n."""
    bench.program("child", f"#!/usr/bin/env bash\nn=$(wc -c < n)\nprintf x >> n\n{body}\n")
    (bench.root / "n").write_text("")
    return lambda: (bench.root / "n").stat().st_size


def test_keep_running_starts_again_after_75(bench):
    starts = counting(bench, "((n == 1)) || exit 75")
    assert bench.run("launch/keep_running.sh --restarts 0 child").returncode == 0
    assert starts() == 2


@pytest.mark.parametrize("code", [0, 1, 2, 126, 127])
def test_keep_running_leaves_it_at(bench, code):
    starts = counting(bench, f"exit {code}")
    done = bench.run("launch/keep_running.sh --pause 0 --exit-file code child")
    assert (done.returncode, starts()) == (code, 1)
    assert (bench.root / "code").read_text() == f"{code}\n"


@pytest.mark.parametrize(("crash", "code"), [("kill -9 $$", 137), ("exit 3", 3)])
def test_keep_running_starts_again_after_a_crash_but_not_for_ever(bench, crash, code):
    starts = counting(bench, crash)
    done = bench.run("launch/keep_running.sh --restarts 2 --pause 0 child")
    assert (done.returncode, starts()) == (code, 3)
    assert "started again in 0 seconds (2 of 2)" in done.stderr


@pytest.mark.parametrize("name", ["TERM", "INT"])
def test_keep_running_passes_signals_on_and_then_ends(bench, name):
    # The child takes its time to save, is not hurried, and its own code comes out.
    body = f"trap 'sleep 0.3; touch saved; exit 75' {name}; touch ready\n"
    starts = counting(bench, body + "for i in {1..400}; do sleep 0.05; done")
    process = bench.start("launch/keep_running.sh", "child")
    wait_for((bench.root / "ready").exists)
    process.send_signal(getattr(signal, f"SIG{name}"))
    process.communicate(timeout=20)
    assert process.returncode == 75
    assert (bench.root / "saved").exists()
    assert starts() == 1


@pytest.mark.parametrize("code", [3, 75])  # a crash; another worker of the pod was told first
def test_keep_running_hears_a_signal_in_the_pause_before_a_new_start(bench, code):
    starts = counting(bench, f"exit {code}")
    process = bench.start("launch/keep_running.sh", "--pause", "1000", "child")
    wait_for(starts)
    time.sleep(0.2)
    process.terminate()
    process.communicate(timeout=20)
    assert (process.returncode, starts()) == (code, 1)


def test_keep_running_waits_for_a_child_that_is_suspended(bench):
    body = "((n == 0)) || exit 9; echo $$ > pid; sleep 1; exit 0"
    starts = counting(bench, body)
    process = bench.start("launch/keep_running.sh", "child")
    wait_for(lambda: (bench.root / "pid").exists() and (bench.root / "pid").read_text())
    child = int((bench.root / "pid").read_text())
    os.killpg(child, signal.SIGSTOP)
    time.sleep(0.3)
    os.killpg(child, signal.SIGCONT)
    process.communicate(timeout=20)
    assert (process.returncode, starts()) == (0, 1)


@pytest.mark.parametrize(
    ("state", "requeued", "code"),
    # Its time is nearly up; scancel; its time is up while features are made.
    [("RUNNING", True, 75), ("COMPLETING", False, 75), ("RUNNING", True, 143)],
)
def test_slurm_saves_and_queues_again(bench, state, requeued, code, tmp_path):
    bench.answers.write_text(
        f'case ${{0##*/}} in srun) touch ready; exec "$@" ;; squeue) echo {state} ;; esac'
    )
    bench.program("python", TRAINING.replace("exit 75", f"exit {code}"))
    spooled = shutil.copy(bench.root / "launch/slurm.sh", tmp_path / "slurm_script")
    bench.env |= {"SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(bench.root)}
    process = bench.start("bash", spooled, "meld", "--config", "meld")
    wait_for((bench.root / "ready").exists)
    time.sleep(0.2)
    process.terminate()
    output, _ = process.communicate(timeout=20)
    assert process.returncode == code
    assert b"-m erc_jax.main --workdir runs/meld --distributed auto --config meld" in output
    calls = bench.calls()
    assert calls[0][0] == "srun"
    assert (["scontrol", "requeue", "7"] in calls) == requeued


def test_slurm_does_not_queue_a_mistake_again(bench):
    bench.answers.write_text("[[ ${0##*/} != srun ]] || exit 1")
    done = bench.run("bash launch/slurm.sh meld", SLURM_JOB_ID="7")
    assert done.returncode == 1
    assert [call[0] for call in bench.calls()] == ["srun"]


SETTINGS = re.findall(r"^([A-Z_]+)=", (ROOT / "launch/settings.example.sh").read_text(), re.M)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_missing_setting_is_named(bench, name):
    env = other_settings(bench, **{name: None})
    done = bench.run("launch/tpu_create.sh", **env, **{name: "of the environment"})
    assert done.returncode == 2
    assert done.stderr.startswith(f"Error: {name} is not set in launch/settings.sh")
    assert bench.calls() == []


def test_settings_that_are_missing_or_wrong(bench):
    done = bench.run("launch/tpu_create.sh", ERC_JAX_SETTINGS="")
    assert done.returncode == 2
    assert "launch/settings.sh does not exist: copy launch/settings.example.sh" in done.stderr
    for name, value in {"SPOT": "maybe", "STORE": "my-bucket"}.items():
        done = bench.run("launch/tpu_create.sh", **other_settings(bench, **{name: value}))
        assert done.returncode == 2
        assert f"{name}={value} in launch/settings.sh: expected" in done.stderr


def test_every_setting_is_explained_and_asked_for():
    text = (ROOT / "launch/settings.example.sh").read_text()
    for name in SETTINGS:
        assert re.search(rf"^# .*\n{name}=", text, re.M)
    assert f"names=({' '.join(SETTINGS)})" in (ROOT / "launch/tpu.sh").read_text()


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_and_mistakes(bench, script):
    # No settings, and from another folder.
    done = bench.run(f"cd launch && ./{script} --help", ERC_JAX_SETTINGS="nowhere")
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: ")
    assert f"launch/{script}" in done.stdout.splitlines()[0]
    assert "--dry-run" in done.stdout
    done = bench.run(f"launch/{script} --colour")
    assert done.returncode == 2
    assert "unknown option --colour" in done.stderr
    assert bench.calls() == []


@pytest.mark.parametrize(
    "line", ["tpu_run.sh", "tpu_run.sh ../x", "tpu_create.sh now", "tpu_logs.sh all", "slurm.sh"]
)
def test_arguments_that_are_missing_or_wrong(bench, line):
    done = bench.run(f"launch/{line}")
    assert done.returncode == 2
    assert done.stderr.startswith("Error: ")
    assert bench.calls() == []


README = (ROOT / "launch/README.md").read_text()


def test_every_command_block_of_the_readme(bench):
    """From top to bottom, as a reader would: dry, but for two commands."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", README, flags=re.M | re.S)
    assert README.count("```") == 2 * len(blocks) > 0
    bench.answers.write_text('[[ ${0##*/} != sbatch ]] || bash "${@:4}"')
    bench.program("python", "#!/bin/sh\nexit 99\n")
    del bench.env["ERC_JAX_SETTINGS"]
    done = bench.run("set -euo pipefail\n" + "\n".join(blocks))
    assert done.returncode == 0, done.stderr
    assert [call[:3] for call in bench.calls()] == [
        ["gcloud", "auth", "login"],
        ["gcloud", "projects", "create"],
        ["sbatch", "--nodes=2", "--gpus-per-node=4"],
    ]
    for script in set(SCRIPTS) - {"worker.sh"}:
        assert f"launch/{script}" in "\n".join(blocks), f"no block shows {script}"


def test_readme_names_only_what_there_is():
    for name in re.findall(r"\b([a-z_.]+\.sh)\b", README):
        assert (ROOT / "launch" / name).exists() or name == "settings.sh"


def test_shellcheck():
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.defpath}")
    assert shellcheck, "pip install -e '.[test]' brings it"
    done = subprocess.run(
        [shellcheck, *sorted((ROOT / "launch").glob("*.sh"))], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_image_is_made_of_files_that_exist_and_does_not_run_as_root():
    lines = (ROOT / "launch/Dockerfile").read_text().splitlines()
    copied = [name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]]
    kept = (ROOT / "launch/Dockerfile.dockerignore").read_text().splitlines()
    assert copied
    for name in copied:
        assert (ROOT / name).exists()
        assert f"!{name}" in kept
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users
    assert "root" not in users
