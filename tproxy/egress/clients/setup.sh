#!/bin/sh
# Sets this machine up to install software through the egress proxy @PROXY@.
# As root:  sh setup.sh           changes nothing the second time
#           sh setup.sh --undo    removes all of it
# As anybody:
#           sh setup.sh --check   reports what is still wrong, a line each, and changes nothing
# Files that this script writes say so in their first line. It replaces no file that somebody else wrote.
set -eu
umask 022

MODE=@MODE@
PROXY=@PROXY@
NO_PROXY=@NO_PROXY@
UNITS="@UNITS@"
MARK="# written by tproxy egress setup"
CA=/usr/local/share/ca-certificates/tproxy-egress.crt
SITE_KEY=/etc/apt/trusted.gpg.d/tproxy-egress.asc
BUNDLE=/etc/ssl/certs/ca-certificates.crt
# The directories that this script made, those further inside later.
MADE=/etc/tproxy-egress-setup

# Every client has a variable of its own for certificates. Python's requests looks at its own before anything else.
CA_VARIABLES="SSL_CERT_FILE REQUESTS_CA_BUNDLE CURL_CA_BUNDLE PIP_CERT GIT_SSL_CAINFO AWS_CA_BUNDLE"

case ${1-} in
"") ;;
--check) MODE=check ;;
--undo) MODE=undo ;;
*) echo "tproxy egress setup: there are --check and --undo" >&2; exit 2 ;;
esac
[ $MODE = check ] || [ "$(id -u)" = 0 ] || { echo "tproxy egress setup: must be run as root" >&2; exit 1; }

new=$(mktemp)
trap 'rm -f "$new"' EXIT
wrong=0
problem() { echo "$1"; wrong=1; }

ours() { head -n 1 "$1" | grep -qxF "$MARK"; }

# Make a directory, and note each part of it that was not there.
folder() {
    [ ! -d "$1" ] || return 0
    folder "$(dirname "$1")"
    mkdir "$1"
    echo "$1" >>$MADE
}

# Let a file have what is in $new, unless it has.
replace() {
    if cmp -s "$new" "$1"; then
        return 0
    elif [ $MODE = check ]; then
        problem "$1 is missing, or has changed: get /setup again, and run it"
    else
        folder "$(dirname "$1")"
        cat "$new" >"$1.tproxy-new"
        mv "$1.tproxy-new" "$1"
        echo "written: $1"
    fi
}

# Write standard input to a file, below our mark. A file of somebody else stays.
put() {
    { echo "$MARK"; cat; } >"$new"
    if [ ! -e "$1" ] || ours "$1"; then
        replace "$1"
    elif [ $MODE = check ]; then
        problem "somebody else wrote $1: remove it, and run /setup again"
    else
        echo "left alone, because somebody else wrote it: $1" >&2
    fi
}

remove() {
    rm -f "$1"
    echo "removed: $1"
}

# $1 stands before each line.
variables() {
    for name in http_proxy https_proxy HTTP_PROXY HTTPS_PROXY; do echo "$1$name=$PROXY"; done
    for name in no_proxy NO_PROXY; do echo "$1$name=$NO_PROXY"; done
    for name in $CA_VARIABLES; do echo "$1$name=$BUNDLE"; done
    echo "$1NODE_EXTRA_CA_CERTS=$CA"
}

put_unit() {
    put "/etc/systemd/system/$1.service.d/tproxy-egress.conf" <<END
[Service]
$(variables Environment=)
END
}

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

# End with what was found: after a check "in order", or 1.
finish() {
    [ $MODE = check ] || reload_units
    [ $wrong = 0 ] || exit 1
    echo "$1"
    exit 0
}

if [ $MODE = undo ]; then
    files | while read -r file; do
        if [ -e "$file" ] && ours "$file"; then remove "$file"; fi
    done
    if [ -e $CA ]; then
        remove $CA
        update-ca-certificates --fresh >/dev/null
        # That does not tell hooks, such as Java's, what was removed.
        for hook in /etc/ca-certificates/update.d/*; do
            if [ -x "$hook" ]; then echo "-/etc/ssl/certs/tproxy-egress.pem" | "$hook" >/dev/null; fi
        done
    fi
    if [ -e $SITE_KEY ]; then remove $SITE_KEY; fi
    if [ -e $MADE ]; then
        tac $MADE | while read -r made; do rmdir "$made" 2>/dev/null || true; done
        rm -f $MADE
    fi
    finish "undone: open shells still have the variables"
fi

cat >"$new" <<'END'
@CERTIFICATES@
END
if [ $MODE = check ] || cmp -s "$new" $CA; then
    replace $CA
else
    command -v update-ca-certificates >/dev/null ||
        { echo "tproxy egress setup: the package ca-certificates is missing" >&2; exit 1; }
    replace $CA
    update-ca-certificates >/dev/null
fi

if [ -n "$UNITS" ]; then
    for unit in $UNITS; do put_unit "$unit"; done
    if [ $MODE = check ]; then finish "in order"; fi
    finish "restart these services for it to apply: $UNITS"
fi

put /etc/profile.d/tproxy-egress.sh <<END
$(variables "export ")
END
put /etc/apt/apt.conf.d/80tproxy-egress <<END
Acquire::http::Proxy "$PROXY";
Acquire::https::Proxy "$PROXY";
Acquire::https::CAInfo "$BUNDLE";
END
# The key that signs the Debian suites of a sealed site. Nothing else does where the next line is empty.
cat >"$new" <<'END'
@SITE_KEY@
END
if grep -q . "$new"; then replace $SITE_KEY; fi
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
    if [ -e "/lib/systemd/system/$unit.service" ]; then put_unit $unit; fi
done
[ $MODE = check ] || finish "done: new shells use $PROXY"

# The files are right. What follows looks at how this shell, and programs, see the machine.
if [ ! -r $BUNDLE ] || ! grep -qF "$(sed -n 2p $CA 2>/dev/null)" $BUNDLE; then
    problem "the authority is not in $BUNDLE: run update-ca-certificates"
fi
value=
for name in http_proxy https_proxy; do
    eval "value=\${$name-}"
    [ "$value" = "$PROXY" ] || problem "$name is not $PROXY: open a new shell, or see /etc/profile.d/tproxy-egress.sh"
done
for name in $CA_VARIABLES; do
    eval "value=\${$name-}"
    [ "$value" = $BUNDLE ] || problem "$name is not $BUNDLE: open a new shell, or see /etc/profile.d/tproxy-egress.sh"
done
if command -v apt-get >/dev/null; then
    apt-config dump 2>/dev/null | grep -qF "Acquire::http::Proxy \"$PROXY\";" ||
        problem "apt does not use $PROXY: another file in /etc/apt/apt.conf.d says otherwise"
fi
if command -v curl >/dev/null; then
    # Whatever the policy says of this site, the proxy answers, and shows a certificate of the authority.
    cat >"$new" <<'END'
@CERTIFICATES@
END
    curl -sS -o /dev/null -m 20 --proxy "$PROXY" --cacert "$new" https://pypi.org/simple/ 2>/dev/null ||
        [ $? = 56 ] || problem "the proxy does not answer at $PROXY"
fi
finish "in order"
