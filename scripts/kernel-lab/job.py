"""job.py JOB RESULT: the checks of scripts/kernels, on the machine it runs on, as root.

Writes RESULT/result.json after every check, so that a machine that hangs leaves what it found, and each check's
whole output to RESULT/CHECK.txt. A check is ok, failed (with the words that say how), or not run (with the reason).
"""

import datetime
import glob
import json
import os
import re
import shutil
import subprocess
import sys
import time

JOB, RESULT = os.path.abspath(sys.argv[1]), os.path.abspath(sys.argv[2])
with open(JOB + "/job.json") as f:
    SETTINGS = json.load(f)
SLIM = JOB + "/slim"
WORK = "/var/tmp/slim-kernels-job"
IMAGES = ["busybox", "static-c", "nginx", "redis"]
OK, FAILED, NOT_RUN = "ok", "failed", "not run"
# Everything is some twenty times slower in an emulated machine.
PATIENCE = "300s"
SLOW = SETTINGS.get("slow", False)


class Skip(Exception):
    """A check that cannot be run here; the message says why."""


class Failed(Exception):
    """A check that went wrong; the message says how."""


def run(check, argv, timeout=1500, env=None, user=None, ok=(0,)):
    """Runs a command to its end; returns its output, which is also appended to the check's file."""
    if user:
        argv = ["runuser", "-l", user, "-c", argv]
    out = open("%s/%s.txt" % (RESULT, check), "ab+")
    out.write(("$ %s\n" % (argv if isinstance(argv, str) else " ".join(argv))).encode())
    out.flush()
    begin = out.tell()
    try:
        status = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, timeout=timeout,
                                env=dict(os.environ, **(env or {}))).returncode
    except subprocess.TimeoutExpired:
        status = "a time-out after %d s" % timeout
    except FileNotFoundError:
        raise Skip("%s is not installed" % argv[0])
    out.seek(begin)
    text = out.read().decode(errors="replace")
    if status not in ok:
        raise Failed("%s ended with %s: %s" % (os.path.basename(argv[0]), status, tail(text)))
    return text


def tail(text):
    lines = [l.strip() for l in text.splitlines() if l.strip()]
    telling = [l for l in lines if l.startswith(("not ok core", "slim:", "thread ", "assertion"))]
    return " | ".join(dict.fromkeys(telling[:3] + lines[-3:]))[-700:]


def trace_argv(image, *options):
    # Tags without a registry would get Docker's name in Podman and none in Docker.
    return [SLIM, "trace", "--image", "oci-archive:%s/archives/%s.oci.tar" % (JOB, image), "--timeout", PATIENCE,
            "--store", WORK + "/store", *options]


def coverage(image):
    return ["--", "bash", "%s/corpus/images/%s/coverage" % (JOB, image)]


def trace(check, image, *options):
    """Traces an image end to end; what is wanted is complete and verified."""
    out = "%s/%s" % (WORK, image) if not options else "%s/%s-%s" % (WORK, check, image)
    shutil.rmtree(out, ignore_errors=True)  # an earlier run's
    tag = ["--tag", "docker.io/slimmed/%s:latest" % image]
    text = run(check, trace_argv(image, *tag, "-o", out, *options, *coverage(image)))
    with open(out + "/summary.json") as f:
        summary = json.load(f)
    if not summary["complete"]:
        raise Failed("incomplete: %s" % summary["losses"])
    if summary["verified"] != {"static": True, "dynamic": True}:
        raise Failed("verified is %s" % summary["verified"])
    if not options:
        keep_made(image, out)
    files = summary["files"]
    said = "%d → %d files, %d calls recorded" % (files["before"], files["after"], summary["syscalls"]["recorded"])
    said += ", recorded again" if "once more" in text else ""
    return said


def keep_made(image, out):
    """Leaves what a trace made to a later run: engines are given it there, should this machine be stopped before."""
    made = "%s/made/%s" % (RESULT, image)
    shutil.rmtree(made, ignore_errors=True)
    os.makedirs(made)
    for name in ("image.tar", "seccomp.json", "profile.json", "summary.json"):
        shutil.copyfile(out + "/" + name, made + "/" + name)
    with open(made + "/commit", "w") as f:
        f.write(SETTINGS["commit"])


def made_before(image):
    """Words for a result, where the image was made by an earlier run."""
    try:
        with open("%s/%s/commit" % (WORK, image)) as f:
            return "; the image was made by %s on this kernel" % f.read().strip()
    except OSError:
        return ""


