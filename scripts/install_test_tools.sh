#!/bin/sh
# Debian packages the tests use: a browser to drive, speech to synthesise. Nothing is done when they are there.
set -e
missing=""
command -v chromium >/dev/null || missing="$missing chromium"
command -v espeak-ng >/dev/null || missing="$missing espeak-ng"
command -v flite >/dev/null || missing="$missing flite"
[ -z "$missing" ] && exit 0
if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
  apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $missing
else
  echo "The tests need:$missing. On Debian or Ubuntu: sudo apt-get install$missing" >&2
  exit 1
fi
