#!/bin/sh
# Puts the Redis password, kept in a secret file, into the URLs; then becomes the given command.
set -eu
if [ -n "${REDIS_PASSWORD_FILE:-}" ]; then
  password=$(cat "$REDIS_PASSWORD_FILE")
  export TANDEM_CHANNEL_URL="redis://:${password}@${REDIS_HOST:-redis}:6379/0"
  export TANDEM_CELERY_BROKER_URL="redis://:${password}@${REDIS_HOST:-redis}:6379/1"
fi
exec "$@"