def tests(check, name, *more):
    """Runs tests of the project's own; those that skipped themselves are counted as not run."""
    text = run(check, [JOB + "/it", "--nocapture", "--test-threads", "1", name, *more], timeout=3000, ok=(0, 101))
    result = re.search(r"test result: (\w+)\. (\d+) passed; (\d+) failed", text)
    if not result:
        raise Failed("the tests did not end: " + tail(text))
    if result[2] == "0" and result[3] == "0":
        raise Skip("no test is named %s" % name)
    if result[3] != "0":
        names = re.findall(r"^    (\S+)$", text.rpartition("failures:")[2], re.M)
        why = re.findall(r"panicked at [^\n]*\n([^\n]+)", text)
        raise Failed("%s of %d failed: %s: %s" % (result[3], int(result[2]) + int(result[3]), ", ".join(names),
                                                 " | ".join(w[:200] for w in why[:4])))
    skipped = sorted(set(re.findall(r"SKIP: (.*)", text)))
    return "%s passed%s" % (result[2], "; skipped: " + ", ".join(skipped) if skipped else "")


def doctor(check):
    text = run(check, [SLIM, "doctor", "--json"], ok=(0, 4))
    FACTS["doctor"] = checks = json.loads(text[text.index("["):])
    run(check, [SLIM, "doctor"], ok=(0, 4))
    lacking = [c["name"] for c in checks if c["needed"] and not c["ok"]]
    if lacking:
        raise Failed("lacks " + ", ".join("%s (%s)" % (c["name"], c["detail"]) for c in checks if c["name"] in lacking)[:700])
    auto = [c["detail"] for c in checks if c["name"] == "recorder"]
    return "everything needed is there" + ("; recorder: " + auto[0] if auto else "")


def need_slim_image(image):
    if not os.path.exists("%s/%s/image.tar" % (WORK, image)):
        raise Skip("the trace of %s gave no image" % image)


def engine(check, name, image):
    """Loads a slim image into Docker or Podman and runs coverage and check there under its filter."""
    need_slim_image(image)
    start_docker() if name == "docker" else None
    out = "%s/%s" % (WORK, image)
    argv = [JOB + "/corpus/run-image.sh", "--archive", out + "/image.tar", "--image", "docker.io/slimmed/%s:latest" % image,
            "--arg", "--security-opt", "--arg", "seccomp=%s/seccomp.json" % out]
    for more in PODMAN_ARGS if name == "podman" else ():
        argv += ["--arg", more]
    small = SLOW and (image != "busybox" or name == "docker")
    text = run(check, [*argv, image, "both" if small else "again"], env={"ENGINE": name, "SLIM_WAIT": "240"}, ok=(0, 1))
    passed = sum(int(n) for n in re.findall(r"(\d+) passed", text))
    wrong = re.findall(r"^== .*FAIL.*", text, re.M)
    # The script's ten seconds for a stop are those of a real machine; the status is what counts here.
    slow = [w for w in wrong if re.search(r"stop: FAIL \(status (\d+), want \1, after", w)]
    if passed == 0 or len(wrong) > len(slow):
        raise Failed(tail(text))
    said = "coverage, %d assertions, %s" % (passed, "once" if small else "again after a stop and a start")
    said += made_before(image)
    return said + ("; slow to stop (%s)" % ", ".join(re.findall(r"after (\d+ s)", " ".join(slow))) if slow else "")


def runtime(check, name):
    if not shutil.which(name):
        raise Skip("%s is not installed" % name)
    return trace(check, "static-c", "--runtime", name)


def recorder(check, name):
    """One recorder, and the calls it saw beside those that the default one saw."""
    try:
        what = trace(check, "busybox", "--recorder", name)
    except Failed as error:
        if "ended with 2" in str(error) or "not yet" in str(error):
            raise Skip("slim says: %s" % error)
        raise
    def calls(folder):
        with open(folder + "/profile.json") as f:
            arches = json.load(f)["syscalls"].values()
        return {name for arch in arches for name, cell in arch.items() if phases(cell) != {"runtime"}}
    if os.path.exists(WORK + "/busybox/profile.json"):
        ours, theirs = calls("%s/%s-busybox" % (WORK, check)), calls(WORK + "/busybox")
        what += "; calls only here: %s; only in the default's: %s" % tuple(
            " ".join(sorted(s)) or "none" for s in (ours - theirs, theirs - ours))
    return what


