#!/usr/bin/env python3
"""The style test: reads every file of the tree and prints `path:line: rule` for each offence.

usage: tests/tidy.py [ROOT]      exit code 0: tidy, 1: not
"""
import ast
import os
import re
import sys

COLUMNS, FUNCTION_LINES, FILE_LINES = 100, 70, 600

TOP_LEVEL = {"CMakeLists.txt", "CMakePresets.json", "README.md", "LICENSE", "trainer", "autograd",
             "kernels", "data", "configs", "launch", "tests"}
GENERATED = re.compile(r"^(build|build-.*|runs|__pycache__)$")  # as in .gitignore
NOT_OURS = re.compile(r"^(tests/(golden|[a-z]+/corpus)/|LICENSE$)")

# Who may include whom.
ROOMS = {
    "kernels": {"kernels"},
    "autograd": {"autograd", "kernels"},
    "data": {"data", "autograd", "kernels"},
    "trainer": {"trainer", "data", "autograd", "kernels"},
}

# Vendor headers and the rooms whose sources may see them. Every header outside STANDARD is listed.
VENDORS = [
    (r"(cuda|cublas|cudnn|nccl|nvml|nvtx|nvToolsExt|mma|cub/|cooperative_groups)", {"kernels"}),
    (r"(mpi\.h|dnnl|oneapi/dnnl|Random123/|omp\.h)", {"kernels"}),
    (r"(hdf5|H5|libav|libsw|sentencepiece|seccomp\.h|linux/|xxhash\.h)", {"data"}),
    (r"jansson\.h", {"data", "trainer"}),
    (r"yaml\.h", {"trainer"}),
]
ONE_FILE_ONLY = {"yaml.h", "sentencepiece_processor.h"}
CXX_FILES = {"data/sentencepiece.cc"}  # a shim over a library that has no C interface
CXX_STANDARD = {"exception", "memory", "string", "string_view", "utility", "vector"}
STANDARD = set("""
    assert complex ctype errno fenv float inttypes iso646 limits locale math setjmp signal stdalign
    stdarg stdatomic stdbool stddef stdint stdio stdlib stdnoreturn string tgmath threads time
    dirent dlfcn fcntl ftw getopt glob libgen link poll pthread sched semaphore spawn strings
    termios unistd sys/file sys/ioctl sys/mman sys/prctl sys/resource sys/socket sys/stat
    sys/syscall sys/statvfs sys/sysinfo sys/time sys/types sys/uio sys/un sys/utsname sys/wait
    """.split())

# Spelled in halves, so that this file does not offend.
BANNED = [
    (r"\b(TO" r"DO|FIX" r"ME|X" r"XX)\b", "unfinished work belongs in an issue"),
    (r"\batomic" r"Add", "float atomics change bits from run to run"),
    (r"-f" r"fast-math|-O" r"fast|use_fast" r"_math", "fast math changes results"),
    (r"\bdnnl_s" r"gemm", "its bits depend on the thread count; use the matmul primitive"),
]

HEADERS = (".h", ".cuh")
SOURCES = (".c", ".cu", ".cpp", ".cc")
C_LIKE = HEADERS + SOURCES
TEXT = C_LIKE + (".py", ".cmake", ".yaml", ".yml", ".sh", ".sbatch", ".env", ".json", ".txt")


