#!/usr/bin/env python3
"""Shows that the style test can fail: every rule is offered an offence, and a tidy tree passes."""
import os
import sys
import tempfile

sys.dont_write_bytecode = True
from tidy import Tidy, VENDORS, functions, blank  # noqa: E402  (the line above must come first)

TOP = "/* Owns a thing. */\n"
HEADER = TOP + "#pragma once\n"
LONG = TOP + "static int f(int a,\n             int b) {\n" + "    a++;\n" * 68 + "}\n"

# What a tree holds, and the offence that must be found: {path: text} and "path:line: rule".
CASES = [
    ({"kernels/a.c": TOP + "/*" + "x" * 97 + "*/\n"}, "kernels/a.c:2: longer than 100 columns"),
    ({"kernels/a.c": LONG}, "kernels/a.c:2: function f has 71 lines, more than 70"),
    ({"tests/a.py": "def f():\n" + "    pass\n" * 70},
     "tests/a.py:1: function f has 71 lines, more than 70"),
    ({"data/a.c": TOP + "int x;\n" * 600}, "data/a.c:601: longer than 600 lines"),
    ({"kernels/a.c": TOP + '#include "autograd/graph.h"\n'},
     "kernels/a.c:2: kernels/ must not include autograd/"),
    ({"autograd/a.c": TOP + '#include "data/a.h"\n'},
     "autograd/a.c:2: autograd/ must not include data/"),
    ({"data/a.c": TOP + '#include "trainer/config.h"\n'},
     "data/a.c:2: data/ must not include trainer/"),
    ({"data/a.c": TOP + '#include "tests/check.h"\n'}, "data/a.c:2: data/ must not include tests/"),
    ({"data/a.c": TOP + '#include "a.h"\n'},
     'data/a.c:2: "a.h": includes begin with a room, as "kernels/base.h"'),
    ({"data/a.c": TOP + '#include "data/../kernels/base.h"\n'},
     'data/a.c:2: "data/../kernels/base.h": includes begin with a room, as "kernels/base.h"'),
    ({"data/a.h": HEADER + '#include "data/b.h"\n', "data/b.h": HEADER + '#include "data/c.h"\n',
      "data/c.h": HEADER + '#include "data/a.h"\n'},
     'data/c.h:3: "data/a.h" closes a cycle of headers'),
    ({"autograd/a.c": TOP + "#include <cublasLt.h>\n"},
     "autograd/a.c:2: <cublasLt.h> belongs to kernels/ only"),
    ({"trainer/a.c": TOP + "#include <hdf5.h>\n"}, "trainer/a.c:2: <hdf5.h> belongs to data/ only"),
    ({"data/a.c": TOP + "#include <mpi.h>\n"}, "data/a.c:2: <mpi.h> belongs to kernels/ only"),
    ({"kernels/a.c": TOP + "#include <jansson.h>\n"},
     "kernels/a.c:2: <jansson.h> belongs to data and trainer/ only"),
    ({"trainer/a.c": TOP + "#include <xxhash.h>\n"},
     "trainer/a.c:2: <xxhash.h> belongs to data/ only"),
    ({"data/a.c": TOP + "#include <yaml.h>\n"}, "data/a.c:2: <yaml.h> belongs to trainer/ only"),
    ({"trainer/a.c": TOP + "#include <yaml.h>\n", "trainer/b.c": TOP + "#include <yaml.h>\n"},
     "trainer/b.c:2: <yaml.h> is for one file only: trainer/a.c"),
    ({"trainer/a.c": TOP + "#include <sentencepiece_processor.h>\n"},
     "trainer/a.c:2: <sentencepiece_processor.h> belongs to data/ only"),
    ({"data/a.c": TOP + "#include <sentencepiece_processor.h>\n",
      "data/sentencepiece.cc": TOP + "#include <sentencepiece_processor.h>\n"},
     "data/sentencepiece.cc:2: <sentencepiece_processor.h> is for one file only: data/a.c"),
    ({"data/a.cc": TOP}, "data/a.cc:1: C++ that is not in the list of shims"),
    ({"data/a.c": TOP + "#include <vector>\n"}, "data/a.c:2: <vector> has no room yet"),
    ({"kernels/a.c": TOP + "#include <openblas.h>\n"},
     "kernels/a.c:2: <openblas.h> has no room yet: see VENDORS in tests/tidy.py"),
    ({"kernels/a.h": HEADER + "#include <cuda_runtime.h>\n"},
     "kernels/a.h:3: vendor header <cuda_runtime.h> inside a header of ours"),
    ({"kernels/a.c": TOP + "#ifdef X\n#endif\n"},
     "kernels/a.c:2: #if and #ifdef: kernels/base.h only"),
    ({"kernels/a.c": TOP + "# if X\n#endif\n"},
     "kernels/a.c:2: #if and #ifdef: kernels/base.h only"),
    ({"kernels/norm.c": TOP, "data/norm.c": TOP},
     "kernels/norm.c:1: file stem 'norm' is taken in data/"),
    ({"autograd/a.cu": TOP}, "autograd/a.cu:1: CUDA belongs to kernels/ only"),
    ({"kernels/a.cu": TOP + "#include <cufft.h>\n"}, "kernels/a.cu:2: <cufft.h> has no room yet"),
    ({"kernels/a.cuh": TOP}, "kernels/a.cuh:1: a header without #pragma once"),
    ({"kernels/a.cuh": HEADER + "#include <cuda_bf16.h>\n"},
     "kernels/a.cuh:3: vendor header <cuda_bf16.h> inside a header of ours"),
    ({"kernels/a.cu": LONG.replace("static int", "__global__ void")},
     "kernels/a.cu:2: function f has 71 lines, more than 70"),
    ({"kernels/norm.c": TOP, "kernels/norm.cu": TOP},
     "kernels/norm.cu:1: file stem 'norm' is taken in kernels/"),
    ({"notes.md": "a\n"}, "notes.md:1: not in the list of the top level"),
    ({"src/a.c": TOP}, "src:1: not in the list of the top level"),
    ({"data/a.c": TOP + "/* TO" "DO */\n"}, "data/a.c:2: banned word: unfinished work belongs"),
    ({"data/a.py": "# FIX" "ME\n"}, "data/a.py:1: banned word: unfinished work belongs"),
    ({"kernels/a.cu": TOP + "void f(void) { atomic" "Add(p, 1.0f); }\n"},
     "kernels/a.cu:2: banned word: float atomics"),
    ({"CMakeLists.txt": "add_compile_options(-f" "fast-math)\n"},
     "CMakeLists.txt:1: banned word: fast math"),
    ({"kernels/a.c": TOP + "int x = dnnl_s" "gemm();\n"}, "kernels/a.c:2: banned word: its bits"),
    ({"data/a.c": TOP + "\tint x;\n"}, "data/a.c:2: a tab"),
    ({"data/a.c": TOP + "int x; \n"}, "data/a.c:2: blanks at the end of the line"),
    ({"data/a.c": TOP + "int x;"}, "data/a.c:2: the last line ends in one newline"),
    ({"data/a.c": b"/* \xff */\n"}, "data/a.c:1: not UTF-8"),
    ({"data/a.h": "#pragma once\n" + TOP}, "data/a.h:1: no comment at the top"),
    ({"data/a.h": TOP}, "data/a.h:1: a header without #pragma once"),
    ({"launch/a": "echo\n"}, "launch/a:1: a script without a #! line"),
    ({"launch/a": "#!/bin/sh\n"}, "launch/a:1: a script that is not executable"),
]

