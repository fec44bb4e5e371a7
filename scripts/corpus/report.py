"""See scripts/corpus-report. Slims corpus images and checks the results from outside."""

import argparse
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(__file__))
import bundle  # noqa: E402
import compare  # noqa: E402

CORPUS = os.path.join(os.environ["SLIM_SHARED"], "corpus")
OUT = os.environ["CORPUS_OUT"]
SLIM = os.environ["SLIM"]
NAMES = sorted(os.listdir(CORPUS + "/images"))
os.environ["BASH_ENV"] = os.path.join(os.path.dirname(os.path.abspath(__file__)), "drain.sh")
# Paths that no coverage script uses, and that an image which kept too much would have.
UNUSED = {"usr/bin/apt", "usr/bin/perl", "usr/bin/su"}


def image_env(name):
    script = '. "$1"; printf "%s\\0" "${STOP_GRACE:-10}" "${RUN_ARGS[@]}"'
    out = subprocess.run(["bash", "-c", script, "-", "%s/images/%s/image.env" % (CORPUS, name)],
                         check=True, stdout=subprocess.PIPE).stdout.decode().split("\0")[:-1]
    return int(out[0]), out[1:]


def truth(name, what):
    """Lines of a ground-truth file, as bytes without the leading slash."""
    with open("%s/groundtruth/%s/%s" % (CORPUS, name, what), "rb") as f:
        lines = [line.rstrip(b"\n") for line in f if line.strip()]
    return {l.replace(b"\\n", b"\n").replace(b"\\\\", b"\\").lstrip(b"/") for l in lines}


