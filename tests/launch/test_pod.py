"""launch/pod: what the scripts would run, that they run it, and what they do when the cloud changes."""

import re
import shlex
import shutil

import pytest

from tests.launch.desk import Desk

WHERE = ["--project", "my-project", "--zone", "us-east5-b"]
POD = [*WHERE, "--name", "pod"]
TRAIN = ["--", "sdistill.train", "--config", "configs/signs/sdpo.py:answer", "--workdir", "runs/an answer"]
RESUME = [*POD, "--accelerator", "v5litepod-16", "--spot", "--bucket", "my-bucket", *TRAIN]
AT = "--project=my-project --zone=us-east5-b"
SSH = f"gcloud compute tpus tpu-vm ssh pod {AT}"
WORKER = "bash sdistill/launch/pod/worker.sh"
CREATE = f"gcloud compute tpus queued-resources create pod --node-id=pod {AT}"
INSTALL = f"""\
mkdir -p $ROOT/build
git -C $ROOT bundle create --quiet build/sdistill.bundle HEAD
gcloud compute tpus tpu-vm scp $ROOT/build/sdistill.bundle pod: {AT} --worker=all
{SSH} --worker=all '--command=git init --quiet sdistill &&
  git -C sdistill fetch --quiet ../sdistill.bundle HEAD &&
  git -C sdistill checkout --quiet --force --detach FETCH_HEAD &&
  {WORKER} install my-bucket'
"""
START = f"""\
{SSH} --worker=all '--command={WORKER} start 8482 sdistill.train --config configs/signs/sdpo.py:answer \
--workdir '\\''runs/an answer'\\'''
"""
DELETE = f"""\
gcloud compute tpus queued-resources delete pod {AT} --force --quiet
# what is left, and costs, in this zone:
gcloud compute tpus queued-resources list {AT}
gcloud compute tpus tpu-vm list {AT}
"""
VM_STATE = f"gcloud compute tpus tpu-vm list {AT} '--format=value(name.basename(),state)'"
QUEUE_STATE = f"gcloud compute tpus queued-resources list {AT} '--format=value(name.basename(),state.state)'"
STATUS = f"""\
{SSH} --worker=all '--command={WORKER} status sdistill.train --config configs/signs/sdpo.py:answer \
--workdir '\\''runs/an answer'\\'' || true'"""

# script → flags, and what a dry run prints
EXPECTED = {
    "create": (
        [*POD, "--accelerator=v6e-8"],
        f"""\
{CREATE} --accelerator-type=v6e-8 --runtime-version=v2-alpha-tpuv6e
# every 30 seconds, until it answers ACTIVE
gcloud compute tpus queued-resources describe pod {AT} '--format=value(state.state)'
# taking for the answer: ACTIVE
""",
    ),
    "install": ([*POD, "--bucket", "my-bucket"], INSTALL),
    "start": ([*POD, *TRAIN], START),
    "watch": ([*POD, "--worker", "3"], f"{SSH} --worker=3 '--command={WORKER} log'\n"),
    "stop": (POD, f"{SSH} --worker=all '--command={WORKER} stop'\n"),
    "fetch": (
        ["--project", "my-project", "--bucket", "my-bucket", "--workdir", "runs/sdpo"],
        "mkdir -p $ROOT/runs/sdpo\n"
        "gcloud storage rsync gs://my-bucket/sdpo $ROOT/runs/sdpo --recursive "
        "'--exclude=(.*/)?checkpoints/.*' --project=my-project\n",
    ),
    "delete": ([*POD, "--yes"], DELETE),
    "resume": (
        RESUME,
        f"""\
{VM_STATE}
# taking for the answer: nothing
{QUEUE_STATE}
# taking for the answer: nothing
{CREATE} --accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite --spot
{VM_STATE}
# taking for the answer: pod READY
{STATUS}
# taking for the answer: nothing
{INSTALL}{SSH} --worker=all '--command={WORKER} stop'
{START}{VM_STATE}
# taking for the answer: pod READY
{STATUS}
# taking for the answer: ended 0
# had the pod been preempted: this, and all of the above again
{DELETE}""",
    ),
    "gke": (
        [*POD, "--cluster", "ours", "--accelerator", "v5p-8", "--image", "us-docker.pkg.dev/a/b/c", *TRAIN],
        f"""\
docker build --tag us-docker.pkg.dev/a/b/c $ROOT
docker push us-docker.pkg.dev/a/b/c
xpk workload create {AT} --cluster=ours --workload=pod --tpu-type=v5p-8 \
--docker-image=us-docker.pkg.dev/a/b/c --storage=sdistill-runs --max-restarts=100 \
'--command=python launch/join.py sdistill.train --config configs/signs/sdpo.py:answer \
--workdir '\\''runs/an answer'\\'''
""",
    ),
}