def phases(cell):
    """The phases named anywhere in a cell of a profile."""
    if not isinstance(cell, dict):
        return set()
    own = {cell["phase"]} if isinstance(cell.get("phase"), str) else set()
    return own.union(*(phases(inner) for inner in cell.values()))


def limits(check):
    """What --memory, --pids-limit and --cpus become: read from the control groups while the container runs."""
    script = WORK + "/limits.sh"
    with open(script, "w") as f:
        f.write(LIMITS)
    text = run(check, trace_argv("busybox", "--recorder", "none", "-o", WORK + "/limits", "--memory", "64m", "--pids-limit",
                                 "77", "--cpus", "0.5", "--", "bash", script))
    found = dict(re.findall(r"^limit (\w+) (.*)$", text, re.M))
    want = {"memory": "67108864", "pids": "77", "cpu": "50000 100000"}
    wrong = ["%s is %r, not %r" % (k, found.get(k), v) for k, v in want.items() if found.get(k) != v]
    if wrong:
        raise Failed("; ".join(wrong))
    return "memory, pids and CPU limits are in force"


# Finds the container's processes by their name and reads the limits of their control groups, of either version.
LIMITS = r"""
set -euo pipefail
$SLIM_EXEC true
for pid in $(pgrep -x httpd) $(pgrep -x busybox); do
    grep -q slim- /proc/$pid/cgroup || continue
    while IFS=: read -r _ controllers path; do
        for root in /sys/fs/cgroup /sys/fs/cgroup/unified /sys/fs/cgroup/${controllers%,cpuacct} /sys/fs/cgroup/$controllers; do
            dir=$root$path
            for f in memory.max memory.limit_in_bytes; do [ ! -r $dir/$f ] || echo "limit memory $(cat $dir/$f)"; done
            for f in pids.max; do [ ! -r $dir/$f ] || echo "limit pids $(cat $dir/$f)"; done
            [ ! -r $dir/cpu.max ] || echo "limit cpu $(cat $dir/cpu.max)"
            [ ! -r $dir/cpu.cfs_quota_us ] || echo "limit cpu $(cat $dir/cpu.cfs_quota_us) $(cat $dir/cpu.cfs_period_us)"
        done
    done </proc/$pid/cgroup
    exit 0
done
echo "no process of the container was found"
exit 1
"""


def ordinary_user(check):
    """slim as an ordinary user with subordinate ids, in the user's own session; the user is made for it and removed."""
    if not shutil.which("newuidmap"):
        raise Skip("newuidmap is not installed")
    name, home = "slim-lab", "/var/tmp/slim-kernels-user"
    subprocess.run(["userdel", name], stderr=subprocess.DEVNULL)
    shutil.rmtree(home, ignore_errors=True)
    run(check, ["useradd", "-m", "-d", home, "-s", "/bin/bash", name])
    try:
        # By itself useradd gives subordinate ids, or none, as the machine's login.defs has it.
        with open("/etc/subuid") as f:
            has = any(line.startswith(name + ":") for line in f)
        if not has:
            ids = "%d-%d" % (1 << 30, (1 << 30) + 65535)
            run(check, ["usermod", "--add-subuids", ids, "--add-subgids", ids, name])
        shutil.copy(SLIM, home + "/slim")
        return as_user(check, name, home)
    finally:
        # The user's session may outlive the command by some seconds, and userdel wants it gone.
        for _ in range(60):
            if subprocess.run(["userdel", name], stderr=subprocess.DEVNULL).returncode == 0:
                break
            time.sleep(1)
        shutil.rmtree(home, ignore_errors=True)


def as_user(check, name, home):
    run(check, "./slim doctor", user=name, ok=(0, 4))
    text = run(check, "d=/run/user/$(id -u); [ ! -d $d ] || export XDG_RUNTIME_DIR=$d; ./slim trace --image "
                      "oci-archive:%s/archives/busybox.oci.tar --timeout %s --store store -o out -- "
                      "bash %s/corpus/images/busybox/coverage" % (JOB, PATIENCE, JOB),
               user=name, ok=(0, 1, 2, 3, 4, 5, 6, 7, 8, 10))
    try:
        with open(home + "/out/summary.json") as f:
            summary = json.load(f)
    except OSError:
        if "without root that takes Linux" in text:
            raise Skip("slim says: " + tail(text))
        raise Failed(tail(text))
    if summary["verified"] != {"static": True, "dynamic": True}:
        raise Failed("verified is %s: %s" % (summary["verified"], tail(text)))
    if not summary["complete"]:
        raise Failed("incomplete: %s" % summary["losses"])
    files = summary["files"]
    return "%d → %d files, %d calls recorded" % (files["before"], files["after"], summary["syscalls"]["recorded"])


