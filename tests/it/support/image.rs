//! Images written by code, so that a test shows the very files it is about.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use slim::model::Digest;

/// How a layer is stored.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Packed {
    Plain,
    Gzip,
    Zstd,
}

/// A layer in the making: raw tar blocks, so that any oddity can be written.
#[derive(Clone, Default)]
pub struct LayerFixture {
    tar: Vec<u8>,
}

/// An entry's metadata.
#[derive(Clone)]
pub struct Attr {
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    pub mtime: u64,
}

impl Default for Attr {
    fn default() -> Self {
        Self { mode: 0o644, uid: 0, gid: 0, mtime: 1_600_000_000 }
    }
}

impl LayerFixture {
    /// Any entry, its name and link as given, byte for byte.
    pub fn raw(mut self, kind: u8, name: &[u8], link: &[u8], data: &[u8], attr: &Attr) -> Self {
        let mut header = tar::Header::new_gnu();
        header.as_mut_bytes()[156] = kind;
        if name.len() > 100 {
            self = self.raw(b'L', b"././@LongLink", b"", &[name, b"\0"].concat(), &Attr::default());
        }
        if link.len() > 100 {
            self = self.raw(b'K', b"././@LongLink", b"", &[link, b"\0"].concat(), &Attr::default());
        }
        let (name, link) = (&name[..name.len().min(100)], &link[..link.len().min(100)]);
        header.as_mut_bytes()[..name.len()].copy_from_slice(name);
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link);
        header.set_mode(attr.mode);
        header.set_uid(attr.uid);
        header.set_gid(attr.gid);
        header.set_mtime(attr.mtime);
        header.set_size(data.len() as u64);
        if matches!(kind, b'3' | b'4') {
            header.set_device_major(u32::from(data.first().copied().unwrap_or(1))).unwrap();
            header.set_device_minor(u32::from(data.get(1).copied().unwrap_or(3))).unwrap();
            header.set_size(0);
        }
        header.set_cksum();
        self.tar.extend(header.as_bytes());
        if !matches!(kind, b'3' | b'4') {
            self.tar.extend(data);
            self.tar.resize(self.tar.len().next_multiple_of(512), 0);
        }
        self
    }

    pub fn file(self, name: &str, data: &str) -> Self {
        self.raw(b'0', name.as_bytes(), b"", data.as_bytes(), &Attr::default())
    }

    pub fn dir(self, name: &str) -> Self {
        let attr = Attr { mode: 0o755, ..Attr::default() };
        self.raw(b'5', format!("{name}/").as_bytes(), b"", b"", &attr)
    }

    pub fn symlink(self, name: &str, target: &str) -> Self {
        self.raw(b'2', name.as_bytes(), target.as_bytes(), b"", &Attr::default())
    }

    pub fn link(self, name: &str, target: &str) -> Self {
        self.raw(b'1', name.as_bytes(), target.as_bytes(), b"", &Attr::default())
    }

    pub fn fifo(self, name: &str) -> Self {
        self.raw(b'6', name.as_bytes(), b"", b"", &Attr::default())
    }

    pub fn whiteout(self, name: &str) -> Self {
        let (dir, base) = name.rsplit_once('/').unwrap_or(("", name));
        let name = if dir.is_empty() { format!(".wh.{base}") } else { format!("{dir}/.wh.{base}") };
        self.file(&name, "")
    }

    pub fn opaque(self, dir: &str) -> Self {
        self.file(&format!("{dir}/.wh..wh..opq"), "")
    }

    /// PAX records for the entry that follows.
    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let len = (rest..).find(|len| *len == rest + len.to_string().len()).unwrap();
            data.extend(format!("{len} {key}=").as_bytes());
            data.extend(*value);
            data.push(b'\n');
        }
        self.raw(b'x', b"PaxHeaders/x", b"", &data, &Attr::default())
    }

    /// Somebody else's tar.
    pub fn of_tar(tar: Vec<u8>) -> Self {
        Self { tar }
    }

    pub fn finish(&self) -> Vec<u8> {
        [&self.tar[..], &[0; 1024]].concat()
    }
}

