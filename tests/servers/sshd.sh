#!/usr/bin/env bash
# OpenSSH's server for the user who starts it, with keys of its own: `ssh -F DIR/ssh_config test`. Nothing in ~/.ssh is read or written.
#
# sshd.sh start|stop DIR
# sshd.sh command DIR [COMMAND]     from now on the key runs that command and nothing else; without COMMAND, whatever is asked for
# sshd.sh hang-up DIR               ends the connections that there are
# sshd.sh kill DIR sshd [SIGNAL]    (connections live on)
# sshd.sh restart DIR sshd
. "$(dirname "$0")/common.sh"
daemons=(sshd)

prepare() {
    # On a machine with services of its own, Debian's package would open a port to the network.
    if [ -d /run/systemd/system ]; then
        command -v sshd >/dev/null || skip "not installed: openssh-server"
    fi
    need sshd=openssh-server ssh=openssh-client
    local user pam=no name
    user=$(id -un)
    ports port
    remember port
    tell IMGSNAP_TEST_SSH_CONFIG="$dir/ssh_config"
    for name in host_key client_key; do ssh-keygen -q -t ed25519 -N '' -C imgsnap-test -f "$name"; done
    echo "[127.0.0.1]:$port $(cut -d ' ' -f 1,2 host_key.pub)" >known_hosts
    verb_command
    # As root it does not let in a user whose password is locked, unless PAM is asked.
    case $(getent shadow "$user") in "$user:!"*) pam=yes ;; esac
    cat >sshd_config <<CONF
ListenAddress 127.0.0.1:$port
HostKey "$dir/host_key"
AuthorizedKeysFile "$dir/authorized_keys"
PidFile none
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM $pam
UseDNS no
MaxStartups 100
MaxSessions 100
SetEnv "IMGSNAP_TEST_SERVER=$dir"
CONF
    # New versions shut out whoever breaks off many connections.
    if "$(command -v sshd)" -t -f sshd_config -o PerSourcePenalties=no 2>/dev/null; then echo 'PerSourcePenalties no' >>sshd_config; fi
    cat >ssh_config <<CONF
Host test
    HostName 127.0.0.1
    Port $port
    User $user
    IdentityFile "$dir/client_key"
    IdentitiesOnly yes
    IdentityAgent none
    UserKnownHostsFile "$dir/known_hosts"
    GlobalKnownHostsFile /dev/null
    StrictHostKeyChecking yes
    BatchMode yes
CONF
}

launch() {
    [ "$(id -u)" != 0 ] || mkdir -p /run/sshd
    spawn sshd "$(command -v sshd)" -D -e -f "$dir/sshd_config"
}
answers() { ssh-keyscan -T 5 -p "$port" -t ed25519 127.0.0.1 2>&1 | grep "$(cut -d ' ' -f 2 host_key.pub)"; }

verb_command() {
    local options=
    # Quotes are the only characters that need an escape there.
    [ -z "${1-}" ] || options="restrict,command=\"${1//\"/\\\"}\" "
    echo "$options$(cat client_key.pub)" >authorized_keys.new
    mv authorized_keys.new authorized_keys
}

verb_hang-up() {
    local listener one
    listener=$(pid sshd) || fail "sshd does not run"
    for one in $(cat "/proc/$listener/task/$listener/children"); do kill -KILL "$one" || true; done
}

main "$@"
