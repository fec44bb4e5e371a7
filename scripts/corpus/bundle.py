"""Runs a slim image under runc or crun with the flat seccomp file, in a network namespace of its own."""

import json
import os
import re
import shlex
import subprocess
import tempfile
import time

CAPS = ["CAP_" + c for c in (
    "AUDIT_WRITE CHOWN DAC_OVERRIDE FOWNER FSETID KILL MKNOD NET_BIND_SERVICE NET_RAW SETFCAP SETGID "
    "SETPCAP SETUID SYS_CHROOT").split()]


def sh(*argv, **kw):
    return subprocess.run(argv, check=True, **kw)


def options(args):
    """The few `docker run` options that the corpus uses: environment, stdin, size of /dev/shm."""
    env, stdin, shm, at = [], False, "64m", 0
    while at < len(args):
        word = args[at]
        if word == "-e":
            env.append(args[at + 1])
            at += 1
        elif word.startswith("--shm-size="):
            shm = word.split("=")[1]
        elif word in ("-i", "-t"):
            stdin = True
        else:
            raise ValueError("run option %r is not known here" % word)
        at += 1
    return env, stdin, shm


class Bundle:
    """An image unpacked for one runtime. Use as a context manager."""

    def __init__(self, runtime, layout, tag, seccomp, run_args):
        self.runtime, self.tag = runtime, tag
        self.id = "slim-report-%s-%d" % (runtime, os.getpid())
        self.dir = tempfile.mkdtemp(prefix="slim-report-")
        self.bundle = self.dir + "/bundle"
        sh("umoci", "unpack", "--image", "%s:%s" % (layout, tag), self.bundle,
           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        with open(self.bundle + "/config.json") as f:
            self.spec = json.load(f)
        self.config = json.loads(sh("skopeo", "inspect", "--config", "oci:%s:%s" % (layout, tag),
                                    stdout=subprocess.PIPE).stdout)["config"]
        self.env, self.stdin, self.shm = options(run_args)
        with open(seccomp) as f:
            self.seccomp = json.load(f)
        self.hold = None

    def __enter__(self):
        sh("ip", "netns", "add", self.id)
        sh(*self.inside("ip", "link", "set", "lo", "up"))
        self.write_spec()
        return self

    def __exit__(self, *_):
        self.delete()
        subprocess.run(["ip", "netns", "del", self.id], stderr=subprocess.DEVNULL)
        subprocess.run(["rm", "-rf", self.dir])

    def inside(self, *argv):
        """`ip netns exec` would put another /sys over the cgroups that runtimes need."""
        return ["nsenter", "--net=/var/run/netns/" + self.id, *argv]

    def oci(self, *argv, **kw):
        """The runtime; crun 1.8 cannot work with hybrid cgroups unless it does not see the v2 tree."""
        words = [self.runtime, *argv]
        if self.runtime == "crun":
            hide = "umount /sys/fs/cgroup/unified 2>/dev/null; exec \"$@\""
            words = ["unshare", "--mount", "--propagation", "private", "sh", "-c", hide, "sh", *words]
        return subprocess.run(words, **kw)

    def write_spec(self):
        spec, proc = self.spec, self.spec["process"]
        proc["terminal"] = False
        proc["env"] += self.env
        proc["noNewPrivileges"] = False
        proc.pop("rlimits", None)
        root = proc["user"]["uid"] == 0
        proc["capabilities"] = {"bounding": CAPS, "effective": CAPS if root else [], "permitted": CAPS if root else []}
        spec["root"] = {"path": "rootfs", "readonly": False}
        spec["hostname"] = "report"
        spec["linux"]["seccomp"] = self.seccomp
        for ns in spec["linux"]["namespaces"]:
            if ns["type"] == "network":
                ns["path"] = "/var/run/netns/" + self.id
        volumes = self.config.get("Volumes") or {}
        mounts = [m for m in spec["mounts"] if m["destination"] not in volumes and m["type"] != "cgroup"]
        for mount in mounts:
            if mount["destination"] == "/dev/shm":
                mount["options"] = [re.sub(r"^size=.*", "size=" + self.shm, o) for o in mount["options"]]
        for name, text in (("hosts", "127.0.0.1 localhost report\n"), ("resolv.conf", ""), ("hostname", "report\n")):
            with open(self.dir + "/" + name, "w") as f:
                f.write(text)
            mounts.append({"destination": "/etc/" + name, "type": "bind", "source": self.dir + "/" + name,
                           "options": ["bind", "rw"]})
        spec["mounts"] = mounts
        with open(self.bundle + "/config.json", "w") as f:
            json.dump(spec, f)

    def start(self):
        stdin = subprocess.DEVNULL
        if self.stdin:
            stdin, self.hold = os.pipe()
        with open(self.dir + "/log", "ab") as log:
            # In two steps, as engines do: what waits for the second one is under the filter already.
            done = self.oci("create", "--bundle", self.bundle, self.id, stdin=stdin, stdout=log, stderr=log)
            if done.returncode == 0:
                done = self.oci("start", self.id, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        if done.returncode:
            raise RuntimeError("%s did not start it: %s" % (self.runtime, self.log()))

    def log(self):
        with open(self.dir + "/log", errors="replace") as f:
            return " | ".join(f.read().splitlines()[-4:])

    def state(self):
        done = self.oci("state", self.id, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        return json.loads(done.stdout)["status"] if done.returncode == 0 else "gone"

    def stop(self, grace):
        signal = self.config.get("StopSignal") or "SIGTERM"
        self.oci("kill", self.id, signal, stderr=subprocess.DEVNULL)
        end = time.time() + grace
        while time.time() < end and self.state() == "running":
            time.sleep(0.1)
        self.delete()

    def delete(self):
        self.oci("delete", "--force", self.id, stderr=subprocess.DEVNULL)
        if self.hold is not None:
            os.close(self.hold)
            self.hold = None

    def script(self, path):
        """Runs a corpus script against the container; its status and output."""
        env = dict(os.environ, SLIM_HOST="127.0.0.1", SLIM_WAIT="60")
        wrapper = self.dir + "/exec"
        with open(wrapper, "w") as f:
            # crun 1.8 does not take the container's working directory and user for an exec by itself.
            proc = self.spec["process"]
            user = "%d:%d" % (proc["user"]["uid"], proc["user"]["gid"])
            words = [self.runtime, "exec", "--cwd", proc["cwd"], "--user", user, self.id]
            if self.runtime == "crun":
                f.write("#!/bin/sh\nexec unshare --mount --propagation private sh -c "
                        "'umount /sys/fs/cgroup/unified 2>/dev/null; exec \"$@\"' sh %s \"$@\"\n" % shlex.join(words))
            else:
                f.write("#!/bin/sh\nexec %s \"$@\"\n" % shlex.join(words))
        os.chmod(wrapper, 0o755)
        env["SLIM_EXEC"] = wrapper
        ports = sorted(int(p.split("/")[0]) for p in self.config.get("ExposedPorts") or {})
        env["SLIM_PORT"] = str(ports[0]) if ports else ""
        for port in ports:
            env["SLIM_PORT_%d" % port] = str(port)
        done = subprocess.run(self.inside("bash", path), env=env, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, errors="replace")
        return done.returncode, done.stdout