/// An image in the making.
#[derive(Clone, Default)]
pub struct ImageFixture {
    layers: Vec<(Vec<u8>, Option<Packed>)>,
    config: Option<Value>,
    /// Tag in the index; none leaves the annotation away.
    tag: Option<String>,
    /// Another architecture than amd64.
    arch: Option<String>,
    /// Of the manifest.
    annotations: serde_json::Map<String, Value>,
}

impl ImageFixture {
    /// Adds a layer, gzip-compressed.
    pub fn layer(self, layer: LayerFixture) -> Self {
        self.packed(layer, Packed::Gzip)
    }

    pub fn packed(mut self, layer: LayerFixture, packed: Packed) -> Self {
        self.layers.push((layer.finish(), Some(packed)));
        self
    }

    /// Adds a layer of any bytes.
    pub fn bytes(mut self, bytes: Vec<u8>, packed: Packed) -> Self {
        self.layers.push((bytes, Some(packed)));
        self
    }

    /// `config` of the configuration.
    pub fn config(mut self, config: Value) -> Self {
        self.config = Some(config);
        self
    }

    /// Annotates the manifest.
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations.insert(key.to_owned(), value.into());
        self
    }

    pub fn tag(mut self, tag: &str) -> Self {
        self.tag = Some(tag.to_owned());
        self
    }

    pub fn platform(mut self, arch: &str) -> Self {
        self.arch = Some(arch.to_owned());
        self
    }

    /// Writes an OCI layout into the folder `dir/layout` and returns its path.
    pub fn write(&self, dir: &Path) -> PathBuf {
        let layout = dir.join("layout");
        let blobs = layout.join("blobs/sha256");
        std::fs::create_dir_all(&blobs).unwrap();
        let put = |bytes: &[u8]| {
            let digest = Digest::of(bytes);
            std::fs::write(blobs.join(digest.hex()), bytes).unwrap();
            (digest.to_string(), bytes.len())
        };
        let (mut layers, mut diff_ids, mut history) = (Vec::new(), Vec::new(), Vec::new());
        for (at, (tar, packed)) in self.layers.iter().enumerate() {
            let (stored, suffix) = pack(tar, packed.unwrap_or(Packed::Plain));
            let (digest, size) = put(&stored);
            let kind = format!("application/vnd.oci.image.layer.v1.tar{suffix}");
            layers.push(json!({ "mediaType": kind, "digest": digest, "size": size }));
            diff_ids.push(Digest::of(tar).to_string());
            history.push(json!({ "created_by": format!("step {at}") }));
        }
        history.push(json!({ "created_by": "CMD", "empty_layer": true }));
        let arch = self.arch.as_deref().unwrap_or("amd64");
        let config = json!({
            "architecture": arch, "os": "linux", "created": "2020-01-02T03:04:05Z",
            "config": self.config.clone().unwrap_or(json!({})),
            "rootfs": { "type": "layers", "diff_ids": diff_ids }, "history": history,
        });
        let (digest, size) = put(config.to_string().as_bytes());
        let mut manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest, "size": size },
            "layers": layers,
        });
        // A signature in the tree is of a manifest without any.
        if !self.annotations.is_empty() {
            manifest["annotations"] = self.annotations.clone().into();
        }
        let (digest, size) = put(manifest.to_string().as_bytes());
        let mut entry = json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": size,
            "platform": { "os": "linux", "architecture": arch },
        });
        if let Some(tag) = &self.tag {
            entry["annotations"] = json!({ "org.opencontainers.image.ref.name": tag });
        }
        let index = json!({ "schemaVersion": 2, "manifests": [entry] });
        std::fs::write(layout.join("index.json"), index.to_string()).unwrap();
        std::fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        layout
    }
}

fn pack(tar: &[u8], packed: Packed) -> (Vec<u8>, &'static str) {
    match packed {
        Packed::Plain => (tar.to_vec(), ""),
        Packed::Zstd => (zstd::encode_all(tar, 3).unwrap(), "+zstd"),
        Packed::Gzip => {
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            gzip.write_all(tar).unwrap();
            (gzip.finish().unwrap(), "+gzip")
        }
    }
}