@pytest.fixture
def desk(tmp_path):
    return Desk(tmp_path)


@pytest.fixture(scope="module")
def untouched(tmp_path_factory):
    """A desk for all tests in which nothing is called and nothing changes."""
    desk = Desk(tmp_path_factory.mktemp("desk"))
    before = desk.files()
    yield desk
    assert desk.files() == before and desk.calls() == []


def without_gcloud(desk):
    """A PATH that has bash and little else."""
    folder = desk.bin.parent / "few programs"
    folder.mkdir()
    for tool in ("bash", "dirname"):
        (folder / tool).symlink_to(shutil.which(tool))
    return str(folder)


@pytest.mark.parametrize("script", EXPECTED)
def test_a_dry_run_prints_the_commands_and_touches_nothing(untouched, script):
    flags, expected = EXPECTED[script]
    places = re.compile(r"\$ROOT[\w./]*")
    expected = places.sub(lambda place: shlex.quote(place[0].replace("$ROOT", str(untouched.root))), expected)
    before = untouched.files()
    result = untouched.launch(script, "--dry_run", *flags)
    assert result.returncode == 0, result.stderr
    assert result.stdout == expected
    assert result.stderr == ""
    assert untouched.files() == before and untouched.calls() == []


@pytest.mark.parametrize("script", EXPECTED)
def test_what_is_run_is_what_a_dry_run_prints(desk, script):
    """Pasting what a dry run prints makes the same calls as the script."""
    flags, _ = EXPECTED[script]
    desk.write("outcomes", "ended 0\nended 0\n")
    desk.write("queue", "ACTIVE\n")
    if script == "resume":
        (desk.cloud / "queue").unlink()
    result = desk.launch(script, *flags)
    assert result.returncode == 0, result.stderr
    called = desk.calls()
    assert called

    (desk.cloud / "vm").write_text("READY\n")
    (desk.cloud / "workers").write_text("")
    printed = desk.launch(script, "--dry_run", *flags).stdout
    if script == "resume":
        printed, _, deletion = printed.partition("# had the pod been preempted")
        assert "queued-resources delete" in deletion
    desk.shell(printed)
    assert desk.calls() == called


@pytest.mark.parametrize(
    ("accelerator", "runtime"),
    [
        ("v4-32", "tpu-ubuntu2204-base"),
        ("v5litepod-256", "v2-alpha-tpuv5-lite"),
        ("v5p-128", "v2-alpha-tpuv5"),
        ("v6e-1", "v2-alpha-tpuv6e"),
    ],
)
def test_every_generation_boots_its_own_image(untouched, accelerator, runtime):
    printed = untouched.launch("create", *POD, "--dry_run", "--accelerator", accelerator).stdout
    assert f"--accelerator-type={accelerator} --runtime-version={runtime}\n" in printed