def nested(check, name):
    """slim inside a privileged container, as CI runners are."""
    with open("/proc/self/status") as f:
        bounding = int(re.search(r"CapBnd:\s*(\w+)", f.read())[1], 16)
    if bounding & 1 << 24 == 0:
        raise Skip("this machine lacks CAP_SYS_RESOURCE, which --privileged would hand on")
    start_docker() if name == "docker" else None
    target = "docker-daemon:nest:latest" if name == "docker" else "containers-storage:localhost/nest:latest"
    run(check, ["skopeo", "copy", "-q", "oci-archive:%s/archives/busybox.oci.tar" % JOB, target])
    script = WORK + "/nested.sh"
    with open(script, "w") as f:
        f.write("#!/bin/sh\nset -e\n[ \"$($SLIM_EXEC echo hi)\" = hi ]\n")
    os.chmod(script, 0o755)
    shutil.rmtree(WORK + "/nested", ignore_errors=True)
    os.makedirs(WORK + "/nested")
    run(check, [name, "run", "--rm", "--privileged", "-v", "%s:/job:ro" % JOB, "-v", "%s:/work" % WORK,
                "--entrypoint", "/job/slim", *(PODMAN_ARGS if name == "podman" else []),
                "nest" if name == "docker" else "localhost/nest", "trace", "--image",
                "oci-archive:/job/archives/busybox.oci.tar", "--timeout", PATIENCE, "--store", "/work/nested/store",
                "-o", "/work/nested/out", "--", "/work/nested.sh"])
    with open(WORK + "/nested/out/summary.json") as f:
        summary = json.load(f)
    if not summary["complete"] or summary["verified"] != {"static": True, "dynamic": True}:
        raise Failed("complete: %s, verified: %s" % (summary["complete"], summary["verified"]))
    return "traced and verified in a --privileged container"


