#!/usr/bin/env python3
"""Files split by the gguf package against the whole one: split_compare.py MODEL PROGRAM MPIRUN

The package's writer cuts the model into parts; the program must give the same tokens from them as from the whole file,
alone and on two ranks, whichever part it is told.
"""
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from gguf import GGUFReader, GGUFValueType, GGUFWriter

TENSORS_PER_FILE = 100
# Written by the writer itself.
OWN_KEYS = ("GGUF.", "general.architecture")


def split(model, folder):
    reader = GGUFReader(model)
    arch = reader.fields["general.architecture"].contents()
    writer = GGUFWriter(folder / "split.gguf", arch, split_max_tensors=TENSORS_PER_FILE)
    for key, field in reader.fields.items():
        if key.startswith(OWN_KEYS):
            continue
        if field.types[0] == GGUFValueType.ARRAY:
            writer.add_key_value(key, field.contents(), GGUFValueType.ARRAY, sub_type=field.types[-1])
        else:
            writer.add_key_value(key, field.contents(), field.types[0])
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(folder.glob("split-*.gguf"))


def tokens(model, program, launcher=()):
    line = [*launcher, program, "run", model, "-p", "The capital of France is", "-n", "16", "--json"]
    done = subprocess.run([str(word) for word in line], capture_output=True, text=True, env=os.environ)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, line))}: {done.stderr}")
    return json.loads(done.stdout)["output_ids"]


def main(model, program, mpirun):
    with tempfile.TemporaryDirectory() as folder:
        parts = split(model, Path(folder))
        assert len(parts) > 2, parts
        whole = tokens(model, program)
        for launcher, part in (((), parts[0]), ((mpirun, "-np", "2"), parts[0]), ((), parts[-1])):
            found = tokens(part, program, launcher)
            assert found == whole, (launcher, part.name, found, whole)
        print(f"{len(parts)} files, {len(whole)} tokens alike")


main(*sys.argv[1:])
