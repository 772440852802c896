#!/bin/sh
# Reports what is still wrong on this machine, a line each. Exit code 0 when nothing is. Changes nothing.
set -u
PROXY=@PROXY@
CA=/usr/local/share/ca-certificates/tproxy-egress.crt
BUNDLE=/etc/ssl/certs/ca-certificates.crt
wrong=0
value=

problem() { echo "$1"; wrong=1; }

certificates=$(mktemp) site_key=$(mktemp)
trap 'rm -f "$certificates" "$site_key"' EXIT
cat >"$certificates" <<'END'
@CERTIFICATES@
END

cat >"$site_key" <<'END'
@SITE_KEY@
END
if grep -q . "$site_key" && ! cmp -s "$site_key" /etc/apt/trusted.gpg.d/tproxy-egress.asc; then
    problem "the key of the site's Debian suites is missing, or has changed: get /setup again, and run it"
fi

if [ ! -r $CA ]; then
    problem "the authority is not installed: $CA is missing"
elif ! cmp -s $CA "$certificates"; then
    problem "the authority has changed: get /setup again, and run it"
elif [ ! -r $BUNDLE ] || ! grep -qF "$(sed -n 2p $CA)" $BUNDLE; then
    problem "the authority is not in $BUNDLE: run update-ca-certificates"
fi

for name in http_proxy https_proxy; do
    eval "value=\${$name-}"
    [ "$value" = "$PROXY" ] || problem "$name is not $PROXY: open a new shell, or see /etc/profile.d/tproxy-egress.sh"
done
for name in SSL_CERT_FILE REQUESTS_CA_BUNDLE CURL_CA_BUNDLE PIP_CERT; do
    eval "value=\${$name-}"
    [ "$value" = $BUNDLE ] || problem "$name is not $BUNDLE"
done
if command -v apt-get >/dev/null; then
    apt-config dump 2>/dev/null | grep -qF "Acquire::http::Proxy \"$PROXY\";" || problem "apt does not use $PROXY"
fi
if command -v curl >/dev/null; then
    # Whatever the policy says of this site, the proxy answers, and shows a certificate of the authority.
    curl -sS -o /dev/null -m 20 --proxy "$PROXY" --cacert "$certificates" https://pypi.org/simple/ 2>/dev/null ||
        [ $? = 56 ] || problem "the proxy does not answer at $PROXY"
fi
[ $wrong = 1 ] || echo "in order"
exit $wrong
