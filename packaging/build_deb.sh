#!/bin/sh
# Makes build/billaged_VERSION_ARCH.deb: what scripts/install.sh stages, and what Debian does around it.
#
#   packaging/build_deb.sh [--into DIR] [--extras LIST] [--from DIR]
#
# --from takes the release from where `scripts/install.sh --prefix DIR` has made it, if it is of the same sources and Python.
# It holds the venv, linked to the distribution's own Python: a package for the release of Debian or Ubuntu it was
# built on.
set -eu
umask 022
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
root=$(dirname -- "$here")
fail() { printf 'build_deb.sh: %s\n' "$*" >&2; exit 1; }

into=$root/build extras='' from=''
while [ $# -gt 0 ]; do
    case $1 in
        --into) into=$2 ;;
        --extras) extras=$2 ;;
        --from) from=$2 ;;
        *) fail "usage: packaging/build_deb.sh [--into DIR] [--extras LIST] [--from DIR]" ;;
    esac
    shift 2
done
command -v dpkg-deb >/dev/null 2>&1 || fail "there is no dpkg-deb: build it on Debian or Ubuntu"
python=$(/usr/bin/python3 -c 'import os, sys; print(os.path.realpath(sys.executable))') || fail "needs the package python3"
package=$(basename -- "$python")
dpkg-query --show "$package" >/dev/null 2>&1 || fail "$python is not from a package $package, which could be depended on"

scratch=$(mktemp -d)
trap 'rm -rf -- "$scratch"' EXIT
# Its mode is that of the package's root.
stage=$scratch/root
mkdir "$stage"
if [ -n "$from" ]; then
    mkdir -p "$stage/opt/billaged"
    cp -a -- "$from/opt/billaged/releases" "$stage/opt/billaged/"
fi
"$root/scripts/install.sh" --package --prefix "$stage" --python "$python" ${extras:+--extras "$extras"}
rm -f "$stage/opt/billaged/.lock" "$stage/opt/billaged/.logrotate"

version=$(sed -n 's/^__version__ *= *"\([^"]*\)"$/\1/p' "$root/billaged/__init__.py")
architecture=$(dpkg --print-architecture)
# From one folder below / to another, links of a package are absolute.
for link in "$stage"/usr/bin/billaged* "$stage/usr/share/billaged/dashboards"; do
    target=$(readlink "$link")
    ln -sfn "/opt/${target#*/opt/}" "$link"
done
maintainer=$(sed -n 's/^Upstream-Contact: //p' "$here/debian/copyright")

pages=$stage/usr/share/doc/billaged
mkdir -p "$pages" "$stage/usr/share/lintian/overrides"
cp "$here/debian/copyright" "$root/CHANGELOG.md" "$root"/docs/*.md "$pages/"
cp "$here/debian/lintian-overrides" "$stage/usr/share/lintian/overrides/billaged"
# The same sources give the same file.
made=${SOURCE_DATE_EPOCH:-$(stat -c %Y "$root/CHANGELOG.md")}
cat <<END | gzip -9n >"$pages/changelog.gz"
billaged ($version) unstable; urgency=medium

  * What is new in this version is in CHANGELOG.md.

 -- $maintainer  $(date -Rud "@$made")
END
chmod -R u=rwX,go=rX "$pages" "$stage/usr/share/lintian"

mkdir "$stage/DEBIAN"
cat >"$stage/DEBIAN/control" <<END
Package: billaged
Version: $version
Architecture: $architecture
Maintainer: $maintainer
Depends: $package, libc6, passwd
Recommends: logrotate, systemd
Section: admin
Priority: optional
Installed-Size: $(du -sk --exclude DEBIAN "$stage" | cut -f 1)
Description: turns raw VM usage into bills that can be proved
 Hosts that run virtual machines push counters over gRPC; billaged makes them
 durable before it acknowledges them, folds them into usage, and records what
 it did not see.
END
printf '%s\n' /etc/billaged/billaged.env /etc/logrotate.d/billaged >"$stage/DEBIAN/conffiles"
(cd "$stage" && find . -type f ! -path './DEBIAN/*' -printf '%P\0' | LC_ALL=C sort -z | xargs -0 md5sum) >"$stage/DEBIAN/md5sums"
for script in postinst prerm postrm; do
    cp "$here/debian/$script" "$stage/DEBIAN/$script"
    chmod 755 "$stage/DEBIAN/$script"
done
mkdir -p "$into"
deb=$into/billaged_${version}_$architecture.deb
dpkg-deb --root-owner-group -Zzstd --build "$stage" "$deb" >/dev/null
echo "built $deb ($(du -h "$deb" | cut -f 1), needs $package)"
