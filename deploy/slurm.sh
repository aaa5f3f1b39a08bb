#!/usr/bin/env bash
# A medray command as a Slurm job: Ray on every node of the allocation, the command on the first.
#
#   sbatch --nodes=2 --gpus-per-node=4 --cpus-per-task=32 --time=12:00:00 deploy/slurm.sh COMMAND...
#   sbatch --gpus-per-node=1 deploy/slurm.sh python jobs/train.py my.yaml
#
# From the checkout, or with medray's environment activated; both and MEDRAY_HOME must be where all nodes see them.
# Before the time is over the training saves where it stands, and the job puts itself into the queue again; there the
# same command goes on. `scancel --batch --signal=TERM JOB` does the same now; `scancel JOB` ends it.
#SBATCH --job-name=medray
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --ntasks-per-node=1
#SBATCH --signal=B:TERM@180
#SBATCH --requeue
set -euo pipefail

: "${SLURM_JOB_ID:?start it with sbatch}" "${1:?usage: sbatch [options of sbatch] deploy/slurm.sh COMMAND...}"
[[ -d .venv/bin ]] && PATH=$PWD/.venv/bin:$PATH
export PATH MEDRAY_HOME=${MEDRAY_HOME:-$HOME/medray} RAY_USAGE_STATS_ENABLED=0
export nodes=${SLURM_JOB_NUM_NODES:-1}

# Names that another job on the same node does not use. Sockets lie in the folder: its path must be short.
export place=/tmp/medray-$SLURM_JOB_ID port=$((20000 + SLURM_JOB_ID % 3000 * 4))
export RAY_TMPDIR=$place
# One node needs no network. With several, MEDRAY_HEAD_IP chooses another network than that of the node's name.
head=127.0.0.1
if ((nodes > 1)); then
  head=${MEDRAY_HEAD_IP:-$(getent ahostsv4 "$SLURMD_NODENAME" | awk '$1 !~ /^127\./ {print $1; exit}')}
  head=${head:-$(hostname -I | cut -d ' ' -f 1)}
fi
export RAY_ADDRESS=$head:$port RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=180

# Nobody else on the nodes or in the network may give this Ray work.
mkdir -p "$MEDRAY_HOME/slurm"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$MEDRAY_HOME/slurm/$SLURM_JOB_ID.token
(umask 077 && od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$RAY_AUTH_TOKEN_PATH")

# On every node, once. Slurm's own count of CPUs and GPUs: Ray would count those of other jobs too.
node() {
  mkdir -p -m 700 "$place"
  local options=(--num-cpus="$SLURM_CPUS_ON_NODE" --num-gpus="${SLURM_GPUS_ON_NODE:-0}")
  # Where the job has a limit of memory Ray does not see it, and would take a third of the node's for its objects.
  ((${SLURM_MEM_PER_NODE:-0} == 0)) || options+=(--object-store-memory=$((SLURM_MEM_PER_NODE * 1024 * 1024 * 3 / 10)))
  options+=(--dashboard-host=127.0.0.1 --dashboard-port=$((port + 1)) --dashboard-agent-listen-port=$((port + 2)))
  options+=(--ray-client-server-port=$((port + 3)))
  ray symmetric-run --address="$RAY_ADDRESS" --min-nodes="$nodes" "${options[@]}" -- bash -c 'work "$@"' work "$@" |
    grep --line-buffered --invert-match $'\tVINFO ' # the whole command line of every process that it stops
  ((${SLURM_NODEID:-0} == 0)) || rm -rf "$place"
}

# On the first node: the command, SIGTERM for it alone, and how it ended. symmetric-run itself ends with 0 where Ray
# did not start, and Ray's processes must outlive the command's last checkpoint.
work() {
  "$@" &
  local command=$! code=0
  while [[ ! -e $place/stop ]]; do sleep 1; done && kill -TERM "$command" &
  wait "$command" || code=$?
  kill $! 2>/dev/null || true
  echo "$code" >"$place/code"
  return "$code"
}
export -f node work

# symmetric-run starts beside no other Ray, and stops every Ray of the user that it sees on the node. So it gets a
# view of its own processes alone, where the system lets users have that; elsewhere ask for whole nodes (--exclusive).
alone=(unshare --user --map-root-user --pid --fork --kill-child --mount-proc)
"${alone[@]}" true 2>/dev/null || alone=()

mkdir -p -m 700 "$place"
[[ -O $place ]] # what somebody else has put there ends the job
rm -f "$place/stop" "$place/code"
stopping=
trap 'stopping=yes; touch "$place/stop"' TERM
# Where one node has ended, well or badly, the others would notice it minutes later.
srun --nodes="$nodes" --ntasks-per-node=1 ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} \
  --cpu-bind=none --wait=20 "${alone[@]}" bash -c 'node "$@"' node "$@" &
while kill -0 $! 2>/dev/null; do wait $! || true; done # a signal ends a wait before its time

code=$(cat "$place/code" 2>/dev/null) || code=1
rm -f "$RAY_AUTH_TOKEN_PATH"
# Ray's logs stay where something went wrong.
[[ $code == 0 || $code == 75 ]] && rm -rf "$place"
# 75 that nobody asked for, such as a full disk, would come again at once.
if [[ $code == 75 && $stopping ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
