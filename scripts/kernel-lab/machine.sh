# Sourced by scripts/kernels: an emulated Debian machine.
#
# A root file system is made once per suite and kept in $lab; it is booted as a snapshot, so every run
# starts from the same machine, and a changed list of packages makes a new one. The folder of a job
# goes in, and results come out, by 9p: no disk image is built for a run.

# What is in every machine; what differs between Debian's releases is in packages_of.
PACKAGES=linux-image-amd64,systemd-sysv,udev,dbus,dbus-user-session,libpam-systemd,docker.io,runc,crun,podman
PACKAGES+=,apparmor,iptables,procps,kmod,iproute2,util-linux,curl,jq,openssl,python3,redis-tools,uidmap,slirp4netns
PACKAGES+=,fuse-overlayfs,umoci,skopeo,gcc,libc6-dev,libcap2-bin,strace,busybox-static,attr

# packages_of SUITE: prints the list for mmdebstrap.
packages_of() {
    case $1 in
        bullseye) printf '%s,containernetworking-plugins,bpftool' "$PACKAGES" ;;
        bookworm) printf '%s,netavark,aardvark-dns,bpftool' "$PACKAGES" ;;
        bookworm-bullseye) printf '%s,netavark,aardvark-dns' "${PACKAGES#linux-image-amd64,}" ;;
        bookworm-backports) printf '%s,netavark,aardvark-dns,bpftool' "$PACKAGES" ;;
        *) printf '%s,netavark,aardvark-dns,docker-cli,linux-perf' "$PACKAGES" ;;
    esac
}

# make_root SUITE: root file system, kernel and initrd in $lab/SUITE; nothing if they are there.
make_root() {
    local suite=$1 dir=$lab/$1 want lines=() release=${1%%-*} other=$1
    want="$(packages_of "$suite")"
    if [ -f "$dir/root.img" ] && [ "$(cat "$dir/packages" 2>/dev/null)" = "$want" ]; then return; fi
    say "kernels: making the root file system of $suite (some minutes, once)"
    rm -rf "$dir"; mkdir -p "$dir"
    lines=("deb $(mirror) $release main")
    [ "$suite" != bookworm-bullseye ] || other=bullseye
    [ "$suite" = "$release" ] || lines+=("deb $(mirror) $other main")
    local kernel=()
    [ "$suite" = "$release" ] || kernel=(--customize-hook="chroot \"\$1\" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -q -y --no-install-recommends -t $other linux-image-amd64")
    # The initial RAM disk of a general kernel takes minutes to make; this machine needs three modules.
    nice mmdebstrap --variant=minbase --include="$want" --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/doc/*' "${kernel[@]}" \
        --essential-hook='mkdir -p "$1/etc/initramfs-tools/conf.d"; echo MODULES=list >"$1/etc/initramfs-tools/conf.d/lab"' \
        --essential-hook='d=$1/usr/share/initramfs-tools/modules.d; mkdir -p "$d"; printf "%s\n" virtio_pci virtio_blk ext4 >"$d/lab"' \
        --customize-hook='chroot "$1" useradd --create-home --shell /bin/bash user' \
        --customize-hook='rm -f "$1"/etc/systemd/system/getty.target.wants/*' \
        --customize-hook='chroot "$1" systemctl disable docker.service docker.socket containerd.service apt-daily.timer apt-daily-upgrade.timer' \
        --customize-hook="copy-in $here/kernel-lab/job.service /etc/systemd/system" \
        --customize-hook='chroot "$1" systemctl enable job.service' \
        "$release" "$dir/root.tar" "${lines[@]}" >"$dir/mmdebstrap.log" 2>&1 || {
        say "kernels: mmdebstrap $suite failed: $(tail -n 3 "$dir/mmdebstrap.log")"
        return 1
    }
    mkdir "$dir/root"
    tar xf "$dir/root.tar" -C "$dir/root"
    # Of several kernels (a backport beside the release's own) the newest is the machine's.
    cp "$(ls -v "$dir"/root/boot/vmlinuz-* | tail -n 1)" "$dir/vmlinuz"
    cp "$(ls -v "$dir"/root/boot/initrd.img-* | tail -n 1)" "$dir/initrd"
    sed -n 's/^CONFIG_LSM="\(.*\)"/\1/p' "$(ls -v "$dir"/root/boot/config-* | tail -n 1)" >"$dir/lsm"
    mkfs.ext4 -q -d "$dir/root" -L root "$dir/root.img" 10G
    rm -rf "$dir/root" "$dir/root.tar"
    printf '%s' "$want" >"$dir/packages"
}

# boot SUITE JOB RESULT: boots the machine, which runs JOB/run as root with JOB at /job and RESULT, writable,
# at /result. Ends when the machine powers off or $LIMIT seconds are over; the status is qemu's.
boot() {
    local dir=$lab/$1 lsm
    lsm=$(cat "$dir/lsm")
    [[ ,$lsm, == *,bpf,* ]] || lsm+=,bpf # as distributions that enable the BPF LSM do
    rm -f "$3"/status
    TMPDIR=/var/tmp timeout "${LIMIT:-5400}" nice -n "${NICE:-10}" qemu-system-x86_64 -machine q35 -accel tcg,thread=multi -cpu max \
        -smp "${CPUS:-2}" -m "${MEM:-3G}" -display none -no-reboot -nic none \
        -kernel "$dir/vmlinuz" -initrd "$dir/initrd" \
        -append "root=/dev/vda rw console=ttyS0 quiet lsm=$lsm" \
        -drive "file=$dir/root.img,format=raw,if=virtio,snapshot=on,cache=unsafe" \
        -virtfs "local,path=$2,mount_tag=job,security_model=none,readonly=on,multidevs=remap" \
        -virtfs "local,path=$3,mount_tag=result,security_model=none,multidevs=remap" \
        -serial "file:$3/console"
}
