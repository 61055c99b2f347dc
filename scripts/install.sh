#!/bin/sh
# Installs billaged from this checkout; `scripts/install.sh --help` says how.
#
#   /opt/billaged/releases/VERSION-HASH   one release each: a venv with what constraints.txt pins, units, completion
#   /opt/billaged/current                 link to the one in use; changing it is the whole upgrade
#   /opt/billaged/previous                link to the one before, for --rollback
#
# A release is built beside the others and gets its name when it is whole. Nothing in it holds the path of where it
# was built, so it runs from a staging root as well as from /opt.
set -eu
umask 022

usage() {
    cat <<'END'
Usage: scripts/install.sh [OPTION]...

Installs billaged: a venv of its own under /opt/billaged, a system user, the systemd units, /etc/billaged/billaged.env
with all settings and their defaults, shell completion, dashboards and alert rules, and the commands billaged and
billaged-import-dashboards. Doing it again changes nothing; from a newer checkout it is an upgrade. Needs root, Python 3.11 or newer with venv, and a package index; pip's own
settings (PIP_INDEX_URL, PIP_FIND_LINKS and the others, pip.conf) are used as they are: `sudo -E` hands them on.

  --prefix DIR    put everything under DIR, which stands for / : for packages, images and chroots (as DESTDIR does).
                  No user is made and no service touched. What is there runs from there too, also without root:
                  DIR/opt/billaged/current/bin/billaged
  --user NAME     the user the service runs as (default: billaged, or that of the installed unit); made if missing
  --python PATH   the interpreter (default: the first of python3, python3.13, python3.12, python3.11 that is new
                  enough and that the service can use: not one in somebody's home directory)
  --extras LIST   extras of setup.cfg to install, like agent: that one brings billaged-agent.service, too
  --no-start      neither start nor restart the service
  --rollback      make the previous release the current one again, and restart
  --uninstall     remove all of it but settings (/etc/billaged), data (/var/lib/billaged*, /var/log/billaged) and the user
  --package       lay it out as a distribution's package: /usr for /usr/local, units in /usr/lib (with --prefix)
  --help          this
END
}

say() { printf '%s\n' "$*"; }
left_out() { say "left out: $*"; }
fail() { printf 'install.sh: %s\n' "$*" >&2; exit 1; }

prefix='' user='' python='' extras='' start=yes action=install layout=local
while [ $# -gt 0 ]; do
    case $1 in
        --prefix=* | --user=* | --python=* | --extras=*)
            option=${1%%=*} value=${1#*=}
            shift
            set -- "$option" "$value" "$@"
            continue
            ;;
        --prefix | --user | --python | --extras)
            [ $# -ge 2 ] && [ -n "$2" ] || { usage >&2; fail "$1 needs a value"; }
            case $1 in
                --prefix) prefix=$2 ;;
                --user) user=$2 ;;
                --python) python=$2 ;;
                --extras) extras=$2 ;;
            esac
            shift
            ;;
        --no-start) start=no ;;
        --rollback) action=rollback ;;
        --uninstall) action=uninstall ;;
        --package) layout=package ;;
        -h | --help) usage; exit 0 ;;
        *) usage >&2; printf 'install.sh: unknown option %s\n' "$1" >&2; exit 2 ;;
    esac
    shift
done

source=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
if [ -n "$prefix" ]; then
    [ "$action" = uninstall ] || mkdir -p -- "$prefix"
    prefix=$(CDPATH='' cd -- "$prefix" && pwd) || fail "there is no $prefix"
    # The root itself is no staging root.
    [ "$prefix" != / ] || prefix=''
fi
[ -n "$prefix" ] || [ "$(id -u)" = 0 ] || fail "needs root: sudo $0, or --prefix DIR"
[ -n "$prefix" ] || [ "$layout" = local ] || fail "--package needs --prefix"
case $user in *[!a-zA-Z0-9_.-]* | -*) fail "no name of a user: $user" ;; esac
case $extras in *[!a-zA-Z0-9_,-]*) fail "no list of extras: $extras" ;; esac

