#!/usr/bin/env python3
"""The rules of the house that a program can check: check_house.py RULE [ARGUMENT]

Each rule is one function below and one test `check.RULE`. It prints what is wrong, a line each, and exits 1; 77 means
that this machine lacks what the rule needs.
"""
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("kernels", "launch", "partition", "runtime", "tests")
SKIPPED = 77

# Which folders' headers a folder's files may include besides their own. Tests may include all of them.
BASE, FORMATS, TOKENIZER, MODELS = "runtime/base", "runtime/formats", "runtime/tokenizer", "runtime/models"
MAY_INCLUDE = {
    BASE: (),
    "partition": (BASE,),
    "kernels": (BASE,),
    "kernels/cpu": (BASE, "kernels"),
    "kernels/cuda": (BASE, "kernels"),
    "kernels/sim": (BASE, "kernels"),
    FORMATS: (BASE, "kernels"),  # kernels/types.h: the weight types
    TOKENIZER: (BASE, FORMATS, "kernels"),
    MODELS: (BASE, FORMATS, "kernels"),
    "runtime": (BASE, FORMATS, TOKENIZER, MODELS, "kernels", "kernels/cpu", "kernels/cuda", "kernels/sim", "partition"),
    "launch": (BASE, FORMATS, TOKENIZER, MODELS, "kernels", "kernels/cpu", "kernels/cuda", "kernels/sim", "partition",
               "runtime"),
}
# Under PEN_CUDA_EMULATED: what stands in for CUDA's own headers.
EMULATED = {"emulate.cuh"}
# Inside runtime: engine → schedule → stage. A file named on the left includes no header named on the right.
MAY_NOT_INCLUDE = {
    "runtime/stage": r"(schedule|engine|world|link.*|wire|mpi)\.h",
    "runtime/schedule": r"(stage|engine|world|link.*|model|pool|clock|mpi|time|pthread)\.h",
    "runtime/world": r"(engine|schedule|stage)\.h",
    "runtime/link": r"(engine|schedule|stage)\.h",
}
# Files that may speak MPI. version.c only reads the library's name from its header.
MPI_FILES = re.compile(r"runtime/(world\w*|link_mpi|mail)\.c|launch/version\.c|tests/mpi/\w+\.c")

# Options of other programs that the documents mention.
FOREIGN_OPTIONS = {"--bind-to", "--build", "--enable-recovery", "--kill-on-bad-exit", "--mca", "--mpi", "--oversubscribe",
                   "--preset", "--target", "--test-dir"}


def files(*suffixes):
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in suffixes and path.is_file():
                yield path


def name(path):
    return path.relative_to(ROOT).as_posix()


def without_comments(text):
    """C text with comments and strings blanked, so that what they say is no code; line numbers stay."""
    pattern = r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"'
    return re.sub(pattern, lambda match: re.sub(r"[^\n]", " ", match[0]), text, flags=re.S)


def check_includes():
    """A folder includes only what stands below it, and header names are unique, so that this can be seen."""
    where = {}
    for path in files(".h", ".def", ".cuh", ".hpp"):
        if path.name in where:
            yield f"{name(path)}: {name(where[path.name])} has the same name"
        where[path.name] = path
    for path in files(".c", ".h", ".def", ".cu", ".cuh"):
        folder = name(path.parent)
        if folder.startswith("tests"):
            continue
        if folder not in MAY_INCLUDE:
            yield f"{name(path)}: no rule says what {folder} may include"
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            match = re.match(r'\s*#\s*include\s+([<"])([^>"]+)[>"]', line)
            if not match:
                continue
            quoted, header = match[1] == '"', match[2]
            if header in EMULATED:
                continue
            for start, pattern in MAY_NOT_INCLUDE.items():
                if name(path).startswith(start) and re.fullmatch(pattern, header):
                    if path.stem != Path(header).stem:
                        yield f"{name(path)}:{number}: {start}* does not include {header}"
            if quoted and header not in where:
                yield f"{name(path)}:{number}: {header} is none of ours (or is named with its folder)"
            elif quoted and name(where[header].parent) not in (folder, *MAY_INCLUDE[folder]):
                yield f"{name(path)}:{number}: {folder} does not include {name(where[header])}"


def check_mpi():
    """Only the files that implement the world and the MPI link call MPI; no header shows one of its types."""
    for path in files(".c", ".h", ".cu", ".cuh"):
        if MPI_FILES.fullmatch(name(path)):
            continue
        for number, line in enumerate(without_comments(path.read_text()).splitlines(), 1):
            if re.search(r"\bP?MPI_\w+|#\s*include\s*<mpi\.h>", line):
                yield f"{name(path)}:{number}: raw MPI: {line.strip()}"


