#!/usr/bin/env bash
# Numba 0.68.1: a cached function that calls another one through its closure is compiled anew in every process.
#
# Expected: with cache=True the second process finds the first one's machine code, and the folder of the cache stays as
# it is; a function made by another function (a "factory") is the usual way to specialise loops.
# Seen: so it is where the closure holds a number. Where it holds a compiled function, each process compiles again, and
# leaves one more file; nothing tells of it. The key of the cache has the pickled closure, which is another each time.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numba==0.68.1 numpy==2.4.6
cat > "$folder/loops.py" <<'PYTHON'
import numba


@numba.njit(cache=True)
def double(x):
    return 2 * x


def with_number(factor):
    @numba.njit(cache=True)
    def numbers(x):
        return factor * x

    return numbers


def with_function(function):
    @numba.njit(cache=True)
    def functions(x):
        return function(x)

    return functions


if __name__ == "__main__":
    made = {"a number": with_number(2), "a compiled function": with_function(double)}
    for name, loop in made.items():
        assert loop(3.0) == 6.0
        print(f"closure with {name}: {sum(loop.stats.cache_hits.values())} of 1 found in the cache")
PYTHON
run() { NUMBA_CACHE_DIR="$folder/cache" "$folder/venv/bin/python" "$folder/loops.py"; }
files() { find "$folder/cache" -name 'loops.with_function*.nbc' | wc -l; }
for process in first second third; do
  echo "$process process"
  run | sed 's/^/  /'
  echo "  files of machine code for the closure with a function: $(files)"
done
last=$(run)
grep -q "a number: 1 of 1" <<< "$last" || { echo "the cache is not found at all"; exit 1; }
grep -q "a compiled function: 0 of 1" <<< "$last" || { echo "closures with functions are found now"; exit 1; }
[ "$(files)" -eq 4 ] || { echo "the cache does not grow by a file a process: $(files) after four"; exit 1; }