home=$prefix/opt/billaged
settings=$prefix/etc/billaged
case $layout in
    local) usr=usr/local units=$prefix/etc/systemd/system zsh=site-functions ;;
    # Where Debian's zsh looks for what packages bring.
    package) usr=usr units=$prefix/usr/lib/systemd/system zsh=vendor-completions ;;
esac
commands=$prefix/$usr/bin
share=$prefix/$usr/share
logrotate=$prefix/etc/logrotate.d/billaged
bash_completion=$share/bash-completion/completions/billaged
zsh_completion=$share/zsh/$zsh/_billaged
fish_completion=$share/fish/vendor_completions.d/billaged.fish

# --- systemd, as far as it is there ----------------------------------------------------------

has_systemctl() { [ -z "$prefix" ] && command -v systemctl >/dev/null 2>&1; }
systemd_runs() { has_systemctl && [ -d /run/systemd/system ]; }

# Until the service is ready, has failed, or $1 seconds have passed; says which.
await_service() {
    waited=0
    while :; do
        state=$(systemctl show --property ActiveState --value billaged.service)
        case $state in
            active) say "billaged.service is serving"; return 0 ;;
            failed) break ;;
        esac
        # Started by us, so each of these is a start that has failed since.
        if [ "$(systemctl show --property NRestarts --value billaged.service)" != 0 ]; then
            state=failing
            break
        fi
        [ "$waited" -lt "$1" ] || break
        sleep 1
        waited=$((waited + 1))
    done
    if [ "$state" = activating ]; then
        say "billaged.service is not ready yet: $(systemctl show --property StatusText --value billaged.service)"
        say "  its settings are in $settings/billaged.env; systemctl status billaged"
        return 0
    fi
    say "billaged.service is $state: journalctl -u billaged" >&2
    return 1
}

# --- the interpreter -------------------------------------------------------------------------