def check_tidy():
    """A file opens with what it is, is at most 1,200 lines long, and leaves nothing for later."""
    for path in files(".c", ".h", ".def", ".cu", ".cuh", ".cpp", ".hpp", ".py", ".sh"):
        text = path.read_text()
        lines = text.splitlines()
        if not text.startswith(("/*", '"""', "#")):
            yield f"{name(path)}:1: does not open with what it is"
        if len(lines) > 1200:
            yield f"{name(path)}: {len(lines)} lines; split it"
        for number, line in enumerate(lines, 1):
            if line != line.rstrip() or "\t" in line:
                yield f"{name(path)}:{number}: a tab or a trailing blank"
            if re.search(r"\b(TO" r"DO|FIX" r"ME)\b", line):
                yield f"{name(path)}:{number}: {line.strip()}"


def check_format():
    """clang-format 14 has nothing to change."""
    tool = shutil.which("clang-format-14")
    if not tool:
        print("clang-format-14 is not installed")
        sys.exit(SKIPPED)
    sources = [str(path) for path in files(".c", ".h", ".cu", ".cuh", ".cpp", ".hpp")]
    result = subprocess.run([tool, "--dry-run", "-Werror", *sources], capture_output=True, text=True)
    for line in result.stderr.splitlines():
        if "error:" in line:
            yield line.removeprefix(f"{ROOT}/")


def check_headers(build):
    """Every header compiles by itself, with no more than its folder's own include directories. Those of tests may count
    on cmocka.h, which itself counts on four others."""
    cmocka = [f"--include={header}.h" for header in ("setjmp", "stdarg", "stddef", "stdint", "cmocka")]
    commands = {}
    for entry in json.loads((Path(build) / "compile_commands.json").read_text()):
        if not entry["file"].endswith(".c"):
            continue
        words = shlex.split(entry["command"])
        commands.setdefault(Path(entry["file"]).parent, []).append(words[: words.index("-o")])
    for path in files(".h"):
        # A folder's files may be built for several instruction sets, and tests with several libraries: one must do.
        # The fuzzers have a build of their own, and the emulation is C++: the other tests' ways will do.
        top = path.parent.parent if path.parent.name in ("fuzz", "emulate") else path.parent
        ways = [way for folder, found in commands.items() if folder.is_relative_to(top) for way in found]
        before = cmocka if name(path).startswith("tests/") else []
        error = "nothing is compiled in its folder"
        for way in {" ".join(way): way for way in ways}.values():
            line = [*way, "-fsyntax-only", *before, "-x", "c", str(path)]
            result = subprocess.run(line, capture_output=True, text=True)
            error = next((line for line in result.stderr.splitlines() if "error:" in line), "does not compile")
            if result.returncode == 0:
                break
        else:
            yield f"{name(path)}: {error.removeprefix(f'{path}:')}"


def check_readme(program):
    """Every command and option of penstock that the documents mention exists."""
    def output(*arguments):
        return subprocess.run([program, *arguments], capture_output=True, text=True, check=True).stdout

    top = output("--help")
    commands = re.findall(r"^  ([a-z]+) ", top.split("General")[0], flags=re.M)
    options = {c: set(re.findall(r"(?<!\w)--?[a-z][a-z-]*", output(c, "--help"))) for c in commands}
    general = set(re.findall(r"--[a-z-]+", top))
    known = general.union(*options.values())
    for document in ("README.md", "CONTRIBUTING.md"):
        for number, line in enumerate((ROOT / document).read_text().splitlines(), 1):
            for command, rest in re.findall(r"(?:^|[ /])penstock ([a-z]+)((?: [^`|#]*)?)", line):
                if not re.search(r"`|^    |^\$|mpirun|build/", line):
                    continue
                if command not in options:
                    yield f"{document}:{number}: there is no command penstock {command}"
                    continue
                for option in re.findall(r"(?<!\S)--?[a-z][a-z-]*", rest):
                    if option not in options[command]:
                        yield f"{document}:{number}: penstock {command} has no option {option}"
            for option in re.findall(r"`(--[a-z-]+)", line):
                if option not in known and option not in FOREIGN_OPTIONS:
                    yield f"{document}:{number}: penstock has no option {option}"


def main():
    rules = {key.removeprefix("check_"): value for key, value in globals().items() if key.startswith("check_")}
    if len(sys.argv) < 2 or sys.argv[1] not in rules:
        sys.exit(f"usage: check_house.py {'|'.join(rules)} [ARGUMENT]")
    wrong = list(rules[sys.argv[1]](*sys.argv[2:]))
    print(*wrong, sep="\n", end="\n" if wrong else "")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
