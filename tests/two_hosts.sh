#!/usr/bin/env bash
# Trains three ranks over two hosts made of network namespaces, and breaks that of rank 1: a link
# that goes down, a rank that stops (SIGSTOP), a rank that dies (SIGKILL). Each ends the job in time
# with the culprit named, and the job that is started again comes to the same bits as one that
# nothing happened to.
#
#   tests/two_hosts.sh [RUNS]     RUNS of each fault (1); needs root, and exits 77 where it is not
#                                 permitted to make namespaces. COGSMITH names the program.
#
# All of it runs in namespaces of its own (processes, mounts, network): they end with the script.
set -euo pipefail
script=$(readlink -f "$0")
cd "$(dirname "$script")/.."

timeout=5 # ranks.timeout, in seconds
margin=12 # for what comes after it: the last call, mpirun's own end
steps=40  # of the whole run, which must not end before it is broken
runs=${1:-1}

skip() {
    printf 'tests/two_hosts.sh: SKIPPED: %s\n' "$1" >&2
    exit 77
}

if [[ -z ${TWO_HOSTS_INSIDE:-} ]]; then
    [[ $EUID -eq 0 ]] || skip 'it needs root'
    for tool in ip unshare mpirun pgrep; do
        command -v "$tool" >/dev/null || skip "$tool is not installed"
    done
    own=(unshare --net --mount --uts --ipc --pid --fork --kill-child --mount-proc)
    "${own[@]}" ip link add type veth 2>/dev/null || skip 'namespaces or veth are not permitted'
    COGSMITH=$(readlink -f "${COGSMITH:-build/cogsmith}")
    scratch=$(mktemp -d /tmp/cogsmith-hosts-XXXXXX)
    trap 'rm -rf "$scratch"' EXIT
    export COGSMITH scratch TWO_HOSTS_INSIDE=yes
    "${own[@]}" "$script" "$runs" &
    inside=$!
    trap 'kill -KILL "$inside" 2>/dev/null || true; wait; exit 1' INT TERM
    wait "$inside"
    exit
fi

fail() {
    printf 'tests/two_hosts.sh: %s\n' "$1" >&2
    tail -n 30 "$scratch/stderr" >&2 || true
    exit 1
}

# ---- two hosts, a and b, and this one between them -----------------------------------------------

make_hosts() {
    mount -t tmpfs tmpfs /run
    ip link set lo up
    ip link add between type bridge
    ip addr add 10.9.0.1/24 dev between
    ip link set between up
    local host number=2
    for host in a b; do
        ip netns add "$host"
        ip link add "to-$host" type veth peer name eth0 netns "$host"
        ip link set "to-$host" master between up
        ip -n "$host" addr add "10.9.0.$number/24" dev eth0
        ip -n "$host" link set lo up
        ip -n "$host" link set eth0 up
        echo "10.9.0.$number slots=2" >>"$scratch/hosts"
        mkdir -p "$scratch/tmp-$host"
        number=$((number + 1))
    done
    # What ssh would do: a shell on that host, with a name, shared memory and a TMPDIR of its own.
    cat >"$scratch/agent" <<AGENT
#!/bin/bash
[[ \$1 == 10.9.0.2 ]] && host=a || host=b
shift
exec ip netns exec \$host unshare --uts --mount --ipc bash -c "hostname \$host
mount -t tmpfs tmpfs /dev/shm
export TMPDIR=$scratch/tmp-\$host
\$*"
AGENT
    chmod +x "$scratch/agent"
}

# ---- a job ---------------------------------------------------------------------------------------

# OUT: starts the job in the background; its process is $job. mpirun would wait for ever for a host
# that it cannot reach: keepalives, of less time than ranks.timeout, let it give the host up.
start() {
    OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMP_NUM_THREADS=1 \
        OMPI_MCA_mpi_yield_when_idle=1 mpirun -n 3 --map-by node --bind-to none \
        --hostfile "$scratch/hosts" -x OMP_NUM_THREADS --mca plm_rsh_agent "$scratch/agent" \
        --mca btl tcp,self --mca btl_tcp_if_include 10.9.0.0/24 \
        --mca oob_tcp_if_include 10.9.0.0/24 \
        --mca oob_tcp_keepalive_time 1 --mca oob_tcp_keepalive_intvl 1 \
        --mca oob_tcp_keepalive_probes 2 "$COGSMITH" train configs/tiny.yaml \
        data.cache="$scratch/cache" train.out="$scratch/$1" train.steps=$steps train.batch=1 \
        train.checkpoint_every=1 lora.rank=4 ranks.zero=2 ranks.timeout=$timeout \
        >"$scratch/stdout" 2>"$scratch/stderr" </dev/null &
    job=$!
}

