#!/bin/sh
# Writes the present digest of each image into .env, where docker-compose.yml reads it; run it again to update them.
set -eu
cd "$(dirname "$0")/.."
touch .env
for image in PYTHON_IMAGE=python:3.12-slim VALKEY_IMAGE=valkey/valkey:9.1-alpine POSTGRES_IMAGE=postgres:18-alpine \
    S3_IMAGE=chrislusf/seaweedfs:4.47; do
    name=${image%%=*} tag=${image#*=}
    digest=$(docker buildx imagetools inspect "$tag" --format '{{.Manifest.Digest}}')
    case "$digest" in sha256:*) ;; *) echo "no digest for $tag" >&2; exit 1 ;; esac
    grep -v "^$name=" .env > .env.new || true
    echo "$name=$tag@$digest" >> .env.new
    cat .env.new > .env
    rm .env.new
    echo "$name=$tag@$digest"
done