def start_docker():
    if subprocess.run(["docker", "info"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode:
        if not os.path.isdir("/run/systemd/system"):
            raise Skip("no Docker engine is running, and there is no systemd to start one")
        subprocess.run(["systemctl", "start", "docker"], check=True, timeout=600)
    ENGINES["docker"] = docker_info()


def podman_by_runc():
    """Debian 12's crun, Podman's default, refuses a host with both cgroup versions."""
    os.makedirs(WORK + "/bin")
    with open(WORK + "/bin/podman", "w") as f:
        f.write("#!/bin/sh\nexec %s --runtime runc \"$@\"\n" % shutil.which("podman"))
    os.chmod(WORK + "/bin/podman", 0o755)
    os.environ["PATH"] = "%s/bin:%s" % (WORK, os.environ["PATH"])


def first_line(*argv):
    try:
        out = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=120)
        return out.stdout.decode().strip().splitlines()[0] if out.returncode == 0 else None
    except (OSError, subprocess.SubprocessError, IndexError):
        return None


def docker_info():
    return first_line("docker", "info", "-f", "{{.ServerVersion}}, {{.Driver}}, cgroup driver {{.CgroupDriver}} (v{{.CgroupVersion}})")


def engines():
    found = {}
    for name, argv in {
        "docker": ["docker", "--version"], "podman": ["podman", "--version"], "runc": ["runc", "--version"],
        "crun": ["crun", "--version"], "systemd": ["systemctl", "--version"],
    }.items():
        line = first_line(*argv)
        if line:
            found[name] = re.search(r"\d[\w.+~-]*", line)[0].rstrip(",")
    podman = first_line("podman", "info", "-f", "{{.Host.OCIRuntime.Name}}, cgroups {{.Host.CgroupManager}} {{.Host.CgroupsVersion}}")
    if podman:
        found["podman"] += ", " + podman
    return found


def cgroup_mode():
    types = [l.split()[2] for l in open("/proc/self/mounts") if l.split()[2] in ("cgroup", "cgroup2")]
    mode = "none" if not types else "hybrid" if len(set(types)) == 2 else "v2" if "cgroup2" in types else "v1"
    controllers = "/sys/fs/cgroup/cgroup.controllers"
    return mode, open(controllers).read().strip() if os.path.exists(controllers) else None


def os_name():
    text = open("/etc/os-release").read()
    return re.search(r'PRETTY_NAME="?([^"\n]*)', text)[1]


FACTS, ENGINES = {}, {}
# Podman without systemd and without CAP_SYS_RESOURCE cannot do what it does by default.
PODMAN_ARGS = [] if os.path.isdir("/run/systemd/system") else [
    "--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024"]

CHECKS = [
    ("doctor", doctor, ()),
    ("trace busybox", trace, ("busybox",)),
    ("trace static-c", trace, ("static-c",)),
    ("recorder tests", tests, ("record::",)),
    ("limits", limits, ()),
    ("podman busybox", engine, ("podman", "busybox")),
    ("docker busybox", engine, ("docker", "busybox")),
    ("recorder perf", recorder, ("perf",)),
    ("recorder notify", recorder, ("notify",)),
    ("ordinary user", ordinary_user, ()),
    ("trace nginx", trace, ("nginx",)),
    ("trace redis", trace, ("redis",)),
    ("completeness matrix", tests, ("matrix::",)),
    ("docker nginx", engine, ("docker", "nginx")),
    ("podman nginx", engine, ("podman", "nginx")),
    ("docker redis", engine, ("docker", "redis")),
    ("podman redis", engine, ("podman", "redis")),
    ("runtime runc", runtime, ("runc",)),
    ("runtime crun", runtime, ("crun",)),
    ("inside docker", nested, ("docker",)),
    ("inside podman", nested, ("podman",)),
    ("runtime tests", tests, ("container::",)),
    ("network tests", tests, ("network::",)),
    ("option tests", tests, ("options::",)),
]


def save(checks):
    mode, controllers = cgroup_mode()
    kernel = os.uname()
    result = {
        "schema": "slim.kernels/v1", "os": os_name(), "kernel": kernel.release, "kernel_version": kernel.version, "machine_arch": kernel.machine,
        "cgroup": mode, "controllers": controllers,
        "init": os.path.basename(os.path.realpath("/proc/1/exe")),
        "lsms": open("/sys/kernel/security/lsm").read().strip() if os.path.exists("/sys/kernel/security/lsm") else None,
        "engines": ENGINES, "checks": checks, **FACTS,
    }
    with open(RESULT + "/result.json.new", "w") as f:
        json.dump(result, f, indent=1, ensure_ascii=False)
        f.write("\n")
    os.rename(RESULT + "/result.json.new", RESULT + "/result.json")


def order(only):
    """The places in CHECKS of what is run: all, or what the words name, in the order of the words."""
    if not only:
        return range(len(CHECKS))
    return list(dict.fromkeys(at for word in only for at, check in enumerate(CHECKS) if word in check[0]))


def main():
    shutil.rmtree(WORK, ignore_errors=True)
    os.makedirs(WORK)
    for old in glob.glob(RESULT + "/*.txt"):
        os.remove(old)
    if os.path.isdir(JOB + "/made"):
        shutil.copytree(JOB + "/made", WORK, dirs_exist_ok=True)
    if not os.path.ismount("/sys/kernel/security"):
        subprocess.run(["mount", "-t", "securityfs", "none", "/sys/kernel/security"], stderr=subprocess.DEVNULL)
    if cgroup_mode()[0] == "hybrid":
        podman_by_runc()
    ENGINES.update(engines())
    only = SETTINGS.get("only") or []
    results = [{"name": name, "status": NOT_RUN, "detail": "the machine was stopped before"} for name, _, _ in CHECKS]
    for at in order(only):
        name, check, args = CHECKS[at]
        began = time.time()
        try:
            status, detail = OK, check(name.replace(" ", "-"), *args)
        except Skip as why:
            status, detail = NOT_RUN, str(why)
        except Failed as how:
            status, detail = FAILED, str(how)
        except Exception as error:  # the job's own mistake is a failure of this check, not the end of all
            status, detail = FAILED, "%s: %s" % (type(error).__name__, error)
        detail = detail.replace(SETTINGS["project"] + "/", "")  # where it was built is nobody's concern
        results[at] = {"name": name, "status": status, "detail": detail, "seconds": int(time.time() - began),
                       "date": datetime.date.today().isoformat(), "commit": SETTINGS["commit"]}
        print("%-20s %-8s %4d s  %s" % (name, status, results[at]["seconds"], detail), flush=True)
        save(results)
    shutil.rmtree(WORK, ignore_errors=True)
    save(results)


if __name__ == "__main__":
    main()