@pytest.mark.parametrize(
    ("script", "flags", "message"),
    [
        (
            "create",
            [],
            "--project is missing: the Google Cloud project that pays. List yours: ",
        ),
        (
            "create",
            ["--project", "p"],
            "--zone is missing: where the TPUs are, such as us-east5-b. List",
        ),
        ("stop", WHERE, "--name is missing"),
        ("create", POD, "--accelerator is missing"),
        ("create", [*POD, "--accelerator", "v5e-8"], "--accelerator v5e-8: unknown"),
        (
            "create",
            [*POD, "--accelerator", "v6e-12"],
            "accelerator-types list --project=my-project",
        ),
        ("create", [*POD, "--accelerator", "v5p-12"], "v5p-N and v4-N, of N cores (8, 16, 24 and so on"),
        ("stop", [*WHERE, "--name", "My_Pod"], "small letters, digits and dashes"),
        (
            "stop",
            [*POD, "--force"],
            "Flags here are --project --zone --name --dry_run.",
        ),
        ("stop", ["pod"], "pod: not understood"),
        ("stop", [*POD, "--project"], "--project needs a value"),
        ("stop", ["--project", "--zone", "z"], "--project needs a value"),
        ("stop", [*POD, "--dry_run=no"], "--dry_run takes no value"),
        ("install", [*POD, "--bucket", "gs://my-bucket"], "its name alone, without gs://"),
        ("start", POD, "nothing to start"),
        ("start", [*POD, "--"], "nothing to start"),
        ("start", [*POD, "--port", "80", *TRAIN], "--port 80: unknown or malformed. It is a free port"),
        (
            "start",
            [*POD, "--", "sdistill.train", "--workdir", "gs://a/b"],
            "--workdir=gs://a/b: must begin",
        ),
        (
            "start",
            [*POD, "--", "sdistill.train", "--workdir=/tmp/run"],
            "--workdir=/tmp/run: must begin",
        ),
        ("watch", [*POD, "--worker", "all"], "the number of a worker"),
        ("fetch", ["--project=p", "--bucket=my-bucket", "--workdir=sdpo"], "as the command had it: runs/..."),
        ("resume", [*POD, "--accelerator", "v6e-8", *TRAIN], "--bucket is missing"),
        ("gke", POD, "--cluster is missing"),
    ],
)
def test_a_mistake_is_named_with_the_way_out_and_nothing_is_run(untouched, script, flags, message):
    result = untouched.launch(script, *flags)
    assert result.returncode == 1
    assert message in result.stderr, result.stderr
    assert result.stdout == "" and untouched.calls() == []


def test_without_gcloud_only_dry_runs_work(untouched):
    path = without_gcloud(untouched)
    assert untouched.launch("stop", *POD, "--dry_run", PATH=path).returncode == 0
    result = untouched.launch("stop", *POD, PATH=path)
    assert result.returncode == 1 and "install it: https://cloud.google.com/sdk" in result.stderr


def test_only_what_is_committed_is_installed(desk):
    (desk.root / "pyproject.toml").write_text("# changed\n")
    result = desk.launch("install", *POD, "--bucket", "my-bucket")
    assert result.returncode == 1 and "not committed" in result.stderr
    assert desk.calls() == []


def test_creating_waits_for_capacity_and_tells_of_a_refusal(desk):
    flags = [*POD, "--accelerator", "v6e-8"]
    desk.answer('*"queued-resources create"*', "echo WAITING_FOR_RESOURCES >queue ;;")
    desk.write("events", "echo PROVISIONING >queue\nrm queue\necho ACTIVE >queue\n")
    result = desk.launch("create", *flags)
    assert result.returncode == 0, result.stderr
    for state in ("WAITING_FOR_RESOURCES", "PROVISIONING", "not answered for"):
        assert f"pod is {state}; looking again in 30 seconds" in result.stdout

    desk.write("events", "echo FAILED >queue\n")
    result = desk.launch("create", *flags)
    assert result.returncode == 1
    assert "the request for pod is FAILED" in result.stderr and "delete.sh" in result.stderr


@pytest.mark.parametrize(
    ("typed", "deleted"), [("pod\n", True), ("pod-2\n", False), ("yes\n", False), ("", False)]
)
def test_deleting_asks_for_the_name(desk, typed, deleted):
    result = desk.launch("delete", *POD, typed=typed)
    assert (result.returncode == 0) == deleted
    calls = desk.calls()
    assert any("delete" in call for call in calls) == deleted
    if not deleted:
        assert calls == [] and "nothing is deleted" in result.stderr


# ── resume.sh ────────────────────────────────────────────────────────────────────────────────────


def steps(calls):
    """What changes something, in words; questions are left out."""
    words = []
    for call in calls:
        text = " ".join(call)
        verbs = [f"worker.sh {verb}" for verb in ("install", "start", "stop")]
        verbs += [f"queued-resources {verb}" for verb in ("create", "delete")]
        words += [verb.split()[1] for verb in verbs if verb in text]
    return words


SET_UP = ["install", "stop", "start"]


