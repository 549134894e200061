#!/usr/bin/env bash
# A throw-away SLURM on one Debian machine. usage() below is its manual.
set -euo pipefail
unset SLURM_CONF  # of another cluster

HERE=$(dirname "$(readlink -f "$0")")
# Set but empty is a mistake in somebody's script, and must not mean the cluster that others use.
LAB=$(realpath -m "${PRISM_SLURM_LAB-/tmp/prism-slurm}" 2>/dev/null) ||
  { echo "cluster.sh: PRISM_SLURM_LAB is '${PRISM_SLURM_LAB-}', which is no directory's name; unset it for /tmp/prism-slurm" >&2; exit 1; }
PACKAGES=(munge slurmctld slurmd slurm-client slurmdbd mariadb-server-core mariadb-client-core)
USABLE='(idle|mixed|allocated|completing)'
DAEMONS=(munged mariadbd slurmdbd slurmctld)
MEMORY_CGROUPS=/sys/fs/cgroup/memory
# Makes a directory ours, so that nobody else's is filled or deleted; says what names of nodes begin with.
MARK=$LAB/made-by-cluster.sh
PREFIX=$(cat "$MARK" 2>/dev/null || echo "${PRISM_SLURM_PREFIX:-n}")
NODES=("${PREFIX}1" "${PREFIX}2" "${PREFIX}3" "${PREFIX}4")

usage() {
  cat <<'TEXT'
A throw-away SLURM on one Debian machine, for tests and for trying sweeps out. It needs root. It claims to have four
nodes, n1 to n4, with 16 CPUs, 64 GB and 8 GPUs each, none of which need exist; each has a host name and a /dev/shm of
its own. It keeps accounts (sacct) and limits jobs to the memory that they asked for (2 GB a CPU if they do not ask).

    launch/slurm/cluster.sh up              make it, or mend it; returns when jobs can be submitted
    eval "$(launch/slurm/cluster.sh env)"   SLURM_CONF, which every SLURM command and prism need to find it
    prism sweep STUDY cluster=slurm
    launch/slurm/cluster.sh down            end all jobs and daemons, delete everything

    status            a line for each daemon and node; exit status 0 if all of it is usable
    kill-node n2      SIGKILL to slurmd and all that runs on n2, as when a machine dies; SLURM notices within 30 s
    start-node n2     the node is back
    stop-ctl          stop the controller in good order: submitting and asking fail, running jobs go on
    start-ctl         start it again, with the jobs that it knew
    restart-ctl       both
    (up starts whatever is not running)

Partitions (scontrol show partition):
    main      the default; takes nodes from jobs in preempt and killable
    short     like main, 10 minutes at most
    preempt   jobs get their --signal, 10 s, and are requeued
    killable  jobs get their --signal, 5 s, and are gone

Logs are in DIRECTORY/log. Time limits are looked at every 30 s; SLURM allows a job to be told to end earlier:
scontrol update JobId=ID EndTime=now+5.

Environment:
    PRISM_SLURM_LAB      DIRECTORY of everything it writes (default /tmp/prism-slurm)
    PRISM_SLURM_PREFIX   what names of nodes begin with when it is made (default n). Two clusters at a time need two
                         directories and two prefixes; free ports are looked for.

It installs what is missing of munge, slurmctld, slurmd, slurm-client, slurmdbd, mariadb-server-core and mariadb-client-core by
apt, without starting any service; the packages stay after down. Beside its directory it uses /sys/fs/cgroup/memory/slurm_n1 to
slurm_n4 (SLURM's own choice) where version 1 of cgroups is mounted; elsewhere memory is not limited, and up and status
say so. /etc and what else may belong to another SLURM are not touched.
TEXT
}

say() { echo "cluster.sh: $*"; }
die() { echo "cluster.sh: $*" >&2; exit 1; }

# wait_for SECONDS WHAT COMMAND...
wait_for() {
  local end=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < end)) || die "waited in vain for $what; logs are in $LAB/log"
    sleep 0.1
  done
}

# ---- what is there -------------------------------------------------------------------------------------------------

# Processes called $1 that this lab started. Zombies have no environment.
daemon_pids() {
  local pid
  for pid in $(pgrep -x "$1"); do
    if grep -qzsxF "PRISM_SLURM_LAB=$LAB" "/proc/$pid/environ"; then echo "$pid"; fi
  done
}

