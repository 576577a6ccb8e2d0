#!/bin/sh
# Makes a bare Debian 12 into calico-node's file system. Runs as root inside it, with the sources in /src, and removes
# all that only the making needs. The Dockerfile and plugin/build.py both run this script, so that image and plugin are
# the same. What ships, ships from plugin/packages.txt (Debian) and constraints.txt (Python).
set -eu
export DEBIAN_FRONTEND=noninteractive PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
# Only for the making; what is left of them in the end is removed below.
TOOLS='python3-venv python3-pip-whl python3-setuptools-whl ca-certificates openssl'
# Needed to install packages, and by nothing that runs: no package manager is left in the image.
MANAGER='adduser apt debconf debian-archive-keyring e2fsprogs gpgv init-system-helpers libapt-pkg6.0 libext2fs2
    libss2 logsave login perl-base sensible-utils sysvinit-utils ucf usr-is-merged usrmerge'

mkdir -p /etc/dpkg/dpkg.cfg.d
cat > /etc/dpkg/dpkg.cfg.d/small << END
path-exclude /usr/share/doc/*
path-include /usr/share/doc/*/copyright
path-exclude /usr/share/man/*
path-exclude /usr/share/locale/*
path-exclude /usr/share/info/*
path-exclude /usr/share/lintian/*
END
# No service is started by its package.
printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d
chmod +x /usr/sbin/policy-rc.d
apt-get update -q
# shellcheck disable=SC2046,SC2086
apt-get install -q -y --no-install-recommends $(cat /src/plugin/packages.txt) $TOOLS

python3 -m venv /opt/calico
/opt/calico/bin/pip install -q -c /src/constraints.txt /src
/opt/calico/bin/pip uninstall -q -y setuptools pip
ln -sf /opt/calico/bin/calico-* /opt/calico/bin/calicoctl /usr/local/bin/

# shellcheck disable=SC2086
apt-get purge -q -y --auto-remove $TOOLS
present=$(dpkg-query -W -f '${Package} ' $MANAGER 2> /dev/null || true)
# Their own clean-up would miss one another.
for package in $present; do
    rm -f "/var/lib/dpkg/info/$package".*rm "/var/lib/dpkg/info/$package":*.*rm
done
# shellcheck disable=SC2086
dpkg --purge --force-depends --force-remove-essential --force-remove-protected $present
find /opt/calico /usr/lib/python3* -type d \( -name tests -o -name test -o -name idlelib -o -name ensurepip \) \
    -prune -exec rm -rf {} +
find /usr/share/doc ! -type d ! -name copyright -delete
rm -rf /usr/share/man /usr/share/info /usr/share/locale /usr/share/lintian /usr/share/zoneinfo /usr/lib/udev \
    /usr/lib/*/gconv /opt/calico/lib/python3*/site-packages/netaddr/eui/*.txt /etc/ssl/certs \
    /var/lib/apt /var/cache/* /var/log/* /tmp/* /root/.cache /src/build /src/*.egg-info \
    /usr/local/share/ca-certificates /etc/dpkg/dpkg.cfg.d/small /usr/sbin/policy-rc.d
mkdir -p /var/log/calico /var/run/calico /var/lib/calico /etc/calico
