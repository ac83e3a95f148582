#!/bin/sh
# Puts passwords, kept in secret files, where the processes look for them; then becomes the given
# command. What is set already, because it lies outside this set of containers, stays as it is.
set -eu
secret() { cat "/run/secrets/$1"; }
if [ -f /run/secrets/redis_password ]; then
  redis="redis://:$(secret redis_password)@${REDIS_HOST:-redis}:6379"
  export TANDEM_CHANNEL_URL="${TANDEM_CHANNEL_URL:-$redis/0}"
  export TANDEM_CELERY_BROKER_URL="${TANDEM_CELERY_BROKER_URL:-$redis/1}"
fi
if [ -f /run/secrets/postgres_password ]; then
  sql="postgresql+psycopg://tandem:$(secret postgres_password)@${POSTGRES_HOST:-postgres}:5432/tandem"
  export TANDEM_DATABASE_URL="${TANDEM_DATABASE_URL:-$sql}"
fi
if [ -f /run/secrets/s3_secret_key ]; then
  export AWS_ACCESS_KEY_ID="${AWS_ACCESS_KEY_ID:-tandem}"
  export AWS_SECRET_ACCESS_KEY="${AWS_SECRET_ACCESS_KEY:-$(secret s3_secret_key)}"
fi
exec "$@"