def test_a_preempted_pod_is_made_again_and_the_command_started_again(desk):
    desk.write("outcomes", "PREEMPTED\nPREEMPTED\nended 0,ended 0\n")
    result = desk.launch("resume", *RESUME)
    assert result.returncode == 0, result.stderr
    made = ["create", *SET_UP]
    assert steps(desk.calls()) == [*made, "delete", *made, "delete", *made]
    assert "the command has ended well, and pod goes on costing" in result.stdout
    assert result.stdout.count("pod: lost") == 2


def test_it_goes_on_where_it_was_when_called_again(desk):
    """With a pod, running; it only waits, also while the pod cannot be reached."""
    desk.write("queue", "ACTIVE\n")
    desk.write("vm", "READY\n")
    desk.write("workers", "running\nrunning\n")
    done = "printf 'ended 0\\nended 0\\n' >workers"
    desk.write("events", f"echo REPAIRING >vm\necho READY >vm; echo ended 0 >>workers\n{done}\n")
    result = desk.launch("resume", *RESUME)
    assert result.returncode == 0, result.stderr
    assert steps(desk.calls()) == []


def test_a_request_in_the_queue_is_waited_for(desk):
    desk.write("queue", "WAITING_FOR_RESOURCES\n")
    desk.write("outcomes", "ended 0\n")
    desk.write("events", "echo PROVISIONING >queue\necho ACTIVE >queue; echo READY >vm; : >workers\n")
    result = desk.launch("resume", *RESUME)
    assert result.returncode == 0, result.stderr
    assert steps(desk.calls()) == SET_UP


def test_a_restarted_machine_gets_the_command_again(desk):
    desk.write("queue", "ACTIVE\n")
    desk.write("vm", "READY\n")
    desk.write("workers", "running\ndied\n")
    desk.write("outcomes", "ended 0,ended 0\n")
    assert desk.launch("resume", *RESUME).returncode == 0
    assert steps(desk.calls()) == SET_UP


def test_a_command_that_fails_is_not_started_again(desk):
    desk.write("outcomes", "running,ended 1\n")
    desk.write("events", "printf 'ended 0\\nended 1\\n' >workers\n")
    for _ in range(2):  # nor when called again
        result = desk.launch("resume", *RESUME)
        assert result.returncode == 1
        assert "the command failed on a worker" in result.stderr and "watch.sh" in result.stderr
    assert steps(desk.calls()) == ["create", *SET_UP]


def test_a_refused_request_is_not_repeated(desk):
    desk.write("queue", "FAILED\n")
    result = desk.launch("resume", *RESUME)
    assert result.returncode == 1 and "the request for pod has failed" in result.stderr
    assert steps(desk.calls()) == []


def test_a_request_that_cannot_be_made_is_not_repeated(desk):
    desk.answer('*"queued-resources create"*', "exit 1 ;;")
    result = desk.launch("resume", *RESUME)
    assert result.returncode == 1 and "could not ask for pod; the reason is above" in result.stderr
    assert steps(desk.calls()) == ["create"]


def test_a_deletion_that_fails_is_repeated(desk):
    desk.write("queue", "ACTIVE\n")
    desk.write("vm", "PREEMPTED\n")
    desk.write("outcomes", "ended 0\n")
    desk.write("events", "touch later\n")
    desk.answer('*"queued-resources delete"*', "[[ -f later ]] && rm -f queue vm workers ;;")
    result = desk.launch("resume", *RESUME)
    assert result.returncode == 0, result.stderr
    assert steps(desk.calls()) == ["delete", "delete", "create", *SET_UP]


def test_a_preemption_while_setting_up_is_no_error_but_a_failure_is(desk):
    lost = "if [[ ! -f once ]]; then touch once; echo PREEMPTED >vm; exit 1; fi ;;"
    desk.answer('*"worker.sh install"*', lost)
    desk.write("outcomes", "ended 0\n")
    result = desk.launch("resume", *RESUME)
    assert result.returncode == 0, result.stderr
    assert steps(desk.calls()) == ["create", "install", "delete", "create", *SET_UP]

    desk.answer('*"worker.sh install"*', "exit 1 ;;")
    desk.write("workers", "")
    result = desk.launch("resume", *RESUME)
    assert result.returncode == 1 and "pod is there, but the command was not started" in result.stderr
