"""Images to measure with, as OCI layouts: many small files, many layers.

make-images.py files N TARGET [LAYERS]   N files of a few bytes each, in folders of a thousand
make-images.py layers N TARGET           N layers of forty files of a few kilobytes each
"""

import gzip
import hashlib
import io
import json
import os
import sys
import zlib


class Blob:
    """A layer being written: tar in, gzip out, both hashed."""

    def __init__(self, folder):
        self.folder = folder
        self.part = os.path.join(folder, "part")
        self.file = open(self.part, "wb")
        self.plain = hashlib.sha256()
        self.stored = hashlib.sha256()
        self.size = 0
        self.gzip = zlib.compressobj(1, zlib.DEFLATED, 31)

    def _put(self, data):
        self.stored.update(data)
        self.size += len(data)
        self.file.write(data)

    def write(self, data):
        self.plain.update(data)
        self._put(self.gzip.compress(data))

    def close(self):
        self.write(bytes(1024))
        self._put(self.gzip.flush())
        self.file.close()
        os.rename(self.part, os.path.join(self.folder, self.stored.hexdigest()))
        kind = "application/vnd.oci.image.layer.v1.tar+gzip"
        descriptor = {"mediaType": kind, "digest": "sha256:" + self.stored.hexdigest(), "size": self.size}
        return descriptor, "sha256:" + self.plain.hexdigest()


def header(name, size, kind=b"0"):
    """A ustar header (POSIX pax, "ustar Interchange Format")."""
    block = bytearray(512)
    block[: len(name)] = name.encode()
    block[100:108] = b"0000755\0" if kind == b"5" else b"0000644\0"
    block[108:116] = block[116:124] = b"0000000\0"
    block[124:136] = b"%011o\0" % size
    block[136:148] = b"%011o\0" % 1600000000
    block[148:156] = b" " * 8
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def entry(name, data):
    return header(name, len(data)) + data + bytes(-len(data) % 512)


def few_bytes(first, last):
    for n in range(first, last):
        if n % 1000 == 0 or n == first:
            yield header(f"data/{n // 1000:04}/", 0, b"5")
        yield entry(f"data/{n // 1000:04}/file-{n:07}", b"content of %d\n" % n)


def few_kilobytes(layer):
    yield header(f"layer-{layer:03}/", 0, b"5")
    for n in range(40):
        seed = hashlib.sha256(b"%d %d" % (layer, n)).digest()
        yield entry(f"layer-{layer:03}/file-{n:02}", (seed.hex().encode() + b"\n") * 64)


def image(target, layers):
    blobs = os.path.join(target, "blobs", "sha256")
    os.makedirs(blobs)

    def put(value):
        data = json.dumps(value).encode()
        digest = hashlib.sha256(data).hexdigest()
        with open(os.path.join(blobs, digest), "wb") as file:
            file.write(data)
        return {"digest": "sha256:" + digest, "size": len(data)}

    described, diff_ids = [], []
    for pieces in layers:
        blob, buffer, held = Blob(blobs), [], 0
        for piece in pieces:
            buffer.append(piece)
            held += len(piece)
            if held > 1 << 20:
                blob.write(b"".join(buffer))
                buffer, held = [], 0
        blob.write(b"".join(buffer))
        descriptor, diff_id = blob.close()
        described.append(descriptor)
        diff_ids.append(diff_id)
    config = {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": diff_ids}}
    config = {"mediaType": "application/vnd.oci.image.config.v1+json", **put(config)}
    manifest = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config, "layers": described}
    manifest = {"mediaType": manifest["mediaType"], **put(manifest)}
    manifest["platform"] = {"os": "linux", "architecture": "amd64"}
    manifest["annotations"] = {"org.opencontainers.image.ref.name": "bench:1"}
    for name, value in (("index.json", {"schemaVersion": 2, "manifests": [manifest]}), ("oci-layout", {"imageLayoutVersion": "1.0.0"})):
        with open(os.path.join(target, name), "w") as file:
            json.dump(value, file)


def main():
    kind, number, target = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    if kind == "files":
        image(target, [few_bytes(0, number)])
    else:
        image(target, [few_kilobytes(layer) for layer in range(number)])


main()
