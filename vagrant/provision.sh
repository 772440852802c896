#!/usr/bin/env bash
# Sets up one machine of the test bed, as root. It can be repeated, and must be after a restart of the machine.
#
#   provision.sh front-end                          serves the files that guests fetch, at port 8080
#   provision.sh hypervisor FRONT_END UPLINK GUEST  makes a bridge with uplink and guest, and runs tproxy
#
# FRONT_END is the address of the front-end. UPLINK is the MAC of the network card that connects the guests of the
# hypervisors. GUEST is the address of the guest on this machine, with its prefix length. The guest is a network
# namespace.
set -euo pipefail

checkout=$(realpath "$(dirname "${BASH_SOURCE[0]}")/..")
bridge=br0
guest=guest
log=/var/log/front-end.log

install_tproxy() {
    "$checkout/.ci/setup"
    ln -sf "$checkout/.venv/bin/tproxy" /usr/local/bin/tproxy
}

front_end() {
    local where=/srv/front-end
    mkdir -p "$where"
    echo "the front-end of $(uname -n)" >"$where/index.html"
    if ! listens; then
        setsid python3 -m http.server --directory "$where" 8080 </dev/null >>"$log" 2>&1 &
        until listens; do
            kill -0 $! # fails, and so ends this script, if the server has ended
            sleep 0.2
        done
    fi
    echo "the front-end serves $where at port 8080, and logs to $log"
}

listens() {
    [[ -n $(ss -Hltn 'sport = :8080') ]]
}

link_with_mac() {
    local link
    for link in /sys/class/net/*; do
        # Only a card has a device: a bridge can have the same MAC, from its port.
        if [[ -e $link/device && $(<"$link/address") == "$1" ]]; then
            basename "$link"
            return
        fi
    done
    echo "no network card has the MAC $1" >&2
    return 1
}

hypervisor() {
    local front_end=$1 mac=$2 address=$3 uplink
    uplink=$(link_with_mac "$mac")
    [[ -e /sys/class/net/$bridge ]] || ip link add name "$bridge" type bridge
    ip link set dev "$bridge" up
    ip link set dev "$uplink" master "$bridge" up
    if [[ ! -e /run/netns/$guest ]]; then
        ip netns add "$guest"
        ip link add name vnet0 type veth peer name eth0 netns "$guest"
        ip link set dev vnet0 master "$bridge" up
        ip -n "$guest" link set dev lo up
        ip -n "$guest" address add "$address" dev eth0
        ip -n "$guest" link set dev eth0 up
        ip -n "$guest" route add 169.254.16.9 dev eth0
    fi
    mkdir -p /etc/tproxy
    cat >/etc/tproxy/tproxy.yaml <<END
tproxy:
- {service_port: 5030, remote_addr: $front_end, remote_port: 8080, name: front-end}
END
    # tproxy recognises the uplink, so no option names it.
    tproxy hook up --bridge "$bridge" --network "$bridge"
    echo "the guest has its service: ip netns exec $guest curl http://169.254.16.9:5030/"
}

case ${1-}:$# in
    front-end:1) front_end ;;
    hypervisor:4)
        install_tproxy
        hypervisor "$2" "${3,,}" "$4"
        ;;
    *)
        sed -n '/^#  /s/^# *//p' "${BASH_SOURCE[0]}" >&2
        exit 2
        ;;
esac
