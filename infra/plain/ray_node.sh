#!/usr/bin/env bash
# One Ray node on a plain machine. Refuses to listen beyond loopback without a token.
#
#   infra/plain/ray_node.sh head OWN_IP             start the head; jobs are submitted on this machine (or over ssh)
#   infra/plain/ray_node.sh worker OWN_IP HEAD_IP   join a head
#   infra/plain/ray_node.sh stop OWN_IP             end the node that was started with this address
#
# Make the token once, with `ray get-auth-token --generate`, and copy ~/.ray/auth_token to every machine (mode 600).
# RAY_PORT (default 6379) is the head's port. Everything after the addresses is given to `ray start`.
set -euo pipefail

usage() { sed -n '2,9p' "${BASH_SOURCE[0]}" >&2; exit 2; }
[[ $# -ge 2 ]] || usage
role=$1 own=$2
shift 2
port=${RAY_PORT:-6379}
pidfile=${TMPDIR:-/tmp}/omnifarm-ray-$own-$(id -u).pid

export RAY_USAGE_STATS_ENABLED=0
# Ray would run training at the lowest priority of the machine.
export RAY_worker_niceness=0

require_token() {
  case $own in
    127.*|localhost|::1)
      # Ray would otherwise take the machine's public address instead, and ask nobody there for a token.
      export RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0
      return
      ;;
  esac
  if [[ ${RAY_AUTH_MODE:-token} != token ]]; then
    echo "RAY_AUTH_MODE is '$RAY_AUTH_MODE'; a node on $own can be reached from other machines and must use 'token'" >&2
    exit 1
  fi
  export RAY_AUTH_MODE=token
  local path=${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}
  if [[ -z ${RAY_AUTH_TOKEN:-} && ! -s $path ]]; then
    echo "no token in RAY_AUTH_TOKEN or $path; make one with: ray get-auth-token --generate" >&2
    exit 1
  fi
}

run_node() { # stays in the foreground, as a service manager wants it
  echo $$ >"$pidfile"
  exec ray start --block --disable-usage-stats --node-ip-address="$own" "$@"
}

case $role in
  head)
    require_token
    # The dashboard and its job server listen on loopback: reach them with `ssh -L 8265:127.0.0.1:8265`.
    run_node --head --port="$port" --dashboard-host=127.0.0.1 "$@"
    ;;
  worker)
    [[ $# -ge 1 ]] || usage
    head=$1
    shift
    require_token
    run_node --address="$head:$port" "$@"
    ;;
  stop)
    [[ -f $pidfile ]] || { echo "no node was started here with the address $own" >&2; exit 1; }
    kill "$(<"$pidfile")"
    rm -f "$pidfile"
    ;;
  *) usage ;;
esac
