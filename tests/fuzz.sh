#!/bin/sh
# Builds a libFuzzer target with clang (address and undefined sanitizers) and runs it over a kept
# corpus for some seconds. New inputs are not kept; one that fails is, and its path is printed.
#
#     tests/fuzz.sh TARGET.c CORPUS SECONDS [SOURCE.c ... -lLIBRARY ...]
#
# COGSMITH_FUZZ_SECONDS, where set, is the number of seconds. COGSMITH_CLANG names another clang.
set -eu
cd "$(dirname "$0")/.."
target=$1 corpus=$2 seconds=${COGSMITH_FUZZ_SECONDS:-$3}
shift 3
clang=${COGSMITH_CLANG:-clang}
if ! command -v "$clang" >/dev/null; then
  echo "fuzz.sh: $clang is not there; on Debian 12: apt install clang" >&2
  exit 1
fi

work=$(mktemp -d "${TMPDIR:-/tmp}/cogsmith-fuzz-XXXXXX")
flags="-std=c11 -O1 -g -I. -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined"
if ! echo 'int LLVMFuzzerTestOneInput(const char *d, long n) { return d == 0 && n; }' |
     "$clang" $flags -x c - -o "$work/probe" 2>"$work/log"; then
  cat "$work/log" >&2
  echo "fuzz.sh: $clang has no fuzzer runtime; on Debian 12: apt install libclang-rt-14-dev" >&2
  rm -r "$work"
  exit 1
fi
"$clang" $flags "$target" "$@" -o "$work/fuzz"
mkdir "$work/new"
if "$work/fuzz" -max_total_time="$seconds" -max_len=4096 -timeout=10 -rss_limit_mb=2048 \
     -print_final_stats=1 -artifact_prefix="$work/failed-" "$work/new" "$corpus" \
     >"$work/log" 2>&1; then
  grep -E 'DONE|stat::(number_of|average)' "$work/log"
  rm -r "$work"
else
  tail -n 60 "$work/log" >&2
  echo "fuzz.sh: $target failed; the input is $work/failed-*" >&2
  exit 1
fi
