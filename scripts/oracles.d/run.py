"""See scripts/oracles: runs the built tests one by one under `slim trace` and compares."""

import concurrent.futures
import json
import os
import re
import shutil
import subprocess
import sys

from exempt import EXEMPT, SKIPPED

SLIM = os.environ["SLIM"]
# `123 openat(…`, `openat(…`; signals, exits and notes begin otherwise.
CALL = re.compile(r"^(?:\d+ +|\[pid +\d+\] )?([a-z_][a-z0-9_]*)\(")
# strace's name for a call that another table of names has otherwise.
SAME = {"sysctl": "_sysctl", "prlimit": "prlimit64"}
# Both of LTP's want a block device: a loop device of the host, made known to the container and allowed to it.
# What does that is no part of the test, so it is not recorded.
DEVICE = """
unrecorded() { ${SLIM_EXEC%% *} exec --unrecorded "$SLIM_CONTAINER" -- "$@"; }
truncate -s 300M disk
loop=$(losetup -f --show disk) || exit
trap 'losetup -d "$loop"; rm -f disk' EXIT
top=$(awk '$3 == "cgroup" && $4 ~ /(^|,)devices(,|$)/ { print $2; exit }' /proc/mounts)
group=$(unrecorded busybox cat /proc/self/cgroup | sed -n 's/^[0-9]*:devices://p')
echo 'b 7:* rwm' >"$top$group/devices.allow"
unrecorded busybox mknod /dev/ltp b 7 "${loop#/dev/loop}"
"""
LTP = {"fanotify05": {"fanotify_init", "fanotify_mark", "read"}, "fanotify10": {"fanotify_init", "fanotify_mark"}}


def tests(tree, everything):
    """Names of strace's tests that run by themselves; variants print the same calls in another style."""
    with open(tree + "/tests/pure_executables.list") as f:
        names = [line.strip() for line in f if line.strip() and not line.startswith("#")]
    return [n for n in names if (everything or "-" not in n) and os.access("%s/tests/%s" % (tree, n), os.X_OK)]


