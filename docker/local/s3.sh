#!/bin/sh
# Understands what compose.yaml tells SeaweedFS about S3, and serves /data by rclone instead.
set -eu
for option in "$@"; do
  case "$option" in
    -s3.port=*) port=${option#*=} ;;
    -s3.config=*) config=${option#*=} ;;
  esac
done
keys=$(python -c '
import json, sys
(identity,) = json.load(open(sys.argv[1]))["identities"]
(pair,) = identity["credentials"]
print(pair["accessKey"] + "," + pair["secretKey"])' "$config")
export RCLONE_AUTH_KEY="\"$keys\""  # quoted: one pair, not a list of two
exec rclone serve s3 --config "" --cache-dir /tmp/cache --vfs-cache-mode off --addr ":$port" /data
