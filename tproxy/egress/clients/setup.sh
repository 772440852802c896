#!/bin/sh
# Sets this machine up to install software through the egress proxy @PROXY@.
# Run as root:  sh setup.sh          changes nothing the second time
#               sh setup.sh --undo   removes all of it
# Files that this script writes say so in their first line. It replaces no file that somebody else wrote.
set -eu

PROXY=@PROXY@
NO_PROXY=@NO_PROXY@
UNITS="@UNITS@"
MARK="# written by tproxy egress setup"
CA=/usr/local/share/ca-certificates/tproxy-egress.crt
SITE_KEY=/etc/apt/trusted.gpg.d/tproxy-egress.asc
BUNDLE=/etc/ssl/certs/ca-certificates.crt

[ "$(id -u)" = 0 ] || { echo "tproxy egress setup: must be run as root" >&2; exit 1; }

# Write standard input to a file, unless it is there with this content. A file of somebody else stays.
put() {
    file=$1 new=$1.tproxy-new
    mkdir -p "$(dirname "$file")"
    { echo "$MARK"; cat; } >"$new"
    if [ -e "$file" ] && ! head -n 1 "$file" | grep -qxF "$MARK"; then
        rm -f "$new"
        echo "left alone, because somebody else wrote it: $file" >&2
    elif cmp -s "$new" "$file"; then
        rm -f "$new"
    else
        mv "$new" "$file"
        echo "written: $file"
    fi
}

# Remove a file that this script wrote.
take() {
    if [ -e "$1" ] && head -n 1 "$1" | grep -qxF "$MARK"; then
        rm -f "$1"
        echo "removed: $1"
    fi
}

# Every client has a variable of its own for certificates. Python's requests looks at its own before anything else.
# $1 stands before each line.
variables() {
    cat <<END
$1http_proxy=$PROXY
$1https_proxy=$PROXY
$1HTTP_PROXY=$PROXY
$1HTTPS_PROXY=$PROXY
$1no_proxy=$NO_PROXY
$1NO_PROXY=$NO_PROXY
$1SSL_CERT_FILE=$BUNDLE
$1REQUESTS_CA_BUNDLE=$BUNDLE
$1CURL_CA_BUNDLE=$BUNDLE
$1PIP_CERT=$BUNDLE
$1GIT_SSL_CAINFO=$BUNDLE
$1NODE_EXTRA_CA_CERTS=$CA
$1AWS_CA_BUNDLE=$BUNDLE
END
}

unit_file() { echo "/etc/systemd/system/$1.service.d/tproxy-egress.conf"; }

files() {
    echo /etc/profile.d/tproxy-egress.sh
    echo /etc/apt/apt.conf.d/80tproxy-egress
    echo /etc/pip.conf
    echo /etc/containers/registries.conf.d/tproxy-egress.conf
    echo /etc/containerd/certs.d/docker.io/hosts.toml
    echo /etc/containerd/certs.d/quay.io/hosts.toml
    echo /etc/ansible/ansible.cfg
    for file in /etc/systemd/system/*.service.d/tproxy-egress.conf; do echo "$file"; done
}

reload_units() { [ ! -d /run/systemd/system ] || systemctl daemon-reload; }

if [ "${1-}" = --undo ]; then
    files | while read -r file; do take "$file"; done
    if [ -e $CA ]; then
        rm -f $CA
        update-ca-certificates --fresh >/dev/null
        echo "removed: $CA"
    fi
    if [ -e $SITE_KEY ]; then
        rm -f $SITE_KEY
        echo "removed: $SITE_KEY"
    fi
    reload_units
    exit 0
fi

certificate=$(mktemp) site_key=$(mktemp)
trap 'rm -f "$certificate" "$site_key"' EXIT
cat >"$certificate" <<'END'
@CERTIFICATES@
END
if ! cmp -s "$certificate" $CA; then
    command -v update-ca-certificates >/dev/null ||
        { echo "tproxy egress setup: the package ca-certificates is missing" >&2; exit 1; }
    install -D -m 644 "$certificate" $CA
    update-ca-certificates >/dev/null
    echo "written: $CA"
fi

for unit in $UNITS; do
    { echo "[Service]"; variables Environment= ; } | put "$(unit_file "$unit")"
done
if [ -n "$UNITS" ]; then
    reload_units
    echo "restart these services for it to apply: $UNITS"
    exit 0
fi

variables "export " | put /etc/profile.d/tproxy-egress.sh
put /etc/apt/apt.conf.d/80tproxy-egress <<END
Acquire::http::Proxy "$PROXY";
Acquire::https::Proxy "$PROXY";
Acquire::https::CAInfo "$BUNDLE";
END
# The key that signs the Debian suites of a sealed site. Nothing else does where the next line is empty.
cat >"$site_key" <<'END'
@SITE_KEY@
END
if grep -q . "$site_key" && ! cmp -s "$site_key" $SITE_KEY; then
    install -D -m 644 "$site_key" $SITE_KEY
    echo "written: $SITE_KEY"
fi
put /etc/pip.conf <<END
[global]
proxy = $PROXY
cert = $BUNDLE
disable-pip-version-check = true
END
put /etc/containers/registries.conf.d/tproxy-egress.conf <<END
unqualified-search-registries = ["docker.io"]
END
for site in docker.io=registry-1.docker.io quay.io=quay.io; do
    # "server" keeps containerd from falling back to another address. Before 2.0 it wants a host table as well.
    put "/etc/containerd/certs.d/${site%%=*}/hosts.toml" <<END
server = "https://${site#*=}"
ca = "$CA"

[host."https://${site#*=}"]
  capabilities = ["pull", "resolve"]
  ca = "$CA"
END
done
put /etc/ansible/ansible.cfg <<END
[galaxy]
server = https://galaxy.ansible.com/
END
for unit in docker containerd; do
    if [ -e "/lib/systemd/system/$unit.service" ]; then
        { echo "[Service]"; variables Environment= ; } | put "$(unit_file $unit)"
    fi
done
reload_units
echo "done: new shells use $PROXY"
