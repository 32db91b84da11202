#!/usr/bin/env python3
"""A rank touches only its own tensors: memory.py PROGRAM MPIRUN

Two replicas of three stages. Every stage gets its own copy of the model (PENSTOCK_TEST_MODEL), whose pages have been
dropped from memory; after a run, mincore says which of them came back. Those must be the header and the tensors of the
stage's units, and nothing else.
A second job is looked at when all is loaded and measured: what a rank holds must be what the plan says, not the model, and
beside KV and scratch no more than 1.25 times its own tensors.
Exits with 77 where there is no model, or where the file system does not let go of pages.
"""
import ctypes
import json
import mmap
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

from gguf_file import Reader
from job import SKIPPED, Launcher, processes_with

MODEL = os.environ.get("PENSTOCK_TEST_MODEL")
LAYERS = (9, 13, 10)  # units per stage
STAGES, REPLICAS = len(LAYERS), 2
RANKS = REPLICAS * STAGES
PAGE = mmap.PAGESIZE
HEADER_STEP = 256 << 10  # the header is read in such pieces; the last may reach into the first tensor
BASE = 24 << 20          # what a process has beside its stage: MPI, the vocabulary; or a stage beside weights and KV
SHARED = 48 << 20        # and what it shares with others: the program, libraries, MPI's segments
RESIDENT = 1.25          # of a rank's own tensors: what it may hold beside KV and scratch, MPI and vocabulary included
MIB = 1 << 20
UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def resident(path):
    """The numbers of the file's pages that are in memory."""
    libc = ctypes.CDLL(None, use_errno=True)
    size = os.path.getsize(path)
    pages = -(-size // PAGE)
    vector = (ctypes.c_ubyte * pages)()
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), size) as mapped:
        address = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
        if libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), vector) != 0:
            raise OSError(ctypes.get_errno(), "mincore")
    return {page for page in range(pages) if vector[page] & 1}


def drop(path):
    with open(path, "r+b") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return not resident(path)