# All processes on node $1, whoever started them: those that have its /dev/shm (see start_node).
node_pids() { pids_with_mount " - tmpfs $LAB:$1 "; }
pids_with_mount() { grep -lse "$1" /proc/[0-9]*/mountinfo | cut -d/ -f3 || true; }

slurmd_pids() {
  local pid
  for pid in $(node_pids "$1"); do
    if [[ $(cat "/proc/$pid/comm" 2>/dev/null) == slurmd ]]; then echo "$pid"; fi
  done
}

all_pids() {
  local name
  for name in "${DAEMONS[@]}"; do daemon_pids "$name"; done
  node_pids "${PREFIX}[1-4]"
}

nobody() { [[ -z $("$@") ]]; }
somebody() { ! nobody "$@"; }

# Kills the processes that command $@ lists; succeeds when there are none left.
ended() {
  local pids
  mapfile -t pids < <("$@")
  ((${#pids[@]})) || return 0
  kill -KILL "${pids[@]}"
  return 1
}

listens() { (: <"/dev/tcp/127.0.0.1/$1"); }
answers() { [[ -e $SLURM_CONF ]] && timeout 10 "$@" >/dev/null 2>&1; }
accounts() { somebody daemon_pids slurmdbd && answers sacct --noheader --allocations --starttime now; }

# Nodes and the states that SLURM gives them, a line each. Commands wait long for a controller that is not there.
node_states() {
  nobody daemon_pids slurmctld || timeout 10 sinfo --noheader --Node --partition main --format '%N %T' 2>/dev/null || true
}

node_usable() { node_states | grep -qxE "$1 $USABLE"; }

# A line on one part: name, state, and the first of the process ids in $3.
part() {
  printf '%-10s %-12s %s\n' "$1" "$2" "${3:+pid ${3%%$'\n'*}}"
}

status() {
  local name pids state states usable=0
  for name in "${DAEMONS[@]}"; do
    pids=$(daemon_pids "$name")
    if [[ $pids ]]; then state=running; else state=stopped usable=1; fi
    part "$name" "$state" "$pids"
  done
  states=$(node_states)
  for name in "${NODES[@]}"; do
    pids=$(slurmd_pids "$name")
    state=$(sed -n "s/^$name //p" <<<"$states")
    [[ $pids && $state =~ ^$USABLE$ ]] || usable=1
    part "$name" "${state:-unknown}" "$pids"
  done
  if accounts; then state=answer; else state=silent usable=1; fi
  part accounts "$state" ""
  if grep -qs ^TaskPlugin=task/cgroup "$SLURM_CONF"; then state=limited; else state=unlimited; fi
  part memory "$state" ""
  return $usable
}

# ---- making it -----------------------------------------------------------------------------------------------------

check_machine() {
  [[ $EUID == 0 ]] || die "needs root, for nodes with names and devices of their own"
  command -v apt-get >/dev/null || die "needs Debian or a relative: there is no apt-get"
  [[ $LAB =~ ^/[A-Za-z0-9._/-]+$ && ${#LAB} -le 80 ]] ||
    die "PRISM_SLURM_LAB is '$LAB': use at most 80 letters, digits and ._/-"
  [[ $PREFIX =~ ^[a-z]+$ ]] || die "PRISM_SLURM_PREFIX is '$PREFIX': use small letters"
}

names_in_use() { pids_with_mount " - tmpfs /[^ ]*:${PREFIX}[1-4] "; }

check_nodes() {
  nobody names_in_use || somebody node_pids "${PREFIX}[1-4]" ||
    die "another cluster has nodes called ${NODES[*]}; choose another PRISM_SLURM_PREFIX"
  unshare --uts --mount true 2>/dev/null || die "this machine does not let root make namespaces (unshare --uts --mount)"
}

installed() { [[ $(dpkg-query --show --showformat '${db:Status-Status}' "$1" 2>/dev/null) == installed ]]; }

install_packages() {
  local package missing=()
  for package in "${PACKAGES[@]}"; do installed "$package" || missing+=("$package"); done
  ((${#missing[@]})) || return 0
  say "installing ${missing[*]}"
  local apt=(apt-get -qq -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300 --no-install-recommends)
  (
    export DEBIAN_FRONTEND=noninteractive
    forbid_services
    "${apt[@]}" install "${missing[@]}" >/dev/null 2>&1 && exit
    "${apt[@]}" update >/dev/null && "${apt[@]}" install "${missing[@]}" >/dev/null
  ) || die "apt could not install ${missing[*]}"
}

# Debian starts services on installation unless this file says no. To be called in a subshell; it undoes it at its end.
forbid_services() {
  local policy=/usr/sbin/policy-rc.d
  [[ -e $policy ]] && return
  printf '#!/bin/sh\nexit 101\n' >$policy
  chmod +x $policy
  trap 'rm -f /usr/sbin/policy-rc.d' EXIT
}

# The first of twenty ports nobody listens on.
free_ports() {
  local base offset
  for ((base = 16800; base < 18000; base += 20)); do
    for ((offset = 0; offset < 20; offset++)); do
      ! listens $((base + offset)) 2>/dev/null || continue 2
    done
    echo $base
    return
  done
  die "no twenty free ports in a row between 16800 and 18000"
}

write_configuration() {
  local port template task=task/cgroup
  port=$(free_ports)
  if [[ -w $MEMORY_CGROUPS/memory.limit_in_bytes ]]; then
    say "uses $LAB and, outside of it, $MEMORY_CGROUPS/slurm_${PREFIX}1 to ${PREFIX}4"
  else
    task=task/none
    say "uses $LAB; memory will not be limited, as $MEMORY_CGROUPS (version 1 of cgroups) is not to be had"
  fi
  for template in "$HERE"/templates/*; do
    (
      umask 077
      sed -e "s|@LAB@|$LAB|g; s|@HOST@|$(hostname -s)|g; s|@PASSWORD@|$(cat "$LAB/password")|g" \
        -e "s|@NODES@|${PREFIX}[1-${#NODES[@]}]|g; s|@NODE_PORTS@|[$((port + 11))-$((port + 10 + ${#NODES[@]}))]|g" \
        -e "s|@CTLD_PORT@|$port|g; s|@DBD_PORT@|$((port + 1))|g; s|@DATABASE_PORT@|$((port + 2))|g" \
        -e "s|@TASK_PLUGIN@|$task|g" \
        "$template" >"$LAB/$(basename "$template")"
    )
  done
  chmod a+r "$LAB"/{slurm,gres,cgroup}.conf
  { cat /etc/hosts; echo "127.0.0.1 ${NODES[*]}"; } >"$LAB/hosts"
}

check_directory() {
  [[ -e $MARK || ! -e $LAB || -z $(ls -A "$LAB") ]] ||
    die "$LAB was not made by cluster.sh, so it is left as it is; choose another PRISM_SLURM_LAB"
}

make_directory() {
  check_directory
  if [[ ! -e $MARK ]]; then
    mkdir -p "$LAB"
    # Whatever of it still runs has lost its directory.
    wait_for 30 "what still runs to end" ended all_pids
    echo "$PREFIX" >"$MARK"
  fi
  mkdir -p "$LAB"/{run,log,state,dev,nodes}
  mkdir -p "${NODES[@]/#/$LAB/nodes/}"
  [[ -e $LAB/munge.key ]] || (umask 077; head -c 128 /dev/urandom >"$LAB/munge.key")
  [[ -e $LAB/password ]] || (umask 077; cat /proc/sys/kernel/random/uuid >"$LAB/password")
  local gpu
  for gpu in "$LAB"/dev/nvidia{0..7}; do [[ -e $gpu ]] || mknod "$gpu" c 1 3; done
}

# Starts a daemon of this lab: known again by its environment, out of reach of our terminal, without our lock.
daemon() {
  local log=$LAB/log/$1.out
  shift
  PRISM_SLURM_LAB=$LAB SLURM_CONF=$SLURM_CONF setsid --fork "$@" </dev/null >>"$log" 2>&1 9>&-
}

start_munged() {
  daemon munged munged --force --key-file "$LAB/munge.key" --socket "$LAB/run/munge.socket" --num-threads 2 \
    --pid-file "$LAB/run/munged.pid" --log-file "$LAB/log/munged.log" --seed-file "$LAB/munge.seed"
  wait_for 20 munged munge --socket "$LAB/run/munge.socket" --no-input
}

start_mariadbd() {
  if [[ ! -e $LAB/database/ready ]]; then
    rm -rf "$LAB/database"
    mariadb-install-db --no-defaults --user=root --datadir="$LAB/database" --skip-test-db >"$LAB/log/install-db.out" 2>&1 ||
      die "mariadb-install-db failed: $(tail -n 3 "$LAB/log/install-db.out")"
    : >"$LAB/database/ready"
  fi
  local port
  port=$(sed -n s/^StoragePort=//p "$LAB/slurmdbd.conf")
  daemon mariadbd mariadbd --no-defaults --user=root --datadir="$LAB/database" --bind-address=127.0.0.1 --port="$port" \
    --socket="$LAB/run/mariadb.socket" --pid-file="$LAB/run/mariadbd.pid" --init-file="$LAB/database.sql" \
    --innodb-flush-log-at-trx-commit=0 --innodb-lock-wait-timeout=900
  wait_for 60 "the database" listens "$port"
}

start_slurmdbd() {
  daemon slurmdbd slurmdbd
  wait_for 60 slurmdbd answers sacctmgr --noheader list cluster
  [[ $(sacctmgr --noheader --parsable2 list cluster format=cluster) ]] || sacctmgr --immediate --quiet add cluster lab >/dev/null
}

start_slurmctld() {
  daemon slurmctld slurmctld -i
  wait_for 30 slurmctld answers scontrol ping
}

stop_slurmctld() {
  local pids
  mapfile -t pids < <(daemon_pids slurmctld)
  ((${#pids[@]})) || return 0
  kill "${pids[@]}" 2>/dev/null || true
  wait_for 60 "slurmctld to end" nobody daemon_pids slurmctld
}

# A node has a host name, an /etc/hosts and a /dev/shm of its own.
start_node() {
  # shellcheck disable=SC2016  # for the inner shell
  daemon "slurmd.$1" unshare --uts --mount --propagation slave sh -euc '
    hostname "$1"
    mount -t tmpfs "$2:$1" /dev/shm
    mount --bind "$2/hosts" /etc/hosts
    exec slurmd -N "$1"' sh "$1" "$LAB"
  wait_for 30 "slurmd on $1" somebody slurmd_pids "$1"
}

ensure_daemon() { somebody daemon_pids "$1" || "start_$1"; }
ensure_node() { somebody slurmd_pids "$1" || start_node "$1"; }

# ---- commands ------------------------------------------------------------------------------------------------------

up() {
  if status >/dev/null; then
    say "is up"
    return
  fi
  check_nodes
  install_packages
  make_directory
  if nobody all_pids; then write_configuration; fi
  local name
  for name in "${DAEMONS[@]}"; do ensure_daemon "$name"; done
  for name in "${NODES[@]}"; do ensure_node "$name"; done
  for name in "${NODES[@]}"; do
    # A node that was drained, or is down for another reason than silence, does not come back by itself.
    node_usable "$name" || scontrol update "NodeName=$name" State=RESUME 2>/dev/null || true
    wait_for 60 "node $name" node_usable "$name"
  done
  wait_for 60 "all of it" status
  say "is up; to use it: eval \"\$($0 env)\""
}

down() {
  check_directory
  wait_for 30 "its processes to end" ended all_pids
  if nobody names_in_use; then wait_for 20 "cgroups of its nodes to empty" remove_cgroups; fi
  rm -rf "$LAB"
  say "is down; nothing is left but the packages"
}

remove_cgroups() {
  local name top
  for name in "${NODES[@]}"; do
    top=$MEMORY_CGROUPS/slurm_$name
    [[ ! -d $top ]] || find "$top" -depth -type d -exec rmdir {} + || return
  done
}

made() { [[ -e $MARK ]] || die "there is no cluster in $LAB: begin with up"; }

known_node() {
  made
  [[ " ${NODES[*]} " == *" ${1:-} "* ]] || die "there is no node '${1:-}': choose one of ${NODES[*]}"
}

main() {
  local verb=${1:-} node=${2:-}
  case $verb in
    '' | -h | --help | help) usage; return ;;
    env) echo "export SLURM_CONF=$LAB/slurm.conf"; return ;;
  esac
  check_machine
  export SLURM_CONF=$LAB/slurm.conf
  if [[ $verb == status ]]; then status; return; fi
  # The lock is this very file: one command at a time, and nothing to leave behind.
  exec 9<"$0"
  flock --wait 300 9 || die "another cluster.sh has been at work for five minutes"
  case $verb in
    up) up ;;
    down) down ;;
    kill-node) known_node "$node"; wait_for 30 "$node to end" ended node_pids "$node" ;;
    start-node) known_node "$node"; ensure_node "$node" ;;
    stop-ctl) made; stop_slurmctld ;;
    start-ctl) made; ensure_daemon slurmctld ;;
    restart-ctl) made; stop_slurmctld; start_slurmctld ;;
    *) die "there is no command '$verb': see $0 --help" ;;
  esac
}

main "$@"
