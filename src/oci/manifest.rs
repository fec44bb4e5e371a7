//! Index, manifest and descriptor (OCI image-spec v1.1; Docker's schema 2 has the same shape).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub const OCI_LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// The annotation that names an image inside a layout.
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The annotation under which containerd and Docker keep the full reference.
pub const CONTAINERD_NAME: &str = "io.containerd.image.name";

/// Layers slim can read: a tar, plain or compressed with gzip or zstd.
const LAYERS: &[&str] = &[
    OCI_LAYER,
    OCI_LAYER_GZIP,
    OCI_LAYER_ZSTD,
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
];

/// True for the media type of a layer that slim can read.
pub fn is_layer(media_type: &str) -> bool {
    LAYERS.contains(&media_type)
}

/// The media type of the same layer where nothing forbids to hand it on (image-spec v1.1, layer.md,
/// "Non-Distributable Layers").
pub fn distributable(media_type: &str) -> String {
    media_type.replace(".nondistributable.", ".").replace(".foreign.", ".")
}

/// True for the media types of an index or manifest list.
pub fn is_index(media_type: &str) -> bool {
    matches!(media_type, OCI_INDEX | DOCKER_INDEX)
}

/// True for the media types of an image manifest.
pub fn is_manifest(media_type: &str) -> bool {
    matches!(media_type, OCI_MANIFEST | DOCKER_MANIFEST)
}

/// A reference to a blob, with what it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    /// As written; parsed where it is used, so that the message can name the place.
    pub digest: String,
    /// Bytes.
    pub size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Where else the same bytes can be had (image-spec v1.1, descriptor.md).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// What an image runs on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    pub os: String,
    pub architecture: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_deref().filter(|v| !v.is_empty()).map_or(Ok(()), |v| write!(f, "/{v}"))
    }
}

impl Descriptor {
    /// True for images and lists of them; not for the attestations that builders put beside
    /// (`unknown/unknown`).
    pub fn is_image(&self) -> bool {
        let unknown = self.platform.as_ref().is_some_and(|p| p.os == "unknown");
        (is_index(&self.media_type) || is_manifest(&self.media_type)) && !unknown
    }
}

impl Platform {
    /// Reads `os/architecture[/variant]`.
    pub fn parse(text: &str) -> Self {
        let mut parts = text.splitn(3, '/').map(str::to_owned);
        Self {
            os: parts.next().unwrap_or_default(),
            architecture: parts.next().unwrap_or_default(),
            variant: parts.next(),
        }
    }

    /// True if `wanted` (`os/architecture[/variant]`) accepts this one; a wish without a variant
    /// takes any, and arm64 is the same as arm64/v8.
    pub fn matches(&self, wanted: &str) -> bool {
        let mut parts = wanted.splitn(3, '/');
        let (os, architecture) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
        let variant = parts.next();
        let same = |want: &str| {
            let have = self.variant.as_deref().unwrap_or("");
            have == want
                || (architecture == "arm64" && [have, want].iter().all(|v| matches!(*v, "" | "v8")))
        };
        self.os == os && self.architecture == architecture && variant.is_none_or(same)
    }
}

/// An index; `index.json` of a layout is one too.
#[derive(Debug, Clone, Deserialize)]
pub struct Index {
    pub manifests: Vec<Descriptor>,
}

/// An image manifest.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    pub schema_version: u32,
    #[serde(default)]
    pub media_type: String,
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// One image of a docker-archive's `manifest.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DockerItem {
    pub config: String,
    pub repo_tags: Option<Vec<String>>,
    pub layers: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_platform_without_variant_takes_any() {
        let platform = |variant: Option<&str>, architecture: &str| Platform {
            os: "linux".into(),
            architecture: architecture.into(),
            variant: variant.map(str::to_owned),
        };
        for (have, wanted, want) in [
            (platform(None, "amd64"), "linux/amd64", true),
            (platform(Some("v7"), "arm"), "linux/arm", true),
            (platform(Some("v7"), "arm"), "linux/arm/v6", false),
            (platform(None, "arm64"), "linux/arm64/v8", true),
            (platform(None, "arm64"), "linux/amd64", false),
            (platform(None, "amd64"), "amd64", false),
        ] {
            assert_eq!(have.matches(wanted), want, "{have} for {wanted}");
        }
    }
}
