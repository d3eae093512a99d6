#!/usr/bin/env bash
# launch/slurm.sbatch with stand-ins for Slurm's programs and for cogsmith, which do what is
# documented of them: srun starts the ranks, hands SIGUSR1 on to them and ends with the largest of
# their exit codes; a rank that is asked to stop ends with 75, and is ended by a second SIGUSR1.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
scratch=$(mktemp -d /tmp/cogsmith-slurm-XXXXXX)
trap 'rm -rf "$scratch"' EXIT

fail() {
    printf 'tests/slurm.sh: %s\n' "$1" >&2
    tail -n 5 "$scratch"/*.said "$scratch"/rank-* >&2 || true
    exit 1
}

cat >"$scratch/srun" <<'END'
#!/bin/bash
echo "$*" >>"$SCRATCH/srun.said"
while [[ $1 == --* ]]; do shift; done
ranks=()
for rank in 0 1; do
    SLURM_PROCID=$rank "$@" &
    ranks+=($!)
done
trap 'kill -USR1 "${ranks[@]}"' USR1
code=0
for rank in "${ranks[@]}"; do
    while kill -0 "$rank" 2>/dev/null; do wait "$rank"; done
    wait "$rank"
    code=$(($? > code ? $? : code))
done
exit "$code"
END
cat >"$scratch/cogsmith" <<'END'
#!/bin/bash
trap 'asked=yes; trap - USR1' USR1
echo "threads $OMP_NUM_THREADS, $*" >>"$SCRATCH/rank-$SLURM_PROCID"
for ((step = 0; step < STEPS; step++)); do
    sleep 0.02
    [[ -z ${asked:-} ]] || { sleep 0.3; echo checkpoint >>"$SCRATCH/rank-$SLURM_PROCID"; exit 75; }
done
exit "${END:-0}"
END
printf '#!/bin/bash\necho "$*" >>"$SCRATCH/scontrol.said"\n' >"$scratch/scontrol"
chmod +x "$scratch"/{srun,cogsmith,scontrol}

# STEPS SIGNAL ...: a job that gets these signals once its ranks are there; its exit code is $code.
job() {
    local pid name steps=$1
    shift
    rm -f "$scratch"/rank-* "$scratch"/*.said
    SCRATCH=$scratch STEPS=$steps PATH=$scratch:$PATH COGSMITH=$scratch/cogsmith \
        SLURM_JOB_ID=42 SLURM_CPUS_PER_TASK=6 bash launch/slurm.sbatch my.yaml 'a.b=two words' &
    pid=$!
    until [[ -s $scratch/rank-0 && -s $scratch/rank-1 ]]; do sleep 0.01; done
    for name in "$@"; do
        kill -"$name" "$pid"
        sleep 0.1
    done
    code=0
    wait "$pid" || code=$?
}

checkpoints() { cat "$scratch"/rank-* | grep -c checkpoint || true; }

job 2
[[ $code -eq 0 && ! -e $scratch/scontrol.said ]] || fail "a job that ends well: exit code $code"
grep -qxe '--mpi=pmix --cpus-per-task=6 .*/cogsmith train my.yaml a.b=two words' \
    "$scratch/srun.said" || fail 'srun was not called as it should be'
grep -qx 'threads 6, train my.yaml a.b=two words' "$scratch/rank-1" || fail 'what a rank was told'

END=3 job 2
[[ $code -eq 3 && ! -e $scratch/scontrol.said ]] || fail "a job that fails: exit code $code"

for signals in USR1 'USR1 TERM' 'USR1 USR1'; do
    # shellcheck disable=SC2086 # several words
    job 1000 $signals
    [[ $code -eq 75 && $(checkpoints) -eq 2 ]] || fail "$signals: exit code $code"
    grep -qx 'requeue 42' "$scratch/scontrol.said" || fail "$signals: the job was not requeued"
done

job 1000 TERM
[[ $code -eq 75 && $(checkpoints) -eq 2 ]] || fail "TERM: exit code $code"
[[ ! -e $scratch/scontrol.said ]] || fail 'a job that was cancelled came back'
