//! Layers as some builders write them, and images that lack what most have.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use slim::emit::{Compression, Edits, ImageFormat, Order, Packing, write_image};
use slim::model::{Digest, RootPath, Tree};
use slim::oci::Image;
use slim::rootfs::{Store, index};
use slim::source::Access;

use crate::images::keep_all;
use crate::support::image::LayerFixture;

const OCI: &str = "application/vnd.oci.image.layer.v1.tar";
/// Where foreign layers are said to be.
pub const ELSEWHERE: &str = "https://example.invalid/layer";

/// A layer's blob, its media type, and the tar in it.
pub struct Blob {
    bytes: Vec<u8>,
    kind: String,
    tar: Vec<u8>,
    /// False for one that is elsewhere.
    pub here: bool,
    /// What the manifest says of it.
    annotations: Vec<(String, String)>,
}

impl Blob {
    pub fn new(bytes: Vec<u8>, kind: String, tar: Vec<u8>) -> Self {
        Self { bytes, kind, tar, here: true, annotations: Vec::new() }
    }

    fn annotated(mut self, key: &str, value: impl ToString) -> Self {
        self.annotations.push((key.to_owned(), value.to_string()));
        self
    }
}

pub fn layout(dir: &Path, blobs: &[Blob], history: Option<Value>) -> PathBuf {
    let layout = dir.join("layout");
    let folder = layout.join("blobs/sha256");
    std::fs::create_dir_all(&folder).unwrap();
    let put = |bytes: &[u8], kind: &str| {
        let digest = Digest::of(bytes);
        std::fs::write(folder.join(digest.hex()), bytes).unwrap();
        json!({ "mediaType": kind, "digest": digest.to_string(), "size": bytes.len() })
    };
    let mut layers = Vec::new();
    for blob in blobs {
        let mut layer = put(&blob.bytes, &blob.kind);
        if blob.kind.contains("foreign") || blob.kind.contains("nondistributable") {
            layer["urls"] = json!([ELSEWHERE]);
        }
        if !blob.here {
            std::fs::remove_file(folder.join(Digest::of(&blob.bytes).hex())).unwrap();
        }
        for (key, value) in &blob.annotations {
            layer["annotations"][key] = json!(value);
        }
        layers.push(layer);
    }
    let diff_ids: Vec<_> = blobs.iter().map(|blob| Digest::of(&blob.tar).to_string()).collect();
    let mut config = json!({
        "architecture": "amd64", "os": "linux", "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    if let Some(history) = history {
        config["history"] = history;
    }
    let config = put(config.to_string().as_bytes(), "application/vnd.oci.image.config.v1+json");
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest =
        json!({ "schemaVersion": 2, "mediaType": kind, "config": config, "layers": layers });
    let manifest = put(manifest.to_string().as_bytes(), kind);
    let top = json!({ "schemaVersion": 2, "manifests": [manifest] });
    std::fs::write(layout.join("index.json"), top.to_string()).unwrap();
    std::fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    layout
}

fn open(layout: &Path) -> Result<Image, String> {
    let reference = format!("oci:{}", layout.display());
    slim::source::open(&reference, &Access::platform("linux/amd64")).map_err(|e| e.to_string())
}

fn names(tree: &Tree) -> Vec<String> {
    tree.nodes.keys().map(ToString::to_string).collect()
}

/// Unpacks and indexes; writes it without `/drop`, and again without losing anything.
fn through(layout: &Path, dir: &Path) -> (Tree, Image, Image) {
    let image = open(layout).unwrap();
    let store = Store::open(Some(&dir.join("store"))).unwrap();
    let tree = store.unpack(&image, &|_, _| ()).unwrap().tree;
    assert_eq!(names(&tree), names(&index(&image).unwrap()));
    let write = |name: &str, without: &[u8]| {
        let mut keep = keep_all(&tree);
        keep.paths.remove(&RootPath::parse(without).unwrap());
        let target = dir.join(name);
        write_image(&image, &tree, &keep, "t:1", ImageFormat::Layout, &target).unwrap();
        open(&target).unwrap()
    };
    let (whole, filtered) = (write("whole", b"/nothing"), write("filtered", b"/drop"));
    let mut left = names(&tree);
    assert_eq!(names(&index(&whole).unwrap()), left);
    left.retain(|name| name != "/drop");
    assert_eq!(names(&index(&filtered).unwrap()), left);
    (tree, whole, filtered)
}

fn layer() -> LayerFixture {
    LayerFixture::default()
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(bytes).unwrap();
    gzip.finish().unwrap()
}

/// All of an image, stored as told.
fn written(image: &Image, packing: Packing, target: &Path) -> Image {
    let tree = index(image).unwrap();
    let (keep, tags, edits) = (keep_all(&tree), ["t:1".to_owned()], Edits::default());
    let order = Order { packing, ..Order::new(image, &tree, &keep, &tags, &edits) };
    slim::emit::write(&order, target).unwrap();
    open(target).unwrap()
}

/// eStargz: each file a gzip member of its own, a table of contents as the last file, and a footer that
/// is an empty member with the table's place in its extra field.
#[test]
fn estargz_layers_are_layers() {
    let toc = r#"{"version":1,"entries":[{"name":"a","type":"reg","size":1}]}"#;
    let tar = layer()
        .file(".no.prefetch.landmark", "\u{f}")
        .file("a", "1")
        .file("drop", "1")
        .file("stargz.index.json", toc)
        .finish();
    let mut bytes = Vec::new();
    let members: Vec<&[u8]> = tar.chunks(1024).collect();
    members.iter().for_each(|member| bytes.extend(gzip(member)));
    let extra = [&b"SG\x16\x00"[..], format!("{:016x}STARGZ", 2048).as_bytes()].concat();
    let mut footer =
        flate2::GzBuilder::new().extra(extra).write(Vec::new(), flate2::Compression::none());
    footer.flush().unwrap();
    bytes.extend(footer.finish().unwrap());
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let digest = Digest::of(&bytes);
    let digested = ("containerd.io/snapshot/stargz/toc.digest", Digest::of(toc.as_bytes()));
    let blob = Blob::new(bytes, format!("{OCI}+gzip"), tar).annotated(digested.0, digested.1);
    let (tree, whole, filtered) = through(&layout(dir.path(), &[blob], None), dir.path());
    // Engines that do not know the format unpack its files too.
    assert_eq!(names(&tree), ["/.no.prefetch.landmark", "/a", "/drop", "/stargz.index.json"]);
    assert_eq!(whole.layers[0].blob.unwrap().0, digest, "not the same bytes");
    // The table's digest is how a snapshotter trusts it; another layer has no such table.
    let told = [(digested.0.to_owned(), digested.1.to_string())].into();
    assert_eq!(whole.layers[0].annotations, told);
    assert!(filtered.layers[0].annotations.is_empty(), "{:?}", filtered.layers[0]);
}

/// zstd:chunked: a frame for each file, and the table of contents and the footer in frames that decoders
/// skip (RFC 8878, 3.1.2).
#[test]
fn zstd_chunked_layers_are_layers() {
    let tar = layer().file("a", "1").file("drop", "1").finish();
    let skippable = |data: &[u8]| {
        let len = u32::try_from(data.len()).unwrap().to_le_bytes();
        [&0x184d_2a50u32.to_le_bytes()[..], &len, data].concat()
    };
    let frames = |start: &[u8]| {
        let mut bytes = start.to_vec();
        tar.chunks(1024).for_each(|part| bytes.extend(zstd::encode_all(part, 3).unwrap()));
        let toc = zstd::encode_all(&br#"{"version":1,"entries":[]}"#[..], 3).unwrap();
        bytes.extend(skippable(&toc));
        bytes.extend(skippable(&[7; 64]));
        bytes
    };
    for bytes in [frames(b""), frames(&skippable(b"first"))] {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let place = ("io.github.containers.zstd-chunked.manifest-position", "1:2:3:1");
        let blob = Blob::new(bytes, format!("{OCI}+zstd"), tar.clone());
        let blob = blob.annotated(place.0, place.1);
        let layout = layout(dir.path(), &[blob], None);
        let (tree, whole, filtered) = through(&layout, dir.path());
        assert_eq!(names(&tree), ["/a", "/drop"]);
        // Whole, but compressed otherwise: the places in it are others.
        assert!([whole, filtered].iter().all(|image| image.layers[0].annotations.is_empty()));
        let out = dir.path().join("zstd");
        let packing = Packing { compression: Compression::Zstd, ..Packing::default() };
        let zstd = written(&open(&layout).unwrap(), packing, &out);
        assert_eq!(zstd.layers[0].annotations, [(place.0.into(), place.1.into())].into());
    }
}

/// Layers that may not be handed on lie in a layout like others, or are elsewhere: then slim says which.
#[test]
fn foreign_layers_are_read_where_they_are() {
    let tar = layer().file("a", "1").file("drop", "1").finish();
    let oci = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip";
    let docker = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
    for kind in [oci, docker] {
        for here in [true, false] {
            let dir = tempfile::tempdir_in("/var/tmp").unwrap();
            let blob = Blob { here, ..Blob::new(gzip(&tar), kind.into(), tar.clone()) };
            let digest = Digest::of(&blob.bytes);
            let layout = layout(dir.path(), &[blob], None);
            if here {
                let (_, whole, filtered) = through(&layout, dir.path());
                // The bytes are there for all to have; another layer is nowhere else.
                assert_eq!(whole.layers[0].urls, [ELSEWHERE]);
                assert!(filtered.layers[0].urls.is_empty());
                for image in [whole, filtered] {
                    assert_eq!(image.layers[0].media_type, format!("{OCI}+gzip"));
                }
                continue;
            }
            let error = open(&layout).map(|image| index(&image).map(drop));
            let error = format!("{error:?}");
            assert!(error.contains("layer 0") && error.contains(digest.hex().as_str()), "{error}");
        }
    }
}

/// `history` may be missing, too short, or too long (image-spec, config.md: it is optional).
#[test]
fn images_need_no_history() {
    let tars = [layer().file("a", "1").finish(), layer().file("drop", "1").finish()];
    let step = json!({ "created_by": "step" });
    let empty = json!({ "created_by": "CMD", "empty_layer": true });
    for history in [
        None,
        Some(json!([])),
        Some(json!([step])),
        Some(json!([step, empty, step])),
        Some(json!([step, step, step, step])),
    ] {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let blob = |tar: &Vec<u8>| {
            let (bytes, kind) = (gzip(tar), format!("{OCI}+gzip"));
            Blob::new(bytes, kind, tar.clone())
        };
        let blobs: Vec<Blob> = tars.iter().map(blob).collect();
        let layout = layout(dir.path(), &blobs, history.clone());
        let (_, whole, filtered) = through(&layout, dir.path());
        for (image, layers) in [(whole, 2), (filtered, 1)] {
            assert_eq!(image.layers.len(), layers, "{history:?}");
            let Some(written) = image.config.0["history"].as_array() else { continue };
            let real = written.iter().filter(|step| step["empty_layer"] != true).count();
            assert!(real == layers || written.is_empty(), "{history:?} became {written:?}");
        }
    }
}