class Tidy:
    """One look at a tree; `offences` collects what was found."""

    def __init__(self, root):
        self.root = root
        self.offences = []
        self.paths = sorted(self.walk())
        self.includes = {}   # path -> [(line, "<" or '"', name)]
        self.one_file = {}   # vendor header -> the first file that includes it

    def say(self, path, line, rule):
        self.offences.append(f"{path}:{line}: {rule}")

    def walk(self):
        for folder, folders, files in os.walk(self.root):
            at = os.path.relpath(folder, self.root)
            folders[:] = [d for d in folders if not GENERATED.match(d)
                          and (at != "." or d == ".ci" or not d.startswith("."))]
            for name in files:
                if not name.endswith((".o", ".pyc")):
                    yield os.path.normpath(os.path.join(at, name))

    def run(self):
        self.check_top_level()
        self.check_stems()
        for path in self.paths:
            if not NOT_OURS.match(path):
                self.check_file(path)
        self.check_cycles()
        return self.offences

    def check_top_level(self):
        for name in sorted(os.listdir(self.root)):
            if name not in TOP_LEVEL and not name.startswith(".") and not GENERATED.match(name):
                self.say(name, 1, "not in the list of the top level")

    def check_stems(self):
        """norm.h, norm.cuh and norm.c are one stem; a norm.cu beside norm.c is not, nor another
        room's norm.h."""
        seen = {}
        for path in self.paths:
            room, name = os.path.split(path)
            stem, ext = os.path.splitext(name)
            if path.split("/")[0] not in ROOMS or ext not in C_LIKE:
                continue
            kind = ext if ext in HEADERS else "source"
            for other_room, other_kind in seen.get(stem, []):
                if other_room != room or other_kind == kind:
                    self.say(path, 1, f"file stem '{stem}' is taken in {other_room}/")
            seen.setdefault(stem, []).append((room, kind))

    def check_file(self, path):
        full = os.path.join(self.root, path)
        with open(full, "rb") as file:
            data = file.read()
        script = data.startswith(b"#!")
        launcher = path.startswith(("launch/", ".ci/")) and "." not in os.path.basename(path)
        if not (script or launcher or path.endswith(TEXT)):
            return
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as e:
            return self.say(path, data.count(b"\n", 0, e.start) + 1, "not UTF-8")
        self.check_mode(path, os.access(full, os.X_OK), script, launcher)
        self.check_lines(path, text)
        if path.endswith(C_LIKE):
            self.check_c(path, text)
        elif path.endswith(".py"):
            self.check_python(path, text)

    def check_mode(self, path, executable, script, launcher):
        if script and not executable:
            self.say(path, 1, "a script that is not executable")
        if (executable or launcher) and not script:
            self.say(path, 1, "a script without a #! line")

    def check_lines(self, path, text):
        lines = text.split("\n")
        if lines[-1] or text.endswith("\n\n"):
            self.say(path, len(lines), "the last line ends in one newline")
        if len(lines) - 1 > FILE_LINES and not path.endswith(".json"):
            self.say(path, len(lines) - 1, f"longer than {FILE_LINES} lines")
        for number, line in enumerate(lines, 1):
            if len(line) > COLUMNS:
                self.say(path, number, f"longer than {COLUMNS} columns")
            if "\t" in line:
                self.say(path, number, "a tab")
            if line != line.rstrip():
                self.say(path, number, "blanks at the end of the line")
            for word, why in BANNED:
                if re.search(word, line):
                    self.say(path, number, f"banned word: {why}")

    def check_python(self, path, text):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                self.check_length(path, node.lineno, node.name, node.end_lineno - node.lineno + 1)

    def check_length(self, path, line, name, lines):
        if lines > FUNCTION_LINES:
            self.say(path, line, f"function {name} has {lines} lines, more than {FUNCTION_LINES}")

    def check_c(self, path, text):
        room = path.split("/")[0]
        if path.endswith((".cc", ".cpp")) and path not in CXX_FILES and room in ROOMS:
            self.say(path, 1, "C++ that is not in the list of shims, CXX_FILES in tests/tidy.py")
        if path.endswith((".cu", ".cuh")) and room in ROOMS and room != "kernels":
            self.say(path, 1, "CUDA belongs to kernels/ only")
        if not re.match(r"\s*/[/*]", text):
            self.say(path, 1, "no comment at the top that says what the file owns")
        code = blank(text)
        for match in re.finditer(r"^[ ]*#[ ]*(if|ifdef|ifndef|elif|else)\b", code, re.M):
            if path != "kernels/base.h":
                self.say(path, line_of(code, match.start()), "#if and #ifdef: kernels/base.h only")
        if path.endswith(HEADERS) and not re.search(r"^#pragma once$", code, re.M):
            self.say(path, 1, "a header without #pragma once")
        for line, name, lines in functions(code):
            self.check_length(path, line, name, lines)
        self.includes[path] = includes(text)
        for include in self.includes[path]:
            self.check_include(path, *include)

    def check_include(self, path, line, kind, name):
        room = path.split("/")[0]
        if kind == '"':
            target = name.split("/")[0]
            if ".." in name or target not in {*ROOMS, "tests"}:
                self.say(path, line, f'"{name}": includes begin with a room, as "kernels/base.h"')
            elif room in ROOMS and target not in ROOMS[room]:
                self.say(path, line, f"{room}/ must not include {target}/")
        elif room in ROOMS:
            self.check_vendor(path, line, name)

    def check_vendor(self, path, line, name):
        if re.sub(r"\.h$", "", name) in STANDARD:
            return
        if name in CXX_STANDARD and path in CXX_FILES:
            return
        rooms = [rooms for pattern, rooms in VENDORS if re.match(pattern, name)]
        if not rooms:
            return self.say(path, line, f"<{name}> has no room yet: see VENDORS in tests/tidy.py")
        if path.split("/")[0] not in rooms[0]:
            self.say(path, line, f"<{name}> belongs to {' and '.join(sorted(rooms[0]))}/ only")
        if path.endswith(HEADERS):
            self.say(path, line, f"vendor header <{name}> inside a header of ours")
        if name in ONE_FILE_ONLY and self.one_file.setdefault(name, path) != path:
            self.say(path, line, f"<{name}> is for one file only: {self.one_file[name]}")

    def check_cycles(self):
        state = {}   # header -> "open" while its includes are followed, then "done"

        def follow(path):
            state[path] = "open"
            for line, kind, name in self.includes.get(path, []):
                if kind == '"' and state.get(name) == "open":
                    self.say(path, line, f'"{name}" closes a cycle of headers')
                elif kind == '"' and name not in state and name in self.includes:
                    follow(name)
            state[path] = "done"

        for path in self.paths:
            if path.endswith(HEADERS) and path not in state:
                follow(path)