def unpack(layout, tag, work):
    target = tempfile.mkdtemp(dir=work)
    os.rmdir(target)
    subprocess.run(["umoci", "unpack", "--image", "%s:%s" % (layout, tag), target], check=True,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return target + "/rootfs"


class Report:
    """One image: everything that is wrong with it, and figures for the table."""

    def __init__(self, name, work, given):
        self.name, self.dir, self.given = name, os.path.join(work, name), given
        if not given:
            shutil.rmtree(self.dir, ignore_errors=True)
            os.makedirs(self.dir)
        self.wrong, self.notes, self.row = [], [], {}
        self.grace, self.args = image_env(name)
        self.layout = "%s/%s/oci" % (OUT, name)

    def fail(self, text):
        self.wrong.append(text)

    def trace(self, out):
        began = time.time()
        log = out + ".log"
        with open(log, "wb") as f:
            done = subprocess.run(
                [SLIM, "trace", "--image", "oci:" + self.layout, "--tag", "slimmed/%s:latest" % self.name,
                 *self.args, "-o", out, "--", "bash", "%s/images/%s/coverage" % (CORPUS, self.name)],
                stdout=f, stderr=subprocess.STDOUT)
        self.row.setdefault("seconds", int(time.time() - began))
        if done.returncode:
            with open(log, errors="replace") as f:
                self.fail("slim trace ended with %d: %s" % (done.returncode, " | ".join(f.read().splitlines()[-6:])))
            return None
        with open(out + "/summary.json") as f:
            summary = json.load(f)
        if not summary["complete"]:
            self.fail("incomplete: %s" % summary["losses"])
        if summary["verified"] != {"static": True, "dynamic": True}:
            self.fail("verified is %s" % summary["verified"])
        return summary

    def run(self, engines, runs):
        out, slim = self.dir + "/out", self.dir + "/oci"
        if not self.given:
            summary = self.trace(out)
            for n in range(2, runs + 1):
                self.trace("%s-%d" % (out, n))
            if summary is None:
                return
        shutil.rmtree(slim, ignore_errors=True)
        subprocess.run(["skopeo", "copy", "-q", "oci-archive:%s/image.tar" % out, "oci:%s:latest" % slim], check=True)
        if not self.given:
            self.bounds(slim, summary)
            self.calls(out, summary)
        if "docker" in engines:
            self.docker(out)
        for runtime in [e for e in engines if e != "docker"]:
            self.runtime(runtime, slim, out)
        shutil.rmtree(slim)

    def bounds(self, slim, summary):
        original, slimmed = unpack(self.layout, "latest", self.dir), unpack(slim, "latest", self.dir)
        wrong, before, after = compare.compare(original, slimmed, summary["generated"])
        for line in wrong[:5]:
            self.fail("differs: " + line)
        opened, touched, links = (truth(self.name, w) for w in ("opened", "touched", "links"))
        config = json.loads(subprocess.run(["skopeo", "inspect", "--config", "oci:%s:latest" % self.layout],
                                           check=True, stdout=subprocess.PIPE).stdout)["config"]
        volumes = [v.strip("/").encode() + b"/" for v in config.get("Volumes") or {}]
        files = [p for p, st in after.items() if not stat.S_ISDIR(st.st_mode)]
        counted = [p for p in files if not any(p.startswith(v) for v in volumes)]
        limit = 1.15 * len(opened | touched | links) + 20
        if len(counted) > limit:
            self.fail("%d files, at most %d" % (len(counted), limit))
        size = {st.st_ino: st.st_size for p, st in after.items() if stat.S_ISREG(st.st_mode)}
        wanted = {}
        for path in opened | touched:
            st = before.get(path)
            if st is not None and stat.S_ISREG(st.st_mode):
                wanted[st.st_ino] = st.st_size
        most = 1.10 * sum(wanted.values()) + 1e6
        if sum(size.values()) > most:
            self.fail("%d bytes, at most %d" % (sum(size.values()), most))
        used = opened | touched
        for path in UNUSED:
            if path.encode() in after and path.encode() not in used:
                self.fail("/%s is there, and nobody used it" % path)
        if len(after) == len(before) and len(before) > 20:
            self.fail("nothing was left out")
        # The truth was traced on another day's packages: worth a look, no proof of a loss.
        missing = sorted(p for p in opened if p in before and p not in after)
        if missing:
            self.notes.append("the ground truth opened %d files that are not there, %r first" % (len(missing), missing[0]))
        self.row.update(files="%d/%d" % (len(counted), limit), mb="%.1f/%.1f" % (sum(size.values()) / 1e6, most / 1e6))
        shutil.rmtree(os.path.dirname(original))
        shutil.rmtree(os.path.dirname(slimmed))

    def calls(self, out, summary):
        recorded = {line.split()[0].decode() for line in truth(self.name, "syscalls")}
        with open(out + "/seccomp.oci.json") as f:
            flat = json.load(f)
        allowed = {n for rule in flat["syscalls"] if rule["action"] == "SCMP_ACT_ALLOW" for n in rule["names"]}
        if len(allowed) > len(recorded) + 90:
            self.fail("%d calls allowed, at most %d" % (len(allowed), len(recorded) + 90))
        labels = summary["syscalls"].get("why", {})
        bare = sorted(n for n in allowed if n not in labels)
        if bare:
            self.fail("allowed without a reason: %s" % " ".join(bare))
        self.row["calls"] = "%d/%d" % (len(allowed), len(recorded) + 90)

    def docker(self, out):
        argv = ["%s/run-image.sh" % CORPUS, "--archive", out + "/image.tar", "--image", "slimmed/%s:latest" % self.name,
                "--arg", "--security-opt", "--arg", "seccomp=%s/seccomp.json" % out, self.name, "again"]
        done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace")
        self.judge("docker", done.returncode, done.stdout)
        subprocess.run(["docker", "image", "rm", "-f", "slimmed/%s:latest" % self.name], stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL)

    def judge(self, where, status, text):
        lost = text.count("not ok stretch")
        self.row[where] = "ok" + ("(-%d)" % lost if lost else "") if status == 0 else "FAIL"
        if status:
            lines = [l for l in text.splitlines() if l.strip() and not l.startswith(("ok ", "not ok stretch"))]
            lost = [l for l in lines if l.startswith("not ok core")]
            self.fail("%s: %s" % (where, " | ".join(lost[:4] + lines[-8:])))

    def runtime(self, runtime, slim, out):
        scripts = "%s/images/%s/" % (CORPUS, self.name)
        try:
            with bundle.Bundle(runtime, slim, "latest", out + "/seccomp.oci.json", self.args) as box:
                box.start()
                status, text = box.script(scripts + "coverage")
                if status == 0:
                    status, text = box.script(scripts + "check")
                if status == 0:
                    box.stop(self.grace)
                    box.start()
                    status, text = box.script(scripts + "check")
                if status:
                    text += "\nlog: " + box.log()
                self.judge(runtime, status, text)
        except (RuntimeError, ValueError, subprocess.SubprocessError) as error:
            self.judge(runtime, 1, str(error))


def main():
    parser = argparse.ArgumentParser(prog="corpus-report")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--engines", default="docker,runc,crun")
    parser.add_argument("--work", default="/var/tmp/slim-corpus-report")
    parser.add_argument("--make", action="store_true", help="make the images that are missing, and no more")
    parser.add_argument("--given", action="store_true", help="take what an earlier report traced, and trace nothing")
    parser.add_argument("names", nargs="*", default=NAMES)
    args = parser.parse_args()
    os.makedirs(args.work, exist_ok=True)
    engines = args.engines.split(",")
    if args.make:
        if not args.given:
            subprocess.run([CORPUS + "/make-image.sh", *args.names], check=True, env=dict(os.environ, CORPUS_OUT=OUT))
        return
    columns = ["files", "mb", "calls", *engines, "seconds"]
    line = "%-10s" + "%16s" * (len(columns) + 1)
    print(line % ("image", *columns, "verdict"), flush=True)
    bad = 0
    for name in args.names:
        report = Report(name, args.work, args.given)
        try:
            report.run(engines, args.runs)
        except (OSError, subprocess.SubprocessError, KeyError) as error:
            report.fail("%s: %s" % (type(error).__name__, error))
        print(line % (name, *[report.row.get(c, "-") for c in columns], "FAIL" if report.wrong else "ok"), flush=True)
        for text in report.wrong + ["note: " + n for n in report.notes]:
            print("    " + text, flush=True)
        bad += bool(report.wrong)
    print("%d passed, %d failed" % (len(args.names) - bad, bad))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
