"""Compares a slim root file system with the original's, path by path, both as umoci unpacked them."""

import os
import stat


def walk(root):
    """Every path below root, relative, with its lstat."""
    for folder, dirs, files in os.walk(root.encode()):
        for name in dirs + files:
            path = os.path.join(folder, name)
            yield path[len(root) + 1 :], os.lstat(path)


def xattrs(path):
    names = os.listxattr(path, follow_symlinks=False)
    kept = [n for n in names if not n.startswith(("trusted.overlay.", "user.rootlesscontainers"))]
    return {n: os.getxattr(path, n, follow_symlinks=False) for n in kept}


def same_bytes(a, b):
    with open(a, "rb") as one, open(b, "rb") as other:
        while True:
            x, y = one.read(1 << 20), other.read(1 << 20)
            if x != y:
                return False
            if not x:
                return True


def describe(root, path, st):
    full = os.path.join(root.encode(), path)
    facts = {
        "type and mode": oct(st.st_mode),
        "owner": (st.st_uid, st.st_gid),
        "xattrs": xattrs(full),
        "time": st.st_mtime_ns // 1000,
    }
    if stat.S_ISLNK(st.st_mode):
        facts["target"] = os.readlink(full)
    if stat.S_ISREG(st.st_mode):
        facts["size"] = st.st_size
    if stat.S_ISCHR(st.st_mode) or stat.S_ISBLK(st.st_mode):
        facts["device"] = st.st_rdev
    return facts


def groups(entries):
    """Path -> the frozenset of names it shares an inode with."""
    by_inode = {}
    for path, st in entries.items():
        if stat.S_ISREG(st.st_mode):
            by_inode.setdefault(st.st_ino, set()).add(path)
    return {p: frozenset(names) for names in by_inode.values() for p in names}


def compare(original, slim, generated=()):
    """A list of sentences, one for each path that differs, and the totals of the slim one."""
    before, after = dict(walk(original)), dict(walk(slim))
    ignored = {g.lstrip("/").encode() for g in generated}
    wrong = []
    links_before, links_after = groups(before), groups(after)
    for path, st in sorted(after.items()):
        if path in ignored:
            continue
        if path not in before:
            wrong.append("%r is not in the original" % path)
            continue
        want, got = describe(original, path, before[path]), describe(slim, path, st)
        wrong += ["%r: %s is %r, was %r" % (path, k, got.get(k), want[k]) for k in want if want[k] != got.get(k)]
        if stat.S_ISREG(st.st_mode):
            a, b = (os.path.join(r.encode(), path) for r in (original, slim))
            if not same_bytes(a, b):
                wrong.append("%r: other bytes" % path)
            if links_after[path] != frozenset(n for n in links_before[path] if n in after):
                wrong.append("%r: other link group" % path)
    return wrong, before, after