def line_of(text, offset):
    return text.count("\n", 0, offset) + 1


def blank(text):
    """The text with comments and the insides of literals as blanks; lines stay where they are."""
    pattern = r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\''

    def spaces(match):
        token = match.group()
        keep = token[0] if token[0] in "\"'" else " "
        return keep + re.sub(r"[^\n]", " ", token[1:-1]) + keep

    return re.sub(pattern, spaces, text, flags=re.S)


def includes(text):
    pattern = r'^[ ]*#[ ]*include[ ]*([<"])([^>"\n]+)[>"]'
    return [(line_of(text, m.start()), m.group(1), m.group(2))
            for m in re.finditer(pattern, text, re.M)]


def functions(code):
    """(line, name, lines) of each function of blanked C: a top-level `name(...) {`."""
    code = re.sub(r"^[ ]*#(?:[^\n]*\\\n)*[^\n]*", lambda m: re.sub(r"[^\n]", " ", m.group()), code,
                  flags=re.M)
    # What stands inside extern "C" { } is top level too.
    code = re.sub(r'\bextern\s*"[^"]*"\s*\{',
                  lambda m: re.sub(r"[^\n]", " ", m.group()[:-1]) + ";", code)
    depth, begin, start, found = 0, 0, None, []
    for match in re.finditer(r"[{};]", code):
        at = match.start()
        if match.group() == "{":
            head = code[begin:at]
            if depth == 0 and re.search(r"\)\s*$", head) and "=" not in head:
                start = begin + len(head) - len(head.lstrip())
            depth += 1
        elif match.group() == "}":
            depth = max(depth - 1, 0)
            if depth == 0 and start is not None:
                name = re.search(r"(\w+)\s*\(", code[start:]).group(1)
                found.append((line_of(code, start), name,
                              line_of(code, at) - line_of(code, start) + 1))
                start = None
        if depth == 0:
            begin = at + 1
    return found


def main():
    root = sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(__file__), "..")
    offences = Tidy(root).run()
    print("\n".join(offences) if offences else "tidy")
    return 1 if offences else 0


if __name__ == "__main__":
    sys.exit(main())
