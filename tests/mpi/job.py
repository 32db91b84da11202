"""Penstock as a job of processes, for the tests of this folder: alone or under mpirun, in a folder per rank where
asked, and nothing of it may be left when it is over."""
import json
import os
import subprocess
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

SKIPPED = 77  # ctest's word for a test that this machine cannot run
GONE_S = 3.0  # after mpirun has ended, its ranks may take this long
ENVIRONMENT = {
    **{key: value for key, value in os.environ.items() if not key.startswith("SLURM_")},
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
}


@dataclass
class Outcome:
    line: list
    code: int
    out: str
    err: str
    left: list  # processes that were still there GONE_S later

    @property
    def complaints(self):
        return [line for line in self.err.splitlines() if line.startswith("penstock:")]

    def json(self):
        if self.code != 0:
            raise RuntimeError(f"{' '.join(self.line)}\nended with {self.code}: {self.err}")
        return json.loads(self.out)


def processes_with(mark):
    """Processes whose environment has the mark: the job's, wherever they are in the tree."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and mark.encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:  # gone, or not ours
            pass
    return found


class Launcher:
    def __init__(self, program, mpirun):
        self.program = os.path.abspath(program)
        self.mpirun = mpirun

    def start(self, *arguments, ranks=0, shell="", mark="", environment=None, **streams):
        """The process of `penstock ARGUMENTS` (no ranks: without mpirun), started by the shell text, whose "$@" it is;
        there RANK is the rank."""
        line = [self.program, *map(str, arguments)]
        if shell:
            line = ["sh", "-c", "RANK=${OMPI_COMM_WORLD_RANK:-0}; " + shell, "sh", *line]
        environment = {**ENVIRONMENT, "TEST_JOB": mark, **(environment or {})}
        if ranks:
            line = [self.mpirun, "-np", str(ranks), *line]
            environment.setdefault("ASAN_OPTIONS", "detect_leaks=0")  # MPI's own; without it ours are looked for
        return subprocess.Popen(line, env=environment, text=True, **streams)

    def run(self, *arguments, ranks=0, shell="", limit=120, cwd=None, stdout=subprocess.PIPE, **environment):
        mark = uuid.uuid4().hex
        process = self.start(*arguments, ranks=ranks, shell=shell, mark=mark, environment=environment, cwd=cwd,
                             stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.PIPE)
        try:
            out, err = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            for pid in processes_with(mark):
                os.kill(pid, 9)
            out, err = process.communicate()
            err += f"\nnot over after {limit} s\n"
        deadline = time.monotonic() + GONE_S
        while (left := processes_with(mark)) and time.monotonic() < deadline:
            time.sleep(0.05)
        return Outcome(process.args, process.returncode, out or "", err, left)


def write_profile(launcher, model, path, factor=None):
    """A profile with made-up times for the units of the model, so that nothing is measured: `factor(name, i)` of what
    `plan` estimates."""
    plan = launcher.run("plan", model, "--json").json()
    units = [{"name": unit["name"], "time_ms": unit["time_ms"] * (factor(unit["name"], i) if factor else 1)}
             for i, unit in enumerate(plan["units"])]
    Path(path).write_text(json.dumps({"units": units}))
    return str(path)
