"""Makes safetensors/python.safetensors: every number type, as the published writer lays it out (safetensors 0.6.2).

    python make_python_safetensors.py
"""
import os, random
from safetensors import serialize

rng = random.Random(7)
types = {"bool": 1, "uint8": 1, "int8": 1, "float8_e5m2": 1, "float8_e4m3fn": 1, "int16": 2, "uint16": 2, "float16": 2,
         "bfloat16": 2, "int32": 4, "uint32": 4, "float32": 4, "float64": 8, "int64": 8, "uint64": 8}
tensors = {}
for i, (name, size) in enumerate(sorted(types.items())):
    for shape in ([3, i + 1], [], [0, 4]):
        count = 1
        for d in shape:
            count *= d
        key = {1: f"z.{name}", 0: f'"{name}\\é/', 2: f"a.{name}.empty"}[(len(shape) + i) % 3] + str(len(shape)) + str(sum(shape))
        tensors[key] = {"dtype": name, "shape": shape, "data": bytes(rng.randrange(256) for _ in range(count * size))}
out = os.path.join(os.path.dirname(os.path.abspath(__file__)), "safetensors", "python.safetensors")
with open(out, "wb") as f:
    f.write(serialize(tensors, {"format": "pt\n\"quoted\" / é"}))
print(len(tensors), "tensors")