TIDY_TREE = {
    "kernels/base.h": HEADER + "#ifdef X\n#endif\n",
    "kernels/norm.cuh": HEADER,
    "kernels/sum_cuda.cu": TOP + '#include "kernels/norm.cuh"\n\n#include <cuda_bf16.h>\n',
    "kernels/norm.h": HEADER + '#include "kernels/base.h"\n',
    "kernels/norm.c": TOP + '#include "kernels/norm.h"\n\n#include <dnnl.h>\n#include <math.h>\n',
    "data/a.c": TOP + 'const char *s = "#ifdef /* {";\n#include <jansson.h>\n',
    "data/sentencepiece.cc": TOP + "#include <sentencepiece_processor.h>\n#include <vector>\n",
    "trainer/b.c": LONG.replace("    a++;\n", "", 1) + '#include "data/a.h"\n',
    "tests/t.c": TOP + "#include <cmocka.h>\n",
    "build/made.c": "\t",
    ".clang-format": "a\n",
}


def offences(files):
    with tempfile.TemporaryDirectory() as root:
        for path, text in files.items():
            full = os.path.join(root, path)
            os.makedirs(os.path.dirname(full), exist_ok=True)
            with open(full, "wb") as file:
                file.write(text if isinstance(text, bytes) else text.encode())
        return Tidy(root).run()


def check(condition, text):
    if not condition:
        print("FAILED:", text)
    return condition


def main():
    ok = check(offences(TIDY_TREE) == [], f"a tidy tree: {offences(TIDY_TREE)}")
    for files, want in CASES:
        got = offences(files)
        ok &= check(len(got) == 1 and got[0].startswith(want), f"wanted {want!r}, got {got}")
    code = ('extern "C" {\nstatic const int T[] = {\n1 };\nint f(void) {\n}\n}\n'
            "struct S { int x; };\n#define M(x) { \\\n }\nvoid g(int (*h)(int)) {\n\n}\n")
    want = [(4, "f", 2), (10, "g", 3)]
    ok &= check(functions(blank(code)) == want, f"functions: {functions(blank(code))}")
    print(f"{len(CASES)} offences, {len(VENDORS)} groups of vendors:", "passed" if ok else "failed")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
