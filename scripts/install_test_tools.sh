#!/bin/sh
# Debian packages the tests use: a browser to drive, speech to synthesise. Nothing is done when they are there; where
# they cannot be installed, the tests that need them are skipped.
missing=""
command -v chromium >/dev/null || missing="$missing chromium"
command -v espeak-ng >/dev/null || missing="$missing espeak-ng"
command -v flite >/dev/null || missing="$missing flite"
[ -z "$missing" ] && exit 0
if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
  apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $missing && exit 0
fi
echo "Tests that need$missing are skipped. On Debian or Ubuntu: sudo apt-get install$missing" >&2