# SECONDS: waits for the job's end so long at most; $code is how it ended.
finish() {
    local end=$((SECONDS + $1))
    while kill -0 "$job" 2>/dev/null; do
        [[ $SECONDS -lt $end ]] || fail "the job did not end within $1 s"
        sleep 0.05
    done
    code=0
    wait "$job" || code=$?
}

# OUT: waits until the run has some checkpoints.
await_checkpoint() {
    local end=$((SECONDS + 30))
    until [[ -e $scratch/$1/checkpoints/step-000003 ]]; do
        [[ $SECONDS -lt $end ]] || fail 'there was no checkpoint after 30 s'
        kill -0 "$job" 2>/dev/null || fail 'the job ended before its third step'
        sleep 0.02
    done
}

process_of_rank() { # RANK
    local pid
    for pid in $(pgrep -x cogsmith); do
        ! grep -qz "^OMPI_COMM_WORLD_RANK=$1\$" "/proc/$pid/environ" || echo "$pid"
    done
}

# ---- faults --------------------------------------------------------------------------------------

# How the culprit is named: mpirun loses the host, or the other ranks miss the answer, or that of
# the roll that it calls when mpirun tells it to end.
told='rank 0, in step [0-9]*, had come to [a-z_]* number [0-9]*'
declare -A names=(
    [link]='Remote daemon.* on node 10.9.0.3|rank 1 did not answer'
    [stop]='rank 1 did not answer in [a-z_]* number [0-9]*, in step [0-9]*, within 5 s'
    [kill]="rank 1 .process [0-9]* on b. does not answer; $told"
)

break_it() { # FAULT
    local rank
    rank=$(process_of_rank 1)
    [[ -n $rank ]] || fail "rank 1 is not there: the job is over, or its program is no 'cogsmith'"
    case $1 in
    link) ip -n b link set eth0 down ;;
    stop) kill -STOP "$rank" ;;
    kill) kill -KILL "$rank" ;;
    esac
}

nothing_left() {
    local end=$((SECONDS + margin))
    while pgrep -x 'cogsmith|orted' >/dev/null; do
        [[ $SECONDS -lt $end ]] || fail "processes are left: $(pgrep -al 'cogsmith|orted')"
        sleep 0.05
    done
}

check_fault() { # FAULT NUMBER
    local out=$1-$2 from
    start "$out"
    await_checkpoint "$out"
    from=$EPOCHREALTIME
    break_it "$1"
    finish $((timeout + margin))
    local took
    took=$(awk "BEGIN { printf \"%.1f\", $EPOCHREALTIME - $from }")
    [[ $code -ne 0 ]] || fail "$1: the job ended with success"
    grep -Eq "${names[$1]}" "$scratch/stderr" || fail "$1: the culprit is not named"
    nothing_left
    ip -n b link set eth0 up
    start "$out"
    finish 60
    [[ $code -eq 0 ]] || fail "$1: the job that was started again ended with $code"
    local step
    step=$(grep -Eo 'going on after step [0-9]+' "$scratch/stderr") || fail "$1: it began anew"
    cmp "$scratch/whole/$result" "$scratch/$out/$result" || fail "$1: other bits"
    printf '%s: ended after %s s; %s, with the same bits\n' "$out" "$took" "$step"
}

make_hosts
"$COGSMITH" prepare configs/tiny.yaml data.cache="$scratch/cache" >"$scratch/stdout" \
    2>"$scratch/stderr" || fail 'prepare failed'
start whole
finish 60
[[ $code -eq 0 ]] || fail "the whole run ended with $code"
result=adapter/pytorch_lora_weights.safetensors
[[ -s $scratch/whole/$result ]] || fail 'the whole run has no adapter'
for ((run = 1; run <= runs; run++)); do
    for fault in link stop kill; do
        check_fault "$fault" "$run"
    done
done