def copy(root, program, target):
    """A program with the libraries that ldd names."""
    os.makedirs(root + os.path.dirname(target), exist_ok=True)
    shutil.copy(program, root + target)
    said = subprocess.run(["ldd", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout.decode()
    for word in said.split():
        if word.startswith("/") and not os.path.exists(root + word):
            os.makedirs(root + os.path.dirname(word), exist_ok=True)
            shutil.copy(word, root + word)


def make_image(work, tree, names, ltp):
    root, layout = work + "/root", work + "/image"
    shutil.rmtree(root, ignore_errors=True)
    shutil.rmtree(layout, ignore_errors=True)
    for folder in ("/bin", "/etc", "/tmp", "/t"):
        os.makedirs(root + folder)
    os.chmod(root + "/tmp", 0o1777)
    copy(root, shutil.which("busybox"), "/bin/busybox")
    os.symlink("busybox", root + "/bin/sh")
    # the container's own program: no call but one, or it would be the first to make those of a test
    code = 'void _start(void) { for (;;) __asm__ volatile("syscall" :: "a"(34) : "rcx", "r11", "memory"); }'
    subprocess.run(["gcc", "-nostdlib", "-static", "-x", "c", "-o", root + "/bin/pause", "-"], input=code.encode(), check=True)
    with open(root + "/etc/passwd", "w") as f:
        f.write("root:x:0:0:root:/:/bin/sh\n")
    for name in names:
        copy(root, "%s/tests/%s" % (tree, name), "/t/" + name)
    for name in ltp:
        folder = work + "/ltp/testcases/kernel/syscalls/fanotify/"
        copy(root, folder + name, "/t/" + name)
        if os.access(folder + "fanotify_child", os.X_OK):
            copy(root, folder + "fanotify_child", "/t/fanotify_child")
        for tool in ("mkfs.ext2", "mkfs.ext4"):
            copy(root, shutil.which(tool), "/bin/" + tool)
        shutil.copy("/etc/mke2fs.conf", root + "/etc/mke2fs.conf")
    run = lambda *argv: subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    run("tar", "-C", root, "-cf", work + "/root.tar", ".")
    run("umoci", "init", "--layout", layout)
    run("umoci", "new", "--image", layout + ":t")
    run("umoci", "raw", "add-layer", "--image", layout + ":t", work + "/root.tar")
    run("umoci", "config", "--image", layout + ":t", "--config.env", "PATH=/bin:/t", "--config.env",
        "LTP_DEV=/dev/ltp", "--config.env", "LTP_SINGLE_FS_TYPE=ext4", "--config.env", "LTP_TIMEOUT_MUL=10", "--config.cmd", "/bin/pause")


def trace(work, name):
    """Runs one test: (its status, what it printed, slim's status, the profile or None)."""
    place = "%s/run/%s" % (work, name)
    shutil.rmtree(place, ignore_errors=True)
    os.makedirs(place)
    with open(place + "/script.sh", "w") as f:
        f.write("#!/bin/sh\ncd %s\n%stimeout -k 5 300 $SLIM_EXEC /t/%s >out 2>err </dev/null\necho $? >status\n"
                % (place, DEVICE if name in LTP else "", name))
    os.chmod(place + "/script.sh", 0o755)
    argv = [SLIM, "trace", "--image", "oci:%s/image:t" % work, "--store", work + "/store", "-o", place + "/slim",
            "--cap-add", "ALL", "--security-opt", "seccomp=unconfined", "--security-opt", "systempaths=unconfined", "-w", "/t" if name in LTP else "/tmp", "-u", "0", "--stop-signal", "SIGKILL",
            "--no-restart", "--no-verify", "--profile-only", "--", place + "/script.sh"]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    read = lambda p: open(place + p, errors="replace").read() if os.path.exists(place + p) else ""
    profile = json.loads(read("/slim/profile.json") or "null")
    if profile is None:
        sys.stderr.write("%s: slim ended with %d\n%s\n" % (name, done.returncode, done.stdout.decode(errors="replace")))
    shutil.rmtree(place + "/slim", ignore_errors=True)
    return int(read("/status") or -1), read("/out"), read("/err"), profile


def recorded(profile):
    """Calls made by the test, that is by anybody but the OCI runtime and pause."""
    cells = {}
    for arch, calls in profile["syscalls"].items():
        for name, args in calls.items():
            phases = {by["phase"] for access in args.values() for runs in access.values() for by in runs.values()}
            if phases - {"runtime"}:
                cells.setdefault(arch, set()).add(name)
    return cells


def judge(work, name):
    """(verdict, named, missing, losses) of one test."""
    status, out, err, profile = trace(work, name)
    if profile is None:
        return "broken", set(), set(), []
    losses = sorted({l["kind"] for run in profile["runs"].values() for l in run["losses"]})
    if status == 77 or status == 32:
        return "skipped", set(), set(), losses
    if status != 0:
        return "failed", set(), set(), losses
    named = LTP.get(name) or {m.group(1) for m in map(CALL.match, out.splitlines()) if m}
    seen = set().union(*recorded(profile).values()) if profile["syscalls"] else set()
    missing = {n for n in named if SAME.get(n, n) not in seen}
    return "ran", named, missing, losses


def main(argv):
    work, everything = argv[0], "--all" in argv
    wanted = [a for a in argv[1:] if not a.startswith("-")]
    with open(work + "/strace.built") as f:
        tree = f.read().strip()
    ltp = sorted(LTP) if os.path.exists(work + "/ltp.built") else []
    names = [n for n in tests(tree, everything) + ltp if (not wanted or n in wanted) and n not in SKIPPED]
    make_image(work, tree, [n for n in names if n not in LTP], [n for n in names if n in LTP])
    count = dict.fromkeys(("ran", "skipped", "failed", "broken"), 0)
    calls, bad, exempt, incomplete = set(), 0, 0, {}
    with concurrent.futures.ThreadPoolExecutor(max_workers=2) as pool:
        for name, (verdict, named, missing, losses) in zip(names, pool.map(lambda n: judge(work, n), names)):
            count[verdict] += 1
            calls |= named
            for call in sorted(missing):
                why = EXEMPT.get((name, call))
                exempt += why is not None
                bad += why is None
                print("%s: %s is not in the profile%s" % (name, call, ": " + why if why else ""), flush=True)
            for kind in losses:
                incomplete.setdefault(kind, []).append(name)
            if verdict in ("failed", "broken"):
                print("%s: %s" % (name, verdict), flush=True)
    for kind, which in sorted(incomplete.items()):
        print("incomplete, %s: %s" % (kind, " ".join(which)))
    print("oracles: %d tests ran (%d skipped themselves, %d failed in a container, %d without a profile); they name %d "
          "calls; %d missing, %d exempt; %d left out; LTP: %s"
          % (count["ran"], count["skipped"], count["failed"], count["broken"], len(calls), bad, exempt, len(SKIPPED),
             " ".join(ltp) or "not run"))
    return 1 if bad or count["broken"] else 0


sys.exit(main(sys.argv[1:]))
