#!/bin/bash
# Hosts on one machine: hosts.sh up|down|exec HOST CMD...|kill HOST|boot HOST|cut HOST|mute HOST|join HOST|status
# Simulated hosts: each has its own net + pid + uts + mount namespace, sshd, private /run /dev/shm.
# All other paths (the checkout, the environment) are the same on every host, as on a cluster with a shared file system.
# The bridge lives in a namespace of its own: there is no route from any simulated host to the outside.
set -u
STATE=${CLUSTER_STATE:-/var/tmp/simcluster}      # not under /run, which is private to each host
NODES=${CLUSTER_NODES:-2}
SUB=10.77.0
SW=simsw
hosts() { echo login; for i in $(seq 1 "$NODES"); do echo "node$i"; done; }
addr() { case $1 in login) echo $SUB.1;; node*) echo $SUB.$((10+${1#node}));; esac; }
pid_of() { cat "$STATE/$1/pid" 2>/dev/null; }
alive() { local p; p=$(pid_of "$1"); [ -n "$p" ] && [ -d "/proc/$p" ]; }

common() {   # keys, name table: once per cluster
  mkdir -p "$STATE/etc" "$STATE/ssh"; chmod 700 "$STATE/ssh"
  { echo "127.0.0.1 localhost"; for h in $(hosts); do echo "$(addr $h) $h"; done; } > "$STATE/etc/hosts"
  [ -f "$STATE/ssh/id_ed25519" ] || ssh-keygen -q -t ed25519 -N '' -f "$STATE/ssh/id_ed25519"
  [ -f "$STATE/ssh/host_key" ]   || ssh-keygen -q -t ed25519 -N '' -f "$STATE/ssh/host_key"
  cp "$STATE/ssh/id_ed25519.pub" "$STATE/ssh/authorized_keys"
  for h in $(hosts); do echo "$h,$(addr $h) $(cut -d' ' -f1,2 "$STATE/ssh/host_key.pub")"; done > "$STATE/ssh/known_hosts"
  cat > "$STATE/ssh/sshd_config" <<E
Port 22
HostKey $STATE/ssh/host_key
AuthorizedKeysFile $STATE/ssh/authorized_keys
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
StrictModes no
MaxStartups 100
Subsystem sftp internal-sftp
${SSHD_EXTRA:-}
E
  cat > "$STATE/etc/ssh_config" <<E
Host *
  IdentityFile $STATE/ssh/id_ed25519
  UserKnownHostsFile $STATE/ssh/known_hosts
  BatchMode yes
  ConnectTimeout 5
  ServerAliveInterval 5
  ServerAliveCountMax 3
  ${SSH_EXTRA:-}
E
  cat > "$STATE/init.sh" <<'E'
#!/bin/bash
# pid 1 of a simulated host: STATE HOST
S=$1; H=$2
hostname "$H"
mount --make-rprivate /
mount -t tmpfs tmpfs /run; mkdir -p /run/sshd /run/munge; chmod 755 /run/sshd /run/munge
mkdir -p "$S/$H/spool" "$S/$H/log"
mount -t tmpfs tmpfs /dev/shm
mkdir /run/cg; mount --rbind /sys/fs/cgroup /run/cg; mount -t sysfs sysfs /sys && mount --move /run/cg /sys/fs/cgroup
mount --bind "$S/etc/hosts" /etc/hosts
echo "$H" > "$S/$H/hostname"; mount --bind "$S/$H/hostname" /etc/hostname
mount --bind "$S/etc/ssh_config" /etc/ssh/ssh_config
[ -d "$S/etc/slurm" ] && mount --bind "$S/etc/slurm" /etc/slurm
ip link set lo up
# wait for the network cable
for i in $(seq 200); do ip link show eth0 >/dev/null 2>&1 && break; sleep 0.05; done
ip link set eth0 up
/usr/sbin/sshd -f "$S/ssh/sshd_config" -E "$S/$H/log/sshd.log"
[ -f "$S/boot.sh" ] && bash "$S/boot.sh" "$S" "$H" > "$S/$H/log/boot.log" 2>&1
touch "$S/$H/up"
trap : TERM INT
while :; do sleep 3600 & wait $!; done
E
}

boot() {  # one host
  local h=$1 p
  mkdir -p "$STATE/$h"; rm -f "$STATE/$h/up"
  unshare --net --pid --mount --uts --ipc --fork --kill-child --mount-proc \
     env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 \
     bash "$STATE/init.sh" "$STATE" "$h" </dev/null >"$STATE/$h/init.log" 2>&1 &
  local up=$!; echo $up > "$STATE/$h/unshare.pid"; disown
  for i in $(seq 100); do p=$(cat /proc/$up/task/$up/children 2>/dev/null); p=${p%% *}
     # the child has its net ns only once unshare() ran
     [ -n "$p" ] && [ "$(readlink /proc/$p/ns/net)" != "$(readlink /proc/$$/ns/net)" ] && break; sleep 0.02; done
  echo "$p" > "$STATE/$h/pid"
  ip link add "t-$h" type veth peer name "e-$h" || return 1
  ip link set "e-$h" netns "$p" name eth0 || return 1
  nsenter -t "$p" -n ip addr add "$(addr $h)/24" dev eth0
  ip link set "t-$h" netns $SW
  ip netns exec $SW ip link set "t-$h" master br0 up
  nsenter -t "$p" -n ip link set eth0 up
}
wait_up() { local h=$1; for i in $(seq 200); do [ -e "$STATE/$h/up" ] && return 0; sleep 0.05; done; echo "$h did not come up" >&2; return 1; }
hexec() { local h=$1; shift; nsenter -t "$(pid_of $h)" -n -p -m -u -i -- env -i PATH="${HOST_PATH:-/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin}" HOME=/root USER=root LANG=C.UTF-8 TERM=dumb "$@"; }
power_off() { local h=$1 p; p=$(pid_of "$h"); [ -n "$p" ] && kill -9 "$p" 2>/dev/null; for i in $(seq 100); do alive "$h" || break; sleep 0.02; done
  ip netns exec $SW ip link del "t-$h" 2>/dev/null; rm -f "$STATE/$h/up" "$STATE/$h/pid"; }

case ${1:-} in
 up) common
     ip netns add $SW; ip netns exec $SW ip link add br0 type bridge; ip netns exec $SW ip link set br0 up
     # a command run by mistake outside the hosts must not send to $SUB.0/24
     ip route replace unreachable $SUB.0/24
     for h in $(hosts); do boot $h || exit 1; done; for h in $(hosts); do wait_up $h || exit 1; done;;
 down) for h in $(hosts); do power_off $h; done; ip netns del $SW 2>/dev/null; ip route del unreachable $SUB.0/24 2>/dev/null; true;;
 exec) shift; hexec "$@";;
 kill) power_off "$2";;                                     # power cut
 boot) boot "$2" && wait_up "$2";;
 cut)  ip netns exec $SW ip link set "t-$2" down;;          # carrier lost on the host's side
 mute) ip netns exec $SW ip link set "t-$2" nomaster;;      # silent: link up, nothing arrives
 join) ip netns exec $SW ip link set "t-$2" master br0 up;;
 status) for h in $(hosts); do alive $h && echo "$h up $(pid_of $h) $(addr $h)" || echo "$h down"; done;;
 *) sed -n 2,3p "$0"; exit 2;;
esac
