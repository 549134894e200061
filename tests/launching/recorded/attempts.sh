# The tasks are told to make room, not this shell: it stays to ask what is to be done after them.
trap : TERM USR1 USR2
prism_requeue() (
  trap '' TERM USR1 USR2
  pause=5
  while true; do
    # SLURM would queue a job again that it is just ending because somebody has cancelled it.
    case $(squeue --noheader --jobs="$1" --format=%T,%r) in
      COMPLETING,TimeLimit) ;;
      COMPLETING,*) echo "prism: SLURM is ending it"; exit 1 ;;
    esac
    said=$(scontrol requeue "$1" 2>&1) && break
    echo "prism: not yet in the queue: $said"
    case $said in
      *"Job is pending execution"*) break ;;
      *"Invalid job id"* | *"ermission denied"* | *"presently disabled"* | *"command not found"*) exit 1 ;;
    esac
    sleep "$pause"
    pause=$((pause < 25 ? pause + 5 : 30))
  done
  [ -z "$2" ] || scontrol update JobId="$1" ExcNodeList="$2" || true
)
prism_attempts() {
  local code tries=0 answer nodes id="${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}}"
  id="${id:-$SLURM_JOB_ID}"
  while tries=$((tries + 1)); "$@"; code=$?; [ "$code" -ne 0 ]; do
    answer=$(trap '' TERM; $ASKED $STORE $BATCH \
      "${SLURM_ARRAY_TASK_ID:-0}" "$code" "$tries" "$SECONDS" "${SLURM_RESTART_COUNT:-0}") \
      || [ "$code" -eq 75 ] || return "$code"
    # What comes before it a container has said.
    read -r answer nodes <<< "$(tail -n 1 <<< "$answer")"
    case "$answer,$code" in
      again,* | requeue,* | end,*) ;;
      *,75) answer=requeue nodes= ;;
    esac
    case "$answer" in
      again) echo "prism: again, after exit code $code" ;;
      requeue)
        # Without these nodes there may be none that it fits on, and it would wait for ever.
        if [ -n "$nodes" ] && ! sbatch --test-only --exclude="$nodes" "$0"; then
          echo "prism: again, after exit code $code; there is no other node"
          continue
        fi
        echo "prism: back into the queue, after exit code $code${nodes:+; not on $nodes}"
        prism_requeue "$id" "$nodes" && sleep 300
        return "$code" ;;
      *) return "$code" ;;
    esac
  done
}
