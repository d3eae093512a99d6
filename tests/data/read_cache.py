#!/usr/bin/env python3
"""Reads a cache with h5py alone: read_cache.py FOLDER prints what each entry is and its mean."""
import glob, json, sys
import h5py, numpy

for part in sorted(glob.glob(sys.argv[1] + "/part-*.h5")):
    with h5py.File(part) as file:
        for line in file["entries"][:].tobytes().decode().splitlines():
            entry = json.loads(line)
            for name, values in file[entry["group"]].items():  # mean and logvar, or values
                bf16 = values[entry["row"]].astype(numpy.uint32)
                array = (bf16 << 16).view(numpy.float32)
                print(entry["key"], entry["kind"], name, array.shape, array.mean(),
                      entry.get("source", entry.get("caption")))