def pages_of(start, end):
    return set(range(start // PAGE, -(-end // PAGE)))


def units_of(units, stage):
    first = sum(LAYERS[:stage])
    return units[first : first + LAYERS[stage]]


def rank_of(pid):
    match = re.search(rb"OMPI_COMM_WORLD_RANK=(\d+)", Path(f"/proc/{pid}/environ").read_bytes())
    return int(match[1]) if match else None


def memory_of(pid):
    status = Path(f"/proc/{pid}/status").read_text()
    return [1024 * int(re.search(rf"{key}:\s+(\d+) kB", status)[1]) for key in ("RssAnon", "VmHWM")]


def watch(job, folder, arguments):
    """(RssAnon, VmHWM) of each rank when it waits for work, each stage's memory by the plan, and what of a rank's is KV and
    scratch."""
    mark = uuid.uuid4().hex
    with open(folder / "err", "w+") as err:
        process = job.start(*arguments, ranks=RANKS, mark=mark, cwd=folder, stdout=subprocess.DEVNULL, stderr=err,
                            stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while (folder / "err").read_text().count("measured:") < REPLICAS and process.poll() is None:
            time.sleep(0.1)
            if time.monotonic() > deadline:
                break
        ranks = {rank_of(pid): pid for pid in processes_with(mark) if Path(f"/proc/{pid}/exe").resolve().name ==
                 Path(job.program).name}
        measured = [memory_of(ranks[rank]) for rank in range(RANKS)]
        process.terminate()
        process.wait()
        err.seek(0)
        text = err.read()
    planned = re.findall(r"([\d.]+) ([KMG]iB) of", text)
    beside = re.findall(r"penstock\[(\d)\] debug: bytes of the stage: .* KV (\d+), scratch (\d+)", text)
    return (measured, [float(number) * UNITS[unit] for number, unit in planned],
            {int(rank): (int(kv), int(scratch)) for rank, kv, scratch in beside})


def main():
    if not MODEL:
        print("PENSTOCK_TEST_MODEL is not set")
        return SKIPPED
    job, wrong = Launcher(*sys.argv[1:3]), []
    file = Reader(MODEL)
    units = job.run("inspect", MODEL, "--json").json()["units"]
    arguments = ["--layers", ",".join(map(str, LAYERS)), "--dp", REPLICAS]

    # Beside the build: memory file systems, as /tmp may be one, keep their pages.
    with tempfile.TemporaryDirectory(dir=os.getcwd()) as name:
        folder = Path(name)
        copies = [folder / f"stage{stage}" / "model.gguf" for stage in range(STAGES)]
        for copy in copies:
            copy.parent.mkdir()
            shutil.copyfile(MODEL, copy)
            if not drop(copy):
                print(f"{copy}: its pages stay in memory")
                return SKIPPED
        # Measuring the layers would take more memory than a stage.
        profile = folder / "profile.json"
        profile.write_text(json.dumps({"units": [{"name": unit["name"], "time_ms": 1} for unit in units]}))
        arguments += ["--profile", profile]
        job.run("run", "model.gguf", "-p", "Once upon a time", "-n", 2, "--json", *arguments, ranks=RANKS, cwd=folder,
                shell=f'cd "stage$((RANK % {STAGES}))" && exec "$@"').json()
        touched = [resident(copy) for copy in copies]
        shutil.copyfile(MODEL, folder / "model.gguf")
        # The first request would come after a quarter of an hour.
        measured, planned, beside = watch(job, folder, [
            "bench", "model.gguf", "--request-rate", 0.001, "--num-prompts", 1, "--prompt-tokens", 8, "--output-tokens", 4,
            "--log-level", "debug", *arguments])

    print("MiB:  units  own tensors  read from file  of others    KV  scratch  planned  RssAnon   VmHWM")
    header = pages_of(0, -(-file.header_end // HEADER_STEP) * HEADER_STEP)
    for rank in range(RANKS):
        stage = rank % STAGES
        names = {tensor["name"] for unit in units_of(units, stage) for tensor in unit["tensors"]}
        ranges = [file.tensors[name] for name in names]
        own = set().union(*(pages_of(*ends) for ends in ranges))
        bytes_own = sum(end - start for start, end in ranges)
        foreign = touched[stage] - own - header
        anonymous, peak = measured[rank]
        kv, scratch = beside[rank]
        print(f"{rank:4} {LAYERS[stage]:6} {bytes_own / MIB:12.1f} {len(touched[stage]) * PAGE / MIB:15.1f} "
              f"{len(foreign) * PAGE / MIB:10.1f} {kv / MIB:5.1f} {scratch / MIB:8.1f} {planned[stage] / MIB:8.1f} "
              f"{anonymous / MIB:8.1f} {peak / MIB:7.1f}")
        if foreign:
            wrong.append(f"rank {rank} read {len(foreign)} pages of others, the first is {min(foreign)}")
        if len(own - touched[stage]) > len(own) // 2:  # the kernel may have taken some back
            wrong.append(f"rank {rank} has {len(own - touched[stage])} of its {len(own)} pages not in memory")
        if anonymous < 0.9 * bytes_own:
            wrong.append(f"rank {rank} holds less than its tensors: was it measured too early?")
        if anonymous > 1.05 * planned[stage] + BASE:
            wrong.append(f"rank {rank} holds more than was planned and {BASE // MIB} MiB")
        if peak > 1.05 * planned[stage] + BASE + SHARED:
            wrong.append(f"rank {rank} once held more than was planned and {(BASE + SHARED) // MIB} MiB")
        if anonymous > RESIDENT * bytes_own + kv + scratch:
            wrong.append(f"rank {rank} holds more than KV, scratch and {RESIDENT} times its tensors")
    print(*wrong, sep="\n", end="\n" if wrong else "")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
