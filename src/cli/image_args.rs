//! The image a verb works on, and how it is reached.

use std::path::PathBuf;

use clap::Args;

use crate::oci::limits::Limits;
use crate::pipeline::PipelineError;
use crate::source::Access;

/// Which image, and how to reach it.
#[derive(Args, Debug)]
pub(super) struct ImageArgs {
    /// Image: oci:PATH[:TAG], oci-archive:PATH, docker-archive:PATH, - (an archive on standard
    /// input), docker-daemon:NAME, containers-storage:NAME, containerd:[NAMESPACE/]NAME,
    /// docker://NAME, container:NAME (what that container was made from) or a path; a bare name that is
    /// no path is looked for in Docker, Podman, containerd and its registry, in this order
    #[arg(long, allow_hyphen_values = true)]
    image: Option<String>,
    #[command(flatten)]
    reach: ReachArgs,
}

/// How to reach an image.
#[derive(Args, Debug)]
pub(super) struct ReachArgs {
    /// Platform to pick from an index, os/arch[/variant]
    #[arg(long)]
    platform: Option<String>,
    /// containers-policy.json(5) that decides which images may be used, and whose signatures they need
    /// [default: the user's or the host's, if there is one]
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Refuse an image whose layers unpack to more (a decompression bomb), like 500g [default: 200g]
    #[arg(long, value_name = "SIZE", value_parser = super::units::size)]
    max_image_bytes: Option<u64>,
    /// Refuse an image with more entries in its layers [default: 5000000]
    #[arg(long, value_name = "N")]
    max_entries: Option<u64>,
    #[command(flatten)]
    wire: WireArgs,
}

/// How to reach registries.
#[derive(Args, Debug)]
pub(super) struct WireArgs {
    /// Speak HTTP without TLS to registries
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    plain_http: Option<bool>,
    /// Credentials for registries, as docker login and podman login write them [default: theirs]
    #[arg(long, value_name = "FILE")]
    authfile: Option<PathBuf>,
    /// Folder with certificates (*.crt, *.cert, *.key) to use with registries, besides certs.d
    #[arg(long, value_name = "DIR")]
    cert_dir: Option<PathBuf>,
}

impl WireArgs {
    pub(super) fn options(&self) -> crate::wire::Options {
        crate::wire::Options {
            plain_http: self.plain_http.unwrap_or(false),
            authfile: self.authfile.clone(),
            cert_dir: self.cert_dir.clone(),
            stop: Some(crate::runtime::interrupted),
        }
    }
}

impl ReachArgs {
    fn limits(&self) -> Limits {
        let usual = Limits::default();
        Limits {
            bytes: self.max_image_bytes.unwrap_or(usual.bytes),
            entries: self.max_entries.unwrap_or(usual.entries),
        }
    }

    pub(super) fn access(&self) -> Access {
        Access {
            platform: self.platform.clone(),
            wire: self.wire.options(),
            policy: self.policy.clone(),
            limits: self.limits(),
            ours: false,
            tell: Some(super::progress::note_once),
        }
    }
}

impl ImageArgs {
    pub(super) fn access(&self) -> Access {
        self.reach.access()
    }

    /// The image, which is needed and may come from flag, environment or file.
    pub(super) fn need(self, verb: &str) -> Result<String, PipelineError> {
        need_image(self.image, verb)
    }
}

/// The same, from wherever it comes.
pub(super) fn need_image(image: Option<String>, verb: &str) -> Result<String, PipelineError> {
    image.ok_or_else(|| {
        PipelineError::Usage(format!(
            "no image: give --image, SLIM_{}_IMAGE or image in slim.toml",
            verb.to_uppercase()
        ))
    })
}
