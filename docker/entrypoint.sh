#!/bin/sh
# Puts passwords, kept in secret files, where the processes look for them; then becomes the given
# command. What is set already, because it lies outside this set of containers, stays as it is.
set -eu
folder="${SECRETS_DIR:-/run/secrets}"
secret() { cat "$folder/$1"; }
# Whole addresses, of services elsewhere; those beside us have a password and names that are known.
if [ -f "$folder/database_url" ]; then
  export TANDEM_DATABASE_URL="${TANDEM_DATABASE_URL:-$(secret database_url)}"
fi
if [ -f "$folder/channel_url" ]; then
  export TANDEM_CHANNEL_URL="${TANDEM_CHANNEL_URL:-$(secret channel_url)}"
fi
if [ -f "$folder/celery_broker_url" ]; then
  export TANDEM_CELERY_BROKER_URL="${TANDEM_CELERY_BROKER_URL:-$(secret celery_broker_url)}"
fi
if [ -f "$folder/s3_access_key" ]; then
  export AWS_ACCESS_KEY_ID="${AWS_ACCESS_KEY_ID:-$(secret s3_access_key)}"
fi
if [ -f "$folder/redis_password" ]; then
  redis="redis://:$(secret redis_password)@${REDIS_HOST:-redis}:6379"
  export TANDEM_CHANNEL_URL="${TANDEM_CHANNEL_URL:-$redis/0}"
  export TANDEM_CELERY_BROKER_URL="${TANDEM_CELERY_BROKER_URL:-$redis/1}"
fi
if [ -f "$folder/postgres_password" ]; then
  sql="postgresql+psycopg://tandem:$(secret postgres_password)@${POSTGRES_HOST:-postgres}:5432/tandem"
  export TANDEM_DATABASE_URL="${TANDEM_DATABASE_URL:-$sql}"
fi
if [ -f "$folder/s3_secret_key" ]; then
  export AWS_ACCESS_KEY_ID="${AWS_ACCESS_KEY_ID:-tandem}"
  export AWS_SECRET_ACCESS_KEY="${AWS_SECRET_ACCESS_KEY:-$(secret s3_secret_key)}"
fi
exec "$@"