usable() { "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

# Where the interpreter really is: a link like python3 means another one after the distribution's next upgrade.
real_interpreter() {
    "$1" -c 'import os, sys; print(os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable))'
}

# The service sees no home directories (ProtectHome=), and its user may read none.
in_a_home() { case $1 in /home/* | /root/* | /run/user/*) return 0 ;; *) return 1 ;; esac; }

choose_python() {
    if [ -n "$python" ]; then
        usable "$python" || fail "$python is no Python 3.11 or newer with venv (on Debian and Ubuntu: apt install python3-venv)"
        python=$(real_interpreter "$python")
        if in_a_home "$python"; then
            [ -n "$prefix" ] || fail "the service cannot use $python: it is in a home directory"
            say "note: $python is in a home directory; the installed service could not use it"
        fi
        return
    fi
    for candidate in python3 python3.13 python3.12 python3.11 /usr/local/bin/python3 /usr/bin/python3; do
        usable "$candidate" || continue
        found=$(real_interpreter "$candidate")
        if in_a_home "$found"; then
            python=${python:-$found}
            continue
        fi
        python=$found
        return
    done
    if [ -n "$prefix" ] && [ -n "$python" ]; then
        say "note: $python is in a home directory; the installed service could not use it"
        return
    fi
    fail "found no Python 3.11 or newer with venv outside of home directories (on Debian and Ubuntu: apt install python3-venv; else --python PATH)"
}

# --- a release -------------------------------------------------------------------------------

# What a release is made from. Two checkouts with the same files make the same one.
sources() {
    (
        cd "$source"
        printf '%s\n' setup.cfg pyproject.toml constraints.txt README.md scripts/install.sh
        printf '%s\n' scripts/import_dashboards.py dashboards/alerts.yml dashboards/billaged-*.json
        find billaged systemd -type f ! -path '*/__pycache__/*' ! -name '*.pyc'
    ) | LC_ALL=C sort
}

release_name() {
    version=$(sed -n 's/^__version__ *= *"\([^"]*\)"$/\1/p' "$source/billaged/__init__.py")
    [ -n "$version" ] || fail "$source/billaged/__init__.py names no version"
    hash=$(
        cd "$source"
        { sources | tr '\n' '\0' | xargs -0 sha256sum; "$python" -VV; printf '%s\n' "$python" "$extras"; } |
            sha256sum | cut -c 1-12
    )
    printf '%s-%s\n' "$version" "$hash"
}

build_release() {
    release=$home/releases/$1
    new=$home/releases/.new-$1
    rm -rf -- "$home"/releases/.new-*
    scratch=$(mktemp -d)
    trap 'rm -rf -- "$scratch" "$new"' EXIT
    trap 'exit 1' HUP INT TERM
    # From a copy: a build leaves files behind, which would be root's in somebody's checkout.
    (cd "$source" && sources | tr '\n' '\0' | xargs -0 cp --parents -t "$scratch" --)

    say "building $1 with $("$python" -V), $python"
    "$python" -m venv "$new"
    pip() { "$new/bin/python" -m pip --quiet --disable-pip-version-check "$@"; }
    pip install --no-compile -c "$scratch/constraints.txt" setuptools
    pip install --no-compile -c "$scratch/constraints.txt" --no-build-isolation "$scratch${extras:+[$extras]}"
    pip check
    # Nothing is installed into a release later.
    pip uninstall --yes setuptools pip

    # Console scripts and notes hold the path of where they were made; ours finds its own.
    find "$new/bin" -mindepth 1 ! -name 'python*' -exec rm -rf -- {} +
    find "$new/lib" -name direct_url.json -exec rm -f -- {} +
    sed -i '/^command *=/d' "$new/pyvenv.cfg"
    cat >"$new/bin/billaged" <<'END'
#!/bin/sh
# The same process throughout: the service manager knows it by its id. A release is never written to.
exec "$(dirname -- "$(readlink -f -- "$0")")/python" -I -B -m billaged "$@"
END
    cat >"$new/bin/billaged-import-dashboards" <<'END'
#!/bin/sh
here=$(dirname -- "$(readlink -f -- "$0")")
exec "$here/python" -I -B "$here/../share/scripts/import_dashboards.py" "$@"
END
    cp "$source/systemd/billaged-command" "$new/bin/billaged-command"
    chmod 755 "$new"/bin/billaged*
    # What is missing or broken is found before anything depends on it.
    "$new/bin/billaged" --version >/dev/null
    "$new/bin/python" -I -B -c 'import billaged.daemon, billaged.cli.serve'
    # A release never changes, so nobody has to look whether its bytecode is fresh.
    compile() {
        "$new/bin/python" -m compileall -q --invalidation-mode unchecked-hash -s "$new" -p "/opt/billaged/releases/$1" "$2"
    }
    # A library may carry files for other Pythons; ours are all for this one.
    compile "$1" "$new/lib" >/dev/null 2>&1 || :
    compile "$1" "$("$new/bin/python" -I -c 'import importlib.util as u; print(*u.find_spec("billaged").submodule_search_locations)')" ||
        fail "the sources are broken"

    mkdir -p "$new/share/systemd"
    cp "$source"/systemd/*.service "$source"/systemd/*.timer "$new/share/systemd/"
    case ,$extras, in *,agent,*) ;; *) rm "$new/share/systemd/billaged-agent.service" ;; esac
    cp "$source/systemd/billaged.env.example" "$source/systemd/billaged.logrotate" "$new/share/"
    # Side by side as in a checkout: the one finds the others.
    mkdir "$new/share/scripts" "$new/share/dashboards"
    cp "$source/scripts/import_dashboards.py" "$new/share/scripts/"
    cp "$source"/dashboards/alerts.yml "$source"/dashboards/billaged-*.json "$new/share/dashboards/"
    "$new/bin/billaged-import-dashboards" --help >/dev/null
    for shell in bash zsh fish; do
        "$new/bin/billaged" completion "$shell" >"$new/share/completion.$shell"
    done

    rm -rf -- "$release"
    mv -- "$new" "$release"
    rm -rf -- "$scratch"
    trap - EXIT HUP INT TERM
}

# --- files outside of /opt -------------------------------------------------------------------

# place FILE TARGET [MODE]: whoever reads the target finds the old one or the new one.
place() {
    mkdir -p -- "$(dirname -- "$2")"
    cp -- "$1" "$2.installing"
    chmod "${3:-644}" "$2.installing"
    mv -f -- "$2.installing" "$2"
}

# point LINK TARGET, in one step.
point() {
    mkdir -p -- "$(dirname -- "$1")"
    rm -f -- "$1.installing"
    ln -s -- "$2" "$1.installing"
    mv -fT -- "$1.installing" "$1"
}

place_units() {
    for unit in "$1"/share/systemd/*; do
        name=$(basename -- "$unit")
        if [ "$name" = billaged-agent.service ]; then
            # It is written for hosts that have the single executable only.
            sed 's|^ExecStart=/usr/local/bin/billaged|ExecStart=/opt/billaged/current/bin/billaged|' "$unit"
        else
            sed "s/^User=billaged\$/User=$user/; s/^Group=billaged\$/Group=$group/" "$unit"
        fi >"$home/.unit"
        place "$home/.unit" "$units/$name"
        rm -f "$home/.unit"
    done
}

# An operator's settings stay as they are; what a new release changes in the example is put beside them.
place_settings() {
    example=$1/share/billaged.env.example
    mkdir -p "$settings/commands"
    if [ ! -e "$settings/billaged.env" ]; then
        place "$example" "$settings/billaged.env" 640
        # It may come to hold a token.
        [ -n "$prefix" ] || chgrp "$group" "$settings/billaged.env"
        say "wrote $settings/billaged.env: all settings with their defaults"
    elif [ -n "$2" ] && cmp -s "$2/share/billaged.env.example" "$example"; then
        :
    elif cmp -s "$settings/billaged.env" "$example"; then
        rm -f "$settings/billaged.env.new"
    else
        place "$example" "$settings/billaged.env.new" 640
        say "kept $settings/billaged.env; this version's is beside it, as billaged.env.new"
    fi
}

# As this release has it, where nobody has changed what was installed before.
place_logrotate() {
    placed=$home/.logrotate
    if [ -e "$logrotate" ] && ! cmp -s "$placed" "$logrotate"; then
        say "kept $logrotate, which is not as it was installed"
        return
    fi
    sed "s/ billaged billaged\$/ $user $group/" "$1/share/billaged.logrotate" >"$placed"
    place "$placed" "$logrotate"
}

make_user() {
    if [ -z "$user" ]; then
        user=$(sed -n 's/^User=//p' "$units/billaged.service" 2>/dev/null || :)
        user=${user:-billaged}
    fi
    group=$user
    if [ -n "$prefix" ]; then
        left_out "the user $user: to be made where $prefix becomes /"
        return
    fi
    if ! id "$user" >/dev/null 2>&1; then
        command -v useradd >/dev/null 2>&1 || fail "there is no useradd: make a system user, then --user NAME"
        nologin=/bin/false
        for shell in /usr/sbin/nologin /sbin/nologin; do [ ! -x $shell ] || nologin=$shell; done
        useradd --system --user-group --home-dir /var/lib/billaged --no-create-home --shell $nologin "$user"
        say "made the system user $user"
    fi
    group=$(id -gn "$user")
}

make_agent_user() {
    [ -e "$1/share/systemd/billaged-agent.service" ] && [ -z "$prefix" ] || return 0
    id billaged-agent >/dev/null 2>&1 ||
        useradd --system --user-group --home-dir /var/lib/billaged-agent --no-create-home --shell /usr/sbin/nologin billaged-agent
}

# Make $1 (a name in releases/) the current release, with its units, completion and the link to its command.
use_release() {
    release=$home/releases/$1
    old=$(readlink "$home/current" 2>/dev/null || :)
    make_user
    make_agent_user "$release"
    place_units "$release"
    place_settings "$release" "${old:+$home/$old}"
    place_logrotate "$release"
    place "$release/share/completion.bash" "$bash_completion"
    place "$release/share/completion.zsh" "$zsh_completion"
    place "$release/share/completion.fish" "$fish_completion"
    if [ "$old" != "releases/$1" ]; then
        [ -z "$old" ] || point "$home/previous" "$old"
        point "$home/current" "releases/$1"
        say "current release: $1${old:+ (before: ${old#releases/})}"
    else
        say "current release: $1, as before"
    fi
    # From where they stand, so that they lead there in a staging root as well.
    up=$(printf '%s\n' "$usr" | sed 's|[^/]*|..|g')
    for command in billaged billaged-import-dashboards; do
        point "$commands/$command" "$up/../opt/billaged/current/bin/$command"
    done
    point "$share/billaged/dashboards" "$up/../../opt/billaged/current/share/dashboards"
    run_service "$old" "releases/$1"
}

# $1: the release before, empty for none; $2: the one now.
run_service() {
    if [ -n "$prefix" ]; then
        left_out "the service: systemctl enable --now billaged, where $prefix becomes /"
        return
    fi
    if ! has_systemctl; then
        left_out "the service: there is no systemd. Run as $user: /opt/billaged/current/bin/billaged serve"
        return
    fi
    # Disabled by somebody, it stays disabled through upgrades.
    [ -n "$1" ] || systemctl --quiet enable billaged.service
    if ! systemd_runs; then
        left_out "the start: systemd does not run here; the service is enabled for the next boot"
        return
    fi
    systemctl daemon-reload
    if [ "$start" = no ]; then
        left_out "the start: systemctl restart billaged"
    elif [ -z "$1" ]; then
        systemctl --no-block start billaged.service
        await_service 10
    elif [ "$1" != "$2" ] && systemctl --quiet is-active billaged.service; then
        systemctl --no-block restart billaged.service
        sleep 1
        await_service 60 || fail "the release before is still there: scripts/install.sh --rollback"
    fi
}

# The current and the previous release stay.
remove_old_releases() {
    for release in "$home"/releases/*; do
        case releases/$(basename -- "$release") in
            "$(readlink "$home/current" || :)" | "$(readlink "$home/previous" || :)") ;;
            *) rm -rf -- "$release" ;;
        esac
    done
}

# --- what it is called for -------------------------------------------------------------------

one_at_a_time() {
    mkdir -p "$home/releases"
    command -v flock >/dev/null 2>&1 || return 0
    exec 9>"$home/.lock"
    flock -n 9 || fail "another install.sh is at work in $home"
}

do_install() {
    choose_python
    one_at_a_time
    name=$(release_name)
    [ -x "$home/releases/$name/bin/billaged" ] || build_release "$name"
    use_release "$name"
    # A daemon that was not restarted may still run from a release before the previous one.
    [ "$start" = no ] && [ -z "$prefix" ] || remove_old_releases
}

do_rollback() {
    before=$(readlink "$home/previous" 2>/dev/null || :)
    [ -n "$before" ] && [ -x "$home/$before/bin/billaged" ] || fail "there is no previous release in $home"
    one_at_a_time
    use_release "${before#releases/}"
}

do_uninstall() {
    if systemd_runs; then
        systemctl --quiet disable --now billaged.service 2>/dev/null || :
        systemctl stop 'billaged-command@*.timer' 'billaged-command@*.service' billaged-agent.service 2>/dev/null || :
    fi
    rm -f "$prefix"/etc/systemd/system/*.wants/billaged.service "$prefix"/etc/systemd/system/*.wants/billaged-agent.service \
        "$prefix"/etc/systemd/system/*.wants/billaged-command@*.timer
    rm -f "$units/billaged.service" "$units/billaged-command@.service" "$units/billaged-command@.timer" \
        "$units/billaged-agent.service" "$commands/billaged" "$commands/billaged-import-dashboards" "$logrotate" \
        "$share/billaged/dashboards" "$bash_completion" "$zsh_completion" "$fish_completion"
    rmdir "$share/billaged" 2>/dev/null || :
    rm -rf -- "$home"
    systemd_runs && systemctl daemon-reload
    say "removed billaged. Still there: $settings (settings), $prefix/var/lib/billaged and what begins like it (data)," \
        "$prefix/var/log/billaged, the user, drop-ins of units"
}

if [ -z "$prefix" ] && [ -e /usr/bin/billaged ]; then
    fail "/usr/bin/billaged belongs to the package billaged: upgrade or remove that"
fi
"do_$action"
